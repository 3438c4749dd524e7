package repository

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"slices"
	"time"

	"github.com/dustin/go-humanize/english"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/manifest"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// When an index file (x...) is lost, Kopia sees nothing amiss: content that only it named is not there, backups among it are in no list, and
// their packs are freed as what nobody needs. But each pack has a copy of its own index at its end. So maintenance, before it frees
// anything, looks for packs that no index names and that hold content no index has, and indexes them anew.
//
// A pack may be without an index for three reasons:
//
//   - Its index is lost. Then this brings back what it named.
//   - Who wrote it was killed before its index was written, or is at it (Kopia writes an index every ten minutes, and with each checkpoint). To index it
//     is harmless: content that no backup needs is deleted by the same rules as all other, a day later, and then its pack is. Packs become
//     durable in the order in which they are written, but for the last ones, which are written at once. So a killed backup may have left the
//     pack with its manifest and not all of its content; such a backup is then in the list, verify names what it lacks, and who wants
//     it no more deletes it. Nothing is taken for content that is not.
//   - Maintenance released it: its content was deleted long ago, or moved to another pack. It must not come back: backups that were forgotten
//     would, without their content. So maintenance notes which packs it releases, in released.json. Before it begins, it notes all
//     that are named, since it may release any of them; once it has ended, those of them that are not named any more. Killed in
//     between, the next one takes what lost its index for released, as Kopia does; the one after that does not again.
//
// Without the file, nothing was released if Kopia has never maintained the repository, and all of it may be otherwise: it was maintained by a version from before.

// unindexedAge is how old a pack without an index is that nobody is about to index.
const unindexedAge = time.Hour

const releasedLimit = 1 << 30

// releasedFile is what released.json holds.
type releasedFile struct {
	Packs []blob.ID `json:"packs"`
}

// released are the packs that maintenance has released, or may have. Maintained says that there was any maintenance.
func (r *Repository) released(ctx context.Context, maintained bool) (packSet, error) {
	name := r.o.dir() + "released.json"
	info, err := r.o.Store.Stat(ctx, name)
	if errors.Is(err, iofs.ErrNotExist) {
		if maintained {
			return r.allUnnamed(ctx)
		}
		return packSet{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look which packs are free: %w", r.storage.note(ctx, err))
	}
	b := make([]byte, min(info.Size, releasedLimit))
	if err := r.o.Store.ReadAt(ctx, name, b, 0); err != nil {
		return nil, fmt.Errorf("look which packs are free: %w", r.storage.note(ctx, err))
	}
	var f releasedFile
	if err := json.Unmarshal(b, &f); err != nil {
		return r.allUnnamed(ctx)
	}
	s := packSet{}
	for _, id := range f.Packs {
		s[id] = true
	}
	return s, nil
}

// allUnnamed are all packs without an index.
func (r *Repository) allUnnamed(ctx context.Context) (packSet, error) {
	p, err := r.packs(ctx)
	if err != nil {
		return nil, err
	}
	s := packSet{}
	for id := range p.there {
		s[id] = true
	}
	return p.unnamed(s), nil
}

func (r *Repository) putReleased(ctx context.Context, s packSet) error {
	f := releasedFile{Packs: make([]blob.ID, 0, len(s))}
	for id := range s {
		f.Packs = append(f.Packs, id)
	}
	slices.Sort(f.Packs)
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := r.o.Store.Create(ctx, r.o.dir()+"released.json", bytes.NewReader(b), int64(len(b)), archive.CreateOptions{Replace: true}); err != nil {
		return fmt.Errorf("note which packs are free: %w", err)
	}
	return nil
}

// unindexed are packs that hold content of which no index knows.
type unindexed struct {
	packs   []blob.Metadata
	records bool // there are records among it, of backups for instance
}

// lookForUnindexed looks for those of an age, without what was released.
func (r *Repository) lookForUnindexed(ctx context.Context, m *content.WriteManager, released packSet, age time.Duration) (*unindexed, error) {
	p, err := r.packs(ctx)
	if err != nil {
		return nil, err
	}
	u := &unindexed{}
	for id, b := range p.there {
		if p.named[id] || released[id] || time.Since(b.Timestamp) < age {
			continue
		}
		var infos []content.Info
		err := r.storage.judged(func() (err error) {
			infos, err = m.RecoverIndexFromPackBlob(ctx, id, b.Length, false)
			return err
		})
		if ctx.Err() != nil || errors.Is(err, errUnread) {
			return nil, err
		}
		if err != nil {
			continue // it is damaged, and nothing can tell what it held
		}
		unknown := false
		for _, i := range infos {
			_, err := m.ContentInfo(ctx, i.ContentID)
			if err != nil && !errors.Is(err, content.ErrContentNotFound) {
				return nil, err
			}
			if err != nil {
				unknown = true
				u.records = u.records || i.ContentID.HasPrefix() && i.ContentID.Prefix() == manifest.ContentPrefix
			}
		}
		if unknown {
			u.packs = append(u.packs, b)
		}
	}
	return u, nil
}

// indexAnew indexes packs that lost their index, and tells how many.
func (r *Repository) indexAnew(ctx context.Context, released packSet, age time.Duration) (n int, err error) {
	err = repo.DirectWriteSession(ctx, r.kopia, repo.WriteSessionOptions{Purpose: "index anew"}, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		u, err := r.lookForUnindexed(ctx, w.ContentManager(), released, age)
		if err != nil {
			return err
		}
		for _, b := range u.packs {
			if _, err := w.ContentManager().RecoverIndexFromPackBlob(ctx, b.BlobID, b.Length, true); err != nil {
				return fmt.Errorf("index the pack %s anew: %w", b.BlobID, err)
			}
		}
		n = len(u.packs)
		return nil
	})
	return n, err
}

// missIndex adds to what was found that an index is lost. It does when that has cost backups, or content of those that were looked at: content alone is also what
// a backup leaves that was killed.
func (r *Repository) missIndex(ctx context.Context, v *Verified) error {
	if ctx.Err() != nil {
		return nil
	}
	return repo.DirectWriteSession(ctx, r.kopia, repo.WriteSessionOptions{Purpose: "look for packs without an index"}, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		_, err := r.storage.GetMetadata(ctx, scheduleBlob)
		if err != nil && !errors.Is(err, blob.ErrBlobNotFound) {
			return err
		}
		released, err := r.released(ctx, err == nil)
		if err != nil {
			return err
		}
		u, err := r.lookForUnindexed(ctx, w.ContentManager(), released, unindexedAge)
		if err != nil || !u.records && len(v.Errors) == 0 || len(u.packs) == 0 {
			return err
		}
		v.Errors = append(v.Errors, fmt.Sprintf("an index file (x...) is lost: %s content that no index names, so that backups may be missing in the list: 'tidemark volumes maintain' indexes it anew; then verify again",
			english.Plural(len(u.packs), "pack holds", "packs hold")))
		return nil
	})
}

// scheduleBlob is where Kopia keeps when it did what.
const scheduleBlob blob.ID = "kopia.maintenance"
