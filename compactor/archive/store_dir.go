package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// tempDir holds files that are being written; a name in it is never listed.
const tempDir = ".tmp"

// DirStore keeps files in a directory of a file system with hard links: a disk, or NFS.
type DirStore struct{ root string }

var _ Store = (*DirStore)(nil)

// NewDirStore keeps files under the absolute path root, which is made when it is missing.
func NewDirStore(root string) (*DirStore, error) {
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("the directory of an archive must be given with its whole path, not as %q", root)
	}
	s := &DirStore{root: filepath.Clean(root)}
	if err := s.makeDirs(filepath.Join(s.root, tempDir)); err != nil {
		return nil, fmt.Errorf("make the archive's directory: %w", err)
	}
	s.sweep()
	return s, nil
}

// sweep removes what was being written when a process died, long ago.
func (s *DirStore) sweep() {
	entries, _ := os.ReadDir(filepath.Join(s.root, tempDir))
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > 24*time.Hour {
			_ = os.Remove(filepath.Join(s.root, tempDir, e.Name()))
		}
	}
}

// String is the store's URL.
func (s *DirStore) String() string { return "dir://" + s.root }

func (s *DirStore) path(name string) (string, error) {
	if err := checkFileName(name); err != nil {
		return "", err
	}
	return filepath.Join(s.root, filepath.FromSlash(name)), nil
}

// checkFileName refuses names that could lead out of the store, or that stores disagree about.
func checkFileName(name string) error {
	if name == "" || len(name) > 900 || strings.HasPrefix(name, tempDir+"/") {
		return fmt.Errorf("%q cannot be the name of a file in an archive", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "\x00\\") {
			return fmt.Errorf("%q cannot be the name of a file in an archive", name)
		}
	}
	return nil
}

// Create implements Store: the file is written and synced beside, then linked to its name, which
// fails when the name is taken.
func (s *DirStore) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o CreateOptions) error {
	if !o.Lock.IsZero() || o.Hold {
		return fmt.Errorf("lock %s: a directory has no object lock: %w", name, errors.ErrUnsupported)
	}
	path, err := s.path(name)
	if err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("create %s: %w", name, fs.ErrExist)
	}
	if err := s.makeDirs(filepath.Dir(path)); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Join(s.root, tempDir), "new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	n, err := io.Copy(f, &contextReader{ctx, io.NewSectionReader(body, 0, size)})
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.Link(f.Name(), path); err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	return syncDir(filepath.Dir(path))
}

// contextReader ends a copy with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// makeDirs makes a directory and those above it, durably.
func (s *DirStore) makeDirs(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := s.makeDirs(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) { // a parent that is not ours to read
			return nil
		}
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) { // some network file systems cannot, and need not
		err = nil
	}
	return errors.Join(err, d.Close())
}

// ReadAt implements Store.
func (s *DirStore) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	path, err := s.path(name)
	if err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := f.ReadAt(p, off); n < len(p) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// Stat implements Store.
func (s *DirStore) Stat(_ context.Context, name string) (FileInfo, error) {
	path, err := s.path(name)
	if err != nil {
		return FileInfo{}, err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return FileInfo{}, err
	}
	if !info.Mode().IsRegular() {
		return FileInfo{}, fmt.Errorf("stat %s: %w", name, fs.ErrNotExist)
	}
	return FileInfo{Name: name, Size: info.Size(), Time: info.ModTime()}, nil
}

// List implements Store.
func (s *DirStore) List(ctx context.Context, prefix, after string) iter.Seq2[FileInfo, error] {
	return func(yield func(FileInfo, error) bool) {
		dir := "" // the deepest directory that the prefix names
		if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
			dir = prefix[:i+1]
		}
		s.walk(ctx, dir, prefix, after, yield)
	}
}

// walk yields the files below dir (empty, or with a slash at its end) in the order of their whole
// names; it returns false once yield wants no more.
func (s *DirStore) walk(ctx context.Context, dir, prefix, after string, yield func(FileInfo, error) bool) bool {
	if err := context.Cause(ctx); err != nil {
		yield(FileInfo{}, err)
		return false
	}
	entries, err := os.ReadDir(filepath.Join(s.root, filepath.FromSlash(dir)))
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		yield(FileInfo{}, fmt.Errorf("list %s: %w", s, err))
		return false
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		name := dir + e.Name()
		if e.IsDir() {
			name += "/" // as it sorts among whole names
		}
		if name != tempDir+"/" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if strings.HasSuffix(name, "/") {
			if (strings.HasPrefix(name, prefix) || strings.HasPrefix(prefix, name)) && (name >= after || strings.HasPrefix(after, name)) {
				if !s.walk(ctx, name, prefix, after, yield) {
					return false
				}
			}
			continue
		}
		if !strings.HasPrefix(name, prefix) || name <= after {
			continue
		}
		info, err := s.Stat(ctx, name)
		if errors.Is(err, fs.ErrNotExist) { // removed in the meantime
			continue
		}
		if !yield(info, err) || err != nil {
			return false
		}
	}
	return true
}

// Remove implements Store.
func (s *DirStore) Remove(_ context.Context, name string) error {
	path, err := s.path(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Hold implements Store: a directory has no such thing.
func (s *DirStore) Hold(_ context.Context, name string, _ bool) error {
	return fmt.Errorf("hold %s: a directory has no legal hold: %w", name, errors.ErrUnsupported)
}
