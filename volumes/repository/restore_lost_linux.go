package repository

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"

	"github.com/kopia/kopia/fs"
	"golang.org/x/sys/unix"
)

// noRead is why content could not be read.
type noRead struct{ error }

func (n *noRead) Unwrap() error { return n.error }

// refusal is why the target does not take something, or let go of it.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

// refuses reports whether an error is about one file of the target, and no other: it is immutable, in use as a mount, not ours, or cannot be of this name or
// kind there. A file system that is full or broken is not.
func refuses(err error) bool {
	if errors.As(err, new(*refusal)) {
		return true
	}
	for _, one := range []error{
		unix.EPERM, unix.EACCES, unix.EBUSY, unix.ETXTBSY, unix.ENOTEMPTY, unix.EEXIST, unix.ENOENT, unix.ENOTDIR, unix.EISDIR, unix.EXDEV, unix.EMLINK,
		unix.ELOOP, unix.ENAMETOOLONG, unix.EINVAL, unix.EFBIG, unix.EOPNOTSUPP,
	} {
		if errors.Is(err, one) {
			return true
		}
	}
	return false
}

// settle notes a file that does not come back, if that costs no other; else it returns the error, which ends the restore.
func (w *output) settle(ctx context.Context, rel string, err error) error {
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return err
	case errors.As(err, new(*noRead)):
		if w.trouble() != nil { // else the store gave what it has
			return err
		}
		w.lose(rel, err)
	case refuses(err), errors.Is(err, unix.EROFS) && w.writable():
		w.lose(rel, &refusal{err})
	default:
		return fmt.Errorf("%s: %w", EscapePath(cmpDot(rel)), err)
	}
	return nil
}

// writable reports whether the target's file system can be written to: after an error of its disk it may no longer be. What is mounted below may be another.
func (w *output) writable() bool {
	f, err := w.root.Open(".")
	if err != nil {
		return false
	}
	defer f.Close()
	var st unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &st) == nil && st.Flags&unix.ST_RDONLY == 0
}

// lostNames is how much of what did not come back a restore's outcome names.
const lostNames = 100

// lose notes a file that does not come back.
func (w *output) lose(rel string, why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost[rel] = why
}

// loss is why a file does not come back, or a directory that it is in; nil: it does.
func (w *output) loss(rel string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	why := w.lost[rel]
	for dir := path.Dir(rel); why == nil; dir = path.Dir(dir) {
		if why = w.lost[dir+"/"]; dir == "." {
			break
		}
	}
	return why
}

// wary is a directory that is restored: one that cannot be read is noted as lost, and is empty, so that all else comes back.
type wary struct {
	fs.Directory
	w   *output
	rel string
}

// isLost reports whether it was noted.
func (d *wary) isLost() bool {
	return d.why() != nil
}

// why it is lost; nil: it is not.
func (d *wary) why() error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	return d.w.lost[d.name()]
}

func (d *wary) name() string { return cmpDot(d.rel) + "/" }

// Iterate implements fs.Directory.
func (d *wary) Iterate(ctx context.Context) (fs.DirectoryIterator, error) {
	if d.isLost() {
		return fs.StaticIterator(nil, nil), nil
	}
	it, err := d.Directory.Iterate(ctx)
	if err == nil {
		return &waryIterator{it, d}, nil
	}
	if ctx.Err() != nil || d.w.trouble() != nil {
		return nil, err
	}
	d.w.lose(d.name(), err)
	return fs.StaticIterator(nil, nil), nil
}

type waryIterator struct {
	fs.DirectoryIterator
	in *wary
}

// Next implements fs.DirectoryIterator.
func (it *waryIterator) Next(ctx context.Context) (fs.Entry, error) {
	e, err := it.DirectoryIterator.Next(ctx)
	if d, is := e.(fs.Directory); is && err == nil {
		return &wary{d, it.in.w, path.Join(it.in.rel, d.Name())}, nil
	}
	return e, err
}

// outcome is what a restore that came to its end has done, and the error of one that has not brought back everything.
func (w *output) outcome() (Progress, error) {
	p, names := w.now(), slices.Sorted(maps.Keys(w.lost))
	for _, name := range slices.Sorted(maps.Keys(w.mounts)) {
		if len(p.Mounts) < lostNames {
			p.Mounts = append(p.Mounts, EscapePath(name))
		}
	}
	if len(names) == 0 {
		return p, nil
	}
	p.Lost = int64(len(names))
	for _, name := range names[:min(len(names), lostNames)] {
		p.LostFirst = append(p.LostFirst, fmt.Sprintf("%s: %v", EscapePath(name), w.lost[name]))
	}
	var damaged, refused []string
	for _, name := range names {
		if errors.As(w.lost[name], new(*refusal)) {
			refused = append(refused, name)
		} else {
			damaged = append(damaged, name)
		}
	}
	err := ErrPartly
	if len(damaged) > 0 {
		which := listed(damaged)
		if w.lost[attributesName] != nil {
			which += " (which has extended attributes, times of directories, pipes, devices, holes, and which files are one)"
		}
		err = fmt.Errorf("%w: the content of %s is damaged in the repository, or lost from it: restore what is missing from another backup (%w)", err, which, w.lost[damaged[0]])
	}
	if len(refused) > 0 {
		err = fmt.Errorf("%w: the target keeps %s from being written or removed: see to that, and run the same command again (%w)", err, listed(refused), w.lost[refused[0]])
	}
	return p, fmt.Errorf("%w; all else is back", err)
}
