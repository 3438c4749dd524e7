package repository

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"path"
	"syscall"

	"github.com/kopia/kopia/fs"
	"golang.org/x/sys/unix"
)

// names are those in a directory of the target.
func (w *output) names(rel string) ([]string, error) {
	f, err := w.root.Open(cmpDot(rel))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// deleteExtra removes what the directory of the backup does not have.
func (w *output) deleteExtra(ctx context.Context, rel string, e fs.Directory) error {
	info, err := w.root.Lstat(cmpDot(rel))
	if err != nil {
		return err
	}
	if w.stays(rel, info) { // the backup may know it as an empty directory only
		return nil
	}
	names, err := w.names(rel)
	if err != nil {
		return err
	}
	had := map[string]bool{}
	if err := fs.IterateEntries(ctx, e, func(_ context.Context, c fs.Entry) error {
		had[c.Name()] = true
		return nil
	}); err != nil {
		return &noRead{err}
	}
	if d, is := e.(*wary); is && d.isLost() {
		return nil // nothing tells what it had
	}
	for _, name := range names {
		p := path.Join(rel, name)
		if had[name] || w.attribute(w.prefix+p).Special != "" || rel == "" && name == "lost+found" {
			continue
		}
		if _, err := w.remove(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// remove removes a file, or a directory with all that is in it. What another file system is mounted at stays, with what is in it, and so does what cannot be
// removed; both are told.
func (w *output) remove(ctx context.Context, p string) (stays bool, err error) {
	info, err := w.root.Lstat(p)
	if errors.Is(err, iofs.ErrNotExist) {
		return false, nil // somebody else was faster
	}
	if err != nil {
		return true, w.settle(ctx, p, err)
	}
	if w.stays(p, info) {
		return true, nil
	}
	if info.IsDir() {
		names, err := w.names(p)
		if err != nil {
			return true, w.settle(ctx, p, err)
		}
		for _, name := range names {
			within, err := w.remove(ctx, path.Join(p, name))
			if err != nil {
				return true, err
			}
			stays = stays || within
		}
	}
	if stays {
		return true, nil
	}
	if err := w.root.Remove(p); err != nil {
		return true, w.settle(ctx, p, err)
	}
	w.removed.Add(1)
	return false, nil
}

// stays reports whether nothing is removed at a place, because something is mounted there or above. Mount points are noted.
func (w *output) stays(rel string, info iofs.FileInfo) bool {
	if rel == "" {
		return false
	}
	mount := fileSystemOf(info) != w.device || w.isMountPoint(rel)
	w.mu.Lock()
	defer w.mu.Unlock()
	for dir := path.Dir(rel); dir != "."; dir = path.Dir(dir) {
		if w.mounts[dir] {
			return true
		}
	}
	if mount {
		w.mounts[rel] = true
	}
	return mount
}

// isMountPoint reports whether something is mounted at a place, also when it is a part of the same file system.
func (w *output) isMountPoint(rel string) bool {
	dir, name, err := parentOf(w.root, rel)
	if err != nil {
		return false
	}
	defer dir.Close()
	var st unix.Statx_t // an old kernel tells nothing, and keeps mount points from being removed all the same
	err = unix.Statx(int(dir.Fd()), name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// fileSystemOf is the file system that a file is on.
func fileSystemOf(info iofs.FileInfo) uint64 {
	st, _ := info.Sys().(*syscall.Stat_t)
	return st.Dev
}

// clear makes room for a file. What is there is not written to: other names may belong to it.
func (w *output) clear(ctx context.Context, rel string) error {
	info, err := w.root.Lstat(rel)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() && w.o.DeleteExtra {
		if stays, err := w.remove(ctx, rel); err != nil || !stays {
			return err
		}
		return &refusal{fmt.Errorf("%s is a file in the backup, and a directory in the target with something that stays: it is mounted there, or cannot be removed", EscapePath(rel))}
	}
	if err := w.root.Remove(rel); !info.IsDir() || !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return &refusal{fmt.Errorf("%s is a directory with files in the target, and none in the backup: --delete-extra replaces it", EscapePath(rel))}
}
