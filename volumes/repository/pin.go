package repository

import (
	"context"
	"slices"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/manifest"
)

// pinType is the type of the manifests that say whether a backup is pinned. They lie beside the backup's own: Kopia's manifests do not change, and
// one that was made anew would have another ID than the one that history knows.
const pinType = "tidemark-pin"

// pin is what such a manifest holds.
type pin struct {
	Pinned bool `json:"pinned"`
}

// Pin notes that what a tag was given to is pinned, or is not any more. Forget forgets it, of what Tagged finds.
func (r *Repository) Pin(ctx context.Context, key, value string, pinned bool) error {
	if err := r.refresh(ctx); err != nil {
		return err
	}
	return r.failed(repo.WriteSession(ctx, r.kopia, repo.WriteSessionOptions{Purpose: "pin"}, func(ctx context.Context, w repo.RepositoryWriter) error {
		_, err := w.ReplaceManifests(ctx, map[string]string{manifest.TypeLabelKey: pinType, tagPrefix + key: value}, pin{pinned})
		return err
	}))
}

// Pins are the newest notes of Pin, by the values of a tag.
func (r *Repository) Pins(ctx context.Context, key string) (map[string]bool, error) {
	if err := r.refresh(ctx); err != nil {
		return nil, err
	}
	found, err := r.kopia.FindManifests(ctx, map[string]string{manifest.TypeLabelKey: pinType})
	if err != nil {
		return nil, r.failed(r.damage(ctx, err))
	}
	slices.SortFunc(found, func(a, b *manifest.EntryMetadata) int { return a.ModTime.Compare(b.ModTime) }) // two at once may both have written
	pins := map[string]bool{}
	for _, e := range found {
		var p pin
		if _, err := r.kopia.GetManifest(ctx, e.ID, &p); err != nil {
			return nil, r.failed(r.damage(ctx, err))
		}
		pins[e.Labels[tagPrefix+key]] = p.Pinned
	}
	return pins, nil
}
