package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// TrimResult tells what a round of Trim did.
type TrimResult struct {
	Horizon  Cut // history is complete from here on, and gone before
	Versions int // versions removed
	Objects  int // objects of which nothing is left
}

// trimBatch bounds the events one step of a trim looks at, so that it never holds the writer long.
const trimBatch = 1000

// Trim removes history older than the window: of each object all versions that a newer version
// at or before the horizon hides, and deletions that nobody can see any more. The newest
// version of each living object stays, however old. The horizon is durable before anything
// is removed, so a trim that is cut off only has to go on.
func (j *Journal) Trim(ctx context.Context) (TrimResult, error) {
	var res TrimResult
	if j.opts.Window == 0 {
		return res, nil
	}
	horizon, err := j.CutAt(j.opts.Clock().Add(-j.opts.Window))
	if err != nil || horizon.Time.IsZero() {
		return res, err
	}
	if newest := j.Newest(); horizon.Time.After(newest.Time) {
		horizon = newest // an idle cluster's newest moment stays in reach
	}
	if old := j.Horizon(); !horizon.Time.After(old.Time) {
		horizon = old // the clock went back: never trim by it
	}
	res.Horizon = horizon
	if err := j.setHorizon(ctx, horizon); err != nil {
		return res, err
	}
	for done := false; !done; {
		if err := j.do(ctx, entry{exec: func(w *writer) error {
			done, err = w.trimStep(horizon, &res)
			return err
		}}); err != nil {
			return res, fmt.Errorf("trim: %w", err)
		}
	}
	return res, nil
}

func (j *Journal) setHorizon(ctx context.Context, c Cut) error {
	if err := j.do(ctx, entry{exec: func(w *writer) error {
		for gr, l := range w.ledgers {
			if keep := gapsAfter(l, c); len(keep) != len(l.Gaps) {
				l.Gaps = keep
				w.touch(gr, time.Time{})
				w.round.changed[gr] = true
			}
		}
		return w.batch.Set(nameKey(prefixMeta, metaHorizon), appendWatermark(nil, c), nil)
	}}); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.horizon = c
	return nil
}

func gapsAfter(l *Ledger, c Cut) []Gap {
	for i := range l.Gaps {
		if l.compare(l.Gaps[i].To, c) > 0 {
			return l.Gaps[i:]
		}
	}
	return nil
}

// trimStep handles the oldest events of the time index, up to the horizon, and removes them
// from the index.
func (w *writer) trimStep(horizon Cut, res *TrimResult) (done bool, err error) {
	it, err := w.j.db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixTime}, UpperBound: timeKey(horizon.Time)})
	if err != nil {
		return false, err
	}
	defer it.Close()
	ok, n := it.First(), 0
	for ; ok && n < trimBatch; n++ {
		e, err := decodeIndexEntry(it.Value())
		if err != nil {
			return false, fmt.Errorf("index entry %x: %w", it.Key(), err)
		}
		if e.op != 0 {
			if err := w.trimBehind(e, res); err != nil {
				return false, err
			}
		}
		if err := w.batch.Delete(it.Key(), nil); err != nil {
			return false, err
		}
		ok = it.Next()
	}
	return !ok, it.Error()
}

// trimBehind removes the versions that the event hides from every cut in reach, and the event
// itself when it is a deletion.
func (w *writer) trimBehind(e indexEntry, res *TrimResult) error {
	prefix := appendObject(nil, e.object)
	it, err := w.j.db.NewIter(&pebble.IterOptions{LowerBound: appendRevision(prefix, e.revision), UpperBound: keyAfter(prefix)})
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if decodeRevision(it.Key()[len(prefix):]) == e.revision && e.op != Deleted {
			continue
		}
		if err := w.batch.Delete(it.Key(), nil); err != nil {
			return err
		}
		res.Versions++
	}
	if e.op != Deleted {
		return it.Error()
	}
	key := appendHead(nil, prefixHead, e.object)
	v, err := w.j.get(key)
	if err != nil || v == nil {
		return errors.Join(it.Error(), err)
	}
	h, err := decodeHeadValue(v)
	if err == nil && h.revision == e.revision {
		res.Objects++
		err = w.batch.Delete(key, nil)
	}
	return errors.Join(it.Error(), err)
}
