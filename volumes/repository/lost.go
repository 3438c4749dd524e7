package repository

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/snapshotfs"
	"golang.org/x/sync/errgroup"
)

// Kopia believes its index: content that is named there is not written again, and a file that is as in the backup before is not read. When a
// pack is gone from the store, all backups from then on would so need what is not there. So each backup compares the index with the
// list of the packs, which costs one request for a thousand packs. Only when some are gone, it looks through what it has made, and what it needs
// of theirs is written anew: all is read for that once more. Older backups that need the same content are whole again, too.
//
// Damage within a pack is seen by nobody who does not read it. That of a file's content is got over by moving the pack away, but not that of a directory: its
// packs have the list of backups as well. So a backup that meets a damaged directory, as it compares with the one before, or that is to read all, reads all directories of the
// repository, and has damaged ones written anew.

// lost is what the index names and the store does not have.
type lost struct {
	packs map[blob.ID]bool // that are gone, or shorter than they were
	// metadata are the directories and indexes of files in them, or damaged elsewhere.
	metadata []content.ID
}

// lookForLost compares the index with the packs.
func (r *Repository) lookForLost(ctx context.Context) (*lost, error) {
	l, err := r.compare(ctx)
	if err != nil || len(l.packs) == 0 {
		return l, err
	}
	// A maintenance by somebody else may have replaced packs since the index was read.
	if err := r.refresh(ctx); err != nil {
		return nil, err
	}
	return r.compare(ctx)
}

func (r *Repository) compare(ctx context.Context) (*lost, error) {
	sizes := map[blob.ID]int64{} // as the index has them, at least
	each := func(f func(content.Info)) error {
		return r.kopia.ContentReader().IterateContents(ctx, content.IterateOptions{IncludeDeleted: true}, func(i content.Info) error {
			f(i)
			return nil
		})
	}
	if err := each(func(i content.Info) {
		sizes[i.PackBlobID] = max(sizes[i.PackBlobID], int64(i.PackOffset)+int64(i.PackedLength))
	}); err != nil {
		return nil, r.failed(err)
	}
	for _, prefix := range content.PackBlobIDPrefixes {
		if err := r.kopia.BlobReader().ListBlobs(ctx, prefix, func(m blob.Metadata) error {
			if size, ok := sizes[m.BlobID]; ok && m.Length >= size {
				delete(sizes, m.BlobID)
			}
			return nil
		}); err != nil {
			return nil, r.failed(err)
		}
	}
	l := &lost{packs: map[blob.ID]bool{}}
	if len(sizes) == 0 {
		return l, nil
	}
	for id := range sizes {
		l.packs[id] = true
	}
	err := each(func(i content.Info) {
		if l.packs[i.PackBlobID] && !i.Deleted && i.ContentID.HasPrefix() && i.ContentID.Prefix() != manifest.ContentPrefix {
			l.metadata = append(l.metadata, i.ContentID)
		}
	})
	return l, r.failed(err)
}

// readMetadata adds the directories and indexes of files that are there, and damaged. One that was read wrongly only now is safe: it is written
// anew, or maintenance finds that it is still needed.
func (l *lost) readMetadata(ctx context.Context, r *Repository) error {
	var ids []content.ID
	if err := r.kopia.ContentReader().IterateContents(ctx, content.IterateOptions{}, func(i content.Info) error {
		if !l.packs[i.PackBlobID] && i.ContentID.HasPrefix() && i.ContentID.Prefix() != manifest.ContentPrefix {
			ids = append(ids, i.ContentID)
		}
		return nil
	}); err != nil {
		return r.failed(err)
	}
	var mu sync.Mutex
	readers, ctx := errgroup.WithContext(ctx)
	readers.SetLimit(8)
	for _, id := range ids {
		readers.Go(func() error {
			_, err := r.kopia.ContentReader().GetContent(ctx, id)
			switch {
			case err == nil || errors.Is(err, content.ErrContentNotFound):
				return nil
			case ctx.Err() != nil || r.storage.trouble() != nil || !isDamage(err):
				return r.failed(err)
			}
			mu.Lock()
			defer mu.Unlock()
			l.metadata = append(l.metadata, id)
			return nil
		})
	}
	return readers.Wait()
}

// make makes a backup by content that needs nothing of what is lost.
func (l *lost) make(ctx context.Context, r *Repository, s *session, content func(*session) (*snapshot.Manifest, error)) (*snapshot.Manifest, error) {
	if len(l.packs) == 0 && len(l.metadata) == 0 {
		m, err := content(s)
		if err != nil || !s.damage.Load() || m.IncompleteReason != "" || unread(m) != nil {
			return m, err
		}
		if err := l.readMetadata(ctx, r); err != nil || len(l.metadata) == 0 {
			return m, err
		}
		s.progress.restart()
	}
	// Without its directories no old backup can be compared with, so that nothing is kept from being read.
	if err := s.forget(ctx, l.metadata); err != nil {
		return nil, err
	}
	s.again = len(l.metadata) > 0
	for try := 0; ; try++ {
		m, err := content(s)
		if err != nil || m.IncompleteReason != "" || unread(m) != nil {
			return m, err
		}
		missing, err := l.wanted(ctx, s.w, m)
		if err != nil || len(missing) == 0 {
			return m, err
		}
		if try > 0 {
			return nil, fmt.Errorf("%d pieces of its content are lost from the store, and could not be written anew: make the backup again", len(missing))
		}
		if err := s.forget(ctx, missing); err != nil {
			return nil, err
		}
		s.again = true
		s.progress.restart()
	}
}

// wanted are the contents of a backup that are lost.
func (l *lost) wanted(ctx context.Context, w repo.RepositoryWriter, m *snapshot.Manifest) ([]content.ID, error) {
	root, err := snapshotfs.SnapshotRoot(w, m)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	found := map[content.ID]bool{}
	walker, err := snapshotfs.NewTreeWalker(ctx, snapshotfs.TreeWalkerOptions{Parallelism: 4, EntryCallback: func(ctx context.Context, _ fs.Entry, id object.ID, path string) error {
		contents, err := w.VerifyObject(ctx, id)
		if err != nil {
			return fmt.Errorf("look at what was written of %s: %w", path, err)
		}
		for _, c := range contents {
			info, err := w.ContentInfo(ctx, c)
			if err != nil {
				return fmt.Errorf("look at what was written of %s: %w", path, err)
			}
			if l.packs[info.PackBlobID] {
				mu.Lock()
				found[c] = true
				mu.Unlock()
			}
		}
		return nil
	}})
	if err != nil {
		return nil, err
	}
	defer walker.Close(ctx)
	err = walker.Process(ctx, root, "")
	return slices.Collect(maps.Keys(found)), err
}

// noticing is a session's repository, as Kopia reads the directories of the backup before from it: it goes on without those that it cannot read, and says nothing.
type noticing struct {
	repo.DirectRepositoryWriter
	damage *atomic.Bool
}

// OpenObject implements repo.Repository.
func (n *noticing) OpenObject(ctx context.Context, id object.ID) (object.Reader, error) {
	in, err := n.DirectRepositoryWriter.OpenObject(ctx, id)
	if err != nil && isDamage(err) {
		n.damage.Store(true)
	}
	return in, err //nolint:wrapcheck // Kopia asked
}

// forget has the index take contents for deleted, so that they are written when they are wanted again. Whoever needs them cannot read them anyway; should
// their packs come back, Kopia's maintenance makes use of them.
func (s *session) forget(ctx context.Context, ids []content.ID) error {
	w, ok := s.w.(repo.DirectRepositoryWriter)
	if !ok {
		return errors.New("the repository cannot be written to directly")
	}
	for _, id := range ids {
		if err := w.ContentManager().DeleteContent(ctx, id); err != nil {
			return fmt.Errorf("have lost content written anew: %w", err)
		}
	}
	return nil
}
