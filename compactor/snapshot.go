package compactor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
)

// SnapshotRequest asks for a full snapshot.
type SnapshotRequest struct {
	Name string // for people; may be empty
	// Scope says what of the cluster is wanted, and Keep chooses it; nil: everything.
	Scope  *archive.SnapshotScope
	Keep   func(*journal.Event) bool
	Origin string        // default: "manual"
	TTL    time.Duration // zero: none
	Pinned bool
}

// ErrTaken is returned for a snapshot's name that another one has.
var ErrTaken = errors.New("there is a snapshot of that name")

// Snapshot takes a full snapshot of what is recorded now. The API server sees nothing of it. When
// nothing has changed since the last one, both share one file.
func (s *Shipper) Snapshot(ctx context.Context, q SnapshotRequest) (*archive.Snapshot, error) {
	if _, err := s.Connect(ctx); err != nil {
		return nil, err
	}
	if err := s.o.Journal.Flush(ctx); err != nil {
		return nil, err
	}
	if err := s.Seal(ctx); err != nil {
		return nil, err
	}
	s.imaging.Lock()
	defer s.imaging.Unlock()
	return s.snapshot(ctx, q)
}

// snapshot takes one at the position up to which events are archived when it begins. That goes on meanwhile: a snapshot need not be at the
// archive's end, nor at the end of a segment.
func (s *Shipper) snapshot(ctx context.Context, q SnapshotRequest) (*archive.Snapshot, error) {
	if err := s.a.Refresh(ctx); err != nil { // somebody may have deleted what would be shared
		return nil, err
	}
	state, shared := s.a.State(), false
	if q.Name != "" && state.Snapshot(q.Name) != nil {
		return nil, fmt.Errorf("%w: %s", ErrTaken, q.Name)
	}
	if q.Origin == "" {
		q.Origin = "manual"
	}
	p := newest(state)
	if at := state.Known.Position; q.Scope != nil || p == nil || p.Position.Count != at.Count {
		var err error
		if p, err = s.writeSnapshot(ctx, s.a, at, q); err != nil {
			return nil, err
		}
	} else { // the same state
		same := *p
		p = &same
		p.ID, p.Position, p.Held, shared = archive.NewID(s.o.Clock()), at, false, true
	}
	p.Label, p.Origin, p.TTL, p.Pinned = q.Name, q.Origin, q.TTL, q.Pinned
	p.Created, p.Age = s.o.Clock().UTC(), s.a.Age()
	err := s.a.Commit(ctx, func(state *archive.State) (*archive.Change, error) {
		if q.Name != "" && state.Snapshot(q.Name) != nil {
			return nil, fmt.Errorf("%w: %s", ErrTaken, q.Name)
		}
		if _, there := state.Files()[p.Name]; shared && !there {
			return nil, errors.New("the snapshot whose file this one would share was deleted in the meantime: take it again")
		}
		return &archive.Change{Step: "snapshot", Snapshots: []archive.Snapshot{*p}}, nil
	})
	if err != nil {
		return nil, err
	}
	s.log.Info("snapshot", zap.String("id", p.ID), zap.String("origin", p.Origin), zap.Int("objects", p.Objects), zap.Int64("bytes", p.Size), zap.Stringer("at", p.Position.Cut))
	return p, nil
}

// writeSnapshot uploads the state at the position, which the journal must still hold.
func (s *Shipper) writeSnapshot(ctx context.Context, a *archive.Archive, at journal.Position, q SnapshotRequest) (*archive.Snapshot, error) {
	w, err := a.WriteSnapshot(ctx, at, func(put func(k, v []byte) error) error {
		return s.o.Journal.ExportState(ctx, at, q.Keep, put)
	})
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return &archive.Snapshot{
		File: w.File, ID: archive.NewID(s.o.Clock()), Position: at, Objects: w.Keys, State: w.Content, Scope: q.Scope, Origin: q.Origin,
		Created: s.o.Clock().UTC(), Age: a.Age(),
	}, nil
}

// keepFast takes a snapshot when restores would have to read too much without one.
func (s *Shipper) keepFast(ctx context.Context) error {
	s.imaging.Lock()
	defer s.imaging.Unlock()
	state := s.a.State()
	if state.Known.Began.Time.IsZero() || !wantsSnapshot(state, s.o.SnapshotEvery) {
		return nil
	}
	_, err := s.snapshot(ctx, SnapshotRequest{Origin: "compactor"})
	return err
}

// wantsSnapshot reports whether what has happened since the newest snapshot is so much that a new
// one makes restores faster. It is a pure function.
func wantsSnapshot(state *archive.State, every time.Duration) bool {
	const least = 4 << 20 // below that a fold reads all of it in no time
	from, size := time.Time{}, int64(least)
	if p := newest(state); p != nil {
		if p.Position.Count == state.Known.Position.Count {
			return false
		}
		from, size = p.Position.Time, max(p.Size, least)
	} else if len(state.Segments) > 0 {
		if len(state.Segments) > 1 {
			from = state.Segments[0].To.Time
		} else {
			from = state.Known.Position.Time
		}
	}
	since := int64(0)
	for _, g := range state.Segments {
		if g.From.Time.After(from) || g.From.Time.Equal(from) {
			since += g.Size
		}
	}
	return since > 2*size || state.Known.Position.Time.Sub(from) >= every
}
