package compactor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// Rotate encrypts every file of the archive anew for the archive's recipients, so that a key that
// is no longer trusted, or about to be lost, is not needed any more. Each file is committed by
// itself, so Rotate may be cut off and run again with the same identities: files that they do not decrypt are left, as those that
// an earlier run has done, or a daemon that was given the new recipients. It tells how many there were of each kind, also with an error. Old files are
// removed like all that goes out of an archive.
func Rotate(ctx context.Context, a *archive.Archive) (renewed, others int, err error) {
	files := slices.SortedFunc(maps.Values(a.State().Files()), func(x, y archive.File) int { return strings.Compare(x.Name, y.Name) })
	for _, f := range files {
		err := rotate(ctx, a, f)
		switch {
		case errors.Is(err, archive.ErrNoIdentity):
			others++
		case err != nil:
			return renewed, others, err
		default:
			renewed++
		}
	}
	return renewed, others, nil
}

func rotate(ctx context.Context, a *archive.Archive, f archive.File) error {
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
	return nil
}
