package compactor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
)

// Repaired is what Repair did, or would do.
type Repaired struct {
	Found *Report `json:"found"`
	// Rebuilt are files that were made anew from the journal.
	Rebuilt []string `json:"rebuilt,omitempty"`
	// Dropped are segments and snapshots that are lost: the archive does not speak of them any more.
	Dropped []string `json:"dropped,omitempty"`
	// Removed are files that nothing referred to.
	Removed []string `json:"removed,omitempty"`
	// Young are files that nothing refers to and that somebody may be about to commit: they stay for now.
	Young  []string `json:"young,omitempty"`
	DryRun bool     `json:"dryRun,omitempty"`
}

// orphanAge is how old a file is at least before nobody can be about to commit it.
const orphanAge = time.Hour

// Repair checks all files, makes anew from the journal what is damaged and what the journal still
// has, takes out of the archive what is lost, and removes files that nothing refers to. It never
// makes up anything.
func (s *Shipper) Repair(ctx context.Context, dryRun bool) (*Repaired, error) {
	a, err := s.Connect(ctx)
	if err != nil {
		return nil, err
	}
	// Whoever else adds files, or shares them, waits: what is found must still be true when it is mended.
	for _, l := range []*sync.Mutex{&s.imaging, &s.merging, &s.working} {
		l.Lock()
		defer l.Unlock()
	}
	return repair(ctx, a, s, dryRun)
}

// Repair is Shipper.Repair for an archive without a journal.
func Repair(ctx context.Context, a *archive.Archive, dryRun bool) (*Repaired, error) {
	return repair(ctx, a, nil, dryRun)
}

func repair(ctx context.Context, a *archive.Archive, s *Shipper, dryRun bool) (*Repaired, error) {
	level := Level{Checksum: true, Percent: 100, Full: a.CanRead()}
	found, err := Verify(ctx, a, level)
	if err != nil {
		return nil, err
	}
	r := &Repaired{Found: found, DryRun: dryRun}
	for _, p := range found.Problems {
		for _, id := range p.Bad {
			if err := r.mend(ctx, a, s, id); err != nil {
				return r, err
			}
		}
	}
	return r, r.sweep(ctx, a)
}

// mend makes one segment or snapshot anew, or drops it.
func (r *Repaired) mend(ctx context.Context, a *archive.Archive, s *Shipper, id string) error {
	state := a.State()
	c := &archive.Change{Step: "repair", Gone: []string{id}}
	for _, g := range state.Segments {
		if g.Name == id {
			c.Lost = []archive.Stretch{{From: g.From, To: g.To, Least: g.Least}}
		}
	}
	var err error
	if s != nil {
		if err = s.remake(ctx, a, state, id, c, r.DryRun); err != nil && !errors.Is(err, journal.ErrTrimmed) {
			return fmt.Errorf("repair %s: %w", id, err)
		}
	}
	mended := s != nil && err == nil
	if mended {
		r.Rebuilt = append(r.Rebuilt, id)
	} else {
		r.Dropped = append(r.Dropped, id)
	}
	if r.DryRun {
		return nil
	}
	if err := a.Commit(ctx, func(*archive.State) (*archive.Change, error) { return c, nil }); err != nil {
		return err
	}
	for _, p := range state.Snapshots {
		if p.ID != id || !p.Held {
			continue
		}
		if err := releaseUnheld(ctx, a, p.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("release %s: %w", p.Name, err)
		}
	}
	return nil
}

// remake makes what was lost anew from the journal, if the journal still has all of it. With dryRun
// it only tries.
func (s *Shipper) remake(ctx context.Context, a *archive.Archive, state *archive.State, id string, c *archive.Change, dryRun bool) error {
	for _, g := range state.Segments {
		if g.Name != id {
			continue
		}
		var span journal.Span
		w, err := made(dryRun, func(put func(k, v []byte) error) (err error) {
			span, err = s.o.Journal.Export(ctx, g.From, g.To, g.Entries+1, put)
			return err
		}, func(fill filler) (archive.Written, error) {
			return a.WriteSegment(ctx, g.Level, g.To, nil, false, fill)
		})
		if err != nil {
			return err
		}
		if span.Entries != g.Entries {
			return fmt.Errorf("%w: %d entries of %d", journal.ErrTrimmed, span.Entries, g.Entries)
		}
		g.File = w.File
		c.Segments, c.Lost = []archive.Segment{g}, nil
		return nil
	}
	for _, p := range state.Snapshots {
		if p.ID != id {
			continue
		}
		if p.Scope != nil {
			return journal.ErrTrimmed // what was in scope then cannot be told from here
		}
		w, err := made(dryRun, func(put func(k, v []byte) error) error {
			return s.o.Journal.ExportState(ctx, p.Position, nil, put)
		}, func(fill filler) (archive.Written, error) { return a.WriteSnapshot(ctx, p.Position, fill) })
		if err != nil {
			return err
		}
		if w.Content != p.State {
			return fmt.Errorf("%w: the journal gives another state", journal.ErrTrimmed)
		}
		if p.Held && !dryRun {
			if err := a.Hold(ctx, w.Name, true); err != nil {
				return err
			}
		}
		p.File = w.File
		c.Gone, c.Snapshots = nil, []archive.Snapshot{p}
	}
	return nil
}

// filler gives the content of a new file, in the order of the keys.
type filler = func(put func(k, v []byte) error) error

// made writes a new file, or, in a dry run, only looks whether it could be filled.
func made(dryRun bool, fill filler, write func(filler) (archive.Written, error)) (w archive.Written, err error) {
	if !dryRun {
		return write(fill)
	}
	content := archive.NewContentHash()
	err = fill(func(k, v []byte) error {
		content.Add(k, v)
		return nil
	})
	return archive.Written{Content: content.String()}, err
}

// sweep removes files that nothing refers to and that nobody can be about to commit.
func (r *Repaired) sweep(ctx context.Context, a *archive.Archive) error {
	there, err := a.List(ctx)
	if err != nil {
		return err
	}
	newest := time.Time{} // the store's clock, as far as it can be told
	for _, f := range there {
		if f.Time.After(newest) {
			newest = f.Time
		}
	}
	var old []string
	for _, name := range r.Found.Unknown {
		if newest.Sub(there[name].Time) < orphanAge {
			r.Young = append(r.Young, name)
		} else {
			old = append(old, name)
		}
	}
	if a.Broken() { // a damaged manifest may have been what spoke of them
		old = nil
	}
	if len(old) > 0 && !r.DryRun {
		// A writer that was stopped for hours just before its commit now loses the race for it, and looks again.
		if err := a.Commit(ctx, func(*archive.State) (*archive.Change, error) { return &archive.Change{Step: "sweep"}, nil }); err != nil {
			return err
		}
	}
	known := a.State().Files() // also what was committed since it was verified
	for _, g := range a.State().Garbage {
		known[g.Name] = g.File
	}
	for _, name := range old {
		if _, ok := known[name]; ok {
			continue
		}
		if !r.DryRun {
			if err := a.Remove(ctx, name); errors.Is(err, archive.ErrHeld) {
				continue
			} else if err != nil {
				return fmt.Errorf("remove %s: %w", name, err)
			}
		}
		r.Removed = append(r.Removed, name)
	}
	if sweeper, ok := a.Store().(archive.Sweeper); ok && !r.DryRun {
		return sweeper.Sweep(ctx)
	}
	return nil
}
