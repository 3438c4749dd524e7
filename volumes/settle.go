package volumes

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/csi"
	"github.com/tidemark-backup/tidemark/volumes/kube"
	"github.com/tidemark-backup/tidemark/volumes/mover"
)

// cutShort is the error of a backup that a process which died was making.
const cutShort = "tidemark ended while it was being made; the next one goes on from what was sent"

// Settle ends what a process that died was doing: post hooks that it owes are run, what it made in the cluster is taken away, and the records of
// backups end: those whose content is whole are done, the others failed. No other Keeper may make backups of this history.
func (k *Keeper) Settle(ctx context.Context) (err error) {
	defer func() {
		if err == nil {
			k.once.Do(func() { close(k.settled) })
		}
	}()
	all, err := k.List(ctx)
	if err != nil {
		return err
	}
	made := map[string]bool{} // the claims that backups made of their snapshots
	for _, b := range all {
		for _, ns := range k.spaces(b) {
			made[ns+"/"+b.Metadata.Name] = true
		}
	}
	all = slices.DeleteFunc(all, func(b *Backup) bool { return b.Status.Phase != Running || !b.Metadata.Created.Before(k.began) })
	if k.o.Cluster != nil {
		if err := k.payHooks(ctx, all); err != nil { // before all else: an application may be waiting
			return err
		}
		if err := mover.Sweep(ctx, k.o.Cluster.Client, k.o.Cluster.Mover.Owner()); err != nil {
			if kube.Lasting(err) == nil {
				return err // the cluster may be away, and it is tried again
			}
			k.o.Logger.Warn("movers that a daemon before this one left cannot be looked for", zap.Error(err))
		}
	}
	if k.o.Cluster != nil {
		if err := k.settleUnrecorded(ctx, made); err != nil {
			return err
		}
		k.settleBases(ctx, "", false)
	}
	if len(all) == 0 {
		return nil
	}
	held, err := k.held(ctx)
	if err != nil {
		return err
	}
	gone := map[string]bool{} // groups of snapshots
	for _, b := range all {
		hooks, snapshot := b.Status.Hooks, b.Status.Snapshot
		b.Status.Phase, b.Status.Finished, b.Status.Error = Failed, k.o.Clock().UTC(), cutShort
		for _, h := range held {
			if h.Metadata.Name == b.Metadata.Name {
				b.Status = h.Status
				b.Status.Hooks, b.Status.Snapshot = hooks, snapshot
			}
		}
		if k.o.Cluster != nil && b.Spec.Claim != "" {
			if err := k.sweep(ctx, b, gone); err != nil { // one driver that is gone must not stop all backups
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				b.Status.Notes = append(b.Status.Notes, "what it left cannot be removed: "+err.Error()+"; 'tidemark volumes delete' tries it again")
				k.o.Logger.Warn("what a volume backup that was cut off left cannot be removed", zap.String("backup", b.Metadata.Name), zap.Error(err))
			}
		}
		k.o.Logger.Warn("a volume backup was cut off", zap.String("backup", b.Metadata.Name), zap.String("phase", string(b.Status.Phase)))
		if err := k.record(ctx, b, journal.Modified); err != nil {
			return err
		}
	}
	return nil
}

// settleUnrecorded takes away what no record of a backup that was cut off tells of: what a check made; the objects by which a snapshot was to be deleted;
// volumes of claims that are gone.
func (k *Keeper) settleUnrecorded(ctx context.Context, made map[string]bool) error {
	c := k.o.Cluster.Client
	for what, settle := range map[string]func() error{
		"checks of storage classes": func() error { return k.settleChecks(ctx) },
		"deletions of snapshots": func() error {
			k.mu.Lock() // all that delete snapshots have it
			defer k.mu.Unlock()
			return csi.SweepDeletes(ctx, c)
		},
		"volumes of claims that are gone": func() error {
			return csi.ReleaseVolumes(ctx, c, func(pv *corev1.PersistentVolume) bool {
				return pv.Status.Phase == corev1.VolumeReleased && pv.Spec.ClaimRef != nil && made[pv.Spec.ClaimRef.Namespace+"/"+pv.Spec.ClaimRef.Name]
			})
		},
	} {
		err := settle()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && kube.Lasting(err) == nil:
			return fmt.Errorf("look for %s that a daemon before this one left: %w", what, err) // the cluster may be away, and it is tried again
		case err != nil:
			k.o.Logger.Warn("what a daemon before this one left cannot be looked for", zap.String("what", what), zap.Error(err))
		}
	}
	return nil
}

// awaitSettled keeps what is begun now apart from what is swept.
func (k *Keeper) awaitSettled(ctx context.Context) error {
	select {
	case <-k.settled:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// spaces are the namespaces in which a backup makes objects.
func (k *Keeper) spaces(b *Backup) []string {
	spaces := []string{b.Metadata.Namespace}
	if c := k.o.Cluster; c != nil && c.Namespace != "" && c.Namespace != b.Metadata.Namespace {
		spaces = append(spaces, c.Namespace)
	}
	return spaces
}

// sweep takes away what a backup that was cut off left in the cluster and in its storage.
func (k *Keeper) sweep(ctx context.Context, b *Backup, gone map[string]bool) error {
	c, name := k.o.Cluster.Client, b.Metadata.Name
	ctx, cancel := context.WithTimeout(ctx, dropTime)
	defer cancel()
	if b.Spec.Source == nil || b.Spec.Source.Driver == "" {
		return nil
	}
	err := csi.Unmark(ctx, c, b.Metadata.Namespace, b.Spec.Claim)
	for _, ns := range k.spaces(b) {
		err = errors.Join(err, csi.DropClaim(ctx, c, ns, name), csi.Sweep(ctx, c, ns, name))
	}
	if b.Status.Snapshot != nil && err == nil {
		if group := b.Status.Snapshot.Group; group != "" { // all of it was cut off
			if gone[group] {
				b.Status.Snapshot = nil
				return nil
			}
			gone[group] = true
		}
		if err = csi.Delete(ctx, c, *b.Status.Snapshot, name); err == nil {
			b.Status.Snapshot = nil
		}
	}
	return err
}
