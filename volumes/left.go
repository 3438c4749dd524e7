package volumes

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/csi"
)

// Left is what a backup that has ended was to remove in the cluster and could not: objects with its name, and perhaps a snapshot. It says nothing of the content.
type Left struct {
	Snapshot *csi.Handle `json:"snapshot,omitempty"`
}

// dropTime bounds how long deleting a snapshot, or what was made of it, may take.
const dropTime = 2 * time.Minute

var errDropTime = fmt.Errorf("it was not gone within %s", dropTime)

// dropping is a context to remove one thing with, also when the run is cancelled.
func dropping(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(ctx), dropTime, errDropTime)
}

// leave notes what could not be removed. The content is as good as it was, so the backup does not fail with it.
func (b *Backup) leave(what string, snapshot *csi.Handle, why error) {
	if b.Status.Left == nil {
		b.Status.Left = &Left{}
	}
	if snapshot != nil {
		b.Status.Left.Snapshot = snapshot
	}
	b.note("%s could not be removed from the cluster: %v. The daemon tries it again with the next backups, and 'tidemark volumes delete' does", what, why)
}

// removeLeft removes what backups that have ended left.
func (k *Keeper) removeLeft(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	all, err := k.List(ctx)
	if err != nil {
		k.o.Logger.Warn("what volume backups left in the cluster cannot be looked for", zap.Error(err))
		return
	}
	var wg sync.WaitGroup
	for _, b := range all {
		if b.Status.Left == nil || b.Status.Phase == Running {
			continue
		}
		wg.Go(func() {
			err := k.dropLeft(ctx, b)
			if err == nil {
				err = k.record(ctx, b, journal.Modified)
			}
			if err != nil {
				k.o.Logger.Warn("what a volume backup left in the cluster cannot be removed; it is tried again with the next backups", zap.String("backup", b.Metadata.Name), zap.Error(err))
			}
		})
	}
	wg.Wait()
}

// dropLeft removes what one backup left.
func (k *Keeper) dropLeft(ctx context.Context, b *Backup) error {
	if b.Status.Left == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, dropTime, errDropTime)
	defer cancel()
	c, name := k.o.Cluster.Client, b.Metadata.Name
	var err error
	for _, ns := range k.spaces(b) {
		err = errors.Join(err, csi.DropClaim(ctx, c, ns, name), csi.Sweep(ctx, c, ns, name))
	}
	if h := b.Status.Left.Snapshot; h != nil && err == nil {
		err = csi.Delete(ctx, c, *h, name)
	}
	if err == nil {
		b.Status.Left = nil
	}
	return err
}
