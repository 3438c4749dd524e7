package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TrimResult tells what a round of Trim did.
type TrimResult struct {
	Horizon  Cut // history is complete from here on, and gone before; zero while all is there
	Versions int // versions removed
	Objects  int // objects of which nothing is left
}

// trimBatch bounds the events one step of a trim looks at, so that it never holds the writer long.
const trimBatch = 1000

// Trim removes history older than the window: of each object all versions that a newer version
// at or before the horizon hides, and deletions that nobody can see any more. The newest
// version of each living object stays, however old. The horizon is durable before anything
// is removed, so a trim that is cut off only has to go on. It works while recording is paused
// because the disk is full.
//
// It is to be called at least every eighth of the window; see age.
func (j *Journal) Trim(ctx context.Context) (TrimResult, error) {
	if j.opts.Window == 0 {
		return TrimResult{}, nil
	}
	j.trimming.Lock()
	defer j.trimming.Unlock()
	horizon, err := j.grow(ctx)
	if err != nil {
		return TrimResult{}, fmt.Errorf("trim: %w", err)
	}
	if old := j.Horizon(); !horizon.Time.After(old.Time) {
		horizon = old
	}
	res := TrimResult{Horizon: horizon}
	if horizon.Time.IsZero() {
		return res, nil
	}
	if err := j.setHorizon(ctx, horizon); err != nil {
		return res, fmt.Errorf("trim: %w", err)
	}
	for from := []byte{prefixTime}; from != nil; {
		step := &trimStep{horizon: horizon, from: from, last: map[object]indexEntry{}}
		if err := j.tidy(ctx, step.run); err != nil {
			return res, fmt.Errorf("trim: %w", err)
		}
		res.Versions += step.versions
		res.Objects += step.objects
		from = step.next
	}
	if j.Condition() != "" { // gaps are dropped in the queue's order, which a full disk holds up
		return res, nil
	}
	return res, j.dropGaps(ctx, horizon)
}

// age is how old the journal's history is, counted in rounds of Trim and not by the wall
// clock: a clock that jumps ahead must not cost history. Between two rounds the journal gets
// older by what the clock says has passed, but by no more than an eighth of the window, so
// that a jump, also one between two runs of the daemon, costs at most that. Time in which
// nobody calls Trim hardly counts, so history is kept longer then.
type age struct {
	Age   time.Duration `json:"age"`
	Round time.Time     `json:"round"` // of the newest round, by the wall clock
	Marks []ageMark     `json:"marks"` // oldest first; the first is the horizon, or to be it
}

// ageMark says what was the newest moment when the journal had that age.
type ageMark struct {
	Age time.Duration `json:"age"`
	Cut Cut           `json:"cut"`
}

func (j *Journal) loadAge() error {
	v, err := j.meta(metaAge)
	if v == nil || err != nil {
		return err
	}
	return json.Unmarshal(v, &j.age)
}

// grow counts a round and returns the newest moment that is older than the window; zero when
// there is none. j.trimming is held.
func (j *Journal) grow(ctx context.Context) (Cut, error) {
	a := age{Age: j.age.Age, Round: j.opts.Clock()}
	if !j.age.Round.IsZero() { // in one process Sub goes by the monotonic clock
		a.Age += min(max(a.Round.Sub(j.age.Round), 0), j.opts.Window/8)
	}
	a.Marks = append(a.Marks, j.age.Marks...)
	for len(a.Marks) > 1 && a.Marks[1].Age <= a.Age-j.opts.Window && j.mayTrim(a.Marks[1].Cut) {
		a.Marks = a.Marks[1:]
	}
	if n := len(a.Marks); n == 0 || a.Age-a.Marks[n-1].Age >= j.opts.Window/64 {
		a.Marks = append(a.Marks, ageMark{Age: a.Age, Cut: j.Newest()})
	}
	b, err := json.Marshal(a)
	if err != nil {
		return Cut{}, err
	}
	if err := j.tidy(ctx, func(w *writer) error { return w.batch.Set(nameKey(prefixMeta, metaAge), b, nil) }); err != nil {
		return Cut{}, err
	}
	j.age = a
	if a.Marks[0].Age > a.Age-j.opts.Window || !j.mayTrim(a.Marks[0].Cut) {
		return Cut{}, nil
	}
	return a.Marks[0].Cut, nil
}

// KeepAfter keeps Trim from removing what was observed after t, whatever the window: history that
// no archive holds yet. It is asked for again after each start; the zero time keeps everything.
func (j *Journal) KeepAfter(t time.Time) {
	j.trimming.Lock()
	defer j.trimming.Unlock()
	j.keep = &t
}

func (j *Journal) mayTrim(horizon Cut) bool { return j.keep == nil || !horizon.Time.After(*j.keep) }

func (j *Journal) setHorizon(ctx context.Context, c Cut) error {
	if err := j.tidy(ctx, func(w *writer) error {
		return w.batch.Set(nameKey(prefixMeta, metaHorizon), appendWatermark(nil, c), nil)
	}); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.horizon = c
	return nil
}

// dropGaps forgets the gaps that ended before the horizon.
func (j *Journal) dropGaps(ctx context.Context, horizon Cut) error {
	over := false
	for _, l := range j.Ledgers() {
		over = over || len(gapsAfter(&l, horizon)) != len(l.Gaps)
	}
	if !over {
		return nil
	}
	return j.do(ctx, entry{exec: func(w *writer) error {
		for gr, l := range w.ledgers {
			if keep := gapsAfter(l, horizon); len(keep) != len(l.Gaps) {
				l.Gaps = keep
				w.touchLedger(gr)
			}
		}
		return nil
	}})
}

func (w *writer) touchLedger(gr schema.GroupResource) {
	w.touch(gr, time.Time{})
	w.round.changed[gr] = true
}

func gapsAfter(l *Ledger, c Cut) []Gap {
	for i := range l.Gaps {
		if l.compare(l.Gaps[i].To, c) > 0 {
			return l.Gaps[i:]
		}
	}
	return nil
}

// trimStep handles some of the oldest events of the time index, up to the horizon, and removes
// them from the index.
type trimStep struct {
	horizon Cut
	from    []byte // where the step before ended: all before it is only tombstones
	next    []byte // where the next one begins; nil when there is none

	last              map[object]indexEntry // newest event of each object in this step
	versions, objects int
}

func (s *trimStep) run(w *writer) error {
	it, err := w.j.db.NewIter(&pebble.IterOptions{LowerBound: s.from, UpperBound: timeKey(s.horizon.Time)})
	if err != nil {
		return err
	}
	defer it.Close()
	ok, n := it.First(), 0
	for ; ok && n < trimBatch; n++ {
		e, err := decodeIndexEntry(it.Value())
		if err != nil {
			return fmt.Errorf("index entry %x: %w", it.Key(), err)
		}
		if e.op != 0 {
			s.last[e.object] = e
		}
		if err := w.batch.Delete(it.Key(), nil); err != nil {
			return err
		}
		ok = it.Next()
	}
	if ok {
		s.next = append([]byte(nil), it.Key()...)
	}
	for _, e := range s.last {
		if err := s.removeBehind(w, e); err != nil {
			return err
		}
	}
	return it.Error()
}

// removeBehind removes the versions that the event hides from every cut in reach, and the
// event itself when it is a deletion.
func (s *trimStep) removeBehind(w *writer, e indexEntry) error {
	prefix := appendObject(nil, e.object)
	it, err := w.j.db.NewIter(&pebble.IterOptions{LowerBound: appendVersion(nil, e.object, e.revision), UpperBound: keyAfter(prefix)})
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
		s.versions++
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
		s.objects++
		err = w.batch.Delete(key, nil)
	}
	return errors.Join(it.Error(), err)
}
