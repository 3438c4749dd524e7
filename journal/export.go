package journal

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// ErrTrimmed is returned by Export and ExportState for history that the journal does not hold any more.
var ErrTrimmed = errors.New("the journal does not hold that history any more")

// Span tells what Export gave.
type Span struct {
	From, To Position
	// Entries are the keys of the time index: events and ticks.
	Entries int
	// Least is the lowest revision of the main counter among the events; zero when there is none.
	Least Revision
	// Own is set when there are events of resources with a counter of their own.
	Own bool
	// Bytes is the size of all keys and values.
	Bytes int64
}

// Export gives all that was observed after from and up to to, or up to the entry with which it
// has given limit entries: first the time index, then the versions, in the order of their keys,
// with no body sealed. put must not keep k and v. It needs 16 bytes of memory per event.
func (j *Journal) Export(ctx context.Context, from, to Position, limit int, put func(k, v []byte) error) (Span, error) {
	x := exporter{j: j, put: put, span: Span{From: from, To: to}, index: map[object]uint32{}, own: map[schema.GroupResource]bool{}}
	for _, l := range j.Ledgers() {
		x.own[l.GroupResource()] = l.OwnCounter
	}
	// Held open, so that a trim in the meantime takes nothing away.
	snapshot := j.db.NewSnapshot()
	defer snapshot.Close()
	if h := j.Horizon(); !h.Time.IsZero() && from.Time.Before(h.Time) {
		return Span{}, fmt.Errorf("%w: asked for what is after %s, and it begins at %s", ErrTrimmed, from.Time.Format(time.RFC3339Nano), h.Time.Format(time.RFC3339Nano))
	}
	if err := x.entries(ctx, snapshot, limit); err != nil {
		return Span{}, err
	}
	return x.span, x.versions(ctx, snapshot)
}

type exporter struct {
	j     *Journal
	put   func(k, v []byte) error
	span  Span
	own   map[schema.GroupResource]bool
	index map[object]uint32 // into names
	names [][]byte          // what the keys of an object's versions share
	all   []exported
}

// exported is one event, small because there can be many.
type exported struct {
	name  uint32 // in exporter.names
	epoch uint32
	rv    uint64
}

func (x *exporter) give(k, v []byte) error {
	x.span.Bytes += int64(len(k) + len(v))
	return x.put(k, v)
}

// entries gives the time index, and gathers which versions it names.
func (x *exporter) entries(ctx context.Context, s *pebble.Snapshot, limit int) error {
	o := &pebble.IterOptions{LowerBound: []byte{prefixTime}, UpperBound: timeKey(x.span.To.Time.Add(1))}
	if !x.span.From.Time.IsZero() {
		o.LowerBound = timeKey(x.span.From.Time.Add(1))
	}
	it, err := s.NewIter(o)
	if err != nil {
		return err
	}
	defer it.Close()
	end := x.span.From
	for ok := it.First(); ok && x.span.Entries < limit; ok = it.Next() {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		e, err := decodeIndexEntry(it.Value())
		if err != nil {
			return fmt.Errorf("index entry %x: %w", it.Key(), err)
		}
		if e.op != 0 && e.count != end.Count+1 || e.op == 0 && e.count != end.Count {
			return fmt.Errorf("%w: events %d to %d are gone", ErrTrimmed, end.Count+1, e.count)
		}
		at, err := decodeTimeKey(it.Key())
		if err != nil {
			return err
		}
		end = Position{Cut: Cut{Revision: e.max, Time: at}, Count: e.count}
		x.note(&e)
		if err := x.give(it.Key(), it.Value()); err != nil {
			return err
		}
		x.span.Entries++
	}
	if x.span.Entries == limit && limit > 0 {
		x.span.To = end
	} else if end.Count != x.span.To.Count {
		return errors.Join(it.Error(), fmt.Errorf("%w: it ends at event %d of %d", ErrTrimmed, end.Count, x.span.To.Count))
	}
	return it.Error()
}

func (x *exporter) note(e *indexEntry) {
	if e.op == 0 {
		return
	}
	if x.own[e.object.Resource] {
		x.span.Own = true
	} else if x.span.Least.IsZero() || e.revision.Compare(x.span.Least) < 0 {
		x.span.Least = e.revision
	}
	i, known := x.index[e.object]
	if !known {
		i = uint32(len(x.names))
		x.index[e.object] = i
		x.names = append(x.names, appendObject(nil, e.object))
	}
	x.all = append(x.all, exported{name: i, epoch: e.revision.Epoch, rv: e.revision.RV})
}

// versions gives the versions in the order of their keys.
func (x *exporter) versions(ctx context.Context, s *pebble.Snapshot) error {
	x.index = nil
	byKey := make([]uint32, len(x.names)) // of each name, its place among the sorted ones
	order := make([]uint32, len(x.names))
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(a, b uint32) int { return bytes.Compare(x.names[a], x.names[b]) })
	for place, i := range order {
		byKey[i] = uint32(place)
	}
	slices.SortFunc(x.all, func(a, b exported) int {
		return cmp.Or(cmp.Compare(byKey[a.name], byKey[b.name]), cmp.Compare(b.epoch, a.epoch), cmp.Compare(b.rv, a.rv))
	})
	f, err := newFinder(s)
	if err != nil {
		return err
	}
	defer f.close()
	var key, plain []byte
	for i, e := range x.all {
		if i > 0 && e == x.all[i-1] { // written twice
			continue
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		key = appendRevision(append(key[:0], x.names[e.name]...), Revision{Epoch: e.epoch, RV: e.rv})
		err := f.find(key, func(v []byte) (err error) {
			plain, err = x.j.cipher.unseal(plain[:0], key, v)
			return err
		})
		if err != nil {
			return err
		}
		if err := x.give(key, plain); err != nil {
			return err
		}
	}
	return nil
}

// finder looks up versions whose keys only go up. Those that lie side by side, as after a first list, it reads with an iterator, which unpacks
// each block once. For those that lie far apart an iterator would read a block of every level; what is new is found in the memtable.
type finder struct {
	s    *pebble.Snapshot
	it   *pebble.Iterator
	near bool // the iterator stands on the last one that was found
	far  int  // how many were not near the one before, without those that others made good
}

const (
	finderSteps = 4  // how far away is still near
	finderTries = 2  // more seeks in vain than not, before the iterator is left alone
	finderRests = 64 // how many lookups then, until it is tried twice again
	finderGain  = 1  // seeks in vain that one near makes good
)

func newFinder(s *pebble.Snapshot) (*finder, error) {
	it, err := s.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixVersion}, UpperBound: []byte{prefixVersion + 1}})
	return &finder{s: s, it: it}, err
}

func (f *finder) close() { _ = f.it.Close() } // its errors were told when they came

// find calls found with the value of a version, which must not be kept.
func (f *finder) find(key []byte, found func(v []byte) error) error {
	for step := 0; f.near && step < finderSteps; step++ {
		if f.near = f.it.Next() && bytes.Compare(f.it.Key(), key) <= 0; f.near && bytes.Equal(f.it.Key(), key) {
			f.far = max(0, f.far-finderGain)
			return f.here(found)
		}
	}
	f.near = false
	if f.far++; f.far > finderTries+finderRests {
		f.far = finderTries - 1
	}
	if f.far > finderTries {
		v, closer, err := f.s.Get(key)
		if errors.Is(err, pebble.ErrNotFound) {
			return fmt.Errorf("%w: version %q is gone", ErrTrimmed, key)
		}
		if err != nil {
			return err
		}
		return errors.Join(found(v), closer.Close())
	}
	if f.near = f.it.SeekGE(key) && bytes.Equal(f.it.Key(), key); !f.near {
		if err := f.it.Error(); err != nil {
			return err
		}
		return fmt.Errorf("%w: version %q is gone", ErrTrimmed, key)
	}
	return f.here(found)
}

func (f *finder) here(found func(v []byte) error) error {
	v, err := f.it.ValueAndErr()
	if err != nil {
		return err
	}
	return found(v)
}

// ExportState gives the version of each object that was the newest one at the position and not a
// deletion, in the order of the keys, with no body sealed. The position must not lie before the
// journal's horizon. keep, when not nil, chooses. put must not keep k and v.
func (j *Journal) ExportState(ctx context.Context, at Position, keep func(*Event) bool, put func(k, v []byte) error) error {
	snapshot := j.db.NewSnapshot()
	defer snapshot.Close()
	if h := j.Horizon(); !h.Time.IsZero() && at.Time.Before(h.Time) {
		return fmt.Errorf("%w: asked for the state at %s, and it begins at %s", ErrTrimmed, at.Time.Format(time.RFC3339Nano), h.Time.Format(time.RFC3339Nano))
	}
	tables := &Tables{open: func(o *pebble.IterOptions) (*pebble.Iterator, error) { return snapshot.NewIter(o) }, cipher: j.cipher, steps: walkSteps}
	return tables.ExportState(ctx, at, keep, put)
}

// ExportState is the twin of Journal.ExportState for tables of which the caller knows that they
// reach back far enough.
func (t *Tables) ExportState(ctx context.Context, at Position, keep func(*Event) bool, put func(k, v []byte) error) error {
	return t.ExportStates(ctx, States{At: []Position{at}, Keep: keep}, func(_ int, k, v []byte) error { return put(k, v) })
}

// States says which states ExportStates gives.
type States struct {
	At   []Position        // the oldest first
	Keep func(*Event) bool // chooses; nil: everything
	// From (included) and To (not included) bound the keys; see Tables.Entries. Nil: no bound.
	From, To []byte
}

// ExportStates gives the states at several positions in one pass; put is told which of them a
// version belongs to.
func (t *Tables) ExportStates(ctx context.Context, q States, put func(which int, k, v []byte) error) error {
	from, to := q.From, q.To
	if from == nil {
		from = []byte{prefixVersion}
	}
	if to == nil {
		to = []byte{prefixVersion + 1}
	}
	v, err := t.viewWithin(from, to)
	if err != nil {
		return err
	}
	var plain []byte
	for ok := v.First(); ok && err == nil; ok = err == nil && v.NextObject() {
		if err = context.Cause(ctx); err == nil {
			plain, err = v.exportObject(q.At, q.Keep, plain[:0], put)
		}
	}
	return errors.Join(err, v.Close())
}

// exportObject gives the current object's version of each position, where there is one.
func (v *View) exportObject(at []Position, keep func(*Event) bool, plain []byte, put func(int, []byte, []byte) error) ([]byte, error) {
	which := len(at) - 1
	for ok := true; ok && which >= 0; ok = v.NextVersion() {
		value, err := v.it.ValueAndErr()
		if err != nil {
			return plain, err
		}
		m, _, err := decodeVersionMeta(value)
		if err != nil {
			return plain, fmt.Errorf("journal value of %q: %w", v.it.Key(), err)
		}
		first := which
		for which >= 0 && !m.observed.After(at[which].Time) {
			which--
		}
		if first == which || m.op == Deleted {
			continue
		}
		if keep != nil {
			e, err := v.Event()
			if err != nil {
				return plain, err
			}
			if !keep(&e) {
				continue
			}
		}
		if plain, err = v.cipher.unseal(plain[:0], v.it.Key(), value); err != nil {
			return plain, err
		}
		for i := first; i > which; i-- {
			if err := put(i, v.it.Key(), plain); err != nil {
				return plain, err
			}
		}
	}
	return plain, nil
}

// unseal appends the value of a version with its body not sealed.
func (c *bodyCipher) unseal(dst, key, value []byte) ([]byte, error) {
	m, body, err := decodeVersionMeta(value)
	if err != nil {
		return dst, fmt.Errorf("journal value of %q: %w", key, err)
	}
	dst = append(dst, value...)
	if !m.sealed {
		return dst, nil
	}
	if c == nil {
		return dst, fmt.Errorf("journal value of %q: %w: it is sealed", key, errBadValue)
	}
	open, err := c.open(key, body)
	if err != nil {
		return dst, fmt.Errorf("journal value of %q: %w", key, err)
	}
	dst[len(dst)-len(value)] = versionPlain
	return append(dst[:len(dst)-len(body)], open...), nil
}
