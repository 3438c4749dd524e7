package volumes

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/dustin/go-humanize"
	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/csi"
	"github.com/tidemark-backup/tidemark/volumes/policy"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// Of a block device, only what has changed is read, where its driver tells what that is. For it to tell, the snapshot of the backup before must still
// be there: so the newest one is kept, as the backup's Base, and goes when the next backup is done. The daemon asks, and not the mover: it has the right to.

// DefaultAuditEvery is how many backups of a device may rely on lists of changed blocks before all of it is read.
const DefaultAuditEvery = 20

// BlockOptions say how lists of changed blocks are used.
type BlockOptions struct {
	// Off reads all of every device, always.
	Off bool
	// Account is the ServiceAccount, "namespace/name", whose tokens are shown to drivers. Default: the one that the daemon runs as.
	Account string
	// AuditEvery is how many backups may rely on lists in a row; the one after reads all, and finds out whether the list is right. Zero: DefaultAuditEvery.
	AuditEvery int
}

// listTime bounds how long a driver may take to tell of blocks.
const listTime = 15 * time.Minute

func (b *Backup) note(format string, args ...any) {
	b.Status.Notes = append(b.Status.Notes, fmt.Sprintf(format, args...))
}

// blocks asks which blocks of a device have to be read; nil: all of them, and a note says why. namespace is where its snapshot is, under the
// name of the backup.
func (k *Keeper) blocks(ctx context.Context, t *task, namespace, location string, report *report) *repository.Blocks {
	b, o := t.backup, &k.o.Cluster.Blocks
	const all = "the whole device was read: "
	switch {
	case t.Driver() == "":
		return nil
	case o.Off:
		b.note(all + "lists of changed blocks are switched off")
		return nil
	case t.choice.Action != policy.Move:
		b.note(all + "drivers tell of the changed blocks of snapshots: back it up with snapshot-then-kopia")
		return nil
	}
	report.step(t, "asking the driver which blocks have changed")
	s, err := csi.Blocks(ctx, k.o.Cluster.Client, t.Driver())
	if err == nil && s == nil {
		b.note("%sdriver %s offers no list of changed blocks (no SnapshotMetadataService of its name)", all, t.Driver())
		return nil
	}
	t.tracked = true
	q := csi.BlockQuery{Namespace: namespace, Snapshot: b.Metadata.Name}
	if err == nil {
		q.Token, err = k.o.Cluster.Client.Token(ctx, o.Account, s.Spec.Audience)
	}
	if err != nil {
		b.note("%sits list of changed blocks cannot be asked for: %v", all, err)
		return nil
	}
	backups, err := k.List(ctx)
	if err != nil {
		b.note("%sthe backup before is not known: %v", all, err)
		return nil
	}
	if base := baseOf(backups, t, location); base != nil {
		q.Base = base.base().ID
		list, err := k.list(ctx, s, q, base.Status.Content.Bytes)
		if err == nil {
			list.Base, list.Audit = base.Status.Content.ID, t.readAll || base.Status.Content.Wrong > 0 || base.Status.Content.Listed >= k.auditEvery()
			t.listed = base.Status.Content.Listed
			return list
		}
		b.note("what has changed since %s is not known: %v", base.Metadata.Name, err)
		q.Base = ""
	}
	list, err := k.list(ctx, s, q, b.Status.Snapshot.Size)
	if err != nil {
		b.note("%swhat of it holds data is not known: %v", all, err)
		return nil
	}
	list.Audit = t.readAll
	return list
}

func (k *Keeper) auditEvery() int {
	if n := k.o.Cluster.Blocks.AuditEvery; n > 0 {
		return n
	}
	return DefaultAuditEvery
}

// list asks for one list. size is that of the device if the driver tells of no block, and so of no size.
func (k *Keeper) list(ctx context.Context, s *csi.BlockService, q csi.BlockQuery, size int64) (*repository.Blocks, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, listTime, fmt.Errorf("the driver did not come to an end within %s", listTime))
	defer cancel()
	list := &repository.Blocks{Size: size}
	err := s.List(ctx, q, func(size, offset, length int64) error {
		list.Size = size
		return list.Add(offset, length)
	})
	return list, err
}

// base is the snapshot that the next backup can be compared with; nil: there is none.
func (b *Backup) base() *csi.Handle {
	if b.Status.Base != nil {
		return b.Status.Base
	}
	return b.Status.Snapshot
}

// baseOf is the newest backup of the same volume, in the same place, that the next one can be compared with; nil: there is none.
func baseOf(all []*Backup, t *task, location string) *Backup {
	for _, b := range slices.Backward(all) {
		if b.Volume() == t.key() && b.comparable() && b.Status.Content.Location == location &&
			b.Spec.Source != nil && b.Spec.Source.Handle == t.PV.Spec.CSI.VolumeHandle && b.Spec.Source.Driver == t.Driver() {
			return b
		}
	}
	return nil
}

// comparable reports whether a backup has content, and a snapshot of just that.
func (b *Backup) comparable() bool {
	return b.Status.Phase == Done && b.Status.Content != nil && b.base() != nil
}

// tellBlocks records what was read of a device, and what a person should know of it.
func (k *Keeper) tellBlocks(t *task, list *repository.Blocks, r *repository.Result) {
	b, c := t.backup, t.backup.Status.Content
	c.Read, c.Wrong = r.Read, r.Wrong
	switch {
	case list == nil:
	case r.Whole != "":
		b.note("the whole device was read: %s", r.Whole)
	case r.Wrong > 0:
		b.note("THE DRIVER'S LIST OF CHANGED BLOCKS WAS WRONG: %s that it did not name had changed. This backup read all and is right; the %d before it, since all was read last, may hold old data. All is read until a list is right again",
			humanize.IBytes(uint64(r.Wrong)), t.listed)
		k.o.Logger.Error("a driver's list of changed blocks was wrong", zap.String("driver", t.Driver()), zap.String("backup", b.Metadata.Name), zap.Int64("bytes", r.Wrong))
	case list.Audit:
		b.note("the whole device was read, and the driver's list of changed blocks found right")
	default:
		c.Listed = t.listed + 1
	}
}

// keepBase keeps the snapshot of a backup that is done for the next one, if the driver will tell what has changed since. Those of a group
// are not kept: they can only go together.
func (k *Keeper) keepBase(t *task) bool {
	s := &t.backup.Status
	if !t.tracked || t.err != nil || s.Snapshot == nil || s.Snapshot.Group != "" {
		return false
	}
	s.Base, s.Snapshot = s.Snapshot, nil
	return true
}

// dropOldBases deletes the snapshots that were kept for a backup that is done; all of them when drivers do not tell (any more) what has changed.
func (k *Keeper) dropOldBases(ctx context.Context, t *task) {
	if !t.block() || t.choice.Action != policy.Move || t.backup.Status.Phase != Done {
		return
	}
	k.settleBases(context.WithoutCancel(ctx), t.key(), !t.tracked)
}

// settleBases leaves a volume the newest snapshot that is kept to compare with, or none with all. No volume: each.
func (k *Keeper) settleBases(ctx context.Context, volume string, all bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	backups, err := k.List(ctx)
	if err != nil {
		k.o.Logger.Warn("the snapshots that are kept to compare with cannot be looked for", zap.Error(err))
		return
	}
	for _, b := range oldBases(backups, volume, all) {
		if err := k.releaseBase(ctx, b); err != nil {
			k.o.Logger.Warn("a snapshot that was kept to compare with cannot be deleted; it is tried again after the next backup", zap.String("backup", b.Metadata.Name), zap.Error(err))
		}
	}
}

// oldBases are the backups whose snapshot is not wanted any more for the next backup; backups are sorted.
func oldBases(backups []*Backup, volume string, all bool) (old []*Backup) {
	newer := map[string]bool{} // volumes that have a newer one
	for _, b := range slices.Backward(backups) {
		if volume != "" && b.Volume() != volume || !b.comparable() {
			continue
		}
		if b.Status.Base != nil && (all || newer[b.Volume()]) {
			old = append(old, b)
		}
		newer[b.Volume()] = true
	}
	return old
}

func (k *Keeper) releaseBase(ctx context.Context, b *Backup) error {
	if err := k.dropBase(ctx, b); err != nil {
		return err
	}
	return k.record(ctx, b, journal.Modified)
}

// dropBase deletes the snapshot that was kept to compare with.
func (k *Keeper) dropBase(ctx context.Context, b *Backup) error {
	if b.Status.Base == nil {
		return nil
	}
	limited, cancel := context.WithTimeoutCause(ctx, dropTime, fmt.Errorf("the driver did not delete it within %s", dropTime))
	defer cancel()
	if err := csi.Delete(limited, k.o.Cluster.Client, *b.Status.Base, b.Metadata.Name); err != nil {
		return err
	}
	b.Status.Base = nil
	return nil
}
