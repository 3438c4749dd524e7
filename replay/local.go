package replay

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
)

// record is history as a recorded source reads it: a journal's, or an archive's.
type record interface {
	// catalog tells what is recorded; it has all marks.
	catalog() (*Catalog, error)
	// outside says why the state at the cut cannot be told; empty when it can. near is the moment, also when it has no cut.
	outside(c *Catalog, at At, cut journal.Cut, near time.Time) string
	// stretch is what can be restored around a moment: the newest stretch that begins before it, or the oldest. A zero moment means the newest of all.
	stretch(c *Catalog, near time.Time) (from, to journal.Cut)
	// named finds what only this record gives a name to.
	named(name string) (journal.Cut, bool)
	// latest is the newest moment that now can mean.
	latest(now time.Time) time.Time
	cutAt(ctx context.Context, t time.Time) (journal.Cut, error)
	cutOf(ctx context.Context, r journal.Revision) (journal.Cut, error)
	view(ctx context.Context, cut journal.Cut, near *string) (*journal.View, error)
	tail(ctx context.Context, from, to time.Time) (*journal.Tail, error)
}

// recorded answers what is the same for all records.
type recorded struct {
	record
	now func() time.Time
}

// Local is the Source of a journal that this process has open.
type Local struct {
	recorded
	j *journal.Journal
}

var _ Source = (*Local)(nil)

// NewLocal makes the Source of an open journal.
func NewLocal(j *journal.Journal) *Local {
	return &Local{recorded{record: journalRecord{j}, now: time.Now}, j}
}

// maxMarks is how many marks a catalog holds, the newest.
const maxMarks = 100

// Ledgers implements Source.
func (l *recorded) Ledgers(context.Context) (*Catalog, error) {
	c, err := l.catalog()
	if err != nil {
		return nil, err
	}
	c.Marks = c.Marks[:min(len(c.Marks), maxMarks)]
	return c, nil
}

// Resolve implements Source.
func (l *recorded) Resolve(ctx context.Context, at At) (journal.Cut, error) {
	c, err := l.catalog()
	if err != nil {
		return journal.Cut{}, err
	}
	refuse := func(why string, near time.Time) (journal.Cut, error) {
		return journal.Cut{}, l.outOfRange(c, at, why, near)
	}
	if c.From.Time.IsZero() {
		return refuse("nothing is recorded completely yet", time.Time{})
	}
	cut, why, err := l.cut(ctx, c, at)
	if err != nil {
		return journal.Cut{}, err
	}
	if why != "" { // unknown or yet to come: the oldest moment would be bad advice
		return refuse(why, time.Time{})
	}
	if c, err = l.catalog(); err != nil { // reading may have found out what is lost
		return journal.Cut{}, err
	}
	near := cut.Time
	if !at.Time.IsZero() {
		near = at.Time
	} else if at.Ago != 0 {
		near = l.now().Add(-at.Ago)
	}
	if why := l.outside(c, at, cut, near); why != "" {
		return refuse(why, near)
	}
	if at.Revision.RV != 0 && cut.Time.Before(c.From.Time) && cut.Revision.Compare(c.From.Revision) >= 0 {
		cut.Time = c.From.Time // the counter may stand at a revision long before and after
	}
	return cut, nil
}

// outOfRange is the error about a moment, with what can be asked for around it. A zero near means that the newest moment is the advice.
func (l *recorded) outOfRange(c *Catalog, at At, why string, near time.Time) error {
	e := &RangeError{At: at, Why: why}
	e.From, e.To = l.stretch(c, near)
	switch {
	case near.IsZero() && e.To.Time.Equal(c.To.Time):
		e.Try = "now"
	case near.IsZero() || e.To.Time.Before(near):
		e.Try = e.To.Time.UTC().Format(time.RFC3339Nano)
	}
	return e
}

// cut finds the cut; why says what is wrong with a moment that has none.
func (l *recorded) cut(ctx context.Context, c *Catalog, at At) (cut journal.Cut, why string, err error) {
	now := l.now().UTC()
	switch {
	case !at.Time.IsZero():
		if at.Time.After(now) && at.Time.After(l.latest(now)) {
			return cut, "lies in the future", nil
		}
		if latest := l.latest(now); at.Time.After(latest) {
			return cut, "lies after the newest moment that is archived", nil
		}
		cut, err = l.cutAt(ctx, at.Time)
	case at.Ago != 0:
		t := now.Add(-at.Ago)
		if latest := l.latest(now); t.After(latest) {
			return cut, "lies after the newest moment that is archived", nil
		}
		cut, err = l.cutAt(ctx, t)
	case !at.Revision.IsZero():
		cut, err = l.cutOf(ctx, at.Revision)
		if err == nil && cut.Time.IsZero() {
			why = "is a revision the cluster has not reached, or that was not observed yet (while nothing changes, servers tell once a minute how far they are)"
		}
	case at.Mark != "" || at.Before != "":
		cut, why = l.marked(c, at)
	default:
		cut, err = l.cutAt(ctx, l.latest(now))
	}
	return cut, why, err
}

// marked finds a mark; a backup's name may be given without its "backup/".
func (l *recorded) marked(c *Catalog, at At) (journal.Cut, string) {
	for _, name := range []string{at.Mark + at.Before, "backup/" + at.Mark + at.Before} {
		if i := slices.IndexFunc(c.Marks, func(m journal.Mark) bool { return m.Name == name }); i >= 0 {
			return c.Marks[i].Cut, ""
		}
	}
	if cut, ok := l.named(at.Mark + at.Before); ok {
		return cut, ""
	}
	if len(c.Marks) == 0 {
		return journal.Cut{}, "nothing has that name (no names were given yet: 'tidemark mark NAME' gives one to this moment)"
	}
	known := make([]string, 0, 5)
	for _, m := range c.Marks[:min(len(c.Marks), cap(known))] {
		known = append(known, m.Name)
	}
	return journal.Cut{}, "nothing has that name (newest names: " + strings.Join(known, ", ") + ")"
}

// Fold implements Source.
func (l *recorded) Fold(ctx context.Context, cut journal.Cut, scope Scope) iter.Seq2[journal.Event, error] {
	return func(yield func(journal.Event, error) bool) {
		c, err := l.catalog()
		if err != nil {
			yield(journal.Event{}, err)
			return
		}
		own := map[schema.GroupResource]bool{}
		for _, r := range c.Resources {
			own[r.GroupResource()] = r.OwnCounter
		}
		var near *string
		if len(scope.Namespaces) > 0 {
			first := slices.Min(scope.Namespaces)
			near = &first
		}
		v, err := l.view(ctx, cut, near)
		if errors.Is(err, archive.ErrHole) {
			if c, err = l.catalog(); err == nil {
				err = l.outOfRange(c, At{Time: cut.Time}, inHole, cut.Time)
			}
		}
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
func (l *recorded) Changes(ctx context.Context, q ChangeQuery) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		c, err := l.catalog()
		if err != nil {
			yield(Change{}, err)
			return
		}
		to := q.To
		if to.IsZero() {
			to = c.To.Time
		}
		l.changes(ctx, q.From, to, q, yield)
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
func (l *recorded) changes(ctx context.Context, from, to time.Time, q ChangeQuery, yield func(Change, error) bool) bool {
	tail, err := l.tail(ctx, from, to)
	if err != nil {
		yield(Change{}, cannotSkip(err))
		return false
	}
	return walkTail(ctx, tail, q, yield)
}

// cannotSkip says of a damaged file what helps: changes are not left out without a word.
func cannotSkip(err error) error {
	if _, damaged := errors.AsType[*archive.DamageError](err); !damaged {
		return err
	}
	return fmt.Errorf("%w; 'tidemark repair' makes the file anew where the journal still has what was in it, or takes it out, and then the changes beside it can be told", err)
}

// walkTail yields what a tail holds, and closes it; it returns false once yield did not want more or was told an error.
func walkTail(ctx context.Context, tail *journal.Tail, q ChangeQuery, yield func(Change, error) bool) bool {
	var err error
	stopped := false
	for tail.Next() && !stopped && err == nil {
		var c Change
		var found bool
		if c, found, err = change(ctx, tail, q); found && err == nil {
			stopped = !yield(c, nil)
		}
	}
	if err = errors.Join(err, tail.Close()); err != nil && !stopped {
		yield(Change{}, cannotSkip(err))
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

// journalRecord is the record that a journal is.
type journalRecord struct{ j *journal.Journal }

func (r journalRecord) catalog() (*Catalog, error) {
	s, err := r.j.State()
	if err != nil {
		return nil, err
	}
	c := &Catalog{ClusterID: r.j.ClusterID(), Resources: s.Ledgers, To: s.Position.Cut, From: s.Began, Outages: s.Outages, LeftOut: s.LeftOut, Marks: s.Marks}
	if alive := r.j.LastAlive(); alive.After(c.To.Time) { // nothing has changed since c.To, and that is known
		c.To.Time = alive
	}
	if s.Horizon.Time.After(c.From.Time) && !c.From.Time.IsZero() {
		c.From = s.Horizon
	}
	return c, nil
}

func (r journalRecord) outside(c *Catalog, at At, cut journal.Cut, _ time.Time) string {
	switch {
	case !cut.Time.IsZero() && (!at.Revision.IsZero() || !cut.Time.Before(c.From.Time)) && cut.Revision.Compare(c.From.Revision) >= 0:
		return ""
	case r.j.Horizon().Time.Equal(c.From.Time):
		return "lies before the local history, which is kept for a limited time (see 'tidemark run --window')"
	}
	return "lies before recording began"
}

func (journalRecord) stretch(c *Catalog, _ time.Time) (from, to journal.Cut) { return c.From, c.To }

func (journalRecord) named(string) (journal.Cut, bool) { return journal.Cut{}, false }

// latest is now, or the newest event's time when the clock has gone back behind it.
func (r journalRecord) latest(now time.Time) time.Time {
	if newest := r.j.Newest().Time; newest.After(now) {
		return newest
	}
	return now
}

func (r journalRecord) cutAt(_ context.Context, t time.Time) (journal.Cut, error) {
	return r.j.CutAt(t)
}

// cutOf knows of revisions after the newest change, too, as far as nothing that is recorded has changed since.
func (r journalRecord) cutOf(_ context.Context, v journal.Revision) (journal.Cut, error) {
	cut, err := r.j.CutOf(v)
	if v.Epoch == 0 {
		v.Epoch = r.j.Newest().Epoch
	}
	if err == nil && cut.Time.IsZero() && r.j.Covers(v) {
		cut = journal.Cut{Revision: v, Time: r.j.Newest().Time}
	}
	return cut, err
}

// view fails with journal.ErrTrimmed when the versions of the cut are gone. The view is opened first: what is trimmed after that stays in it.
func (r journalRecord) view(_ context.Context, cut journal.Cut, _ *string) (*journal.View, error) {
	v, err := r.j.View()
	if err != nil {
		return nil, err
	}
	if h := r.j.Horizon(); cut.Time.Before(h.Time) || !cut.Revision.IsZero() && cut.Revision.Compare(h.Revision) < 0 {
		return nil, errors.Join(fmt.Errorf("%w: asked for %s, and it begins at %s", journal.ErrTrimmed, cut, h), v.Close())
	}
	return v, nil
}

func (r journalRecord) tail(_ context.Context, from, to time.Time) (*journal.Tail, error) {
	return r.j.Tail(from, to)
}

// trimmed reports whether the journal's older history is gone from it.
func (l *Local) trimmed() bool { return !l.j.Horizon().Time.IsZero() }
