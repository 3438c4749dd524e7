package volumes

import (
	"context"
	"errors"
	"fmt"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/csi"
	"github.com/tidemark-backup/tidemark/volumes/policy"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// Delete forgets a backup, unless it is pinned. Its content is freed by Maintain, a day later. What is cut off on the way is done by FinishDeletes.
func (k *Keeper) Delete(ctx context.Context, name string) (*Backup, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	b, err := k.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	if b.Status.Phase == Running {
		return nil, fmt.Errorf("%w: %s is being made", ErrRequest, b.Metadata.Name)
	}
	if b.Status.Phase != Deleting {
		if err := k.mayGo(ctx, b); err != nil {
			return nil, err
		}
	}
	return b, k.remove(ctx, b)
}

// FinishDeletes removes what is left of backups that were being deleted when a process died, or something failed.
func (k *Keeper) FinishDeletes(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	all, err := k.List(ctx)
	if err != nil {
		return err
	}
	for _, b := range all {
		if b.Status.Phase == Deleting && ctx.Err() == nil {
			if removeErr := k.remove(ctx, b); removeErr != nil {
				err = errors.Join(err, fmt.Errorf("delete %s: %w", b.Metadata.Name, removeErr))
			}
		}
	}
	return err
}

// remove removes a backup: that it is to go is recorded first, as one that has lost something must not be restored, and its record goes last.
func (k *Keeper) remove(ctx context.Context, b *Backup) error {
	if k.elsewhere(b) {
		return fmt.Errorf("%w: %s %s", ErrRequest, b.Metadata.Name, hasSnapshot)
	}
	if b.Status.Phase != Deleting {
		b.Status.Phase = Deleting
		if err := k.record(ctx, b, journal.Modified); err != nil {
			return err
		}
	}
	if err := errors.Join(k.dropLeft(ctx, b), k.dropBase(ctx, b)); err != nil {
		return err
	}
	if b.Status.Snapshot != nil {
		if err := k.deleteSnapshot(ctx, b); err != nil {
			return err
		}
	}
	if err := k.forget(ctx, b); err != nil {
		return err
	}
	return k.record(ctx, b, journal.Deleted)
}

// hasSnapshot is why a backup is not deleted where there is no cluster.
const hasSnapshot = "has a snapshot in the cluster's storage, which the daemon of that cluster deletes with it"

// elsewhere reports whether a backup has something that cannot be deleted from here.
func (k *Keeper) elsewhere(b *Backup) bool {
	return (b.Status.Snapshot != nil || b.Status.Base != nil || b.Status.Left != nil) && k.o.Cluster == nil
}

// existing opens the repository; it is nil when there is none.
func (k *Keeper) existing(ctx context.Context) (*repository.Repository, error) {
	r, err := k.o.Open(ctx, false)
	if errors.Is(err, repository.ErrNoRepository) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// forget has the repository forget all that it has of a backup: a mover that died before it could tell that it was done has left content which no
// record names.
func (k *Keeper) forget(ctx context.Context, b *Backup) error {
	if b.Spec.Action == policy.Snapshot && b.Status.Content == nil {
		return nil
	}
	r, err := k.existing(ctx)
	if r == nil {
		return err
	}
	defer k.close(ctx, r)
	ids, err := r.Tagged(ctx, tagName, b.Metadata.Name)
	if err != nil {
		return err
	}
	if b.Status.Content != nil {
		ids = append(ids, b.Status.Content.ID)
	}
	return r.Forget(ctx, ids...)
}

// deleteSnapshot has the storage delete the snapshot of a backup; one of a group goes with the last of them.
func (k *Keeper) deleteSnapshot(ctx context.Context, b *Backup) error {
	if h := b.Status.Snapshot; h.Group != "" {
		all, err := k.List(ctx)
		if err != nil {
			return err
		}
		for _, o := range all {
			if o.Metadata.Name != b.Metadata.Name && o.Status.Snapshot != nil && o.Status.Snapshot.Group == h.Group {
				return nil
			}
		}
	}
	limited, cancel := context.WithTimeoutCause(ctx, dropTime, fmt.Errorf("the driver did not delete it within %s", dropTime))
	defer cancel()
	return csi.Delete(limited, k.o.Cluster.Client, *b.Status.Snapshot, b.Metadata.Name)
}
