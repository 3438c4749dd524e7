package archive

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"
)

// MemStore keeps files in memory, for tests. It has locks and holds. The zero MemStore is empty.
type MemStore struct {
	// Clock tells the time for locks. Default: time.Now.
	Clock func() time.Time

	mu    sync.Mutex // guards what follows
	files map[string]*memFile
}

type memFile struct {
	data []byte
	time time.Time
	lock time.Time
	held bool
}

var _ Store = (*MemStore)(nil)

// NewMemStore makes an empty one.
func NewMemStore() *MemStore { return &MemStore{Clock: time.Now} }

// String implements Store.
func (s *MemStore) String() string { return "mem://" }

// Create implements Store.
func (s *MemStore) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o CreateOptions) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	var b bytes.Buffer
	if err := copyBody(ctx, &b, body, size); err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = map[string]*memFile{}
	}
	if s.files[name] != nil && !o.Replace {
		return fmt.Errorf("create %s: %w", name, fs.ErrExist)
	}
	s.files[name] = &memFile{data: b.Bytes(), time: s.now(), lock: o.Lock, held: o.Hold}
	return nil
}

// check is what every call begins with.
func (s *MemStore) check(ctx context.Context, name string) error {
	if err := checkFileName(name); err != nil {
		return err
	}
	return context.Cause(ctx)
}

func (s *MemStore) now() time.Time {
	if s.Clock == nil {
		return time.Now()
	}
	return s.Clock()
}

// file finds a file. The caller holds mu.
func (s *MemStore) file(ctx context.Context, name string) (*memFile, error) {
	if err := s.check(ctx, name); err != nil {
		return nil, err
	}
	if f := s.files[name]; f != nil {
		return f, nil
	}
	return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

// ReadAt implements Store.
func (s *MemStore) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.file(ctx, name)
	if err != nil {
		return err
	}
	if off < 0 {
		return fmt.Errorf("read %s: offset %d: %w", name, off, fs.ErrInvalid)
	}
	if off+int64(len(p)) > int64(len(f.data)) {
		return fmt.Errorf("read %s: %w", name, io.ErrUnexpectedEOF)
	}
	copy(p, f.data[off:])
	return nil
}

// Stat implements Store.
func (s *MemStore) Stat(ctx context.Context, name string) (FileInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.file(ctx, name)
	if err != nil {
		return FileInfo{}, err
	}
	return FileInfo{Name: name, Size: int64(len(f.data)), Time: f.time}, nil
}

// List implements Store.
func (s *MemStore) List(ctx context.Context, prefix, after string) iter.Seq2[FileInfo, error] {
	return func(yield func(FileInfo, error) bool) {
		if err := context.Cause(ctx); err != nil {
			yield(FileInfo{}, err)
			return
		}
		s.mu.Lock()
		var all []FileInfo
		for name, f := range s.files {
			if strings.HasPrefix(name, prefix) && name > after {
				all = append(all, FileInfo{Name: name, Size: int64(len(f.data)), Time: f.time})
			}
		}
		s.mu.Unlock()
		slices.SortFunc(all, func(a, b FileInfo) int { return strings.Compare(a.Name, b.Name) })
		for _, f := range all {
			if err := context.Cause(ctx); err != nil {
				yield(FileInfo{}, err)
				return
			}
			if !yield(f, nil) {
				return
			}
		}
	}
}

// Remove implements Store.
func (s *MemStore) Remove(ctx context.Context, name string) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[name]; f != nil && (f.held || f.lock.After(s.now())) {
		return fmt.Errorf("remove %s: %w", name, ErrHeld)
	}
	delete(s.files, name)
	return nil
}

// Hold implements Store.
func (s *MemStore) Hold(ctx context.Context, name string, on bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.file(ctx, name)
	if err == nil {
		f.held = on
	}
	return err
}
