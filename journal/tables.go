package journal

import (
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// Tables reads history from sorted tables that hold the journal's keys: the store of a
// journal, or files of an archive. What it reads cannot tell where it came from. Its methods
// may be called from any goroutine.
type Tables struct {
	open   func(*pebble.IterOptions) (*pebble.Iterator, error)
	cipher *bodyCipher // nil: no body is sealed
	// steps is how many versions a View walks past before it seeks. A seek reads and unpacks a block anew, also the one it stands in, unless
	// it is cached, as a journal's blocks are. A walk over all of a large journal uses more of them than the cache holds.
	steps int
}

// walkSteps are for blocks that are not cached.
const walkSteps = 256

// NewTables makes Tables of what open gives, which must hold no sealed bodies; see Journal.Export.
func NewTables(open func(*pebble.IterOptions) (*pebble.Iterator, error)) *Tables {
	return &Tables{open: open, steps: walkSteps}
}

func (t *Tables) prefixed(prefix byte) (*pebble.Iterator, error) {
	it, err := t.open(&pebble.IterOptions{LowerBound: []byte{prefix}, UpperBound: []byte{prefix + 1}})
	if err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	return it, nil
}

// View opens a view of all versions.
func (t *Tables) View() (*View, error) {
	return t.viewWithin([]byte{prefixVersion}, []byte{prefixVersion + 1})
}

// viewWithin opens a view of the versions of some objects.
func (t *Tables) viewWithin(from, to []byte) (*View, error) {
	it, err := t.open(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	return &View{it: it, cipher: t.cipher, steps: t.steps}, nil
}

// Tail opens a walk over the events observed after from and up to to.
func (t *Tables) Tail(from, to time.Time) (*Tail, error) {
	o := &pebble.IterOptions{LowerBound: []byte{prefixTime}, UpperBound: timeKey(to.Add(1))}
	if !from.IsZero() {
		o.LowerBound = timeKey(from.Add(1))
	}
	it, err := t.open(o)
	if err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	versions, err := t.prefixed(prefixVersion) // after it, so that it holds the version of every entry
	if err != nil {
		return nil, errors.Join(err, it.Close())
	}
	return &Tail{it: it, versions: versions, cipher: t.cipher}, nil
}

// RevisionAt is the highest revision of the main counter seen by t, and whether the tables
// have an entry of that time or before.
func (t *Tables) RevisionAt(at time.Time) (Revision, bool, error) {
	when, e, err := t.entryBefore(timeKey(at.Add(1)))
	return e.max, !when.IsZero(), err
}

// FirstReaching is the time of the first entry of the time index by which the main counter
// had reached r; the last entry must reach it. The zero time means that there is no entry.
func (t *Tables) FirstReaching(r Revision) (time.Time, error) {
	it, err := t.prefixed(prefixTime)
	if err != nil {
		return time.Time{}, err
	}
	defer it.Close()
	at, err := firstReaching(it, r)
	return at, errors.Join(err, it.Error())
}

// entryBefore is the newest entry of the time index below the key, nil being its end.
func (t *Tables) entryBefore(key []byte) (at time.Time, e indexEntry, err error) {
	if key == nil {
		key = []byte{prefixTime + 1}
	}
	it, err := t.open(&pebble.IterOptions{LowerBound: []byte{prefixTime}, UpperBound: key})
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

// NamespaceKey is where the versions of a namespace's objects begin; the empty name stands for
// those outside any namespace.
func NamespaceKey(namespace string) []byte {
	return append(append([]byte{prefixVersion}, namespace...), 0)
}

// Entries counts the entries of the time index, and checks that they can be read and number the
// events without a jump. Of every 256th event, sample, when not nil, gets the key at which the
// versions of its object begin.
func (t *Tables) Entries(sample func(key []byte)) (n int, err error) {
	it, err := t.prefixed(prefixTime)
	if err != nil {
		return 0, err
	}
	last := uint64(0)
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var v []byte
		var e indexEntry
		if _, err = decodeTimeKey(it.Key()); err == nil {
			v, err = it.ValueAndErr()
		}
		if err == nil {
			e, err = decodeIndexEntry(v)
		}
		if err != nil {
			break
		}
		want := last
		if e.op != 0 {
			want++
		}
		if n > 0 && e.count != want {
			err = fmt.Errorf("events %d to %d are missing", want, e.count-1)
		}
		if sample != nil && e.op != 0 && n%256 == 0 {
			sample(appendObject(nil, e.object))
		}
		last = e.count
		n++
	}
	return n, errors.Join(err, it.Error(), it.Close())
}

// All gives every key and value, in order: the time index, then the versions. put must not keep k and v.
// It returns how many keys were of the time index.
func (t *Tables) All(put func(k, v []byte) error) (entries int, err error) {
	it, err := t.open(&pebble.IterOptions{LowerBound: []byte{prefixTime}, UpperBound: []byte{prefixVersion + 1}})
	if err != nil {
		return 0, fmt.Errorf("read history: %w", err)
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		k := it.Key()
		if len(k) == 0 || k[0] != prefixTime && k[0] != prefixVersion {
			err = fmt.Errorf("key %q: %w", k, errBadKey)
			break
		}
		if k[0] == prefixTime {
			entries++
		}
		var v []byte
		if v, err = it.ValueAndErr(); err == nil {
			err = put(k, v)
		}
	}
	return entries, errors.Join(err, it.Error(), it.Close())
}

// CheckEntry reports whether a key and its value can be read.
func CheckEntry(k, v []byte) error {
	if len(k) > 0 && k[0] == prefixTime {
		_, errKey := decodeTimeKey(k)
		_, errValue := decodeIndexEntry(v)
		return errors.Join(errKey, errValue)
	}
	_, _, _, errKey := decodeVersion(k)
	_, _, errValue := decodeVersionMeta(v)
	return errors.Join(errKey, errValue)
}
