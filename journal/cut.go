package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// CutAt is the cut a moment stands for: the highest revision of the main counter seen by then.
// The zero Cut means that the journal had seen nothing yet.
func (j *Journal) CutAt(t time.Time) (Cut, error) {
	newest := j.Newest()
	if !t.Before(newest.Time) {
		return Cut{Revision: newest.Revision, Time: latest(t, newest.Time)}, nil
	}
	at, e, err := j.entryBefore(timeKey(t.Add(1)))
	if err != nil {
		return Cut{}, err
	}
	if at.IsZero() { // trimmed up to the horizon, or before the first event
		if h := j.Horizon(); !h.Time.IsZero() && !t.Before(h.Time) {
			return Cut{Revision: h.Revision, Time: t.UTC()}, nil
		}
		return Cut{}, nil
	}
	return Cut{Revision: e.max, Time: t.UTC()}, nil
}

// CutOf is the cut of a revision of the main counter; its time is when the journal first saw
// the counter there. Epoch 0 is the newest epoch. The zero Cut means that the journal has not
// seen that revision yet.
func (j *Journal) CutOf(r Revision) (Cut, error) {
	newest := j.Newest()
	if r.Epoch == 0 {
		r.Epoch = newest.Epoch
	}
	if r.Compare(newest.Revision) > 0 {
		return Cut{}, nil
	}
	at, err := j.tables.FirstReaching(r)
	return Cut{Revision: r, Time: at}, err
}

// firstReaching bisects the time index for the time of its first entry whose max is at least
// r. Max only grows along the index, and the last entry must reach r.
func firstReaching(it *pebble.Iterator, r Revision) (time.Time, error) {
	if !it.First() {
		return time.Time{}, nil
	}
	low, err := decodeTimeKey(it.Key())
	if err != nil || !it.Last() {
		return time.Time{}, err
	}
	high, err := decodeTimeKey(it.Key())
	if err != nil {
		return time.Time{}, err
	}
	for low.Before(high) {
		middle := low.Add(high.Sub(low) / 2)
		at, e, err := entryFrom(it, middle)
		if err != nil {
			return time.Time{}, err
		}
		if e.max.Compare(r) >= 0 {
			high = middle
		} else {
			low = at.Add(1)
		}
	}
	at, _, err := entryFrom(it, low)
	return at, err
}

// entryFrom is the first entry of the time index at or after t.
func entryFrom(it *pebble.Iterator, t time.Time) (at time.Time, e indexEntry, err error) {
	if !it.SeekGE(timeKey(t)) {
		return at, e, errors.Join(it.Error(), fmt.Errorf("time index ends before %s", t))
	}
	if at, err = decodeTimeKey(it.Key()); err == nil {
		e, err = decodeIndexEntry(it.Value())
	}
	return at, e, err
}

// ErrPaused is returned for what would wait until a full disk has space again.
var ErrPaused = errors.New("nothing can be noted now")

// SetMark gives the cut a name. A name that is taken is replaced. While recording is paused, it fails: ErrPaused.
func (j *Journal) SetMark(ctx context.Context, name string, c Cut) error {
	if name == "" || len(name) > 253 {
		return fmt.Errorf("%w: a mark's name has 1 to 253 characters", ErrBadName)
	}
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if full := j.spaceTrouble(); full != "" {
		return fmt.Errorf("%w: %s", ErrPaused, full)
	}
	return j.do(ctx, entry{exec: func(w *writer) error { return w.batch.Set(nameKey(prefixMark, name), b, nil) }})
}

// MarkedCut is the cut that was given the name; ErrNoMark when none was.
func (j *Journal) MarkedCut(name string) (c Cut, err error) {
	v, err := j.get(nameKey(prefixMark, name))
	if err != nil {
		return c, err
	}
	if v == nil {
		return c, fmt.Errorf("%w: %q", ErrNoMark, name)
	}
	return c, json.Unmarshal(v, &c)
}

// Mark is a named cut.
type Mark struct {
	Name string `json:"name"`
	Cut
}

// Marks are all named cuts, newest first.
func (j *Journal) Marks() ([]Mark, error) {
	var all []Mark
	err := j.scan([]byte{prefixMark}, func(k, v []byte) error {
		m := Mark{Name: string(k[1:])}
		if err := json.Unmarshal(v, &m.Cut); err != nil {
			return fmt.Errorf("mark %q: %w", m.Name, err)
		}
		all = append(all, m)
		return nil
	})
	slices.SortStableFunc(all, func(a, b Mark) int { return b.Time.Compare(a.Time) })
	return all, err
}
