package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kopia/kopia/repo/blob"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

var errDisk = errors.New("the disk is broken (made by a test)")

// disk is a store in a directory, of which a test sees what is staged and not published yet. Loss of power would take that away.
type disk struct {
	archive.Store
	t *testing.T

	mu      sync.Mutex // guards what follows
	pending map[string]bool
	most    int             // that were pending
	fails   int             // the publish that fails, counted from 1; 0: none
	done    int             // how many were published, or should have been
	lost    map[string]bool // names whose publish failed
	created []string        // names that were created and not staged, since a publish failed
	indexes int
}

func newDisk(t *testing.T) *disk {
	store, err := archive.NewDirStore(t.TempDir())
	ok(t, err)
	return &disk{Store: store, t: t, pending: map[string]bool{}, lost: map[string]bool{}}
}

// Stage implements archive.Stager.
func (d *disk) Stage(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) (func() error, error) {
	publish, err := archive.Stage(ctx, d.Store, name, body, size, o)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending[name] = true
	d.most = max(d.most, len(d.pending))
	return func() error {
		d.mu.Lock()
		d.done++
		broken := d.done == d.fails
		d.mu.Unlock()
		err := errDisk
		if !broken {
			err = publish()
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.pending, name)
		if err != nil {
			d.lost[name] = true
		}
		return err
	}, nil
}

// Create implements archive.Store. When an index comes, all is durable: no pack is written meanwhile, in a repository that one backup uses.
func (d *disk) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	d.mu.Lock()
	if strings.HasPrefix(path.Base(name), "x") {
		d.indexes++
		if len(d.pending) > 0 {
			d.t.Errorf("index %s is made while %d packs are not durable", name, len(d.pending))
		}
	}
	if len(d.lost) > 0 {
		d.created = append(d.created, name)
	}
	d.mu.Unlock()
	return d.Store.Create(ctx, name, body, size, o)
}

// random makes a file whose content does not shrink.
func random(t *testing.T, path string, size int, seed byte) {
	t.Helper()
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // it never fails
	ok(t, os.WriteFile(path, b, 0o600))
}

func TestAnIndexComesAfterItsPacks(t *testing.T) {
	w, d := newWorld(t), newDisk(t)
	w.store = d
	r, dir := w.open(), t.TempDir()
	for i := range 4 {
		random(t, fmt.Sprintf("%s/%d", dir, i), 22<<20, byte(i))
	}
	b := w.back(r, dir)
	if d.most < 2 || d.most > packsBehind+4 {
		t.Errorf("%d packs were pending at most", d.most)
	}
	if d.indexes == 0 || d.done < 5 {
		t.Errorf("%d indexes of %d packs were made: nothing was tried", d.indexes, d.done)
	}
	to := t.TempDir()
	_, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{})
	ok(t, err)
	same(t, described(t, to), described(t, dir))
}

func TestALostPackFailsTheBackup(t *testing.T) {
	dir := t.TempDir()
	for i := range 2 {
		random(t, fmt.Sprintf("%s/%d", dir, i), 12<<20, byte(i))
	}
	well := newWorld(t)
	d := newDisk(t)
	well.store = d
	r := well.open()
	prepared := d.done
	well.back(r, dir)
	for name, which := range map[string]int{"the first": prepared + 1, "the last": d.done} {
		t.Run(name, func(t *testing.T) {
			w, d := newWorld(t), newDisk(t)
			w.store, d.fails = d, which
			r, err := Create(t.Context(), w.options())
			ok(t, err)
			_, err = r.Back(t.Context(), Source{"shop", "data"}, dir, BackupOptions{})
			if err == nil || !strings.Contains(err.Error(), errDisk.Error()) {
				t.Errorf("the backup ends with %v, want the error of the disk", err)
			}
			if len(d.lost) != 1 || len(d.created) > 0 {
				t.Errorf("%d packs were lost, and %v written afterwards", len(d.lost), d.created)
			}
			if err := r.Close(t.Context()); !errors.Is(err, errDisk) {
				t.Errorf("Close: %v, want the error of the disk", err)
			}

			// Nothing refers to the lost pack, so that the next try is whole.
			r = w.open()
			if all, err := r.List(t.Context()); err != nil || len(all) > 0 {
				t.Errorf("backups %v, %v; want none", all, err)
			}
			w.back(r, dir)
			v, err := r.Verify(t.Context(), 100)
			if err != nil || len(v.Errors) > 0 {
				t.Errorf("verify: %v, %v", v, err)
			}
		})
	}
}

// text is a file as Kopia gives one.
type text string

type textReader struct{ *strings.Reader }

func (textReader) Close() error { return nil }

// Length, Reader and WriteTo implement blob.Bytes.
func (s text) Length() int { return len(s) }

// Reader implements blob.Bytes.
func (s text) Reader() io.ReadSeekCloser { return textReader{strings.NewReader(string(s))} }

// WriteTo implements blob.Bytes.
func (s text) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, string(s))
	return int64(n), err
}

type buffer struct{ bytes.Buffer }

// Length implements blob.OutputBuffer.
func (b *buffer) Length() int { return b.Len() }

func TestPendingPacksAreThere(t *testing.T) {
	for name, look := range map[string]func(t *testing.T, s *storage){
		"GetBlob": func(t *testing.T, s *storage) {
			var b buffer
			if err := s.GetBlob(t.Context(), "p1", 2, 3, &b); err != nil || b.String() != "nte" {
				t.Errorf("%q, %v", b.String(), err)
			}
		},
		"GetMetadata": func(t *testing.T, s *storage) {
			if m, err := s.GetMetadata(t.Context(), "p1"); err != nil || m.Length != 7 {
				t.Errorf("%v, %v", m, err)
			}
		},
		"ListBlobs": func(t *testing.T, s *storage) {
			all, err := blob.ListAllBlobs(t.Context(), s, "p")
			if err != nil || len(all) != 1 {
				t.Errorf("%v, %v", all, err)
			}
		},
		"PutBlob of an index": func(t *testing.T, s *storage) { ok(t, s.PutBlob(t.Context(), "xn0", text("index"), blob.PutOptions{})) },
		"DeleteBlob":          func(t *testing.T, s *storage) { ok(t, s.DeleteBlob(t.Context(), "s1")) },
		"FlushCaches":         func(t *testing.T, s *storage) { ok(t, s.FlushCaches(t.Context())) },
		"Close":               func(t *testing.T, s *storage) { ok(t, s.Close(t.Context())) },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			s := newStorage(Limited(d, 1<<30, 1<<30), "volumes/", false)
			defer s.forget()
			ok(t, s.PutBlob(t.Context(), "p1", text("content"), blob.PutOptions{}))
			if len(d.pending) != 1 {
				t.Fatal("the pack is durable already, so that nothing is tested")
			}
			look(t, s)
			if len(d.pending) > 0 {
				t.Error("the pack is not durable")
			}
		})
	}
}

func TestALossStays(t *testing.T) {
	d := newDisk(t)
	d.fails = 1
	s := newStorage(d, "volumes/", false)
	defer s.forget()
	ok(t, s.PutBlob(t.Context(), "p1", text("content"), blob.PutOptions{}))
	for range 2 {
		if err := s.FlushCaches(t.Context()); !errors.Is(err, errDisk) {
			t.Errorf("FlushCaches: %v, want the error of the disk", err)
		}
		for _, id := range []blob.ID{"xn0", "p2"} {
			if err := s.PutBlob(t.Context(), id, text("more"), blob.PutOptions{}); !errors.Is(err, errDisk) {
				t.Errorf("PutBlob of %s: %v, want that it is refused", id, err)
			}
		}
		if err := s.Close(t.Context()); !errors.Is(err, errDisk) {
			t.Errorf("Close: %v, want the error of the disk", err)
		}
	}
}

// Many writers, readers and flushes at once: each index finds the packs durable that were put before it.
func TestPacksAndIndexesAtOnce(t *testing.T) {
	d := newDisk(t)
	s := newStorage(d, "volumes/", false)
	defer s.forget()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 50 {
				id := blob.ID(fmt.Sprintf("p%d-%d", i, j))
				if err := s.PutBlob(t.Context(), id, text(id), blob.PutOptions{}); err != nil {
					t.Error(err)
				}
				if j%7 == 3 {
					if err := s.FlushCaches(t.Context()); err != nil {
						t.Error(err)
					}
					d.mu.Lock()
					mine := slices.DeleteFunc(slices.Collect(maps.Keys(d.pending)), func(n string) bool { return !strings.HasPrefix(n, fmt.Sprintf("volumes/p%d", i)) })
					d.mu.Unlock()
					if len(mine) > 0 {
						t.Errorf("%v are pending after a flush", mine)
					}
				}
				var b buffer
				if err := s.GetBlob(t.Context(), id, 0, -1, &b); err != nil || b.String() != string(id) {
					t.Errorf("%s holds %q, %v", id, b.String(), err)
				}
			}
		})
	}
	wg.Wait()
	ok(t, s.Close(t.Context()))
	if d.done != 200 || len(d.pending) > 0 {
		t.Errorf("%d of 200 packs were published, %d are pending", d.done, len(d.pending))
	}
}

// full is a store that takes a number of packs, and no more.
type full struct {
	archive.Store
	mu      sync.Mutex
	takes   int
	refused int
}

// Create implements archive.Store.
func (f *full) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if strings.HasPrefix(path.Base(name), "p") {
		if f.takes--; f.takes < 0 {
			f.refused++
			return errDisk
		}
	}
	return f.Store.Create(ctx, name, body, size, o)
}

// TestAStoreThatFailsEndsABackup looks at what a backup of many files does when the store, which has tried long enough, takes no more.
func TestAStoreThatFailsEndsABackup(t *testing.T) {
	w := newWorld(t)
	store := &full{Store: w.store, takes: 1}
	w.store = store
	r, dir := w.open(), t.TempDir()
	for i := range 50 {
		random(t, fmt.Sprintf("%s/%d", dir, i), 3<<20, byte(i))
	}
	_, err := r.Back(t.Context(), Source{"shop", "data"}, dir, BackupOptions{})
	if !errors.Is(err, errDisk) || errors.Is(err, ErrIncomplete) {
		t.Errorf("the backup ends with %v, want what the store says", err)
	}
	if store.refused > 8 {
		t.Errorf("the store was tried %d times", store.refused)
	}
	store.takes = 1000
	if b := w.back(r, dir); b.Backup.Files != 50 {
		t.Errorf("with the store back: %+v", b)
	}
}
