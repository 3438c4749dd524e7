package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Comparison sets a fresh list of one resource against what the journal holds of it, and
// writes the difference as inferred events. It holds one object at a time: what was seen is
// noted in the store itself. Cut off anywhere, it is made again from the start.
type Comparison struct {
	j        *Journal
	gr       schema.GroupResource
	epoch    uint32
	first    bool // the resource's first list: its objects are Initial, not Inferred
	blank    bool // the journal holds no object of the resource, so there is nothing to look up
	heads    *pebble.Iterator
	looked   int // with heads
	listed   int
	inferred int
}

// Recording says what of a resource is recorded, and how its revisions count; see Ledger.
type Recording struct {
	ResourceInfo
	OwnCounter bool
	Filter     string
}

// Compare begins a comparison. cause says, for the ledger, why history may have a gap; it is
// not used for the first list of a resource. floor is a revision that the server has reached
// (any fresh list tells one): when it lies below the watermark, the server's history went
// backwards and a new epoch begins.
//
// No events of the resource may be appended between Compare and Commit. Close it, whatever becomes of it.
func (j *Journal) Compare(ctx context.Context, q Recording, floor uint64, cause string) (*Comparison, error) {
	gr := q.GroupResource()
	if err := checkName(&Event{Resource: gr, Name: "x"}); err != nil {
		return nil, err
	}
	c := &Comparison{j: j, gr: gr}
	err := j.do(ctx, entry{exec: func(w *writer) error {
		l := w.ledgers[gr]
		if l == nil {
			l = &Ledger{}
			w.ledgers[gr] = l
		}
		if l.Filter != q.Filter {
			l.refilter()
		}
		l.ResourceInfo, l.OwnCounter, l.Filter, l.Comparing = q.ResourceInfo, q.OwnCounter, q.Filter, cause
		if cause == "" {
			l.Comparing = "first list"
		}
		c.first = l.First.Time.IsZero()
		w.epoch = max(w.epoch, 1)
		if !q.OwnCounter { // it may have had a counter of its own, in a later epoch
			w.epoch = max(w.epoch, l.Watermark.Epoch)
		}
		c.epoch = w.epoch
		if q.OwnCounter {
			c.epoch = max(l.Watermark.Epoch, 1)
		}
		if l.Watermark.Epoch == c.epoch && floor < l.Watermark.RV {
			if c.epoch++; !q.OwnCounter {
				w.epoch = c.epoch
			}
		}
		w.touch(gr, time.Time{})
		w.round.changed[gr] = true
		return w.clearSeen(gr)
	}})
	if err == nil {
		c.blank, err = j.holdsNone(gr)
	}
	return c, err
}

// refilter prepares for another filter: the span in which the one before was in force becomes a gap.
func (l *Ledger) refilter() {
	if l.Filter != "" && l.GapFrom == nil && !l.First.Time.IsZero() {
		from := l.First
		if l.FilterFrom != nil && !l.FilterFrom.Time.IsZero() {
			from = *l.FilterFrom
		}
		l.GapFrom = &from
	}
	l.FilterFrom = &Cut{}
}

// holdsNone reports whether no version of any object of the resource is recorded.
func (j *Journal) holdsNone(gr schema.GroupResource) (bool, error) {
	heads, err := j.iterate(append(resourceKey(prefixHead, gr), 0))
	if err != nil {
		return false, err
	}
	defer heads.Close()
	return !heads.First(), heads.Error()
}

func (w *writer) clearSeen(gr schema.GroupResource) error {
	from := append(resourceKey(prefixSeen, gr), 0)
	return w.batch.DeleteRange(from, keyAfter(from), nil)
}

// Epoch is the epoch that the listed revisions belong to.
func (c *Comparison) Epoch() uint32 { return c.epoch }

// Add takes one listed object. Op and Flags are set by the comparison.
func (c *Comparison) Add(ctx context.Context, e Event) error {
	if err := checkName(&e); err != nil {
		return err
	}
	c.listed++
	e.Revision.Epoch = c.epoch
	o := object{Namespace: e.Namespace, Resource: c.gr, Name: e.Name}
	if err := c.j.enqueue(ctx, entry{seen: appendHead(nil, prefixSeen, o), size: 256}); err != nil {
		return err
	}
	h, err := c.head(o)
	if err != nil {
		return err
	}
	switch {
	case h == nil || h.deleted:
		e.Op = Added
	case h.revision == e.Revision:
		return nil
	default:
		if h.revision.RV == e.Revision.RV {
			if same, err := c.j.holds(o, h.revision, e.Object); same || err != nil {
				return err
			}
		}
		e.Op = Modified
	}
	return c.infer(ctx, e)
}

func (c *Comparison) infer(ctx context.Context, e Event) error {
	e.Flags = Inferred
	if c.first {
		e.Flags = Initial
	}
	c.inferred++
	return c.j.enqueueEvent(ctx, e, true)
}

func (c *Comparison) head(o object) (*head, error) {
	if c.blank { // each look would unpack a block of 128 KiB, in vain
		return nil, nil
	}
	// A server lists in the order of the keys, as the heads are stored: an iterator that goes with it unpacks each block once.
	// It is made anew now and then, because it keeps what it looks at from being dropped.
	if c.looked++; c.looked%headLooks == 0 {
		if err := c.Close(); err != nil {
			return nil, err
		}
	}
	if c.heads == nil {
		var err error
		if c.heads, err = c.j.iterate(append(resourceKey(prefixHead, c.gr), 0)); err != nil {
			return nil, err
		}
	}
	key := appendHead(nil, prefixHead, o)
	if !c.heads.SeekGE(key) || !bytes.Equal(c.heads.Key(), key) {
		return nil, c.heads.Error()
	}
	v, err := c.heads.ValueAndErr()
	if err != nil {
		return nil, err
	}
	h, err := decodeHeadValue(v)
	return &h, err
}

// headLooks is how many objects are looked up with one iterator.
const headLooks = 5000

// Close gives up what the comparison holds of the journal. It may be called more than once; what was not committed by then is
// made again by the next comparison.
func (c *Comparison) Close() error {
	if c.heads == nil {
		return nil
	}
	err := c.heads.Close()
	c.heads = nil
	return err
}

// holds reports whether the journal has exactly this body at that revision of the object.
func (j *Journal) holds(o object, r Revision, body []byte) (bool, error) {
	e, err := j.version(o, r)
	return err == nil && bytes.Equal(e.Object, body), err
}

// version reads one version of an object.
func (j *Journal) version(o object, r Revision) (Event, error) {
	key := appendVersion(nil, o, r)
	v, err := j.get(key)
	if err != nil {
		return Event{}, err
	}
	if v == nil {
		return Event{}, fmt.Errorf("%s %s/%s at %s: the index names a version that is not there", o.Resource, o.Namespace, o.Name, r)
	}
	return j.decodeEvent(key, o, r, v)
}

// Commit ends the comparison: what was not listed is inferred to be deleted, the gap (unless
// this was the first list) and the watermark are written, and the resource is continuous from
// rv, the list's revision, on. It returns the number of inferred events.
func (c *Comparison) Commit(ctx context.Context, rv uint64) (int, error) {
	if err := errors.Join(c.Close(), c.j.Flush(ctx)); err != nil {
		return 0, err
	}
	end := Revision{Epoch: c.epoch, RV: rv}
	if err := c.j.inferDeleted(c.gr, true, func(e Event) error {
		e.Revision = end.after(e.Revision)
		return c.infer(ctx, e)
	}); err != nil {
		return 0, err
	}
	return c.inferred, c.j.do(ctx, entry{exec: func(w *writer) error {
		l := w.ledgers[c.gr]
		var err error
		if l.OwnCounter {
			err = w.tick(Revision{}, w.j.opts.Clock())
		} else {
			err = w.tick(end, w.j.opts.Clock())
		}
		here := Cut{Revision: end, Time: w.last}
		if l.GapFrom != nil && !c.first { // besides what may have been missed by now, in which the inferred changes happened
			l.Gaps = append(l.Gaps, Gap{From: *l.GapFrom, To: here, Cause: l.Comparing})
		}
		gap := !c.first && (l.GapFrom != nil || l.Watermark.Revision != end || c.inferred > 0)
		if c.first {
			l.First, l.Initial = here, c.listed
		}
		if gap {
			l.Gaps = append(l.Gaps, Gap{From: l.Watermark, To: here, Cause: l.Comparing, Inferred: c.inferred})
		}
		if c.first || gap {
			l.Since = here
		}
		if l.FilterFrom != nil && l.FilterFrom.Time.IsZero() {
			l.FilterFrom = &here
		}
		if l.Filter == "" || c.first {
			l.FilterFrom = nil
		}
		l.Watermark, l.Comparing, l.Removed, l.GapFrom = here, "", nil, nil
		w.touch(c.gr, time.Time{})
		w.round.changed[c.gr] = true
		return errors.Join(err, w.clearSeen(c.gr))
	}})
}

// after is r, or just after the version that an event ends when r is not: an inferred deletion
// must never have the key of that version.
func (r Revision) after(version Revision) Revision {
	if r.Compare(version) > 0 {
		return r
	}
	version.RV++
	return version
}

// inferDeleted calls f with the last version of each living object of the resource, as a
// deletion; with unseen set, only of those that the running comparison did not see.
func (j *Journal) inferDeleted(gr schema.GroupResource, unseen bool, f func(Event) error) error {
	heads, err := j.iterate(append(resourceKey(prefixHead, gr), 0))
	if err != nil {
		return err
	}
	defer heads.Close()
	seen, err := j.iterate(append(resourceKey(prefixSeen, gr), 0))
	if err != nil {
		return err
	}
	defer seen.Close()
	seen.First()
	for heads.First(); heads.Valid(); heads.Next() {
		h, err := decodeHeadValue(heads.Value())
		if err != nil {
			return fmt.Errorf("head %q: %w", heads.Key(), err)
		}
		for seen.Valid() && bytes.Compare(seen.Key()[1:], heads.Key()[1:]) < 0 {
			seen.Next()
		}
		if h.deleted || unseen && seen.Valid() && bytes.Equal(seen.Key()[1:], heads.Key()[1:]) {
			continue
		}
		o, err := decodeHead(heads.Key())
		if err != nil {
			return fmt.Errorf("head %q: %w", heads.Key(), err)
		}
		e, err := j.version(o, h.revision)
		if err != nil {
			return err
		}
		e.Op = Deleted
		if err := f(e); err != nil {
			return err
		}
	}
	return errors.Join(heads.Error(), seen.Error())
}

func (j *Journal) iterate(prefix []byte) (*pebble.Iterator, error) {
	return j.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: keyAfter(prefix)})
}

// Remove records that the resource is gone from the cluster (its CRD was deleted): what still
// lived is inferred to be deleted, and from here on it is known to have no objects. What changed
// between the watermark and here may have been missed, so that is a gap. When it comes back, its
// next list is a comparison like any other.
func (j *Journal) Remove(ctx context.Context, gr schema.GroupResource) error {
	if err := j.Flush(ctx); err != nil {
		return err
	}
	var end Revision
	if err := j.do(ctx, entry{exec: func(w *writer) error {
		l := w.ledgers[gr]
		if l == nil || l.Removed != nil || l.First.Time.IsZero() {
			return nil
		}
		if end = w.max; l.OwnCounter || end.Compare(l.Watermark.Revision) < 0 {
			end = l.Watermark.Revision
		}
		return nil
	}}); err != nil || end.IsZero() {
		return err
	}
	inferred := 0
	if err := j.inferDeleted(gr, false, func(e Event) error {
		e.Revision = end.after(e.Revision)
		e.Flags = Inferred
		inferred++
		return j.enqueueEvent(ctx, e, true)
	}); err != nil {
		return err
	}
	return j.do(ctx, entry{exec: func(w *writer) error {
		l := w.ledgers[gr]
		here := Cut{Revision: end, Time: w.tickClock(w.j.opts.Clock())}
		if l.Watermark.Revision != end || inferred > 0 {
			l.Gaps = append(l.Gaps, Gap{From: l.Watermark, To: here, Cause: "the resource was removed from the cluster", Inferred: inferred})
			l.Since = here
		}
		l.Watermark, l.Removed = here, &here
		w.touch(gr, time.Time{})
		w.round.changed[gr] = true
		return w.index(&indexEntry{})
	}})
}
