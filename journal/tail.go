package journal

import (
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// Tail walks events in the order they were observed. It sees the journal as it was when it
// was made, and must be closed. A Tail is for one goroutine.
type Tail struct {
	j     *Journal
	it    *pebble.Iterator
	entry indexEntry
	at    time.Time
	err   error
	began bool
}

// Tail opens a walk over the events observed after from and up to to.
func (j *Journal) Tail(from, to time.Time) (*Tail, error) {
	o := &pebble.IterOptions{LowerBound: []byte{prefixTime}, UpperBound: timeKey(to.Add(1))}
	if !from.IsZero() {
		o.LowerBound = timeKey(from.Add(1))
	}
	it, err := j.db.NewIter(o)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	return &Tail{j: j, it: it}, nil
}

// Next goes to the next event and reports whether there is one.
func (t *Tail) Next() bool {
	for t.err == nil {
		ok := false
		if t.began {
			ok = t.it.Next()
		} else {
			t.began, ok = true, t.it.First()
		}
		if !ok {
			return false
		}
		if t.entry, t.err = decodeIndexEntry(t.it.Value()); t.err != nil {
			return false
		}
		if t.at, t.err = decodeTimeKey(t.it.Key()); t.err == nil && t.entry.op != 0 {
			return true
		}
	}
	return false
}

// Meta is the current event without its body and uid.
func (t *Tail) Meta() Event {
	return versionMeta{op: t.entry.op, flags: t.entry.flags, observed: t.at}.event(t.entry.object, t.entry.revision)
}

// Event reads the current event. The journal may have trimmed it since: then ok is false.
func (t *Tail) Event() (e Event, ok bool, err error) {
	key := appendVersion(nil, t.entry.object, t.entry.revision)
	v, err := t.j.get(key)
	if v == nil || err != nil {
		return Event{}, false, err
	}
	e, err = t.j.decodeEvent(key, t.entry.object, t.entry.revision, v)
	e.Op, e.Observed = t.entry.op, t.at
	return e, true, err
}

// Before is the version of the current event's object that came before it; nil when there is
// none or it was a deletion.
func (t *Tail) Before() (*Event, error) {
	prefix := appendObject(nil, t.entry.object)
	it, err := t.j.db.NewIter(&pebble.IterOptions{LowerBound: appendRevision(prefix, t.entry.revision), UpperBound: keyAfter(prefix)})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	if !it.First() || !it.Next() {
		return nil, it.Error()
	}
	e, err := t.j.decodeEvent(it.Key(), t.entry.object, decodeRevision(it.Key()[len(it.Key())-revisionLen:]), it.Value())
	if err != nil || e.Op == Deleted {
		return nil, err
	}
	return &e, nil
}

// Close frees the walk and returns the first error it met.
func (t *Tail) Close() error { return errors.Join(t.err, t.it.Error(), t.it.Close()) }

// Recent returns the newest events without their bodies, at most n, newest first.
func (j *Journal) Recent(n int) ([]Event, error) {
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixTime}, UpperBound: []byte{prefixTime + 1}})
	if err != nil {
		return nil, err
	}
	t := &Tail{j: j, it: it}
	var all []Event
	for ok := it.Last(); ok && len(all) < n && t.err == nil; ok = it.Prev() {
		if t.entry, t.err = decodeIndexEntry(it.Value()); t.err != nil || t.entry.op == 0 {
			continue
		}
		if t.at, t.err = decodeTimeKey(it.Key()); t.err != nil {
			continue
		}
		var e Event
		var found bool
		if e, found, t.err = t.Event(); found {
			e.Object = nil
			all = append(all, e)
		}
	}
	return all, t.Close()
}

// lastEntry is the newest entry of the time index; zero values when there is none.
func (j *Journal) lastEntry() (time.Time, indexEntry, error) {
	return j.entryBefore(nil)
}

// entryBefore is the newest entry of the time index below the key, nil being its end.
func (j *Journal) entryBefore(key []byte) (at time.Time, e indexEntry, err error) {
	if key == nil {
		key = []byte{prefixTime + 1}
	}
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixTime}, UpperBound: key})
	if err != nil {
		return at, e, err
	}
	defer it.Close()
	if !it.Last() {
		return at, e, it.Error()
	}
	if at, err = decodeTimeKey(it.Key()); err == nil {
		e, err = decodeIndexEntry(it.Value())
	}
	return at, e, err
}
