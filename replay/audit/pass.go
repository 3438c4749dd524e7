package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/journal/capture"
	"github.com/tidemark-backup/tidemark/replay"
)

var (
	errOrder   = errors.New("the API server lists it in an order of its own")
	errMoved   = errors.New("what is recorded of it changed meanwhile")
	errForm    = errors.New("the API server was upgraded or the definition changed meanwhile")
	errListing = errors.New("it is being listed")
	errManyOdd = errors.New("what differed at first did not when asked for again, and there was more of it than is asked for again")
)

// pass is one comparison of one resource.
type pass struct {
	a        *Auditor
	resource schema.GroupResource
	form     form
	hurry    bool // no pauses

	at         journal.Revision
	namespaces []string
	namespace  string // of the last object that was compared
	name       string
	pages      int

	objects   int
	reshaped  int
	different int
	suspects  []Difference // the first of them
}

// run compares the resource at its watermark. Its result counts when there is no error.
func (p *pass) run(ctx context.Context) error {
	l := p.a.o.Journal.Ledger(p.resource)
	switch {
	case l == nil || l.Removed != nil || l.OwnCounter:
		return errMoved
	case l.Comparing != "" || l.First.Time.IsZero():
		return errListing
	}
	p.at = l.Watermark.Revision
	v, err := p.a.o.Journal.View()
	if err != nil {
		return err
	}
	p.namespaces = []string{""}
	if l.Namespaced {
		p.namespaces = replay.ListedNamespaces(v)
	}
	if err := v.Close(); err != nil {
		return err
	}
	for next := ""; ; {
		before := p.objects
		if next, err = p.page(ctx, next); err != nil {
			return err
		}
		p.pages++
		if err := p.pause(ctx, p.objects-before); err != nil {
			return err
		}
		if next == "" {
			return p.confirm(ctx)
		}
	}
}

// pause keeps to the rate.
func (p *pass) pause(ctx context.Context, objects int) error {
	if p.hurry {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(objects+requestCost) * time.Second / time.Duration(p.a.o.Rate)):
		return nil
	}
}

// page compares one page of the list with the stretch of the fold that it covers. The view of the journal
// lives no longer than the page: an old one would keep what the store could let go of.
func (p *pass) page(ctx context.Context, next string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	v, err := p.a.o.Journal.View()
	if err != nil {
		return "", err
	}
	if err := p.holds(); err != nil {
		return "", errors.Join(err, v.Close())
	}
	fold := &ahead{Listing: replay.NewListing(v, p.resource, p.at, p.namespaces, p.namespace, p.name)}
	items := 0
	q := capture.Exact{Resource: p.resource, Revision: p.at.RV, Limit: p.a.o.Page, Continue: next}
	page, err := p.a.o.Cluster.ListExact(ctx, q, func(listed journal.Event) error {
		if p.name != "" && replay.ListedOrder(p.namespace, p.name, listed.Namespace, listed.Name) >= 0 {
			return errOrder
		}
		items++
		p.namespace, p.name = listed.Namespace, listed.Name
		p.take(fold, &listed)
		return nil
	})
	p.a.count(page, items)
	if err == nil && page.Next == "" {
		for fold.peek() {
			p.suspect(&fold.event, fold.kind(Extra))
			fold.drop()
		}
	}
	p.objects += items
	if err = errors.Join(v.Close(), err); err != nil {
		return "", err
	}
	return page.Next, nil
}

// holds reports whether the journal still tells the state at the pass's revision.
func (p *pass) holds() error {
	l := p.a.o.Journal.Ledger(p.resource)
	if l == nil || l.Removed != nil || l.OwnCounter || l.Watermark.Epoch != p.at.Epoch || p.a.o.Journal.Horizon().Revision.Compare(p.at) > 0 {
		return errMoved
	}
	return nil
}

// take compares a listed object with what the fold has in its place.
func (p *pass) take(fold *ahead, listed *journal.Event) {
	for fold.peek() {
		switch order := replay.ListedOrder(fold.event.Namespace, fold.event.Name, listed.Namespace, listed.Name); {
		case order < 0:
			p.suspect(&fold.event, fold.kind(Extra))
			fold.drop()
			continue
		case order == 0:
			p.compare(&fold.event, fold.err, listed)
			fold.drop()
			return
		}
		break
	}
	p.suspect(listed, Missing)
}

func (p *pass) compare(recorded *journal.Event, err error, listed *journal.Event) {
	switch {
	case err != nil:
		p.suspect(listed, Unreadable)
	case same(recorded.Object, listed.Object):
	case p.form.explains(recorded, listed):
		p.reshaped++
	default:
		p.suspect(listed, Differs)
	}
}

func (p *pass) suspect(e *journal.Event, k Kind) {
	p.different++
	if len(p.suspects) < mostKept {
		p.suspects = append(p.suspects, Difference{Namespace: e.Namespace, Name: e.Name, Kind: k, At: p.at})
	}
}

// confirm asks for each suspect once more, alone: at the same revision, which no later change can
// touch, or, where the server no longer has that, at the newest one that the journal is complete at.
func (p *pass) confirm(ctx context.Context) error {
	confirmed := make([]Difference, 0, len(p.suspects))
	for _, d := range p.suspects {
		again, err := p.again(ctx, d, p.at)
		if errors.Is(err, capture.ErrExpired) {
			l := p.a.o.Journal.Ledger(p.resource)
			if l == nil || l.Watermark.Epoch != p.at.Epoch {
				return errMoved
			}
			again, err = p.again(ctx, d, l.Watermark.Revision)
		}
		if err != nil {
			return fmt.Errorf("ask again for what differs: %w", err)
		}
		if again != nil {
			confirmed = append(confirmed, *again)
		}
		if err := p.pause(ctx, 1); err != nil {
			return err
		}
	}
	if more := p.different - len(p.suspects); more > 0 && len(confirmed) == 0 {
		return errManyOdd
	}
	p.different -= len(p.suspects) - len(confirmed)
	p.suspects = confirmed
	return nil
}

// again compares one object at a revision; nil when nothing differs.
func (p *pass) again(ctx context.Context, d Difference, at journal.Revision) (*Difference, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	var listed *journal.Event
	page, err := p.a.o.Cluster.ListExact(ctx, capture.Exact{Resource: p.resource, Revision: at.RV, Namespace: d.Namespace, Name: d.Name}, func(e journal.Event) error {
		if e.Namespace == d.Namespace && e.Name == d.Name {
			listed = &e
		}
		return nil
	})
	p.a.count(page, 1)
	if err != nil {
		return nil, err
	}
	v, err := p.a.o.Journal.View()
	if err != nil {
		return nil, err
	}
	recorded, found, readErr := replay.VersionAt(v, p.resource, d.Namespace, d.Name, at)
	if err := errors.Join(v.Close(), p.holds()); err != nil {
		return nil, err
	}
	one := &pass{a: p.a, resource: p.resource, form: p.form, at: at}
	switch {
	case readErr != nil:
		one.suspect(&journal.Event{Namespace: d.Namespace, Name: d.Name}, Unreadable)
	case listed == nil && found:
		one.suspect(&recorded, Extra)
	case listed != nil && !found:
		one.suspect(listed, Missing)
	case listed != nil:
		one.compare(&recorded, nil, listed)
	}
	if one.different == 0 {
		p.reshaped += one.reshaped
		return nil, nil
	}
	return &one.suspects[0], nil
}

// ahead is a listing that can be looked ahead in.
type ahead struct {
	*replay.Listing
	event journal.Event // the next one, once peek has seen it
	err   error         // why it cannot be read
	seen  bool
}

func (h *ahead) peek() bool {
	if !h.seen {
		h.event, h.seen, h.err = h.Next()
	}
	return h.seen
}

func (h *ahead) drop() { h.seen = false }

// kind is k, or Unreadable for what cannot be read.
func (h *ahead) kind(k Kind) Kind {
	if h.err != nil {
		return Unreadable
	}
	return k
}
