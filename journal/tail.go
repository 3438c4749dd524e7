package journal

import (
	"bytes"
	"errors"
	"math"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// Tail walks events in the order they were observed. It sees the journal as it was when it
// was made, and must be closed. A Tail is for one goroutine.
type Tail struct {
	it       *pebble.Iterator // of the time index
	versions *pebble.Iterator
	cipher   *bodyCipher
	entry    indexEntry
	at       time.Time
	key      []byte // of the current event's version
	err      error
	began    bool
}

// Tail opens a walk over the events observed after from and up to to.
func (j *Journal) Tail(from, to time.Time) (*Tail, error) { return j.tables.Tail(from, to) }

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
	if !t.seek() {
		return Event{}, false, t.versions.Error()
	}
	v, err := t.versions.ValueAndErr()
	if err != nil {
		return Event{}, false, err
	}
	e, err = t.cipher.decode(t.key, t.entry.object, t.entry.revision, v)
	e.Op, e.Observed = t.entry.op, t.at
	return e, true, err
}

// seek goes to the version of the current event.
func (t *Tail) seek() bool {
	t.key = appendRevision(appendObject(t.key[:0], t.entry.object), t.entry.revision)
	return t.versions.SeekGE(t.key) && bytes.Equal(t.versions.Key(), t.key)
}

// Before is the version of the current event's object that came before it; nil when there is
// none or it was a deletion.
func (t *Tail) Before() (*Event, error) {
	if !t.seek() || !t.versions.Next() {
		return nil, t.versions.Error()
	}
	prefix := t.key[:len(t.key)-revisionLen]
	key := t.versions.Key()
	if len(key) != len(t.key) || !bytes.HasPrefix(key, prefix) {
		return nil, nil
	}
	v, err := t.versions.ValueAndErr()
	if err != nil {
		return nil, err
	}
	e, err := t.cipher.decode(key, t.entry.object, decodeRevision(key[len(prefix):]), v)
	if err != nil || e.Op == Deleted {
		return nil, err
	}
	return &e, nil
}

// Close frees the walk and returns the first error it met.
func (t *Tail) Close() error {
	return errors.Join(t.err, t.it.Error(), t.it.Close(), t.versions.Close())
}

// Recent returns the newest events without their bodies, at most n, newest first.
func (j *Journal) Recent(n int) ([]Event, error) {
	t, err := j.Tail(time.Time{}, time.Unix(0, math.MaxInt64-1))
	if err != nil {
		return nil, err
	}
	var all []Event
	for ok := t.it.Last(); ok && len(all) < n && t.err == nil; ok = t.it.Prev() {
		if t.entry, t.err = decodeIndexEntry(t.it.Value()); t.err != nil || t.entry.op == 0 {
			continue
		}
		if t.at, t.err = decodeTimeKey(t.it.Key()); t.err != nil {
			continue
		}
		if !t.seek() {
			t.err = t.versions.Error()
			continue
		}
		var v []byte
		var m versionMeta
		if v, t.err = t.versions.ValueAndErr(); t.err == nil {
			m, _, t.err = decodeVersionMeta(v) // a body that cannot be opened is none of this question's business
		}
		if t.err == nil {
			e := m.event(t.entry.object, t.entry.revision)
			e.Op, e.Observed = t.entry.op, t.at
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
	return j.tables.entryBefore(key)
}
