package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tidemark-backup/tidemark/journal/durable"
)

// tempDir holds files that are being written; a name in it is never listed.
const tempDir = ".tmp"

// tempLife is how long a file may be in the making; an older one belongs to a process that died.
const tempLife = 24 * time.Hour

// DirStore keeps files in a directory of a file system with hard links: a disk, or NFS. It has
// neither locks nor holds.
type DirStore struct {
	root string

	mu     sync.Mutex      // guards synced
	synced map[string]bool // directories that are known to be durable, with all above them
}

var (
	_ Store   = (*DirStore)(nil)
	_ Stager  = (*DirStore)(nil)
	_ Sweeper = (*DirStore)(nil)
)

// NewDirStore keeps files under the absolute path root, which is made by the first Create when
// it is missing. It removes what processes that died long ago were writing.
func NewDirStore(root string) (*DirStore, error) {
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("the directory of an archive must be given with its whole path, not as %q: write dir:///PATH", root)
	}
	if info, err := os.Stat(root); err == nil && !info.IsDir() {
		return nil, fmt.Errorf("%s is a file, and an archive needs a directory: name another path", root)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, dirTrouble("open", root, err)
	}
	s := &DirStore{root: filepath.Clean(root), synced: map[string]bool{}}
	_ = s.Sweep(context.Background()) // who only reads may have no right to; who writes will be told
	return s, nil
}

// Sweep removes files in the making that are older than a day: their process died.
func (s *DirStore) Sweep(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(s.root, tempDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return dirTrouble("list", tempDir, err)
	}
	for _, e := range entries {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if info, err := e.Info(); err != nil || time.Since(info.ModTime()) < tempLife {
			continue
		}
		if err := os.Remove(filepath.Join(s.root, tempDir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return dirTrouble("remove", e.Name(), err)
		}
	}
	return nil
}

// String is the store's URL.
func (s *DirStore) String() string { return (&url.URL{Scheme: "dir", Path: s.root}).String() }

// path is where the file of a name is. It also ends a call whose context has ended.
func (s *DirStore) path(ctx context.Context, name string) (string, error) {
	if err := checkFileName(name); err != nil {
		return "", err
	}
	return filepath.Join(s.root, filepath.FromSlash(name)), context.Cause(ctx)
}

// dirTrouble turns an error of the file system into those of Store.
func dirTrouble(doing, name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s %s: %w: %w: give the user of this process the directory, or write elsewhere", doing, name, ErrDenied, err)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		return fmt.Errorf("%s %s: %w (%w)", doing, name, fs.ErrNotExist, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%s %s: %w: free some space, or give the archive a larger disk", doing, name, err)
	}
	return fmt.Errorf("%s %s: %w", doing, name, err)
}

// checkFileName refuses names that could lead out of the store, or that stores disagree about.
func checkFileName(name string) error {
	odd := func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }
	if !fs.ValidPath(name) || name == "." || len(name) > 900 || name == tempDir || strings.HasPrefix(name, tempDir+"/") || strings.ContainsFunc(name, odd) {
		return fmt.Errorf("%.100q cannot be the name of a file in an archive", name)
	}
	return nil
}

// Create implements Store: the file is written and synced beside, then linked to its name, which
// fails when the name is taken. When it returns, with fs.ErrExist too, the file that has the name
// is durable.
func (s *DirStore) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o CreateOptions) error {
	path, err := s.path(ctx, name)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil && !o.Replace && o.Lock.IsZero() && !o.Hold { // spares writing it
		if err := errors.Join(s.makeDirs(filepath.Dir(path)), durable.SyncDir(filepath.Dir(path))); err != nil {
			return dirTrouble("sync the directory of", name, err) // it is there, and may not be tomorrow
		}
		return fmt.Errorf("create %s: %w", name, fs.ErrExist)
	}
	publish, err := s.Stage(ctx, name, body, size, o)
	if err != nil {
		return err
	}
	return publish()
}

// Stage implements Stager: the file is written beside, under no name of the archive. To publish it is to sync it, to link it to its name, and to sync its
// directory, in this order; so a name never has content that a loss of power could take away.
func (s *DirStore) Stage(ctx context.Context, name string, body io.ReaderAt, size int64, o CreateOptions) (publish func() error, err error) {
	if !o.Lock.IsZero() || o.Hold {
		return nil, fmt.Errorf("lock %s: a directory has no object lock: %w: use a bucket with object lock", name, errors.ErrUnsupported)
	}
	path, err := s.path(ctx, name)
	if err != nil {
		return nil, err
	}
	temp, err := s.writeTemp(ctx, body, size)
	if err != nil {
		return nil, dirTrouble("write", name, err)
	}
	startWriting(temp)
	return func() error {
		defer os.Remove(temp.Name())
		if err := errors.Join(temp.Sync(), temp.Close()); err != nil {
			return dirTrouble("write", name, err)
		}
		return s.publish(temp.Name(), path, name, o.Replace)
	}, nil
}

// publish gives a durable file its name, durably.
func (s *DirStore) publish(temp, path, name string, replace bool) error {
	if err := s.makeDirs(filepath.Dir(path)); err != nil {
		return dirTrouble("make the directory of", name, err)
	}
	if replace {
		if err := os.Rename(temp, path); err != nil {
			return dirTrouble("replace", name, err)
		}
		return dirTrouble("sync the directory of", name, durable.SyncDir(filepath.Dir(path)))
	}
	if err := os.Link(temp, path); err != nil && !sameFile(temp, path) {
		if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EPERM) {
			return fmt.Errorf("create %s: %w: the file system has no hard links, which keep files from being replaced: use another one, or S3", name, err)
		}
		if errors.Is(err, fs.ErrExist) {
			if err := durable.SyncDir(filepath.Dir(path)); err != nil {
				return dirTrouble("sync the directory of", name, err)
			}
		}
		return dirTrouble("create", name, err)
	}
	return dirTrouble("sync the directory of", name, durable.SyncDir(filepath.Dir(path)))
}

// sameFile reports whether a link was made although an error says it was not, as when the answer
// of an NFS server is lost and the client asks again.
func sameFile(temp, path string) bool {
	a, err := os.Lstat(temp)
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// writeTemp writes a file without a name in the archive. It is open, and not durable yet.
func (s *DirStore) writeTemp(ctx context.Context, body io.ReaderAt, size int64) (*os.File, error) {
	dir := filepath.Join(s.root, tempDir)
	if err := s.makeDirs(dir); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, "new-") // 0600
	if err != nil {
		return nil, err
	}
	if err := copyBody(ctx, f, body, size); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return f, nil
}

// makeDirs makes a directory and those above it, durably. What another process made a moment ago
// may not be durable yet, so each one is synced once by us as well.
func (s *DirStore) makeDirs(dir string) error {
	s.mu.Lock()
	known := s.synced[dir]
	s.mu.Unlock()
	if known {
		return nil
	}
	parent := filepath.Dir(dir)
	if dir == s.root {
		if err := durable.MkdirAll(dir); err != nil {
			return err
		}
	} else {
		if err := s.makeDirs(parent); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := durable.SyncDir(parent); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced[dir] = true
	return nil
}

// ReadAt implements Store.
func (s *DirStore) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if _, err := s.Stat(ctx, name); err != nil { // it is no directory
		return err
	}
	f, err := os.Open(filepath.Join(s.root, filepath.FromSlash(name)))
	if err != nil {
		return dirTrouble("read", name, err)
	}
	defer f.Close()
	if n, err := f.ReadAt(p, off); n < len(p) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return dirTrouble("read", name, err)
	}
	return nil
}

// Stat implements Store.
func (s *DirStore) Stat(ctx context.Context, name string) (FileInfo, error) {
	path, err := s.path(ctx, name)
	if err != nil {
		return FileInfo{}, err
	}
	info, err := os.Lstat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return FileInfo{}, dirTrouble("stat", name, err)
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
		if dir != "" && checkFileName(strings.TrimSuffix(dir, "/")) != nil {
			yield(FileInfo{}, fmt.Errorf("list %q: %w", prefix, fs.ErrInvalid))
			return
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
	if err = dirTrouble("list", dir, err); errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		yield(FileInfo{}, err)
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

// Remove implements Store. Directories that become empty stay: another process may be about to
// use them.
func (s *DirStore) Remove(ctx context.Context, name string) error {
	if _, err := s.Stat(ctx, name); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if err := os.Remove(filepath.Join(s.root, filepath.FromSlash(name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return dirTrouble("remove", name, err)
	}
	return nil
}

// Hold implements Store: a directory has no such thing.
func (s *DirStore) Hold(_ context.Context, name string, _ bool) error {
	return fmt.Errorf("hold %s: a directory has no legal hold: %w: use a bucket with object lock", name, errors.ErrUnsupported)
}
