package replay

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// Local is the Source of a journal that this process has open.
type Local struct {
	j   *journal.Journal
	now func() time.Time
}

var _ Source = (*Local)(nil)

// NewLocal makes the Source of an open journal.
func NewLocal(j *journal.Journal) *Local { return &Local{j: j, now: time.Now} }

// Ledgers implements Source.
func (l *Local) Ledgers(context.Context) (*Catalog, error) {
	c := &Catalog{ClusterID: l.j.ClusterID(), Resources: l.j.Ledgers(), To: l.j.Newest()}
	c.From, c.Outages = l.j.Began(), l.j.Outages()
	var err error
	if c.LeftOut, err = l.j.LeftOut(); err != nil {
		return nil, err
	}
	if c.Marks, err = l.j.Marks(); err != nil {
		return nil, err
	}
	c.Marks = c.Marks[:min(len(c.Marks), 100)]
	if alive := l.j.LastAlive(); alive.After(c.To.Time) { // nothing has changed since c.To, and that is known
		c.To.Time = alive
	}
	if h := l.j.Horizon(); h.Time.After(c.From.Time) && !c.From.Time.IsZero() {
		c.From = h
	}
	return c, nil
}

// Resolve implements Source.
func (l *Local) Resolve(ctx context.Context, at At) (journal.Cut, error) {
	c, err := l.Ledgers(ctx)
	if err != nil {
		return journal.Cut{}, err
	}
	refuse := func(why string, args ...any) (journal.Cut, error) {
		return journal.Cut{}, &RangeError{At: at, Why: fmt.Sprintf(why, args...), From: c.From, To: c.To}
	}
	if c.From.Time.IsZero() {
		return refuse("nothing is recorded completely yet")
	}
	cut, why, err := l.cut(at)
	if err != nil {
		return journal.Cut{}, err
	}
	switch {
	case why != "": // unknown or yet to come: the oldest moment would be bad advice
		return journal.Cut{}, &RangeError{At: at, Why: why, From: c.From, To: c.To, Try: "now"}
	case cut.Time.IsZero(), at.Revision.IsZero() && cut.Time.Before(c.From.Time), cut.Revision.Compare(c.From.Revision) < 0:
		if h := l.j.Horizon(); h.Time.Equal(c.From.Time) {
			return refuse("lies before the local history, which is kept for a limited time (see 'tidemark run --window')")
		}
		return refuse("lies before recording began")
	}
	if cut.Time.Before(c.From.Time) { // the counter may stand at a revision long before and after
		cut.Time = c.From.Time
	}
	return cut, nil
}

// cut finds the cut; why says what is wrong with a moment that has none.
func (l *Local) cut(at At) (cut journal.Cut, why string, err error) {
	now := l.now().UTC()
	switch {
	case !at.Time.IsZero():
		if at.Time.After(now) && at.Time.After(l.j.Newest().Time) {
			return cut, "lies in the future", nil
		}
		cut, err = l.j.CutAt(at.Time)
	case at.Ago != 0:
		cut, err = l.j.CutAt(now.Add(-at.Ago))
	case !at.Revision.IsZero():
		cut, err = l.j.CutOf(at.Revision)
		if err == nil && cut.Time.IsZero() {
			why = "is a revision the cluster has not reached, or that was not observed yet"
		}
	case at.Mark != "" || at.Before != "":
		return l.named(at)
	default:
		cut, err = l.j.CutAt(l.latest(now))
	}
	return cut, why, err
}

// latest is now, or the newest event's time when the clock has gone back behind it.
func (l *Local) latest(now time.Time) time.Time {
	if newest := l.j.Newest().Time; newest.After(now) {
		return newest
	}
	return now
}

// named finds a mark; a backup's name may be given without its "backup/".
func (l *Local) named(at At) (journal.Cut, string, error) {
	for _, name := range []string{at.Mark + at.Before, "backup/" + at.Mark + at.Before} {
		cut, err := l.j.MarkedCut(name)
		if !errors.Is(err, journal.ErrNoMark) {
			return cut, "", err
		}
	}
	marks, err := l.j.Marks()
	if err != nil {
		return journal.Cut{}, "", err
	}
	if len(marks) == 0 {
		return journal.Cut{}, "nothing has that name (no names were given yet: 'tidemark mark NAME' gives one to this moment)", nil
	}
	known := make([]string, 0, 5)
	for _, m := range marks[:min(len(marks), cap(known))] {
		known = append(known, m.Name)
	}
	return journal.Cut{}, "nothing has that name (newest names: " + strings.Join(known, ", ") + ")", nil
}

// Fold implements Source.
func (l *Local) Fold(ctx context.Context, cut journal.Cut, scope Scope) iter.Seq2[journal.Event, error] {
	return func(yield func(journal.Event, error) bool) {
		own := map[schema.GroupResource]bool{}
		for _, r := range l.j.Ledgers() {
			own[r.GroupResource()] = r.OwnCounter
		}
		v, err := l.j.View()
		if err != nil {
			yield(journal.Event{}, err)
			return
		}
		var cause error
		stopped := false
		err = fold(v, cut, scope, own, func(e journal.Event) bool {
			if cause = context.Cause(ctx); cause != nil {
				return false
			}
			stopped = !yield(e, nil)
			return !stopped
		})
		if err = errors.Join(err, cause, v.Close()); err != nil && !stopped {
			yield(journal.Event{}, err)
		}
	}
}

// Changes implements Source.
func (l *Local) Changes(ctx context.Context, q ChangeQuery) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		from, to := q.From, q.To
		if to.IsZero() {
			to = l.j.Newest().Time
		}
		for {
			advanced := l.j.Advanced()
			if q.Follow {
				to = l.j.Newest().Time
			}
			if !l.changes(ctx, from, to, q, yield) || !q.Follow {
				return
			}
			if to.After(from) {
				from = to
			}
			select {
			case <-advanced:
			case <-ctx.Done():
				return
			}
		}
	}
}

// changes yields one stretch; it returns false once yield did not want more or was told an error.
func (l *Local) changes(ctx context.Context, from, to time.Time, q ChangeQuery, yield func(Change, error) bool) bool {
	tail, err := l.j.Tail(from, to)
	if err != nil {
		yield(Change{}, err)
		return false
	}
	stopped := false
	for tail.Next() && !stopped && err == nil {
		var c Change
		var found bool
		if c, found, err = change(ctx, tail, q); found && err == nil {
			stopped = !yield(c, nil)
		}
	}
	if err = errors.Join(err, tail.Close()); err != nil && !stopped {
		yield(Change{}, err)
		return false
	}
	return !stopped
}

// change reads the tail's current event; found is false when it is out of scope.
func change(ctx context.Context, tail *journal.Tail, q ChangeQuery) (c Change, found bool, err error) {
	if err := context.Cause(ctx); err != nil {
		return c, false, err
	}
	if m := tail.Meta(); !q.Scope.Covers(m.Resource, m.Namespace, m.Name) {
		return c, false, nil
	}
	e, ok, err := tail.Event()
	if !ok || err != nil || !q.Scope.Selects(e.Object) {
		return c, false, err
	}
	before, err := tail.Before()
	if err != nil {
		return c, false, err
	}
	c.Event = e
	var old []byte
	if before != nil {
		old = before.Object
	}
	c.Fields, c.Managers = describe(e, old)
	if q.Objects {
		c.Before = old
	}
	return c, true, nil
}

// Mark implements Source.
func (l *Local) Mark(ctx context.Context, name string, cut journal.Cut) (journal.Cut, error) {
	if !validName(name) {
		return cut, fmt.Errorf("%q cannot be the name of a moment: it must start with a letter and hold only letters, digits and - . _ /", name)
	}
	if cut.Time.IsZero() {
		var err error
		if cut, err = l.j.CutAt(l.latest(l.now())); err != nil {
			return cut, err
		}
	}
	return cut, l.j.SetMark(ctx, name, cut)
}
