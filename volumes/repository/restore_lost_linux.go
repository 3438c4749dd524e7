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

// lose notes a file that does not come back.
func (w *output) lose(rel string, why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost[rel] = true; w.lostWhy == nil {
		w.lostWhy = why
	}
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
	return d.w.lost[d.name()]
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

// damage is the error of a restore without the files whose content cannot be read.
func (w *output) damage() error {
	names := slices.Sorted(maps.Keys(w.lost))
	if len(names) == 0 {
		return nil
	}
	more := ""
	for i, name := range names {
		names[i] = EscapePath(name)
	}
	if n := len(names) - missedNames; n > 0 {
		names, more = names[:missedNames], fmt.Sprintf(" and %d more", n)
	}
	if w.lost[attributesName] {
		more += " (which has extended attributes, times of directories, pipes, devices, holes, and which files are one)"
	}
	return fmt.Errorf("restore: the content of %s%s is damaged in the repository, or lost from it; all else is back: restore what is missing from another backup (%w)", strings.Join(names, ", "), more, w.lostWhy)
}
