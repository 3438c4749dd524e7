package archive

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"filippo.io/age"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"

	"github.com/tidemark-backup/tidemark/journal"
)

// Copies are local copies of small segments, so that merging them costs the store no reads and
// works without the archive's identity. They are encrypted with a key that only this process
// knows: what an earlier one left behind is of no use to anybody, and removed. A nil *Copies
// keeps none.
type Copies struct {
	dir      string
	identity *age.X25519Identity

	mu   sync.Mutex // guards what follows
	kept map[string]kept
}

type kept struct {
	path string
	size int64
}

// NewCopies keeps copies in the directory, which it empties.
func NewCopies(dir string) (*Copies, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("remove copies of segments: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a directory for copies of segments: %w", err)
	}
	identity, err := age.GenerateX25519Identity()
	return &Copies{dir: dir, identity: identity, kept: map[string]kept{}}, err
}

// copyWriter writes one copy. A nil one writes nothing; a disk that is full costs the copy only.
type copyWriter struct {
	c      *Copies
	name   string
	file   *os.File
	sealed io.WriteCloser
	failed error
}

func (c *Copies) create(name string) (*copyWriter, error) {
	if c == nil {
		return nil, nil
	}
	f, err := os.CreateTemp(c.dir, "segment-")
	if err != nil {
		return nil, err
	}
	sealed, err := age.Encrypt(f, c.identity.Recipient())
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return &copyWriter{c: c, name: name, file: f, sealed: sealed}, nil
}

func (w *copyWriter) Write(p []byte) (int, error) {
	if w.failed == nil {
		_, w.failed = w.sealed.Write(p)
	}
	return len(p), nil
}

func (w *copyWriter) abort() error {
	if w == nil {
		return nil
	}
	_ = w.file.Close()
	return os.Remove(w.file.Name())
}

func (w *copyWriter) done() {
	if w == nil {
		return
	}
	info, err := w.file.Stat()
	if err = errors.Join(err, w.failed, w.sealed.Close()); err == nil {
		info, err = w.file.Stat()
	}
	if err = errors.Join(err, w.file.Close()); err != nil {
		_ = os.Remove(w.file.Name())
		return
	}
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.c.kept[w.name] = kept{path: w.file.Name(), size: info.Size()}
}

// Forget removes the copy of a file, if there is one.
func (c *Copies) Forget(name string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if k, ok := c.kept[name]; ok {
		_ = os.Remove(k.path)
		delete(c.kept, name)
	}
}

// Tables makes one history of the copies of these segments; ok is false when some have none.
// close lets go of them.
func (c *Copies) Tables(segments []Segment) (t *journal.Tables, close func(), ok bool) {
	if c == nil {
		return nil, nil, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var files []*os.File
	var sizes []int64
	closeAll := func() {
		for _, f := range files {
			_ = f.Close()
		}
	}
	for _, g := range slices.Backward(segments) { // the newest first
		k, found := c.kept[g.Name]
		f, err := os.Open(k.path)
		if !found || err != nil {
			closeAll()
			return nil, nil, false
		}
		files, sizes = append(files, f), append(sizes, k.size)
	}
	open := func(o *pebble.IterOptions) (*pebble.Iterator, error) {
		var levels [][]sstable.ReadableFile
		for i, f := range files {
			r, err := decrypted(f.Name(), f, sizes[i], []age.Identity{c.identity})
			if err != nil {
				return nil, err
			}
			levels = append(levels, []sstable.ReadableFile{r})
		}
		return mergeTables(levels, o)
	}
	return journal.NewTables(open), closeAll, true
}
