package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// writeOfSnapshot makes a claim of a snapshot. When its storage does not have that any more, the claim gets the files that the backup has as well; without
// files nothing is made, nor what would begin on it, and nothing that is there is deleted for it.
func (a *applier) writeOfSnapshot(ctx context.Context, it *Item) error {
	lost, err := a.lostSnapshot(ctx, it)
	if err == nil && lost == "" {
		lost, err = a.madeForFiles(ctx, it)
	}
	switch {
	case err != nil:
		return err
	case lost == "":
		_, err = a.writeItem(ctx, it)
		return err
	case !it.Volume.Files:
		err = fmt.Errorf("%s: resume the restore if that has passed, or choose another backup with --volumes ('tidemark volumes list' shows what there is), or --volumes none for an empty claim", lost)
	case a.o.Fill == nil:
		err = fmt.Errorf("%s, and the files of its backup cannot take its place: %w", lost, ErrNoFill)
	}
	if err != nil {
		return &noContent{err}
	}
	claim := it.create.object()
	claim.drop("spec", "dataSource")
	it.create = pack(claim.json())
	if _, err = a.writeItem(ctx, it); err != nil && !errors.As(err, new(*otherwise)) {
		return err
	}
	if !a.begin(it) || !a.recorded() { // with its uid, so that it is known as ours when the fill is cut off
		return ErrStopped
	}
	if err := a.fill(ctx, it); err != nil {
		return err
	}
	return &otherwise{errors.Join(fmt.Errorf("%s, so it got the files of the same backup", lost), err)}
}

// madeForFiles says that an earlier run lost the snapshot and made the claim without it; empty: it did not.
func (a *applier) madeForFiles(ctx context.Context, it *Item) (lost string, err error) {
	if it.prior.Made == "" {
		return "", nil
	}
	u, err := a.target.get(ctx, it.served, it.Namespace, it.Name)
	if err == nil && u != nil && string(u.GetUID()) == it.prior.UID && object(u.Object).at("spec", "dataSource") == nil {
		lost = fmt.Sprintf("its snapshot %s was not found when it was made", it.Volume.Snapshot.Handle)
	}
	return lost, err
}

// lostSnapshot says that, and why, the snapshot that a claim is to be made of is lost; empty: it is there, or nothing is known of it within the limit for waits.
func (a *applier) lostSnapshot(ctx context.Context, it *Item) (lost string, err error) {
	name := it.create.object().str("spec", "dataSource", "name")
	_, err = a.until(ctx, it.String()+": its snapshot to be found", func(ctx context.Context) (bool, error) {
		for _, gr := range []schema.GroupResource{groupContents, snapshotContents, snapshots} { // the driver tells in the content first
			served, ok := a.target.version(gr, "v1")
			if !ok || gr == groupContents && it.Volume.Snapshot.Group == "" {
				continue
			}
			namespace := ""
			if gr == snapshots {
				namespace = it.Namespace
			}
			u, err := a.target.get(ctx, served, namespace, name)
			switch {
			case err != nil:
				return false, err
			case u == nil:
				became := "was deleted"
				if a.uid(objectKey{gr, namespace, name}) == "" {
					became = "could not be made"
				}
				lost = fmt.Sprintf("%s %s, by which it would find its snapshot %s, %s", gr, name, it.Volume.Snapshot.Handle, became)
				return true, nil
			}
			// What the driver's side says when it does not know a handle.
			if msg := object(u.Object).str("status", "error", "message"); strings.Contains(msg, "can not find") || strings.Contains(msg, "NotFound") {
				lost = fmt.Sprintf("its snapshot %s is gone from the storage of driver %s", it.Volume.Snapshot.Handle, it.Volume.Snapshot.Driver)
				return true, nil
			}
			if ready, _ := object(u.Object).at("status", "readyToUse").(bool); gr == snapshots && ready {
				return true, nil
			}
		}
		return false, nil
	})
	return lost, err
}

// lose keeps workloads from beginning on a claim that does not get its content.
func (a *applier) lose(it *Item, why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.empty[it.key()] = why
}

// noContent is why a claim was not made: there is nothing to make it of.
type noContent struct{ error }

func (n *noContent) Unwrap() error { return n.error }

// isEmpty reports whether a claim did not get its content.
func (a *applier) isEmpty(it *Item) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.empty[it.key()] != nil
}

// unmake notes that what a claim was to be made of has to be made again; false when that cannot be noted.
func (a *applier) unmake(release *Item) bool {
	if a.o.Record == nil {
		return true
	}
	for i, it := range a.plan.Items {
		if it.Name != release.Snapshot || !slices.Contains(release.imports(), it.Resource) || a.uid(it.key()) == "" {
			continue
		}
		if !a.cannotRecord(a.o.Record.note(i, outcome{State: "failed", Why: "was taken away again, because its claim did not get its content"})) {
			return false
		}
	}
	return true
}

// isLost reports whether a claim was not made, because there is no content for it.
func (a *applier) isLost(it *Item) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.As(a.empty[it.key()], new(*noContent))
}
