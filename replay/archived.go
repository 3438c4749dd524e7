package replay

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
)

// ErrReadOnly is returned by sources that have no daemon behind them.
var ErrReadOnly = errors.New("an archive is read without a daemon")

// Archived is the Source of an archive, up to what was archived when it was made.
type Archived struct {
	recorded
}

var _ Source = (*Archived)(nil)

// NewArchived makes the Source of an archive.
func NewArchived(h *archive.History) *Archived {
	return &Archived{recorded{record: archiveRecord{h}, now: time.Now}}
}

// Mark implements Source: it cannot.
func (*Archived) Mark(context.Context, string, journal.Cut) (journal.Cut, error) {
	return journal.Cut{}, fmt.Errorf("%w, which alone gives moments a name: leave out --archive", ErrReadOnly)
}

// Changes implements Source. An archive cannot be followed.
func (a *Archived) Changes(ctx context.Context, q ChangeQuery) iter.Seq2[Change, error] {
	if q.Follow {
		return func(yield func(Change, error) bool) {
			yield(Change{}, fmt.Errorf("%w, which alone can be followed: leave out --archive", ErrReadOnly))
		}
	}
	return a.recorded.Changes(ctx, q)
}

// archiveRecord is the record that an archive is.
type archiveRecord struct{ h *archive.History }

func (r archiveRecord) catalog() (*Catalog, error) {
	s := r.h.State()
	c := &Catalog{
		ClusterID: s.Cluster, Resources: slices.Clone(s.Known.Ledgers), LeftOut: s.Known.LeftOut,
		Outages: s.Known.Outages, Marks: s.Known.Marks, To: s.Known.Position.Cut,
	}
	for i := range c.Resources {
		if w := c.Resources[i].Watermark.Time; w.After(c.To.Time) { // nothing has changed since c.To, and that is known
			c.To.Time = w
		}
	}
	ranges := s.Ranges()
	holes := s.Holes()
	for i := range c.Resources {
		c.Resources[i].Gaps = withHoles(&c.Resources[i], holes)
	}
	if len(ranges) > 0 && !s.Known.Began.Time.IsZero() {
		c.From = ranges[len(ranges)-1].From.Cut
		if s.Known.Began.Time.After(c.From.Time) {
			c.From = s.Known.Began
		}
	}
	return c, nil
}

// withHoles are the gaps of a ledger, and the holes of its archive.
func withHoles(l *journal.Ledger, holes []archive.Range) []journal.Gap {
	gaps := slices.Clone(l.Gaps)
	for _, h := range holes {
		if l.First.Time.Before(h.To.Time) {
			gaps = append(gaps, journal.Gap{From: h.From.Cut, To: h.To.Cut, Cause: "the archive holds no changes of this time"})
		}
	}
	slices.SortStableFunc(gaps, func(a, b journal.Gap) int { return a.To.Time.Compare(b.To.Time) })
	return gaps
}

// inHole is why a moment cannot be told whose past an archive has not got.
const inHole = "cannot be told, for the archive has a hole there: files are lost ('tidemark verify' says which), or only single moments were kept ('tidemark snapshot list' shows them)"

func (r archiveRecord) outside(c *Catalog, at At, cut journal.Cut, near time.Time) string {
	s := r.h.State()
	began := s.Known.Began
	if !cut.Time.IsZero() {
		if at.Revision.RV != 0 && cut.Time.Before(c.From.Time) && cut.Revision.Compare(c.From.Revision) >= 0 {
			cut.Time = c.From.Time
		}
		early := at.Revision.IsZero() && cut.Time.Before(began.Time) || cut.Revision.Compare(began.Revision) < 0
		if _, _, err := r.h.FilesAt(cut); err == nil && !early {
			return ""
		}
	}
	oldest := began.Time
	if ranges := s.Ranges(); len(ranges) > 0 {
		oldest = ranges[0].From.Time
	}
	switch {
	case !near.IsZero() && near.Before(began.Time):
		return "lies before recording began"
	case !near.IsZero() && near.Before(oldest):
		return "lies before what the archive holds"
	}
	return inHole
}

func (r archiveRecord) stretch(c *Catalog, near time.Time) (from, to journal.Cut) {
	s := r.h.State()
	for i, g := range s.Ranges() {
		if i > 0 && !near.IsZero() && g.From.Time.After(near) {
			break
		}
		from, to = g.From.Cut, g.To.Cut
		if from.Time.Before(s.Known.Began.Time) {
			from = s.Known.Began
		}
		if !to.Time.Before(s.Known.Position.Time) { // nothing has changed since, and that is known
			to = c.To
		}
	}
	return from, to
}

func (r archiveRecord) named(name string) (journal.Cut, bool) {
	if p := r.h.State().Snapshot(name); p != nil {
		return p.Position.Cut, true
	}
	return journal.Cut{}, false
}

// latest is the newest moment archived: what came after it is not known here.
func (r archiveRecord) latest(time.Time) time.Time {
	c, _ := r.catalog() // it cannot fail
	return c.To.Time
}

func (r archiveRecord) cutAt(ctx context.Context, t time.Time) (journal.Cut, error) {
	return r.h.CutAt(ctx, t)
}

func (r archiveRecord) cutOf(ctx context.Context, v journal.Revision) (journal.Cut, error) {
	return r.h.CutOf(ctx, v)
}

func (r archiveRecord) view(ctx context.Context, cut journal.Cut, near *string) (*journal.View, error) {
	return r.h.View(ctx, cut, near)
}

func (r archiveRecord) tail(ctx context.Context, from, to time.Time) (*journal.Tail, error) {
	return r.h.Tail(ctx, from, to)
}

// Tiered is the Source of a journal with an archive behind it: what lies before the journal's
// own history is read from the archive.
type Tiered struct {
	near *Local
	far  func(context.Context) (*Archived, error)
}

var _ Source = (*Tiered)(nil)

// NewTiered makes the Source of a journal and its archive. far is asked for the archive when it
// is needed; nil, or an error, means that it cannot be read now.
func NewTiered(near *Local, far func(context.Context) (*Archived, error)) *Tiered {
	return &Tiered{near: near, far: far}
}

// older is the archive when it holds history from before the journal's; else nil.
func (t *Tiered) older(ctx context.Context, near *Catalog) (*Archived, *Catalog) {
	if near.From.Time.IsZero() {
		return nil, nil
	}
	far, err := t.far(ctx)
	if err != nil || far == nil {
		return nil, nil
	}
	c, err := far.catalog()
	if err != nil || c.From.Time.IsZero() || !c.From.Time.Before(near.From.Time) || c.To.Time.Before(near.From.Time) {
		return nil, nil
	}
	return far, c
}

// Ledgers implements Source: the journal's catalog, with the gaps, outages and range that the archive
// adds to it.
func (t *Tiered) Ledgers(ctx context.Context) (*Catalog, error) {
	c, err := t.near.Ledgers(ctx)
	if err != nil {
		return nil, err
	}
	_, old := t.older(ctx, c)
	if old == nil {
		return c, nil
	}
	horizon := c.From.Time
	c.From = old.From
	for i := range c.Resources {
		l := &c.Resources[i]
		j := slices.IndexFunc(old.Resources, func(o journal.Ledger) bool { return o.GroupResource() == l.GroupResource() })
		if j < 0 {
			continue
		}
		gaps := slices.DeleteFunc(slices.Clone(old.Resources[j].Gaps), func(g journal.Gap) bool {
			return slices.ContainsFunc(l.Gaps, func(n journal.Gap) bool { return n.To.Time.Equal(g.To.Time) })
		})
		l.Gaps = append(gaps, l.Gaps...)
		slices.SortStableFunc(l.Gaps, func(a, b journal.Gap) int { return a.To.Time.Compare(b.To.Time) })
	}
	var outages []journal.Outage
	for _, o := range old.Outages {
		if o.To.Before(horizon) && !slices.ContainsFunc(c.Outages, func(n journal.Outage) bool { return n.From.Equal(o.From) && n.To.Equal(o.To) }) {
			outages = append(outages, o)
		}
	}
	c.Outages = append(outages, c.Outages...)
	return c, nil
}

// Resolve implements Source.
func (t *Tiered) Resolve(ctx context.Context, at At) (journal.Cut, error) {
	cut, err := t.near.Resolve(ctx, at)
	outside, ok := errors.AsType[*RangeError](err)
	if !ok {
		return cut, err
	}
	near, lerr := t.near.Ledgers(ctx)
	if lerr != nil {
		return cut, lerr
	}
	far, old := t.older(ctx, near)
	if far == nil {
		return cut, err
	}
	if outside.Try != "" && at.Mark == "" { // not older than what the journal has
		outside.From = old.From
		return cut, err
	}
	cut, err = far.Resolve(ctx, at)
	if outside, ok := errors.AsType[*RangeError](err); ok && !outside.To.Time.Before(near.From.Time) {
		outside.To = near.To // the journal goes on where the archive ends
	}
	return cut, err
}

// Fold implements Source.
func (t *Tiered) Fold(ctx context.Context, cut journal.Cut, scope Scope) iter.Seq2[journal.Event, error] {
	return func(yield func(journal.Event, error) bool) {
		for {
			near, err := t.near.Ledgers(ctx)
			if err != nil {
				yield(journal.Event{}, err)
				return
			}
			past := cut.Time.Before(near.From.Time) || cut.Revision.Compare(near.From.Revision) < 0
			if past {
				if far, _ := t.older(ctx, near); far != nil {
					far.Fold(ctx, cut, scope)(yield)
					return
				}
			}
			again := false
			t.near.Fold(ctx, cut, scope)(func(e journal.Event, err error) bool {
				// It was trimmed since near was asked for: nothing was told yet.
				again = errors.Is(err, journal.ErrTrimmed) && !past
				return !again && yield(e, err)
			})
			if !again {
				return
			}
		}
	}
}

// Changes implements Source. The journal's part is opened before the archive's is read, which may take long: what is trimmed meanwhile would be in
// neither.
func (t *Tiered) Changes(ctx context.Context, q ChangeQuery) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		far, seam, tail, to, err := t.parts(ctx, q)
		if err != nil {
			yield(Change{}, err)
			return
		}
		if far == nil {
			t.near.Changes(ctx, q)(yield)
			return
		}
		before := q
		before.Follow = false
		if tail != nil {
			before.To = seam
		}
		for c, err := range far.Changes(ctx, before) {
			if !yield(c, err) || err != nil {
				if tail != nil {
					_ = tail.Close()
				}
				return
			}
		}
		if tail == nil || !walkTail(ctx, tail, q, yield) {
			return
		}
		if q.Follow {
			q.From = to
			t.near.Changes(ctx, q)(yield)
		}
	}
}

// parts are the archive for what lies up to the seam, and the journal's tail for what comes after it and up to a time; the archive is nil when the
// journal has all that is asked for, and the tail when the archive has.
func (t *Tiered) parts(ctx context.Context, q ChangeQuery) (far *Archived, seam time.Time, tail *journal.Tail, to time.Time, err error) {
	for {
		near, err := t.near.Ledgers(ctx)
		if err != nil {
			return nil, seam, nil, to, err
		}
		// The journal's index begins with the entry at its horizon.
		seam = near.From.Time.Add(-1)
		far, _ := t.older(ctx, near)
		if far == nil || !t.near.trimmed() || !q.From.Before(seam) {
			return nil, seam, nil, to, nil
		}
		if to = q.To; to.IsZero() || q.Follow {
			to = t.near.j.Newest().Time
		}
		if !to.After(seam) {
			return far, seam, nil, to, nil
		}
		tail, err := t.near.tail(ctx, seam, to)
		if err != nil {
			return nil, seam, nil, to, err
		}
		if !t.near.j.Horizon().Time.After(near.From.Time) { // else it was trimmed before it was opened
			return far, seam, tail, to, nil
		}
		if err := tail.Close(); err != nil {
			return nil, seam, nil, to, err
		}
	}
}

// Mark implements Source.
func (t *Tiered) Mark(ctx context.Context, name string, cut journal.Cut) (journal.Cut, error) {
	return t.near.Mark(ctx, name, cut)
}
