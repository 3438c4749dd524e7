package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/kopia/kopia/fs"
	"golang.org/x/sys/unix"
)

// tree reads a directory as Kopia wants one. It never leaves the directory, whatever symbolic links are put in its way while
// it is read, and collects on the way what Kopia does not keep.
type tree struct {
	root *os.Root
	kept attributes
	only *uint64 // the file system that is read; nil: those below it as well
}

// entry is one file of a tree.
type entry struct {
	t    *tree
	path string // within the tree; "." for its root
	name string // as it is stored
	st   unix.Stat_t
}

// openTree opens a directory to back it up, with or without what is mounted below.
func openTree(path string, oneFileSystem bool) (root fs.Directory, kept *attributes, done func() error, err error) {
	dir, err := os.OpenRoot(path)
	if err != nil {
		return nil, nil, nil, err
	}
	t := &tree{root: dir}
	e, err := t.open()
	if err != nil {
		return nil, nil, nil, errors.Join(err, dir.Close())
	}
	if root = e; oneFileSystem {
		t.only = &e.st.Dev
	}
	return root, &t.kept, dir.Close, nil
}

func (t *tree) open() (*directory, error) {
	f, err := t.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	e := entry{t: t, path: ".", name: "."}
	if err := unix.Fstat(int(f.Fd()), &e.st); err != nil {
		return nil, err
	}
	if err := t.kept.add(int(f.Fd()), ".", ".", &e.st); err != nil {
		return nil, err
	}
	return &directory{e}, nil
}

// Name, IsDir, Mode, Size, ModTime and Sys implement os.FileInfo.
func (e *entry) Name() string { return e.name }

// IsDir implements os.FileInfo.
func (e *entry) IsDir() bool { return e.Mode().IsDir() }

// Sys implements os.FileInfo.
func (e *entry) Sys() any { return nil }

// Size implements os.FileInfo.
func (e *entry) Size() int64 {
	if e.IsDir() {
		return 0
	}
	return e.st.Size
}

// ModTime implements os.FileInfo.
func (e *entry) ModTime() time.Time { return time.Unix(e.st.Mtim.Unix()) }

// special are the bits of a mode that Go has elsewhere.
var special = [...]struct {
	bit  uint32
	flag os.FileMode
}{{unix.S_ISUID, os.ModeSetuid}, {unix.S_ISGID, os.ModeSetgid}, {unix.S_ISVTX, os.ModeSticky}}

// Mode implements os.FileInfo.
func (e *entry) Mode() os.FileMode {
	mode := os.FileMode(e.st.Mode & 0o777)
	for _, s := range special {
		if e.st.Mode&s.bit != 0 {
			mode |= s.flag
		}
	}
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= os.ModeDir
	case unix.S_IFLNK:
		mode |= os.ModeSymlink
	case unix.S_IFIFO:
		mode |= os.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= os.ModeSocket
	case unix.S_IFBLK:
		mode |= os.ModeDevice
	case unix.S_IFCHR:
		mode |= os.ModeDevice | os.ModeCharDevice
	}
	return mode
}

// Owner implements fs.Entry.
func (e *entry) Owner() fs.OwnerInfo { return fs.OwnerInfo{UserID: e.st.Uid, GroupID: e.st.Gid} }

// Device implements fs.Entry.
func (e *entry) Device() fs.DeviceInfo { return fs.DeviceInfo{Dev: e.st.Dev, Rdev: e.st.Rdev} }

// LocalFilesystemPath implements fs.Entry. Nobody is to open it by its path.
func (e *entry) LocalFilesystemPath() string { return "" }

// Close implements fs.Entry.
func (e *entry) Close() {}

type directory struct{ entry }

// SupportsMultipleIterations implements fs.Directory.
func (d *directory) SupportsMultipleIterations() bool { return true }

// Child implements fs.Directory.
func (d *directory) Child(ctx context.Context, name string) (fs.Entry, error) {
	return fs.IterateEntriesAndFindChild(ctx, d, name)
}

// Iterate implements fs.Directory.
func (d *directory) Iterate(context.Context) (fs.DirectoryIterator, error) {
	f, err := d.t.root.OpenFile(d.path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return &iterator{d: d, f: f}, nil
}

// mounted is a directory that another file system is mounted at, without what is in that.
type mounted struct{ directory }

// Iterate implements fs.Directory.
func (*mounted) Iterate(context.Context) (fs.DirectoryIterator, error) {
	return fs.StaticIterator(nil, nil), nil
}

// Child implements fs.Directory.
func (*mounted) Child(context.Context, string) (fs.Entry, error) { return nil, fs.ErrEntryNotFound }

// iterator reads a directory some names at a time.
type iterator struct {
	d     *directory
	f     *os.File
	names []string
}

// Next implements fs.DirectoryIterator.
func (it *iterator) Next(context.Context) (fs.Entry, error) {
	for {
		if len(it.names) == 0 {
			names, err := it.f.Readdirnames(256)
			if len(names) == 0 {
				if err == nil || errors.Is(err, io.EOF) {
					return nil, nil
				}
				return nil, err
			}
			it.names = names
		}
		name := it.names[0]
		it.names = it.names[1:]
		if isUnfinished(name) { // of a restore that was killed
			continue
		}
		if it.d.path == "." && name == attributesName { // most likely of a backup that Kopia itself restored
			it.d.t.kept.reserved.Store(true)
			continue
		}
		e := entry{t: it.d.t, path: path.Join(it.d.path, name), name: escapeName(name)}
		err := unix.Fstatat(int(it.f.Fd()), name, &e.st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, iofs.ErrNotExist) { // deleted meanwhile
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.path, err)
		}
		if err := it.d.t.kept.add(int(it.f.Fd()), name, e.path, &e.st); err != nil {
			return nil, fmt.Errorf("%s: %w", e.path, err)
		}
		switch e.st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			if only := it.d.t.only; only != nil && e.st.Dev != *only {
				return &mounted{directory{e}}, nil
			}
			return &directory{e}, nil
		case unix.S_IFREG:
			return &file{e}, nil
		case unix.S_IFLNK:
			return &symlink{e}, nil
		}
		// Pipes and devices are kept in the attributes; sockets are made anew by those who listen.
	}
}

// Close implements fs.DirectoryIterator.
func (it *iterator) Close() { it.f.Close() }

type file struct{ entry }

// Open implements fs.File. What became something else than a file meanwhile is an error, not a wait for a pipe.
func (f *file) Open(context.Context) (fs.Reader, error) {
	g, err := f.t.root.OpenFile(f.path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	now := &file{entry{t: f.t, path: f.path, name: f.name}}
	if err := unix.Fstat(int(g.Fd()), &now.st); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	if !now.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s was replaced while it was read", f.path), g.Close())
	}
	return &reader{g, now}, nil
}

type reader struct {
	*os.File
	e *file
}

// Entry implements fs.Reader.
func (r *reader) Entry() (fs.Entry, error) { return r.e, nil }

type symlink struct{ entry }

// Readlink implements fs.Symlink.
func (l *symlink) Readlink(context.Context) (string, error) { return l.t.root.Readlink(l.path) }

// Resolve implements fs.Symlink. Links are not followed.
func (l *symlink) Resolve(context.Context) (fs.Entry, error) {
	return nil, fmt.Errorf("%s: symbolic links are not followed", l.path)
}

// add looks at a file: name in the directory that is open as dir.
func (a *attributes) add(dir int, name, path string, st *unix.Stat_t) error {
	it := attribute{Path: path}
	kind := st.Mode & unix.S_IFMT
	switch kind {
	case unix.S_IFIFO:
		it.Special = "fifo"
	case unix.S_IFCHR:
		it.Special = "char"
	case unix.S_IFBLK:
		it.Special = "block"
	case unix.S_IFREG:
		it.Sparse = st.Blocks*512 < st.Size
	}
	if it.Special != "" {
		it.Mode, it.UID, it.GID, it.Rdev = st.Mode&0o7777, st.Uid, st.Gid, st.Rdev
	}
	if at := time.Unix(st.Mtim.Unix()).UTC(); it.Special != "" || kind == unix.S_IFDIR || !at.Equal(time.Unix(0, at.UnixNano())) {
		it.Modified = writable(at)
	}
	if kind == unix.S_IFSOCK {
		a.leaveOut(path)
		return nil
	}
	var err error
	if it.Xattrs, err = a.xattrs(dir, name); err != nil {
		return err
	}
	shared := kind != unix.S_IFDIR && st.Nlink > 1
	if !shared && it.empty() {
		return nil
	}
	var file inode
	if shared {
		file = inode{st.Dev, st.Ino}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.keep(it, file)
}

// writable is a time, or the nearest that JSON can hold.
func writable(at time.Time) time.Time {
	first, last := time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	switch {
	case at.Before(first):
		return first
	case at.After(last):
		return last
	}
	return at
}

// leaveOut takes down that a socket is not kept.
func (a *attributes) leaveOut(path string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sockets == nil {
		a.sockets = map[string]bool{}
	}
	a.sockets[path] = true // a directory may be read twice
}

// xattrs reads the extended attributes of a file. It goes through the open directory, so that no
// path is followed.
func (a *attributes) xattrs(dir int, name string) (map[string][]byte, error) {
	a.mu.Lock()
	none := a.noXattrs
	a.mu.Unlock()
	if none {
		return nil, nil
	}
	var small [1024]byte
	list := small[:]
	n, err := listXattrs(dir, name, list)
	for errors.Is(err, unix.ERANGE) {
		list = make([]byte, 2*len(list))
		n, err = listXattrs(dir, name, list)
	}
	switch {
	case errors.Is(err, unix.ENOTSUP):
		a.mu.Lock()
		a.noXattrs = true
		a.mu.Unlock()
		return nil, nil
	case errors.Is(err, unix.ENOENT):
		return nil, nil // deleted meanwhile
	case err != nil:
		return nil, fmt.Errorf("list its extended attributes: %w", err)
	case n == 0:
		return nil, nil
	}
	p := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	all := map[string][]byte{}
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10) // the kernel's limit
		n, err := unix.Lgetxattr(p, key, value)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
			continue // gone meanwhile, or not for us to see
		}
		if err != nil {
			return nil, fmt.Errorf("read its extended attribute %s: %w", key, err)
		}
		all[key] = bytes.Clone(value[:n])
	}
	if len(all) == 0 {
		return nil, nil
	}
	return all, nil
}

// oldKernel is set once listxattrat turns out not to be there; it came with Linux 6.13.
var oldKernel atomic.Bool

// listXattrs is llistxattr of a name in an open directory.
func listXattrs(dir int, name string, list []byte) (int, error) {
	if !oldKernel.Load() {
		p, err := unix.BytePtrFromString(name)
		if err != nil {
			return 0, err
		}
		n, _, errno := unix.Syscall6(unix.SYS_LISTXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(p)), unix.AT_SYMLINK_NOFOLLOW,
			uintptr(unsafe.Pointer(unsafe.SliceData(list))), uintptr(len(list)), 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.ENOSYS, unix.EPERM: // the second where a filter of system calls does not know it
			oldKernel.Store(true)
		default:
			return 0, errno
		}
	}
	return unix.Llistxattr(fmt.Sprintf("/proc/self/fd/%d/%s", dir, name), list)
}
