package compactor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/compactor/retention"
)

// Retained is what a round of retention decided.
type Retained struct {
	Snapshots []retention.Verdict `json:"snapshots"`
	Segments  []SegmentVerdict    `json:"segments"`
	// Freed is the size of what goes, in bytes.
	Freed int64 `json:"freedBytes"`
}

// SegmentVerdict says what becomes of a segment, and why.
type SegmentVerdict struct {
	Name   string    `json:"name"`
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	Size   int64     `json:"bytes"`
	Keep   bool      `json:"keep"`
	Reason string    `json:"reason"`
}

// Retain takes what the policy does not keep out of the archive, and removes the files of what
// went earlier. With dryRun it only tells.
func (s *Shipper) Retain(ctx context.Context, dryRun bool) (*Retained, error) {
	a, err := s.Connect(ctx)
	if err != nil {
		return nil, err
	}
	s.working.Lock()
	defer s.working.Unlock()
	s.mu.Lock()
	policy := s.policy
	s.mu.Unlock()
	return Retain(ctx, a, policy, s.o.Grace, dryRun)
}

// Retain is Shipper.Retain for an archive without a journal.
func Retain(ctx context.Context, a *archive.Archive, p retention.Policy, grace time.Duration, dryRun bool) (*Retained, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	var res *Retained
	if dryRun {
		return decide(a.State(), p, a.Age()), nil
	}
	err := a.Commit(ctx, func(state *archive.State) (*archive.Change, error) {
		res = decide(state, p, a.Age())
		c := &archive.Change{Step: "retain"}
		for _, v := range res.Snapshots {
			if !v.Keep {
				c.Gone = append(c.Gone, v.ID)
			}
		}
		for _, v := range res.Segments {
			if !v.Keep {
				c.Gone = append(c.Gone, v.Name)
			}
		}
		if len(c.Gone) == 0 {
			return nil, nil
		}
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	if err := freeGarbage(ctx, a, grace); err != nil {
		return res, err
	}
	return res, shorten(ctx, a)
}

// decide is a pure function.
func decide(state *archive.State, p retention.Policy, age time.Duration) *Retained {
	var items []retention.Item
	for _, q := range state.Snapshots {
		items = append(items, retention.Item{
			ID: q.ID, Name: q.Label, Time: q.Position.Time, Age: age - q.Age, TTL: q.TTL, Pinned: q.Pinned, Held: q.Held,
			Full: q.Scope == nil, Group: q.Origin, Manual: !strings.HasPrefix(q.Origin, "schedule/") && q.Origin != "compactor" && q.Origin != "begin",
		})
	}
	res := &Retained{Snapshots: retention.Decide(items, p)}
	went := map[string]bool{}
	for _, v := range res.Snapshots {
		went[v.ID] = !v.Keep
	}
	kept := map[string]bool{}
	for _, q := range state.Snapshots {
		kept[q.Name] = kept[q.Name] || !went[q.ID]
	}
	for _, q := range state.Snapshots {
		if !kept[q.Name] {
			res.Freed += q.Size
			kept[q.Name] = true // counted
		}
	}
	spans := make([]retention.Span, len(state.Segments))
	for i, g := range state.Segments {
		spans[i] = retention.Span{ID: g.Name, From: g.From.Time, To: g.To.Time, Age: age - g.Age}
	}
	for i, v := range retention.Segments(spans, res.Snapshots, p) {
		size := state.Segments[i].Size
		if !v.Keep {
			res.Freed += size
		}
		res.Segments = append(res.Segments, SegmentVerdict{Name: v.ID, From: v.From, To: v.To, Size: size, Keep: v.Keep, Reason: v.Reason})
	}
	return res
}

const (
	// chainAge is how old manifests are at least before a checkpoint takes their place.
	chainAge = 24 * time.Hour
	// chainKeep is how many checkpoints stay at least.
	chainKeep = 2
)

// shorten removes the manifests that a checkpoint of some age speaks for, and older checkpoints.
func shorten(ctx context.Context, a *archive.Archive) error {
	points, err := a.Checkpoints(ctx)
	if err != nil {
		return err
	}
	from := a.State().ChainFrom
	for i := 0; i+chainKeep < len(points); i++ {
		if points[i] <= from {
			continue
		}
		old, err := a.CheckpointAge(ctx, points[i])
		if _, damaged := errors.AsType[*archive.DamageError](err); damaged {
			continue
		}
		if err != nil {
			return err
		}
		if a.Age()-old < chainAge {
			break
		}
		from = points[i]
	}
	if from > a.State().ChainFrom {
		if err := a.Commit(ctx, func(*archive.State) (*archive.Change, error) {
			return &archive.Change{Step: "shorten", ChainFrom: from}, nil
		}); err != nil {
			return err
		}
	}
	names, err := a.Superseded(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := a.Remove(ctx, name); err != nil && !errors.Is(err, archive.ErrHeld) && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return nil
}

// ErrUnknown is returned for a snapshot that is not there.
var ErrUnknown = errors.New("there is no such snapshot")

// Edit changes a snapshot by hand: pins it, takes the pin or a hold away.
func Edit(ctx context.Context, a *archive.Archive, name string, edit func(*archive.Snapshot) error) (*archive.Snapshot, error) {
	var out archive.Snapshot
	return &out, a.Commit(ctx, func(state *archive.State) (*archive.Change, error) {
		p := state.Snapshot(name)
		if p == nil {
			return nil, fmt.Errorf("%w: %s: 'tidemark snapshot list' shows what there is", ErrUnknown, name)
		}
		out = *p
		if err := edit(&out); err != nil {
			return nil, err
		}
		return &archive.Change{Step: "edit", Snapshots: []archive.Snapshot{out}}, nil
	})
}

// Delete takes a snapshot out of the archive. One that is pinned, held, or that the restorable
// window needs is refused.
func Delete(ctx context.Context, a *archive.Archive, name string) (*archive.Snapshot, error) {
	var out archive.Snapshot
	return &out, a.Commit(ctx, func(state *archive.State) (*archive.Change, error) {
		p := state.Snapshot(name)
		if p == nil {
			return nil, fmt.Errorf("%w: %s: 'tidemark snapshot list' shows what there is", ErrUnknown, name)
		}
		out = *p
		switch {
		case p.Pinned:
			return nil, fmt.Errorf("snapshot %s is pinned: 'tidemark snapshot unpin %s' first", name, name)
		case p.Held:
			return nil, fmt.Errorf("snapshot %s is under a legal hold: 'tidemark snapshot unpin %s --legal-hold' first", name, name)
		case p.Scope == nil && len(ranges(state, p.ID)) != len(ranges(state, "")):
			return nil, fmt.Errorf("snapshot %s is what restores of other moments are built on: it goes by itself once a newer one takes its place and retention lets it", name)
		}
		return &archive.Change{Step: "delete", Gone: []string{p.ID}}, nil
	})
}

// ranges are the restorable stretches of more than one moment, without the snapshot.
func ranges(state *archive.State, without string) []archive.Range {
	n := *state
	n.Snapshots = slices.DeleteFunc(slices.Clone(state.Snapshots), func(p archive.Snapshot) bool { return p.ID == without })
	var all []archive.Range
	for _, r := range n.Ranges() {
		if r.To.Time.After(r.From.Time) {
			all = append(all, r)
		}
	}
	if len(all) > 0 && without != "" {
		before := ranges(state, "")
		if len(before) > 0 && !before[0].From.Time.Equal(all[0].From.Time) {
			return nil // the beginning would move
		}
	}
	return all
}
