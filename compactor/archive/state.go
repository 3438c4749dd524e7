package archive

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tidemark-backup/tidemark/journal"
)

// State is what all manifests of an archive make together, up to Seq. It is a value: apply
// makes a new one.
type State struct {
	Format  string `json:"format"`
	Cluster string `json:"cluster"`
	Seq     uint64 `json:"seq"`
	Hash    string `json:"hash"` // of manifest Seq
	// FormatHash is the hash of the file "format", which the first manifest follows.
	FormatHash string        `json:"formatHash"`
	Age        time.Duration `json:"age"`
	Time       time.Time     `json:"time"` // of manifest Seq, by its writer's clock
	// Journal is the ID of the journal whose events the archive takes, Writer its process.
	Journal string `json:"journal"`
	Writer  string `json:"writer,omitempty"`
	// Broken is set after a manifest that was damaged or missing.
	Broken bool `json:"-"`
	// ChainFrom is the checkpoint that the chain begins with; zero: the first manifest.
	ChainFrom uint64 `json:"chainFrom,omitempty"`
	// Known is what the journal knew of itself at Known.Position, up to which events are archived.
	Known journal.State `json:"known"`
	// Segments are ordered by their ends.
	Segments []Segment `json:"segments"`
	// Snapshots are ordered by position.
	Snapshots []Snapshot `json:"snapshots"`
	// Lost are stretches whose segment is lost. A moment from before one may need it all the same: late events.
	Lost []Stretch `json:"lost,omitempty"`
	// Garbage are files that no answer needs any more and that are still to be removed.
	Garbage []Garbage `json:"garbage,omitempty"`
}

// Garbage is a file that is no longer part of the archive.
type Garbage struct {
	File
	Age time.Duration `json:"age"` // the archive's age when the file went
}

// apply makes the state after the manifest, whose hash is given. What it takes away and is not
// there was brought by a manifest that is damaged.
func (s *State) apply(m *Manifest, hash string) *State {
	n := *s
	n.Format = checkpointVersion
	n.Broken = false
	n.Cluster, n.Seq, n.Hash, n.Time, n.Age = m.Cluster, m.Seq, hash, m.Time, max(s.Age, m.Age)
	if m.Change.TakeOver {
		n.Journal = m.Journal
	}
	if m.Journal == n.Journal {
		n.Writer = m.Writer
	}
	n.Segments, n.Snapshots, n.Garbage = slices.Clone(s.Segments), slices.Clone(s.Snapshots), slices.Clone(s.Garbage)
	n.Lost = append(slices.Clip(s.Lost), m.Change.Lost...)
	if f := m.Change.Follows; f != nil && !n.covers(*f) && !slices.Contains(m.Change.Lost, *f) {
		n.Lost = append(n.Lost, *f)
	}
	for _, id := range m.Change.Gone {
		n.remove(id, m.Age)
	}
	n.Segments = append(n.Segments, m.Change.Segments...)
	slices.SortStableFunc(n.Segments, func(a, b Segment) int { return a.To.Time.Compare(b.To.Time) })
	for _, p := range m.Change.Snapshots {
		if i := slices.IndexFunc(n.Snapshots, func(o Snapshot) bool { return o.ID == p.ID }); i >= 0 {
			n.Snapshots[i] = p
		} else {
			n.Snapshots = append(n.Snapshots, p)
		}
	}
	slices.SortStableFunc(n.Snapshots, func(a, b Snapshot) int {
		return cmp.Or(a.Position.Time.Compare(b.Position.Time), cmp.Compare(a.ID, b.ID))
	})
	n.Garbage = slices.DeleteFunc(n.Garbage, func(g Garbage) bool { return slices.Contains(m.Change.Freed, g.Name) })
	n.ChainFrom = max(n.ChainFrom, m.Change.ChainFrom)
	if m.Change.Known != nil {
		n.Known = m.Change.Known.applied(s.Known)
	}
	return &n
}

// covers reports whether a segment, also one that goes in this step, or a loss that is known covers the end of the stretch.
func (s *State) covers(f Stretch) bool {
	return slices.ContainsFunc(s.Segments, func(g Segment) bool { return !g.To.Time.Before(f.To.Time) && g.From.Time.Before(f.To.Time) }) ||
		slices.ContainsFunc(s.Lost, func(l Stretch) bool { return l.To.Time.Equal(f.To.Time) })
}

// Newest is what the newest segment covers; nil when there is none.
func (s *State) Newest() *Stretch {
	if len(s.Segments) == 0 {
		return nil
	}
	g := s.Segments[len(s.Segments)-1]
	return &Stretch{From: g.From, To: g.To, Least: g.Least}
}

// remove takes a segment or snapshot out. Its file is garbage unless another snapshot has it too.
func (s *State) remove(id string, age time.Duration) {
	var file File
	if i := slices.IndexFunc(s.Segments, func(g Segment) bool { return g.Name == id }); i >= 0 {
		file = s.Segments[i].File
		s.Segments = slices.Delete(s.Segments, i, i+1)
	} else if i := slices.IndexFunc(s.Snapshots, func(p Snapshot) bool { return p.ID == id }); i >= 0 {
		file = s.Snapshots[i].File
		s.Snapshots = slices.Delete(s.Snapshots, i, i+1)
	}
	if file.Name != "" && !slices.ContainsFunc(s.Snapshots, func(p Snapshot) bool { return p.Name == file.Name }) {
		s.Garbage = append(s.Garbage, Garbage{File: file, Age: age})
	}
}

// Without is the state without a file that is lost.
func (s *State) Without(file string) *State {
	n := *s
	n.Segments, n.Snapshots, n.Lost = nil, nil, slices.Clip(s.Lost)
	for _, g := range s.Segments {
		if g.Name == file {
			n.Lost = append(n.Lost, Stretch{From: g.From, To: g.To, Least: g.Least})
			continue
		}
		n.Segments = append(n.Segments, g)
	}
	for _, p := range s.Snapshots {
		if p.Name != file {
			n.Snapshots = append(n.Snapshots, p)
		}
	}
	return &n
}

// Files are all files that answers may need, by name.
func (s *State) Files() map[string]File {
	all := map[string]File{}
	for _, g := range s.Segments {
		all[g.Name] = g.File
	}
	for _, p := range s.Snapshots {
		all[p.Name] = p.File
	}
	return all
}

// Snapshot finds a snapshot by its ID or by the name people gave it, the newest of that name.
func (s *State) Snapshot(name string) *Snapshot {
	for i := len(s.Snapshots) - 1; i >= 0; i-- {
		if p := &s.Snapshots[i]; p.ID == name || p.Label == name {
			return p
		}
	}
	return nil
}

// ErrHole is returned for a moment that the archive's files do not cover.
var ErrHole = errors.New("the archive does not cover that moment")

// base is a place from which history can be followed on: a snapshot, or the beginning.
type base struct {
	snapshot *Snapshot // nil: the beginning, where there was nothing
	position journal.Position
}

// bases are all places to begin at, newest first. An archive that has everything since its
// journal began needs no snapshot.
func (s *State) bases() []base {
	var all []base
	for i := len(s.Snapshots) - 1; i >= 0; i-- {
		if p := &s.Snapshots[i]; p.Scope == nil {
			all = append(all, base{p, p.Position})
		}
	}
	if len(s.Segments) > 0 && s.Segments[0].From.Time.IsZero() {
		all = append(all, base{})
	}
	return all
}

// follow gives the segments that lead on from the position until the time, in order; ok is
// false when some are missing. A segment that began before the position is given as a whole.
func (s *State) follow(from journal.Position, until time.Time) (chain []Segment, ok bool) {
	at := from.Time
	for _, g := range s.Segments {
		if !g.To.Time.After(from.Time) {
			continue
		}
		if g.From.Time.After(at) {
			return chain, !at.Before(until)
		}
		if !g.To.Time.After(at) {
			continue
		}
		chain = append(chain, g)
		at = g.To.Time
	}
	return chain, !at.Before(until)
}

// plan tells what a fold at the cut reads: segments newest first, and the snapshot below them, if any.
func (s *State) plan(cut journal.Cut) (segments []Segment, under *Snapshot, err error) {
	until := cut.Time
	if p := s.Known.Position.Time; until.After(p) { // nothing has happened since
		until = p
	}
	for _, b := range s.bases() {
		if b.position.Revision.Compare(cut.Revision) > 0 || b.position.Time.After(cut.Time) {
			continue
		}
		chain, ok := s.follow(b.position, until)
		if !ok {
			continue
		}
		if slices.ContainsFunc(s.Lost, func(l Stretch) bool {
			return l.To.Time.After(b.position.Time) && !l.Least.IsZero() && l.Least.Compare(cut.Revision) <= 0
		}) {
			continue // what is lost holds late events of this cut
		}
		for i := len(chain) - 1; i >= 0; i-- {
			g := &chain[i]
			late := !g.From.Time.Before(cut.Time)
			if late && (g.Least.IsZero() || g.Least.Compare(cut.Revision) > 0) {
				continue
			}
			segments = append(segments, *g)
		}
		return segments, b.snapshot, nil
	}
	return nil, nil, fmt.Errorf("%w: %s", ErrHole, cut)
}

// Range is a stretch of time, any moment of which can be restored.
type Range struct {
	From, To journal.Position
}

// Ranges are the stretches that can be restored, oldest first. There is more than one when
// segments are missing or retention left single snapshots of older times.
func (s *State) Ranges() []Range {
	var all []Range
	for _, b := range s.bases() { // newest first
		chain, _ := s.follow(b.position, b.position.Time)
		r := Range{From: b.position, To: b.position}
		if n := len(chain); n > 0 {
			r.To = chain[n-1].To
		}
		if b.snapshot == nil {
			if s.Known.Began.Time.IsZero() {
				continue
			}
			r.From = journal.Position{Cut: s.Known.Began}
		}
		if n := len(all); n > 0 && !r.To.Time.Before(all[n-1].From.Time) {
			all[n-1].From = r.From
			continue
		}
		all = append(all, r)
	}
	slices.Reverse(all)
	return all
}

// Holes are the stretches, since the first full snapshot or segment, of which no change is held: their
// segments are lost, or retention left single moments of them. The oldest is first.
func (s *State) Holes() []Range {
	var held []Range
	for _, g := range s.Segments {
		held = append(held, Range{From: g.From, To: g.To})
	}
	for _, p := range s.Snapshots {
		if p.Scope == nil {
			held = append(held, Range{From: p.Position, To: p.Position})
		}
	}
	slices.SortStableFunc(held, func(a, b Range) int { return a.From.Time.Compare(b.From.Time) })
	var all []Range
	var at journal.Position
	for i, h := range held {
		if i > 0 && h.From.Time.After(at.Time) {
			all = append(all, Range{From: at, To: h.From})
		}
		if h.To.Time.After(at.Time) {
			at = h.To
		}
	}
	return all
}

// applied makes what is known after the change.
func (k *Known) applied(s journal.State) journal.State {
	s.Ledgers = slices.Clone(s.Ledgers)
	if k.Position != nil {
		s.Position = *k.Position
	}
	if k.Began != nil {
		s.Began = *k.Began
	}
	for _, l := range k.Ledgers {
		gr := l.GroupResource()
		if i := slices.IndexFunc(s.Ledgers, func(o journal.Ledger) bool { return o.GroupResource() == gr }); i >= 0 {
			if l.Watermark.Time.IsZero() {
				l.Watermark = s.Ledgers[i].Watermark
			}
			s.Ledgers[i] = l
		} else {
			s.Ledgers = append(s.Ledgers, l)
		}
	}
	slices.SortFunc(s.Ledgers, func(a, b journal.Ledger) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Resource, b.Resource))
	})
	for i := range s.Ledgers {
		if w, ok := k.Watermarks[s.Ledgers[i].GroupResource().String()]; ok {
			s.Ledgers[i].Watermark = w
		}
	}
	if k.LeftOut != nil {
		s.LeftOut = *k.LeftOut
	}
	s.Outages = append(slices.Clip(s.Outages), k.Outages...)
	for _, m := range k.Marks {
		s.Marks = slices.DeleteFunc(slices.Clone(s.Marks), func(o journal.Mark) bool { return o.Name == m.Name })
		s.Marks = append(s.Marks, m)
	}
	slices.SortStableFunc(s.Marks, func(a, b journal.Mark) int { return b.Time.Compare(a.Time) })
	return s
}

// Learn tells what is different in what the journal knows now, for the next manifest. Gaps and
// outages that the journal forgot with its older history stay known.
func (s *State) Learn(now journal.State) *Known {
	k := &Known{Position: &now.Position, Watermarks: map[string]journal.Cut{}}
	if !sameCut(now.Began, s.Known.Began) {
		k.Began = &now.Began
	}
	for _, l := range now.Ledgers {
		gr := l.GroupResource()
		w := l.Watermark
		l.Lag = 0
		var old *journal.Ledger
		if i := slices.IndexFunc(s.Known.Ledgers, func(o journal.Ledger) bool { return o.GroupResource() == gr }); i >= 0 {
			old = &s.Known.Ledgers[i]
			l.Gaps = joinGaps(old.Gaps, l.Gaps)
		}
		l.Watermark = journal.Cut{}
		if old == nil || !sameLedger(*old, l) {
			k.Ledgers = append(k.Ledgers, l)
		}
		if old == nil || !sameCut(old.Watermark, w) {
			k.Watermarks[gr.String()] = w
		}
	}
	if !slices.Equal(now.LeftOut, s.Known.LeftOut) {
		k.LeftOut = &now.LeftOut
	}
	for _, o := range now.Outages {
		if !slices.ContainsFunc(s.Known.Outages, func(p journal.Outage) bool { return p.From.Equal(o.From) && p.To.Equal(o.To) }) {
			k.Outages = append(k.Outages, o)
		}
	}
	for _, m := range now.Marks {
		if !slices.ContainsFunc(s.Known.Marks, func(o journal.Mark) bool { return o.Name == m.Name && o.Revision == m.Revision && o.Time.Equal(m.Time) }) {
			k.Marks = append(k.Marks, m)
		}
	}
	return k
}

// joinGaps keeps the old gaps that the new list does not tell of any more.
func joinGaps(old, now []journal.Gap) []journal.Gap {
	var all []journal.Gap
	for _, g := range old {
		if len(now) == 0 || g.To.Time.Before(now[0].To.Time) {
			all = append(all, g)
		}
	}
	return append(all, now...)
}

// sameLedger compares ledgers, watermarks aside.
func sameLedger(a, b journal.Ledger) bool {
	a.Watermark, b.Watermark = journal.Cut{}, journal.Cut{}
	a.Lag, b.Lag = 0, 0
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

func sameCut(a, b journal.Cut) bool { return a.Revision == b.Revision && a.Time.Equal(b.Time) }

// Recoverable tells what a new journal is made of: the files of the newest stretch of history, and
// where in it to begin so that the window is covered (zero: all of it).
func (s *State) Recoverable(window time.Duration) (from journal.Position, segments []Segment, under *Snapshot, err error) {
	end := s.Known.Position
	if end.Time.IsZero() {
		return from, nil, nil, fmt.Errorf("%w: nothing was archived yet", ErrHole)
	}
	found := false
	for _, b := range s.bases() { // newest first
		chain, ok := s.follow(b.position, end.Time)
		if !ok {
			continue
		}
		found, from, segments, under = true, b.position, chain, b.snapshot
		if window > 0 && end.Time.Sub(b.position.Time) >= window {
			break
		}
	}
	if !found {
		return from, nil, nil, fmt.Errorf("%w: no full snapshot leads on to its end, %s: 'tidemark verify' tells what is damaged and which moments are restorable, with 'tidemark restore --archive URL --at MOMENT'; to go on recording, give 'tidemark run' a new data directory and another place for its archive", ErrHole, end.Cut)
	}
	return from, segments, under, nil
}
