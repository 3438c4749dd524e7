package repository

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/kopia/kopia/fs"
)

// noRead is why content could not be read.
type noRead struct{ error }

func (n *noRead) Unwrap() error { return n.error }

// lostNames is how much of what did not come back a restore's outcome names.
const lostNames = 100

// lose notes a file that does not come back.
func (w *output) lose(rel string, why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost[rel] = why
}

// isLost reports whether a file was noted, or a directory that it is in.
func (w *output) isLost(rel string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, is := w.lost[rel]
	for dir := path.Dir(rel); !is; dir = path.Dir(dir) {
		if _, is = w.lost[dir+"/"]; dir == "." {
			break
		}
	}
	return is
}

// wary is a directory that is restored: one that cannot be read is noted as lost, and is empty, so that all else comes back.
type wary struct {
	fs.Directory
	w   *output
	rel string
}

// isLost reports whether it was noted.
func (d *wary) isLost() bool {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	return d.w.lost[d.name()] != nil
}

func (d *wary) name() string { return cmpDot(d.rel) + "/" }

// Iterate implements fs.Directory.
func (d *wary) Iterate(ctx context.Context) (fs.DirectoryIterator, error) {
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
	if len(names) == 0 {
		return p, nil
	}
	p.Lost = int64(len(names))
	for _, name := range names[:min(len(names), lostNames)] {
		p.LostFirst = append(p.LostFirst, fmt.Sprintf("%s: %v", EscapePath(name), w.lost[name]))
	}
	which := listed(names)
	if w.lost[attributesName] != nil {
		which += " (which has extended attributes, times of directories, pipes, devices, holes, and which files are one)"
	}
	return p, fmt.Errorf("%w: the content of %s is damaged in the repository, or lost from it; all else is back: restore what is missing from another backup (%w)", ErrPartly, which, w.lost[names[0]])
}

// listed are the first of some files.
func listed(names []string) string {
	more := ""
	if n := len(names) - missedNames; n > 0 {
		names, more = names[:missedNames], fmt.Sprintf(" and %d more", n)
	}
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = EscapePath(name)
	}
	return strings.Join(all, ", ") + more
}
