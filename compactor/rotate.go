package compactor

import (
	"context"
	"fmt"
	"slices"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// Rotate encrypts every file of the archive anew for the archive's recipients, so that a key that
// is no longer trusted, or about to be lost, is not needed any more. Each file is committed by
// itself, so Rotate may be cut off and run again: done tells, with each call, what the file was
// and how many are left. Old files are removed like all that goes out of an archive.
func Rotate(ctx context.Context, a *archive.Archive, since map[string]bool, done func(f archive.File, left int)) error {
	state := a.State()
	files := make([]archive.File, 0, len(state.Files()))
	for _, f := range state.Files() {
		if !since[f.Name] {
			files = append(files, f)
		}
	}
	slices.SortFunc(files, func(x, y archive.File) int {
		if x.Name < y.Name {
			return -1
		}
		return 1
	})
	for i, f := range files {
		renewed, err := a.Reencrypt(ctx, f)
		if err != nil {
			return fmt.Errorf("encrypt %s anew: %w", f.Name, err)
		}
		held, err := holdLike(ctx, a, f, renewed)
		if err != nil {
			return fmt.Errorf("hold %s: %w", renewed.Name, err)
		}
		err = a.Commit(ctx, func(s *archive.State) (*archive.Change, error) {
			c := &archive.Change{Step: "rotate"}
			for _, g := range s.Segments {
				if g.Name == f.Name {
					c.Gone = append(c.Gone, g.Name)
					g.File = renewed
					c.Segments = append(c.Segments, g)
				}
			}
			for _, p := range s.Snapshots {
				if p.Name == f.Name {
					c.Gone = append(c.Gone, p.ID)
					p.File = renewed
					c.Snapshots = append(c.Snapshots, p)
				}
			}
			if len(c.Gone) == 0 {
				return nil, nil // it was merged or expired in the meantime
			}
			return c, nil
		})
		if err != nil {
			return err
		}
		if held {
			if err := releaseUnheld(ctx, a, f); err != nil {
				return fmt.Errorf("release %s: %w", f.Name, err)
			}
		}
		if done != nil {
			done(f, len(files)-i-1)
		}
	}
	return nil
}
