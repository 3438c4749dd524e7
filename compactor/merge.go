package compactor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
)

// Levels are the lengths of time that segments of each level cover at most, level 0 being what
// Seal makes. Their ratios of 4 to 6 are what keeps the files of one day at about a dozen.
var Levels = []time.Duration{0, 30 * time.Second, 3 * time.Minute, 15 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour}

const (
	// mergeBytes is the size above which segments stay apart.
	mergeBytes = 256 << 20
	// copyLevel is the highest level of which copies are kept.
	copyLevel = 5
)

// Merge makes one segment out of those that lie in one stretch of a level, for each stretch
// that is over. No answer changes by it.
func (s *Shipper) Merge(ctx context.Context) error {
	s.merging.Lock()
	defer s.merging.Unlock()
	apart := map[string]bool{} // segments that cannot be read here
	for {
		level, inputs := mergeable(s.a.State(), apart)
		if inputs == nil {
			return s.free(ctx)
		}
		done, err := s.merge(ctx, level, inputs)
		if err != nil {
			return err
		}
		if !done {
			for _, g := range inputs {
				apart[g.Name] = true
			}
		}
	}
}

// mergeable finds segments to merge that are not to stay apart, the lowest level first. It is a pure
// function.
func mergeable(state *archive.State, apart map[string]bool) (level int, inputs []archive.Segment) {
	for level = 1; level < len(Levels); level++ {
		var run []archive.Segment
		size := int64(0)
		for _, g := range state.Segments {
			follows := len(run) > 0 && g.From.Time.Equal(run[len(run)-1].To.Time) && stretch(level, g) == stretch(level, run[0])
			if !follows || g.Level >= level || apart[g.Name] || size+g.Size > mergeBytes {
				if len(run) > 1 {
					return level, run
				}
				run, size = nil, 0
			}
			if g.Level < level && !apart[g.Name] && stretch(level, g) < stretchAt(level, state.Known.Position.Time) {
				run = append(run, g)
				size += g.Size
			}
		}
		if len(run) > 1 {
			return level, run
		}
	}
	return 0, nil
}

// stretch numbers the stretch of a level that the segment ends in.
func stretch(level int, g archive.Segment) int64 { return stretchAt(level, g.To.Time) }

func stretchAt(level int, t time.Time) int64 { return t.UnixNano() / int64(Levels[level]) }

// merge makes one segment of the inputs. done is false when they cannot be read here: without
// an identity, and gone from the journal.
func (s *Shipper) merge(ctx context.Context, level int, inputs []archive.Segment) (done bool, err error) {
	out := archive.Segment{Level: level, From: inputs[0].From, To: inputs[len(inputs)-1].To, Age: inputs[len(inputs)-1].Age}
	want := 0
	var gone []string
	for _, g := range inputs {
		want += g.Entries
		out.Own = out.Own || g.Own
		if !g.Least.IsZero() && (out.Least.IsZero() || g.Least.Compare(out.Least) < 0) {
			out.Least = g.Least
		}
		gone = append(gone, g.Name)
	}
	keep := s.copies
	if level > copyLevel {
		keep = nil
	}
	w, err := s.a.WriteSegment(ctx, level, out.To, keep, false, func(put func(k, v []byte) error) (err error) {
		out.Entries, err = s.reread(ctx, inputs, put)
		return err
	})
	if errors.Is(err, archive.ErrNoIdentity) || errors.Is(err, journal.ErrTrimmed) {
		s.log.Debug("segments are left apart: there is no identity to read them with", zap.Int("segments", len(inputs)))
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("merge segments: %w", err)
	}
	if out.Entries != want {
		return false, fmt.Errorf("merge segments %s to %s: %d entries, and they have %d: they are left as they are", inputs[0].Name, inputs[len(inputs)-1].Name, out.Entries, want)
	}
	out.File = w.File
	err = s.a.Commit(ctx, func(state *archive.State) (*archive.Change, error) {
		for _, name := range gone {
			if !slices.ContainsFunc(state.Segments, func(g archive.Segment) bool { return g.Name == name }) {
				return nil, nil // somebody removed it in the meantime
			}
		}
		return &archive.Change{Step: "merge", Gone: gone, Segments: []archive.Segment{out}}, nil
	})
	if err != nil {
		return false, err
	}
	for _, name := range gone {
		s.copies.Forget(name)
	}
	s.log.Debug("merged", zap.Int("segments", len(inputs)), zap.Int("level", level), zap.Int64("bytes", w.Size))
	return true, nil
}

// reread gives what is in the segments: from their copies, from the archive, or from the journal.
func (s *Shipper) reread(ctx context.Context, inputs []archive.Segment, put func(k, v []byte) error) (entries int, err error) {
	if t, done, ok := s.copies.Tables(inputs); ok {
		defer done()
		return t.All(put)
	}
	if s.a.CanRead() {
		t, err := s.a.Tables(ctx, inputs, nil)
		if err != nil {
			return 0, err
		}
		return t.All(put)
	}
	total := 0
	for _, g := range inputs {
		total += g.Entries
	}
	if total > 20*sealEntries { // the journal's way takes memory for each event
		return 0, archive.ErrNoIdentity
	}
	span, err := s.o.Journal.Export(ctx, inputs[0].From, inputs[len(inputs)-1].To, total+1, put)
	return span.Entries, err
}

// free removes files that went out of the archive some time ago. One that is locked is tried
// again later.
func (s *Shipper) free(ctx context.Context) error {
	return freeGarbage(ctx, s.a, s.o.Grace)
}

// freeGarbage removes files that no answer needs any more, and that readers had time to forget.
func freeGarbage(ctx context.Context, a *archive.Archive, grace time.Duration) error {
	var freed []string
	for _, g := range a.State().Garbage {
		if a.Age()-g.Age < grace {
			continue
		}
		err := a.Remove(ctx, g.Name)
		if errors.Is(err, archive.ErrHeld) {
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", g.Name, err)
		}
		if freed = append(freed, g.Name); len(freed) == 500 {
			break
		}
	}
	if len(freed) == 0 {
		return nil
	}
	return a.Commit(ctx, func(*archive.State) (*archive.Change, error) {
		return &archive.Change{Step: "free", Freed: freed}, nil
	})
}
