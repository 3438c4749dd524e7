package repository

import (
	"cmp"
	"context"
	"sync"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo/object"
)

// A verification looks at what several backups share once, and finds damage once. Which backups are hit by it is asked afterwards, only when there is some: their
// directories are gone through once more, each once.

// hits tells which backups need what is damaged.
type hits struct {
	mu   sync.Mutex         // guards bad
	bad  map[object.ID]bool // files and directories that are damaged
	dirs map[object.ID]bool // whether those that were gone through need any of it
}

func (h *hits) add(id object.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bad[id] = true
}

// among names the backups that are hit.
func (h *hits) among(ctx context.Context, r *Repository, wanted []Wanted) (hit []string) {
	for _, b := range wanted {
		if top, err := r.top(ctx, b.ID); err != nil || h.needs(ctx, top) {
			hit = append(hit, cmp.Or(b.Name, b.ID))
		}
		if ctx.Err() != nil {
			return nil
		}
	}
	return hit
}

// needs reports whether an entry is damaged, or anything below it.
func (h *hits) needs(ctx context.Context, e fs.Entry) bool {
	o, ok := e.(object.HasObjectID)
	if !ok {
		return false
	}
	id := o.ObjectID()
	dir, ok := e.(fs.Directory)
	if h.bad[id] || !ok {
		return h.bad[id]
	}
	if known, ok := h.dirs[id]; ok {
		return known
	}
	entries, err := fs.GetAllEntries(ctx, dir)
	hit := err != nil
	for _, e := range entries {
		hit = hit || h.needs(ctx, e)
	}
	h.dirs[id] = hit
	return hit
}
