package journal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// Position is a place in the order in which events were observed.
type Position struct {
	Cut
	// Count numbers the events up to here since the journal began. It counts on through
	// copies in archives, so that a missing event is noticed.
	Count uint64 `json:"count"`
}

// State is what a journal knows besides the events themselves, at one position.
type State struct {
	Position Position `json:"position"`
	// Began and Horizon: see the methods of Journal.
	Began   Cut       `json:"began"`
	Horizon Cut       `json:"horizon"`
	Ledgers []Ledger  `json:"ledgers"`
	LeftOut []LeftOut `json:"leftOut,omitempty"`
	Outages []Outage  `json:"outages,omitempty"`
	Marks   []Mark    `json:"marks,omitempty"`
}

// State is the durable state. Its ledgers and its position belong together.
func (j *Journal) State() (State, error) {
	leftOut, err := j.LeftOut()
	if err != nil {
		return State{}, err
	}
	marks, err := j.Marks()
	if err != nil {
		return State{}, err
	}
	j.mu.RLock()
	defer j.mu.RUnlock()
	return State{
		Position: Position{Cut: j.newest, Count: j.count}, Began: j.began, Horizon: j.horizon,
		Ledgers: j.sortedLedgers(), LeftOut: leftOut, Outages: j.outages, Marks: marks,
	}, nil
}

// Position is the newest durable position.
func (j *Journal) Position() Position {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return Position{Cut: j.newest, Count: j.count}
}

// MeanSize is about how many bytes an event has, going by those recorded since Open.
func (j *Journal) MeanSize() int64 {
	const unknown = 2048
	if n := j.appended.Load(); n > 0 {
		return j.appendedBytes.Load() / n
	}
	return unknown
}

// Beginning is the position after which the journal holds every event: the horizon, or the zero
// Position when nothing was trimmed.
func (j *Journal) Beginning() (Position, error) {
	h := j.Horizon()
	if h.Time.IsZero() {
		return Position{}, nil
	}
	it, err := j.iterate([]byte{prefixTime})
	if err != nil {
		return Position{}, err
	}
	defer it.Close()
	if !it.First() {
		return Position{Cut: h, Count: j.Position().Count}, it.Error()
	}
	at, err := decodeTimeKey(it.Key())
	if err != nil {
		return Position{}, err
	}
	e, err := decodeIndexEntry(it.Value())
	if e.op != 0 && at.After(h.Time) {
		e.count--
	}
	return Position{Cut: h, Count: e.count}, err
}

// FirstAfter is the time of the first entry after t; zero when there is none.
func (j *Journal) FirstAfter(t time.Time) (time.Time, error) {
	from := []byte{prefixTime}
	if !t.IsZero() {
		from = timeKey(t.Add(1))
	}
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: []byte{prefixTime + 1}})
	if err != nil {
		return time.Time{}, err
	}
	defer it.Close()
	if !it.First() {
		return time.Time{}, it.Error()
	}
	return decodeTimeKey(it.Key())
}

// Knows reports whether the position lies in this journal's history, as far as that is still there.
func (j *Journal) Knows(p Position) (bool, error) {
	now := j.Position()
	if p.Time.IsZero() || p.Time.Equal(now.Time) {
		return p.Time.IsZero() || p.Count == now.Count, nil
	}
	if p.Count > now.Count || p.Time.After(now.Time) {
		return false, nil
	}
	if h := j.Horizon(); p.Time.Before(h.Time) { // gone from here
		return true, nil
	}
	at, e, err := j.tables.entryBefore(timeKey(p.Time.Add(1)))
	return err == nil && at.Equal(p.Time) && e.count == p.Count && e.max == p.Revision, err
}

// ID names this journal and no other, also not a copy of its history on another machine. It
// is made with the journal.
func (j *Journal) ID() string { return j.id }

func (j *Journal) loadID() error {
	v, err := j.meta(metaID)
	if err != nil {
		return err
	}
	if v == nil {
		b := make([]byte, 16)
		rand.Read(b)
		v = []byte(hex.EncodeToString(b))
		if err := j.db.Set(nameKey(prefixMeta, metaID), v, pebble.Sync); err != nil {
			return err
		}
	}
	j.id = string(v)
	return nil
}

// SetNote keeps a small text durably under a name, for those who work on the journal; nil removes it.
func (j *Journal) SetNote(ctx context.Context, name string, text []byte) error {
	key := nameKey(prefixMeta, metaNote+name)
	return j.tidy(ctx, func(w *writer) error {
		if text == nil {
			return w.batch.Delete(key, nil)
		}
		return w.batch.Set(key, text, nil)
	})
}

// Note is what SetNote kept; nil when there is none.
func (j *Journal) Note(name string) ([]byte, error) { return j.meta(metaNote + name) }
