package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/csi"
	"github.com/tidemark-backup/tidemark/volumes/hooks"
	"github.com/tidemark-backup/tidemark/volumes/kube"
	"github.com/tidemark-backup/tidemark/volumes/mover"
	"github.com/tidemark-backup/tidemark/volumes/policy"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// What is not said of a Cluster.
const (
	DefaultConcurrency = 4
	DefaultPerNode     = 2
	DefaultReadyTime   = 30 * time.Minute
)

// Cluster is where claims are backed up and restored.
type Cluster struct {
	Client *kube.Client
	Mover  Mover
	// Exec runs a program in a container. Default: the Client does.
	Exec func(ctx context.Context, namespace, pod, container string, command []string) (kube.Executed, error)
	// Namespace is where claims that are made of snapshots are mounted, to be read. Default: the claim's own.
	Namespace string
	// Concurrency is how many movers there are at once, of backups and of restores together, and how many units of claims are worked on. PerNode is how many
	// movers there are on one node, of those that can run on no other: what reads or fills a claim that is mounted there.
	Concurrency, PerNode int
	// ReadyTime is how long a snapshot may take to be ready to use.
	ReadyTime time.Duration
	// Blocks says how lists of changed blocks are used.
	Blocks BlockOptions
}

// Mover does jobs in Pods that mount the claim. It is a mover.Runner.
type Mover interface {
	Run(ctx context.Context, name string, job mover.Job, at mover.Place, store archive.Store, tags func() (map[string]string, error), progress func(repository.Progress)) (*mover.Outcome, error)
	// Owner is whose its movers are.
	Owner() string
}

// Policies say what is done with which claim, and which hooks are run.
type Policies struct {
	Policies []policy.Policy
	Velero   []*policy.Velero
	Hooks    hooks.Rules
}

// ClaimsRequest asks for backups of claims.
type ClaimsRequest struct {
	Namespaces []string `json:"namespaces,omitempty"` // empty: all
	Claims     []string `json:"claims,omitempty"`     // their names; empty: all
	Selector   string   `json:"selector,omitempty"`   // labels of claims
	// Policy takes the claims of that policy only, as a schedule does.
	Policy string `json:"policy,omitempty"`
	// Action goes before all policies.
	Action policy.Action `json:"action,omitempty"`
	// KeepSnapshots keeps the snapshots of policy.Move as well.
	KeepSnapshots bool `json:"keepSnapshots,omitempty"`
	// Group says what is taken at one instant, before all policies.
	Group policy.Group `json:"group,omitempty"`
	// ReadAll reads all of block devices, and finds out whether the driver's list of changed blocks is right; of file systems it is that of repository.BackupOptions.
	ReadAll bool   `json:"readAll,omitempty"`
	Run     string `json:"run,omitempty"`    // default: one is made
	Origin  string `json:"origin,omitempty"` // default: "manual"
	// TTL and Pinned are those of Spec.
	TTL    time.Duration `json:"ttl,omitempty"`
	Pinned bool          `json:"pinned,omitempty"`
}

// Skipped is a claim that is not backed up, and why.
type Skipped struct {
	Claim  string `json:"claim"` // "namespace/name"
	Reason string `json:"reason"`
}

// task is one claim that is to be backed up.
type task struct {
	policy.Volume
	choice policy.Choice
	class  string // the VolumeSnapshotClass
	group  string // "label=value"; empty: it is alone
	backup *Backup

	cut      *csi.Group // the snapshot that it was taken with; nil: alone
	taken    *csi.Taken
	err      error
	unhooked Consistency // what it would be without hooks

	readAll bool
	listed  int  // backups before it that rely on lists of changed blocks
	tracked bool // its driver tells of changed blocks, so its snapshot is kept for the next backup to compare with
}

func (t *task) key() string { return t.Claim.Namespace + "/" + t.Claim.Name }

func (t *task) block() bool {
	return t.Claim.Spec.VolumeMode != nil && *t.Claim.Spec.VolumeMode == corev1.PersistentVolumeBlock
}

// node is where the claim is mounted; empty when it is nowhere.
func (t *task) node() string {
	for _, p := range t.Pods {
		if p.Spec.NodeName != "" {
			return p.Spec.NodeName
		}
	}
	return ""
}

// unit are claims that are backed up together: those of a group, and those of Pods with hooks.
type unit struct {
	tasks []*task
	pods  []*hooked
	live  [][]*task // those that are read as they are, by the places of their movers
}

// fail has all claims of the unit fail.
func (u *unit) fail(err error) {
	for _, t := range u.tasks {
		t.err = errors.Join(t.err, err)
	}
}

// failed reports whether there is nothing left to do for any of its claims.
func (u *unit) failed() bool {
	return !slices.ContainsFunc(u.tasks, func(t *task) bool { return t.err == nil })
}

// hooked is a Pod with hooks.
type hooked struct {
	pod  *corev1.Pod
	plan *hooks.Plan
	err  error // what it says of hooks is not understood; there is no plan
}

// idle reports whether there is nothing to run.
func (h *hooked) idle() bool { return h.err == nil && h.plan.Empty() }

// survey finds the claims that a request is about, and says what is done with each.
func (k *Keeper) survey(ctx context.Context, q *ClaimsRequest) (units []*unit, skipped []Skipped, err error) {
	selector, err := labels.Parse(q.Selector)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: the selector %q: %w", ErrRequest, q.Selector, err)
	}
	namespaces := q.Namespaces
	if len(namespaces) == 0 {
		namespaces = []string{""}
	}
	var tasks []*task
	for _, ns := range namespaces {
		claims, err := kube.List[corev1.PersistentVolumeClaim](ctx, k.o.Cluster.Client, kube.Claims, ns, selector.String())
		if err != nil {
			return nil, nil, err
		}
		pods, err := kube.List[corev1.Pod](ctx, k.o.Cluster.Client, kube.Pods, ns, "")
		if err != nil {
			return nil, nil, err
		}
		for _, c := range claims {
			if len(q.Claims) > 0 && !slices.Contains(q.Claims, c.Name) || c.Labels[kube.Label] != "" {
				continue // the latter are our own
			}
			t := &task{Volume: policy.Volume{Claim: c}}
			for _, p := range kube.Mounted(pods, c.Name) {
				if p.Namespace == c.Namespace {
					t.Pods = append(t.Pods, p)
				}
			}
			why, err := k.choose(ctx, q, t)
			if err != nil {
				return nil, nil, err
			}
			if why != "" {
				if q.Policy == "" || why != notOfPolicy {
					skipped = append(skipped, Skipped{t.key(), why})
				}
				continue
			}
			tasks = append(tasks, t)
		}
	}
	if missing := missingClaims(q, tasks, skipped); len(missing) > 0 {
		return nil, nil, fmt.Errorf("%w: there is no claim %s", ErrRequest, missing[0])
	}
	groupByPods(tasks)
	return k.unite(tasks), skipped, nil
}

func missingClaims(q *ClaimsRequest, tasks []*task, skipped []Skipped) (missing []string) {
	for _, name := range q.Claims {
		for _, ns := range q.Namespaces {
			key := ns + "/" + name
			if !slices.ContainsFunc(tasks, func(t *task) bool { return t.key() == key }) && !slices.ContainsFunc(skipped, func(s Skipped) bool { return s.Claim == key }) {
				missing = append(missing, key)
			}
		}
	}
	return missing
}

const notOfPolicy = "is not of this policy"

// choose says what is done with a claim, or why nothing is.
func (k *Keeper) choose(ctx context.Context, q *ClaimsRequest, t *task) (skip string, err error) {
	c := k.o.Cluster.Client
	if t.Claim.Spec.VolumeName == "" || t.Claim.Status.Phase != corev1.ClaimBound {
		return "is not bound to a volume (" + string(t.Claim.Status.Phase) + ")", nil
	}
	if t.PV, err = kube.Get[corev1.PersistentVolume](ctx, c, kube.Volumes, "", t.Claim.Spec.VolumeName); err != nil {
		return "", err
	}
	if t.PV == nil {
		return "has lost its volume " + t.Claim.Spec.VolumeName, nil
	}
	p := k.policies.Load()
	if q.Policy != "" && !k.of(p, q.Policy, t) {
		return notOfPolicy, nil
	}
	t.choice = policy.Choose(&t.Volume, p.Policies, p.Velero)
	if q.Action != "" {
		t.choice.Action, t.choice.Reason = q.Action, "asked for"
	}
	t.choice.KeepSnapshots, t.readAll = t.choice.KeepSnapshots || q.KeepSnapshots, q.ReadAll
	t.choice.Group = cmp.Or(q.Group, t.choice.Group)
	if t.choice.Action == policy.Skip {
		return "is skipped: " + t.choice.Reason, nil
	}
	if t.choice.Action != policy.Kopia {
		t.class, err = "", errNoDriver
		if d := t.Driver(); d != "" {
			t.class, err = csi.Class(ctx, c, d, t.Claim, t.choice.SnapshotClass)
		}
		switch {
		case err == nil && t.choice.Action == policy.Auto:
			t.choice.Action = policy.Snapshot
		case err != nil && t.choice.Action == policy.Auto:
			t.choice.Action, t.choice.Reason = policy.Kopia, t.choice.Reason+"; "+err.Error()
		case err != nil:
			t.err = err // it fails, and the others do not
		}
	}
	if t.choice.Action != policy.Kopia {
		t.group = labelGroup(t.Claim)
	}
	return "", nil
}

// errNoDriver is why there is no snapshot of a volume that no CSI driver made.
var errNoDriver = errors.New("no CSI driver made its volume, so there are no snapshots of it")

// of reports whether a policy is the first that covers a claim.
func (k *Keeper) of(p *Policies, name string, t *task) bool {
	for i := range p.Policies {
		if p.Policies[i].Covers(&t.Volume) {
			return p.Policies[i].Name == name
		}
	}
	return false
}

// unite puts tasks together that must not be apart. A Pod whose hooks cannot be understood costs its unit the backup, and no other: the claims of
// many namespaces may be in one run.
func (k *Keeper) unite(tasks []*task) []*unit {
	rules := &k.policies.Load().Hooks
	sets := newSets(len(tasks))
	byGroup, byPod := map[string]int{}, map[string]int{}
	plans := map[string]*hooked{}
	for i, t := range tasks {
		if t.group != "" {
			key := t.Claim.Namespace + "/" + t.Driver() + "/" + t.group
			if j, ok := byGroup[key]; ok {
				sets.join(i, j)
			}
			byGroup[key] = i
		}
		for _, p := range t.Pods {
			if p.Status.Phase != corev1.PodRunning {
				continue
			}
			key := p.Namespace + "/" + p.Name
			if plans[key] == nil {
				plan, err := rules.For(p)
				plans[key] = &hooked{p, plan, err}
			}
			if plans[key].idle() {
				continue
			}
			if j, ok := byPod[key]; ok {
				sets.join(i, j)
			}
			byPod[key] = i
		}
	}
	var units []*unit
	for _, members := range sets.all() {
		u := &unit{}
		for _, i := range members {
			t := tasks[i]
			u.tasks = append(u.tasks, t)
			for _, p := range t.Pods {
				if h := plans[p.Namespace+"/"+p.Name]; h != nil && !h.idle() && !slices.Contains(u.pods, h) {
					u.pods = append(u.pods, h)
				}
			}
		}
		for _, h := range u.pods {
			if h.err != nil {
				u.fail(fmt.Errorf("%w: its hooks are not understood: %w", ErrRequest, h.err))
			}
		}
		units = append(units, u)
	}
	return units
}

// newClaimBackup is the record of a backup of a claim that begins.
func (k *Keeper) newClaimBackup(q *ClaimsRequest, t *task) *Backup {
	size := t.Capacity()
	b := k.newBackup(t.Claim.Namespace, Spec{
		Claim: t.Claim.Name, Run: q.Run, Origin: q.Origin, TTL: q.TTL, Pinned: q.Pinned, Action: t.choice.Action, Reason: t.choice.Reason,
		Source: &Source{StorageClass: t.Class(), Driver: t.Driver(), Volume: t.PV.Name, Capacity: size.Value(), Mode: string(corev1.PersistentVolumeFilesystem)},
	})
	if t.PV.Spec.CSI != nil {
		b.Spec.Source.Handle = t.PV.Spec.CSI.VolumeHandle
	}
	if t.block() {
		b.Spec.Source.Mode = string(corev1.PersistentVolumeBlock)
	}
	b.Status.Before = journal.Cut{Time: k.o.Clock().UTC()}
	return b
}
