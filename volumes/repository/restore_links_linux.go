package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kopia/kopia/fs"
	"golang.org/x/sys/unix"
)

// CreateSymlink implements restore.Output.
func (w *output) CreateSymlink(ctx context.Context, rel string, e fs.Symlink) error {
	if at := w.attribute(w.prefix + rel); w.linked(&at) {
		return nil
	}
	return w.settle(ctx, rel, w.createSymlink(ctx, rel, e))
}

func (w *output) createSymlink(ctx context.Context, rel string, e fs.Symlink) error {
	to, err := e.Readlink(ctx)
	if err != nil {
		return &noRead{err}
	}
	at := w.attribute(w.prefix + rel)
	return w.place(ctx, rel, func(dir *os.File, name string) error {
		if err := unix.Symlinkat(to, int(dir.Fd()), name); err != nil {
			return err
		}
		return w.setSymlink(dir, name, rel, e, &at)
	})
}

// setSymlink gives a symbolic link what it has besides.
func (w *output) setSymlink(dir *os.File, name, rel string, e fs.Symlink, at *attribute) error {
	if !w.o.KeepOwners {
		if err := w.miss(rel, "owner", unix.Fchownat(int(dir.Fd()), name, int(e.Owner().UserID), int(e.Owner().GroupID), unix.AT_SYMLINK_NOFOLLOW)); err != nil {
			return err
		}
	}
	if err := w.setXattrs(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name), rel, at); err != nil {
		return err
	}
	return w.miss(rel, "time", setTime(dir, name, modified(e, at)))
}

// setXattrs gives what is no file its extended attributes. It is not followed.
func (w *output) setXattrs(it, rel string, at *attribute) error {
	for key, value := range at.Xattrs {
		if err := unix.Lsetxattr(it, key, value, 0); err != nil && !w.mayMiss(key, err) {
			if err := w.miss(rel, "extended attribute "+escapeName(key), err); err != nil {
				return err
			}
		}
	}
	return nil
}

func setTime(dir *os.File, name string, at time.Time) error {
	spec, err := unix.TimeToTimespec(at)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(dir.Fd()), name, []unix.Timespec{spec, spec}, unix.AT_SYMLINK_NOFOLLOW)
}

func (w *output) makeSpecial(ctx context.Context, rel string, at attribute) error {
	err := w.place(ctx, rel, func(dir *os.File, name string) error { return w.setSpecial(dir, name, rel, &at) })
	if errors.Is(err, errCannotHave) {
		return nil
	}
	return err
}

// errCannotHave is returned for what was noted as missed.
var errCannotHave = errors.New("the target cannot have it")

func (w *output) setSpecial(dir *os.File, name, rel string, at *attribute) error {
	kind := map[string]uint32{"fifo": unix.S_IFIFO, "char": unix.S_IFCHR, "block": unix.S_IFBLK}[at.Special]
	if err := unix.Mknodat(int(dir.Fd()), name, kind|0o600, int(at.Rdev)); err != nil {
		return cmp.Or(w.miss(rel, at.Special, err), errCannotHave)
	}
	if !w.o.KeepOwners {
		if err := w.miss(rel, "owner", unix.Fchownat(int(dir.Fd()), name, int(at.UID), int(at.GID), unix.AT_SYMLINK_NOFOLLOW)); err != nil {
			return err
		}
	}
	it := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
	_ = unix.Lremovexattr(it, "system.posix_acl_access") // of the directory that it was made in, if there is one
	if err := w.miss(rel, "mode", chmodSpecial(dir, name, kind, at.Mode)); err != nil {
		return err
	}
	if err := w.setXattrs(it, rel, at); err != nil {
		return err
	}
	return w.miss(rel, "time", setTime(dir, name, at.Modified))
}

// chmodSpecial sets the mode of a pipe or device, and of nothing that somebody puts in its place, such as a symbolic link: chmod would follow it.
func chmodSpecial(dir *os.File, name string, kind, mode uint32) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != kind {
		return &refusal{errors.New("somebody has put something else in its place")}
	}
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode)
}

// finish makes the other names of files, and gives their directories back the times that this changes. find finds a file of the backup.
func (w *output) finish(ctx context.Context, find func(ctx context.Context, p string) (fs.Entry, error)) error {
	l := linker{w, find, map[string]os.FileInfo{}, map[string]string{}}
	for _, p := range slices.Sorted(maps.Keys(w.kept)) {
		at := w.attribute(p)
		if !strings.HasPrefix(p, w.prefix) || !w.linked(&at) {
			continue
		}
		rel := strings.TrimPrefix(p, w.prefix)
		err := l.link(ctx, rel, &at)
		if err != nil && w.loss(rel) != nil {
			continue // its directory is named
		}
		if err := w.settle(ctx, rel, err); err != nil {
			return err
		}
	}
	for p, info := range l.times {
		dir, name, err := parentOf(w.root, p)
		if err != nil {
			return err
		}
		err = setTime(dir, name, info.ModTime()) // os.Chtimes knows no time after 2262
		dir.Close()
		if err := w.miss(p, "time", err); err != nil {
			return err
		}
	}
	return nil
}

// linker makes other names of files.
type linker struct {
	w       *output
	find    func(ctx context.Context, p string) (fs.Entry, error)
	times   map[string]os.FileInfo // directories as they were before
	instead map[string]string      // which names files have whose first one does not come back
}

// link makes one.
func (l *linker) link(ctx context.Context, rel string, at *attribute) error {
	w, first := l.w, strings.TrimPrefix(at.Link, l.w.prefix)
	why := w.loss(first)
	if dir := path.Dir(rel); l.times[dir] == nil {
		info, err := w.root.Lstat(dir)
		if err != nil {
			return err
		}
		l.times[dir] = info
	}
	if why != nil && l.instead[first] == "" {
		err := l.write(ctx, rel, at)
		if err == nil {
			l.instead[first] = rel
		}
		return err
	}
	if why != nil {
		first = l.instead[first]
	}
	err := w.place(ctx, rel, func(_ *os.File, name string) error { return w.root.Link(first, path.Join(path.Dir(rel), name)) })
	if cannotLink(err) {
		w.noteMissed(rel, "hard link to "+EscapePath(first), err)
		return l.write(ctx, rel, at)
	}
	if err != nil {
		return err
	}
	if info, err := w.root.Lstat(rel); err == nil && info.Mode().IsRegular() { // as a backup counts
		w.files.Add(1)
		w.bytes.Add(info.Size())
	}
	return nil
}

// cannotLink reports whether a file can have no other name there: its file system has none or not so many, it is another one, or the first name is
// something that the target could not have.
func cannotLink(err error) bool {
	return slices.ContainsFunc([]error{unix.EPERM, unix.EOPNOTSUPP, unix.EXDEV, unix.EMLINK, unix.ENOENT}, func(cannot error) bool { return errors.Is(err, cannot) })
}

// write makes a name with the content itself.
func (l *linker) write(ctx context.Context, rel string, at *attribute) error {
	if at.Special != "" {
		return nil // it was made with its directory
	}
	e, err := l.find(ctx, l.w.prefix+rel)
	if err != nil {
		return &noRead{err}
	}
	switch e := e.(type) {
	case fs.File:
		return l.w.writeFile(ctx, rel, e, func(int64) {})
	case fs.Symlink:
		return l.w.createSymlink(ctx, rel, e)
	}
	return nil
}
