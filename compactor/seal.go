package compactor

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
)

const (
	// sealEntries bounds a segment, and so the memory that sealing takes.
	sealEntries = 50_000
	// idleSeal is how often a manifest without events may say how far the watermarks are.
	idleSeal = time.Minute
)

// Seal archives all that is durable in the journal and not archived yet, in one segment or, when
// it is much, in several.
func (s *Shipper) Seal(ctx context.Context) error {
	s.working.Lock()
	defer s.working.Unlock()
	for {
		more, err := s.seal(ctx)
		if err != nil || !more {
			return err
		}
	}
}

// seal archives one segment; more reports whether there is another.
func (s *Shipper) seal(ctx context.Context) (more bool, err error) {
	now, err := s.o.Journal.State()
	if err != nil {
		return false, err
	}
	state := s.a.State()
	from := state.Known.Position
	if !now.Position.Time.After(from.Time) {
		return false, s.sealIdle(ctx, state, now)
	}
	var span journal.Span
	_, bytes := s.backlog()
	w, err := s.a.WriteSegment(ctx, 0, now.Position, s.copies, bytes <= 2*s.o.SealBytes, func(put func(k, v []byte) error) (err error) {
		span, err = s.o.Journal.Export(ctx, from, now.Position, sealEntries, put)
		return err
	})
	if err != nil {
		return false, err
	}
	more = span.To.Time.Before(now.Position.Time)
	err = s.a.Commit(ctx, func(state *archive.State) (*archive.Change, error) {
		if moved := state.Known.Position; moved.Count != from.Count || !moved.Time.Equal(from.Time) {
			if s.a.Unheard() { // it was sealed by an earlier try
				more = true
				return nil, nil
			}
			return nil, fmt.Errorf("seal: the archive has gone on to %s: a copy of this data directory archives as well", state.Known.Position.Cut)
		}
		c := &archive.Change{Step: "seal", Segments: []archive.Segment{{
			File: w.File, From: span.From, To: span.To, Entries: span.Entries, Least: span.Least, Own: span.Own, Age: s.a.Age(),
		}}}
		if more { // what the journal knows is true of its end only
			c.Known = &archive.Known{Position: &span.To}
		} else {
			c.Known = state.Learn(now)
		}
		return c, nil
	})
	if err != nil {
		return false, err
	}
	s.log.Debug("sealed", zap.Int("entries", span.Entries), zap.Int64("bytes", w.Size), zap.Stringer("to", span.To.Cut))
	return more, nil
}

// sealIdle says how far the watermarks are while nothing happens.
func (s *Shipper) sealIdle(ctx context.Context, state *archive.State, now journal.State) error {
	k := state.Learn(now)
	if !told(k) && (len(k.Watermarks) == 0 || s.o.Clock().Sub(state.Time) < idleSeal) {
		return nil
	}
	return s.a.Commit(ctx, func(state *archive.State) (*archive.Change, error) {
		return &archive.Change{Step: "seal", Known: state.Learn(now)}, nil
	})
}

// told reports whether there is more to tell than how far the watermarks are.
func told(k *archive.Known) bool {
	return k.Began != nil || len(k.Ledgers) > 0 || k.LeftOut != nil || len(k.Outages)+len(k.Marks) > 0
}
