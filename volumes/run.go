package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/csi"
	"github.com/tidemark-backup/tidemark/volumes/kube"
	"github.com/tidemark-backup/tidemark/volumes/mover"
	"github.com/tidemark-backup/tidemark/volumes/policy"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// ErrPartly is returned when some backups of a run failed.
var ErrPartly = errors.New("not all volumes were backed up")

// errNoCluster is returned where claims cannot be reached.
var errNoCluster = fmt.Errorf("%w: claims are reached by the daemon of their cluster only, not with --archive", ErrRequest)

// Made is what became of a run.
type Made struct {
	Run     string    `json:"run"`
	Backups []*Backup `json:"backups"`
	Skipped []Skipped `json:"skipped,omitempty"`
}

// takenTime bounds how long it may take until a snapshot is of an instant: until then the application waits, if there are hooks. Some storage
// systems copy everything until it is ready to use.
const takenTime = 2 * time.Minute

// readyBy bounds how long a snapshot may take to be ready to use.
func (k *Keeper) readyBy(ctx context.Context, late string) (context.Context, context.CancelFunc) {
	limit := cmp.Or(k.o.Cluster.ReadyTime, DefaultReadyTime)
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf(late+" (volumes.readyTimeout)", limit))
}

// BackClaims backs claims up. Each backup is recorded when it begins and when it ends, whatever its end; those that failed do not stop the
// others. The order of things, for claims that belong together: recorded as running with the post hooks that are owed; pre
// hooks; cut; snapshots, or files; cut; post hooks; and then all that takes time.
func (k *Keeper) BackClaims(ctx context.Context, q ClaimsRequest, progress func(repository.Progress)) (*Made, error) {
	if k.o.Cluster == nil {
		return nil, fmt.Errorf("%w; a directory is backed up with --path", errNoCluster)
	}
	if q.Origin == "" {
		q.Origin = "manual"
	}
	switch {
	case q.Run == "":
		q.Run = backupName("run", k.o.Clock())
	case q.Origin == "manual": // a schedule's has the time in it
		if err := k.checkName(ctx, q.Run); err != nil {
			return nil, err
		}
	}
	if err := checkTTL(q.TTL); err != nil {
		return nil, err
	}
	if err := k.awaitSettled(ctx); err != nil {
		return nil, err
	}
	units, skipped, err := k.survey(ctx, &q)
	if err != nil {
		return nil, err
	}
	if q.Policy != "" && q.Origin == Scheduled(q.Policy) {
		k.tally.cover(q.Policy, units, k.o.Clock())
	}
	m := &Made{Run: q.Run, Skipped: skipped, Backups: []*Backup{}}
	report := newReport(progress)
	var wg sync.WaitGroup
	wg.Go(func() { k.removeLeft(ctx) })
	for _, u := range units {
		for _, t := range u.tasks {
			t.backup = k.newClaimBackup(&q, t)
			m.Backups = append(m.Backups, t.backup)
		}
	}
	for _, u := range units {
		wg.Go(func() { k.runUnit(ctx, u, report) })
	}
	wg.Wait()
	Sort(m.Backups)
	failed := 0
	for _, b := range m.Backups {
		if b.Status.Phase != Done {
			failed++
		}
	}
	if failed > 0 {
		err = fmt.Errorf("%w: %d of %d failed", ErrPartly, failed, len(m.Backups))
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return m, err
}

// runUnit backs up the claims of a unit, and records what became of them.
func (k *Keeper) runUnit(ctx context.Context, u *unit, report *report) {
	release, err := k.slots.unit(ctx)
	if err != nil {
		u.fail(err)
	} else {
		defer release()
		k.takeInTurn(ctx, u, report)
	}
	k.settleUnit(ctx, u, report)
	k.dropSnapshots(ctx, u)
	for _, t := range u.tasks {
		k.end(ctx, t)
		k.dropOldBases(ctx, t)
	}
}

// settleUnit does what takes time, when the applications are not held any more.
func (k *Keeper) settleUnit(ctx context.Context, u *unit, report *report) {
	var wg sync.WaitGroup
	settle := func(t *task) {
		wg.Go(func() {
			if t.err == nil && t.taken != nil {
				t.err = k.settleSnapshot(ctx, t, report)
			}
		})
	}
	groups := map[*csi.Group][]*task{}
	for _, t := range u.tasks {
		if t.cut != nil {
			groups[t.cut] = append(groups[t.cut], t)
			continue
		}
		settle(t)
	}
	for g, tasks := range groups {
		wg.Go(func() {
			k.settleGroup(ctx, g, tasks, report)
			for _, t := range tasks {
				settle(t)
			}
		})
	}
	wg.Wait()
}

// takeInTurn takes a unit when there are places for the movers that it needs while the application is held.
func (k *Keeper) takeInTurn(ctx context.Context, u *unit, report *report) {
	var live []*task
	for _, t := range u.tasks {
		if t.choice.Action == policy.Kopia && t.err == nil {
			live = append(live, t)
		}
	}
	if len(live) > 0 {
		var nodes []string
		u.live, nodes = k.slots.share(live)
		release, err := k.slots.movers(ctx, nodes...)
		if err != nil {
			u.fail(err)
			return
		}
		defer release()
	}
	k.takeUnit(ctx, u, report)
}

// takeUnit does what has to be done at one time: until it returns, the applications may be held.
func (k *Keeper) takeUnit(ctx context.Context, u *unit, report *report) {
	before, err := k.o.Fence(ctx)
	if err != nil { // a cluster that cannot even tell its revision will not make snapshots
		u.fail(fmt.Errorf("ask the cluster for its revision: %w", err))
		return
	}
	var owed []Hook
	if !u.failed() {
		owed = k.owedHooks(u)
	}
	for _, t := range u.tasks {
		t.backup.Status.Before, t.backup.Status.Hooks = before, owed
		if err := k.record(ctx, t.backup, journal.Added); err != nil {
			u.fail(err)
		}
	}
	if u.failed() {
		return
	}
	defer k.letGo(context.WithoutCancel(ctx), u, report) // always, also when we are to end: the application may be frozen
	if err := k.runHooks(ctx, u, "pre", report); err != nil {
		u.fail(err)
		return
	}
	if len(u.pods) > 0 {
		if cut, err := k.o.Fence(ctx); err == nil {
			before = cut
		}
	}
	for _, t := range u.tasks {
		t.backup.Status.Before = before
	}
	k.takeAll(ctx, u, report)
	after, err := k.o.Fence(context.WithoutCancel(ctx))
	if err != nil {
		k.o.Logger.Warn("the cluster's revision cannot be read", zap.Error(err))
		after = journal.Cut{Time: k.o.Clock().UTC()}
	}
	for _, t := range u.tasks {
		if t.backup.Status.After.Time.IsZero() {
			t.backup.Status.After = after
		}
	}
}

// letGo runs the post hooks of a unit, and records it at once: a daemon that ends while content is moved owes them no more.
func (k *Keeper) letGo(ctx context.Context, u *unit, report *report) {
	if len(u.pods) == 0 {
		return
	}
	_ = k.runHooks(ctx, u, "post", report) // it is in the notes of the backups
	failed := slices.ContainsFunc(u.tasks[0].backup.Status.Hooks, func(h Hook) bool { return h.When == "post" && h.State == HookFailed })
	for _, t := range u.tasks {
		s := &t.backup.Status
		if failed && s.Consistency == Application { // it may tell that what the pre hook took was lost meanwhile, as a lock can be
			s.Consistency = t.unhooked
			t.backup.note("counts as %s: a post hook failed, so the application may not have been held all the time", t.unhooked)
		}
		last, cancel := context.WithTimeout(ctx, recordTime)
		if err := k.record(last, t.backup, journal.Modified); err != nil { // the next daemon would run them again
			k.o.Logger.Warn("that the hooks of a volume backup were run cannot be recorded", zap.String("backup", t.backup.Metadata.Name), zap.Error(err))
		}
		cancel()
	}
}

// takeAll takes the snapshots of a unit, and reads the files of those that have none.
func (k *Keeper) takeAll(ctx context.Context, u *unit, report *report) {
	groups := map[string][]*task{}
	var wg sync.WaitGroup
	for _, t := range u.tasks {
		switch {
		case t.err != nil, t.choice.Action == policy.Kopia:
		case t.group != "":
			key := t.Claim.Namespace + "/" + t.Driver() + "/" + t.group
			groups[key] = append(groups[key], t)
		default:
			wg.Go(func() { t.err = k.takeOne(ctx, t, report) })
		}
	}
	for _, lot := range u.live {
		wg.Go(func() {
			for _, t := range lot {
				t.err = k.backLive(ctx, u, t, report)
			}
		})
	}
	for _, tasks := range groups {
		wg.Go(func() { k.takeGroup(ctx, tasks, report) })
	}
	wg.Wait()
	for _, t := range u.tasks {
		if t.err == nil && t.choice.Action != policy.Kopia {
			u.tell(t)
		}
	}
}

func (k *Keeper) takeOne(ctx context.Context, t *task, report *report) error {
	ctx, cancel := context.WithTimeoutCause(ctx, takenTime, fmt.Errorf("it was not taken within %s", takenTime))
	defer cancel()
	report.step(t, "taking a snapshot")
	var err error
	t.taken, err = csi.Take(ctx, k.o.Cluster.Client, t.Claim.Namespace, t.Claim.Name, t.backup.Metadata.Name, t.class)
	if err != nil {
		t.taken = nil
		return err
	}
	if of := t.taken.Volume; of != "" && of != t.backup.Spec.Source.Handle { // it is dropped as that of any backup that failed
		return fmt.Errorf("%w: claim %s was deleted and made anew before it was taken: it is of volume %s, and not of %s", csi.ErrSnapshot, t.key(), of, t.backup.Spec.Source.Handle)
	}
	t.backup.Status.Taken, t.backup.Status.Consistency = t.taken.Time, Crash
	return nil
}

// settleSnapshot makes a snapshot one that lasts, and moves its content to the repository if that is wanted.
func (k *Keeper) settleSnapshot(ctx context.Context, t *task, report *report) error {
	c := k.o.Cluster.Client
	if t.backup.Status.Snapshot == nil {
		report.step(t, "waiting until the snapshot is ready to use")
		ready, cancel := k.readyBy(ctx, "the snapshot was not ready to use within %s")
		defer cancel()
		if err := t.taken.Ready(ready, c); err != nil {
			return err
		}
		t.backup.Status.Snapshot = new(t.taken.Handle)
		if err := k.record(ctx, t.backup, journal.Modified); err != nil { // from now on its handle is known, should we end here
			return err
		}
		if err := t.taken.Keep(ready, c); err != nil {
			return err
		}
	}
	if t.choice.Action != policy.Move {
		return nil
	}
	return k.move(ctx, t, report)
}

// dropSnapshots deletes the snapshots of backups that failed, or do not need them any more. Those of a group go together, when none of
// them is wanted.
func (k *Keeper) dropSnapshots(ctx context.Context, u *unit) {
	wanted := map[string]bool{} // groups
	unwanted := func(t *task) bool {
		return t.taken != nil && (t.err != nil || t.choice.Action == policy.Move && !t.choice.KeepSnapshots)
	}
	for _, t := range u.tasks {
		if h := t.backup.Status.Snapshot; h != nil && h.Group != "" && !unwanted(t) {
			wanted[h.Group] = true
		}
	}
	dropped := map[string]bool{} // groups
	var wg sync.WaitGroup
	for _, t := range u.tasks {
		h := t.backup.Status.Snapshot
		switch {
		case !unwanted(t):
		case k.keepBase(t):
		case h != nil && wanted[h.Group]:
			t.backup.note("its snapshot is kept with those of its group")
		case h != nil && dropped[h.Group]:
			t.backup.Status.Snapshot = nil
		default:
			if h != nil && h.Group != "" {
				dropped[h.Group] = true
			}
			wg.Go(func() { k.dropSnapshot(ctx, t) })
		}
	}
	wg.Wait()
}

// dropSnapshot deletes one snapshot, with its group if it has one.
func (k *Keeper) dropSnapshot(ctx context.Context, t *task) {
	last, cancel := dropping(ctx)
	defer cancel()
	h := t.backup.Status.Snapshot
	t.backup.Status.Snapshot = nil // whatever becomes of it, no restore is to use it
	var err error
	if h == nil {
		err = t.taken.Drop(last, k.o.Cluster.Client)
	} else {
		err = csi.Delete(last, k.o.Cluster.Client, *h, t.backup.Metadata.Name)
	}
	if err != nil {
		t.backup.leave("its snapshot", h, err)
	}
}

// move reads the files of a snapshot: of a claim that is made of it, in a Pod that mounts the claim.
func (k *Keeper) move(ctx context.Context, t *task, report *report) error {
	report.step(t, "waiting for the turn of its mover")
	release, err := k.slots.movers(ctx, "") // it is made where the volume can be
	if err != nil {
		return err
	}
	defer release()
	c, name := k.o.Cluster.Client, t.backup.Metadata.Name
	ns := k.o.Cluster.Namespace
	if ns == "" {
		ns = t.Claim.Namespace
	}
	defer func() {
		last, cancel := dropping(ctx)
		defer cancel()
		if left := errors.Join(csi.DropClaim(last, c, ns, name), csi.Release(last, c, ns, name)); left != nil {
			t.backup.leave(fmt.Sprintf("claim %s/%s, which was made of its snapshot,", ns, name), nil, left)
		}
	}()
	report.step(t, "making a volume of the snapshot")
	ready, cancel := k.readyBy(ctx, "the snapshot could not be imported within %s")
	defer cancel()
	if err := csi.Import(ready, c, *t.backup.Status.Snapshot, ns, name); err != nil {
		return err
	}
	claim := csi.Claim(&t.Claim.Spec, *t.backup.Status.Snapshot, ns, name, name, false)
	if _, err := kube.Create(ctx, c, kube.Claims, ns, claim); err != nil {
		return err
	}
	report.step(t, "reading the snapshot")
	return k.read(ctx, t, mover.Place{Namespace: ns, Claim: name, Block: t.block()}, report)
}

// backLive reads the files of a claim as it is used, in a Pod on the node where it is mounted.
func (k *Keeper) backLive(ctx context.Context, u *unit, t *task, report *report) error {
	if len(t.Pods) > 0 && slices.Contains(t.Claim.Spec.AccessModes, corev1.ReadWriteOncePod) {
		return fmt.Errorf("%w: %s can be mounted by one Pod only, and is: back it up with snapshots", ErrRequest, t.key())
	}
	t.backup.Status.Taken, t.backup.Status.Consistency = k.o.Clock().UTC(), Live
	if len(t.Pods) == 0 {
		t.backup.Status.Consistency = Crash // nobody writes to it
	}
	u.tell(t) // before it is read: the repository keeps the record beside
	report.step(t, "reading the volume")
	return k.read(ctx, t, mover.Place{Namespace: t.Claim.Namespace, Claim: t.Claim.Name, Block: t.block(), Node: t.node()}, report)
}

// read backs the content of a mounted claim up.
func (k *Keeper) read(ctx context.Context, t *task, at mover.Place, report *report) error {
	b := t.backup
	r, err := k.o.Open(ctx, true)
	if err != nil {
		return err
	}
	defer k.close(ctx, r)
	live := t.choice.Action == policy.Kopia
	var blocks *repository.Blocks
	if t.block() {
		blocks = k.blocks(ctx, t, at.Namespace, r.Location(), report)
	}
	o, err := k.o.Cluster.Mover.Run(ctx, b.Metadata.Name, mover.Job{
		Kind: mover.Backup, Cluster: r.Cluster(), Password: r.Password(), Source: sourceOf(b), Description: "tidemark " + b.Metadata.Name, Blocks: blocks, ReadAll: t.readAll,
	}, at, r.Store(), func() (map[string]string, error) {
		done := *b // another goroutine owns it
		if !t.choice.KeepSnapshots {
			done.Status.Snapshot = nil // it goes as soon as the content is whole
		}
		if live {
			done.Status.After = k.fence(ctx, b)
		}
		return tagsOf(&done)
	}, func(p repository.Progress) { report.files(t, p) })
	if err != nil {
		return err
	}
	b.keep(r.Location(), &o.Result.Backup)
	b.Status.Content.Unchanged, b.Status.Content.Sent = o.Result.Cached, o.Result.Sent
	if t.block() {
		k.tellBlocks(t, blocks, o.Result)
	}
	return nil
}

// end records what became of a backup.
func (k *Keeper) end(ctx context.Context, t *task) {
	s := &t.backup.Status
	s.Finished, s.Phase = k.o.Clock().UTC(), Done
	if t.err != nil {
		s.Phase, s.Error = Failed, t.err.Error()
		k.o.Logger.Warn("a volume was not backed up", zap.String("backup", t.backup.Metadata.Name), zap.String("claim", t.key()), zap.Error(t.err))
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	if err := k.record(last, t.backup, journal.Modified); err != nil {
		s.Phase, s.Error = Failed, strings.TrimSpace(s.Error+"\n"+err.Error())
		k.o.Logger.Error("the end of a volume backup cannot be recorded", zap.String("backup", t.backup.Metadata.Name), zap.Error(err))
	}
}
