package volumes

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/csi"
	"github.com/tidemark-backup/tidemark/volumes/kube"
	"github.com/tidemark-backup/tidemark/volumes/policy"
)

// GroupLabels on claims say, by their value, which ones are taken at one instant. The second is Velero's.
var GroupLabels = []string{"tidemark.dev/volume-group", "velero.io/volume-group"}

// labelGroup is the group that a claim's labels put it in; empty: none.
func labelGroup(c *corev1.PersistentVolumeClaim) string {
	for _, l := range GroupLabels {
		if v := c.Labels[l]; v != "" {
			return l + "=" + v
		}
	}
	return ""
}

// groupByPods makes groups of the claims that one Pod uses, where that is asked for: of one driver, and in no group by a label. Kubernetes chooses the claims
// of a group by a label, so they are given one for as long as that takes.
func groupByPods(tasks []*task) {
	sets := newSets(len(tasks))
	first := map[string]int{}
	for i, t := range tasks {
		if t.choice.Group != policy.GroupPod || t.group != "" || t.choice.Action == policy.Kopia || t.err != nil {
			continue
		}
		for _, p := range t.Pods {
			key := p.Namespace + "/" + p.Name + "/" + t.Driver()
			if j, ok := first[key]; ok {
				sets.join(i, j)
			}
			first[key] = i
		}
	}
	for _, members := range sets.all() {
		if len(members) < 2 {
			continue
		}
		group := kube.Together + "=" + strings.ToLower(rand.Text())
		for _, i := range members {
			tasks[i].group = group
		}
	}
}

// sets are disjoint sets of the numbers below a bound.
type sets struct{ parent []int }

func newSets(n int) *sets {
	s := &sets{make([]int, n)}
	for i := range s.parent {
		s.parent[i] = i
	}
	return s
}

// root is the number that stands for a number's set.
func (s *sets) root(i int) int {
	if s.parent[i] != i {
		s.parent[i] = s.root(s.parent[i])
	}
	return s.parent[i]
}

func (s *sets) join(i, j int) { s.parent[s.root(i)] = s.root(j) }

// all are the sets, by their lowest members.
func (s *sets) all() (all [][]int) {
	at := map[int]int{}
	for i := range s.parent {
		r := s.root(i)
		if _, ok := at[r]; !ok {
			at[r] = len(all)
			all = append(all, nil)
		}
		all[at[r]] = append(all[at[r]], i)
	}
	return all
}

// takeGroup takes snapshots of all claims of a group at one instant. Where that cannot be done, they are taken one by one, with a note.
func (k *Keeper) takeGroup(ctx context.Context, tasks []*task, report *report) {
	first := tasks[0]
	label, value, _ := strings.Cut(first.group, "=")
	q := csi.GroupRequest{Driver: first.Driver(), Namespace: first.Claim.Namespace, Name: first.backup.Metadata.Name, Label: label, Value: value}
	for _, t := range tasks {
		q.Claims = append(q.Claims, t.Claim.Name)
	}
	if label == kube.Together {
		q.Mark = q.Claims
	}
	limited, cancel := context.WithTimeoutCause(ctx, takenTime, fmt.Errorf("they were not taken within %s", takenTime))
	defer cancel()
	report.step(first, fmt.Sprintf("taking a snapshot of %d volumes", len(tasks)))
	g, err := csi.TakeGroup(limited, k.o.Cluster.Client, q)
	if errors.Is(err, csi.ErrNoGroups) {
		var wg sync.WaitGroup
		for _, t := range tasks {
			t.backup.Status.Notes = append(t.backup.Status.Notes, err.Error()+": its group was taken one by one")
			wg.Go(func() { t.err = k.takeOne(ctx, t, report) })
		}
		wg.Wait()
		return
	}
	if gone, is := errors.AsType[*csi.GoneError](err); is {
		if rest := without(tasks, gone); len(rest) > 0 && len(rest) < len(tasks) { // an instant of those that are left is still one
			if err.Error() != gone.Error() { // something of the first try may be left behind
				rest[0].backup.Status.Notes = append(rest[0].backup.Status.Notes, "taking the group with the claims that are gone: "+err.Error())
			}
			k.takeGroup(ctx, rest, report)
			return
		}
	}
	for _, t := range tasks {
		if t.err = err; err == nil {
			t.cut, t.backup.Status.Taken, t.backup.Status.Consistency = g, g.Time, CrashGroup
		}
	}
}

// without are the tasks whose claims are there; the others fail.
func without(tasks []*task, gone *csi.GoneError) (rest []*task) {
	for _, t := range tasks {
		if slices.Contains(gone.Claims, t.Claim.Name) {
			t.err = &csi.GoneError{Namespace: gone.Namespace, Claims: []string{t.Claim.Name}}
			continue
		}
		rest = append(rest, t)
	}
	return rest
}

// settleGroup waits until the members of a group can be used, and hands them to their claims.
func (k *Keeper) settleGroup(ctx context.Context, g *csi.Group, tasks []*task, report *report) {
	report.step(tasks[0], "waiting until the snapshots are ready to use")
	err := k.keepGroup(ctx, g, tasks)
	for _, t := range tasks {
		t.err = errors.Join(t.err, err)
	}
}

// keepGroup is settleGroup, of which one error is one of all. On failure nothing is left.
func (k *Keeper) keepGroup(ctx context.Context, g *csi.Group, tasks []*task) (err error) {
	c := k.o.Cluster.Client
	defer func() {
		if err != nil {
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
			defer cancel()
			err = errors.Join(err, g.Drop(last, c))
		}
	}()
	ready, cancel := k.readyBy(ctx, "the snapshots were not ready to use within %s")
	defer cancel()
	if err := g.Ready(ready, c); err != nil {
		return err
	}
	for _, t := range tasks {
		h, ok := g.Members[t.PV.Spec.CSI.VolumeHandle]
		if !ok {
			return fmt.Errorf("%w: the group has no snapshot of %s", csi.ErrSnapshot, t.key())
		}
		h.Class, h.Mode = t.class, t.backup.Spec.Source.Mode
		t.backup.Status.Snapshot = &h
		if err := k.record(ctx, t.backup, journal.Modified); err != nil {
			return err
		}
	}
	if err := g.Keep(ready, c); err != nil {
		return err
	}
	for _, t := range tasks {
		t.taken = &csi.Taken{Handle: *t.backup.Status.Snapshot, Time: g.Time}
	}
	return nil
}
