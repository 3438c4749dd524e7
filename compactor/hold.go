package compactor

import (
	"context"
	"fmt"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// Hold sets a legal hold on a snapshot, or lifts it. Snapshots of the same state share a file; it
// stays held as long as one of them is.
func Hold(ctx context.Context, a *archive.Archive, name string, on bool) (*archive.Snapshot, error) {
	p := a.State().Snapshot(name)
	if p == nil {
		return nil, fmt.Errorf("%w: %s: 'tidemark snapshot list' shows what there is", ErrUnknown, name)
	}
	if on { // before anybody is told so
		if err := a.Hold(ctx, p.Name, true); err != nil {
			return nil, err
		}
	}
	out, err := Edit(ctx, a, p.ID, func(p *archive.Snapshot) error {
		p.Held = on
		return nil
	})
	if err != nil || on {
		return out, err
	}
	return out, releaseUnheld(ctx, a, out.File)
}

// releaseUnheld lifts the store's hold on a file that no held snapshot has.
func releaseUnheld(ctx context.Context, a *archive.Archive, f archive.File) error {
	for _, p := range a.State().Snapshots {
		if p.Held && p.Name == f.Name {
			return nil
		}
	}
	return a.Hold(ctx, f.Name, false)
}

// holdLike sets a hold on the file that is to take the place of another, if a held snapshot has
// that one; held reports whether one has.
func holdLike(ctx context.Context, a *archive.Archive, old, renewed archive.File) (held bool, err error) {
	for _, p := range a.State().Snapshots {
		if p.Held && p.Name == old.Name {
			return true, a.Hold(ctx, renewed.Name, true)
		}
	}
	return false, nil
}
