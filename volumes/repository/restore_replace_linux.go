package repository

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// unfinished is what the names of files begin with that are to replace one that is there, as long as their content is not complete.
const unfinished = ".tidemark-restoring-"

// randomLength is how long rand.Text is.
const randomLength = 26

// create makes the file that content is written to. Where something has its name, it gets one of its own: what is there stays until the
// new content was read to its end.
func (w *output) create(rel string) (f *os.File, name string, err error) {
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if f, err = w.root.OpenFile(rel, flags, 0o600); !errors.Is(err, iofs.ErrExist) {
		return f, rel, err
	}
	name = path.Join(path.Dir(rel), unfinished+rand.Text())
	if f, err = w.root.OpenFile(name, flags, 0o600); err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) // another restore may look for what was left
	}
	return f, name, err
}

// replace gives a file that is complete its name. Other names of what had it before keep that.
func (w *output) replace(ctx context.Context, name, rel string) error {
	if info, err := w.root.Lstat(rel); err == nil && info.IsDir() {
		if err := w.clear(ctx, rel); err != nil {
			return err
		}
	}
	return w.root.Rename(name, rel)
}

// place makes what is no file, or another name of one, and only then gives it the name that it is to have, so that what has the name stays until then.
func (w *output) place(ctx context.Context, rel string, create func(dir *os.File, name string) error) error {
	dir, _, err := parentOf(w.root, rel)
	if err != nil {
		return err
	}
	defer dir.Close()
	for try := 0; ; try++ {
		base := unfinished + rand.Text()
		name := path.Join(path.Dir(rel), base)
		if err = create(dir, base); err == nil {
			err = w.replace(ctx, name, rel)
		}
		if err == nil {
			return nil
		}
		gone := w.root.Remove(name)
		// Another restore may have taken it for one that was left: it cannot be locked.
		if try == placeTries || !errors.Is(err, iofs.ErrNotExist) || !errors.Is(gone, iofs.ErrNotExist) {
			return err
		}
	}
}

// placeTries is how often place tries again.
const placeTries = 3

// sweep removes from a directory the unfinished files of a restore that was killed.
func (w *output) sweep(rel string) error {
	names, err := w.names(rel)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !isUnfinished(name) {
			continue
		}
		if err := w.sweepFile(path.Join(rel, name)); err != nil {
			return err
		}
	}
	return nil
}

// isUnfinished reports whether a name is one of create's.
func isUnfinished(name string) bool {
	return strings.HasPrefix(name, unfinished) && len(name) == len(unfinished)+randomLength
}

// sweepFile removes an unfinished file that nobody writes.
func (w *output) sweepFile(p string) error {
	info, err := w.root.Lstat(p)
	if err != nil || info.IsDir() {
		return nil //nolint:nilerr // it is gone, or nothing of ours
	}
	if info.Mode().IsRegular() {
		f, err := w.root.Open(p)
		if err != nil {
			return nil //nolint:nilerr // whoever wrote it has just given it its name, or it has a mode already that keeps us from locking it
		}
		defer f.Close()
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			return nil
		}
	}
	if err := w.root.Remove(p); !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	return nil
}

// noRoom says of a full file system why it takes more than the backup has.
func noRoom(err error, beside bool) error {
	if !beside || !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	return fmt.Errorf("%w: the file that is there was left as it is, since it stays until its new content is complete, which takes room for both: make room or remove that file, and run the same command again", err)
}
