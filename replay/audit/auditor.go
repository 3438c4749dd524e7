package audit

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/journal/capture"
)

// Cluster is what the journal is compared with; a capture.Capture is one.
type Cluster interface {
	// ListExact gives one page of a resource's recorded objects at exactly one revision.
	ListExact(ctx context.Context, q capture.Exact, item func(journal.Event) error) (capture.ExactPage, error)
	ServerVersion(ctx context.Context) (string, error)
}

// Options configure an Auditor. Journal and Cluster are required.
type Options struct {
	Journal *journal.Journal
	Cluster Cluster
	Every   time.Duration // each resource is audited once in this time. Default: 1 hour
	Limit   time.Duration // the age that a proof may have. Default: 3 times Every
	Page    int64         // objects per request. Default: 500
	Rate    int           // objects per second, about. Default: 500
	Logger  *zap.Logger   // default: none
	Clock   func() time.Time
}

const (
	// pageTimeout bounds one request: a server that does not answer must not stop the audit for ever.
	pageTimeout = time.Minute
	// requestCost is what a request counts besides its objects, in objects.
	requestCost = 25
	// longestRetry bounds the time until a try that told nothing is made again.
	longestRetry = 5 * time.Minute
	// lookAgain is how often new resources are looked for, at least.
	lookAgain = 30 * time.Second
	// notePrefix is where the journal keeps the records.
	notePrefix = "audit/"
)

var definitions = schema.GroupResource{Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"}

// Auditor compares a journal with its cluster.
type Auditor struct {
	o   Options
	log *zap.Logger

	server   string    // the API server's version, as of asked; owned by Run
	serverAt time.Time // owned by Run

	mu                       sync.Mutex // guards what follows
	records                  map[schema.GroupResource]*Record
	requests, bytes, objects uint64
}

// WithDefaults are the options as they are used.
func (o Options) WithDefaults() Options {
	if o.Every <= 0 {
		o.Every = time.Hour
	}
	if o.Limit <= 0 {
		o.Limit = 3 * o.Every
	}
	if o.Page <= 0 {
		o.Page = 500
	}
	if o.Rate <= 0 {
		o.Rate = 500
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	return o
}

// New makes an Auditor; Run starts it.
func New(o Options) *Auditor {
	o = o.WithDefaults()
	return &Auditor{o: o, log: o.Logger.Named("audit"), records: map[schema.GroupResource]*Record{}}
}

// Run audits until ctx ends.
func (a *Auditor) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		next, err := a.Round(ctx)
		if err != nil && ctx.Err() == nil {
			a.log.Warn("the audit cannot go on yet; it is tried again", zap.Error(err))
		}
		wait := min(max(next.Sub(a.o.Clock()), 50*time.Millisecond), lookAgain)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// Round audits every resource that is due, the one with the oldest proof first, and tells when the next is.
func (a *Auditor) Round(ctx context.Context) (next time.Time, err error) {
	if err := a.look(); err != nil {
		return a.o.Clock().Add(lookAgain), err
	}
	due, now := a.due(), a.o.Clock()
	for _, gr := range due {
		if ctx.Err() != nil {
			return now, ctx.Err()
		}
		if err := a.Audit(ctx, gr); err != nil {
			return now.Add(lookAgain), err
		}
	}
	next = a.o.Clock().Add(lookAgain)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.records {
		if r.NotAudited == "" && a.dueAt(r).Before(next) {
			next = a.dueAt(r)
		}
	}
	return next, nil
}

// look brings the records up to date with what is recorded, and loads those that are not known yet.
func (a *Auditor) look() error {
	recorded := map[schema.GroupResource]bool{}
	for _, l := range a.o.Journal.Ledgers() {
		gr := l.GroupResource()
		if l.Removed != nil || l.Group == journal.OwnGroup {
			continue
		}
		recorded[gr] = true
		r, err := a.record(gr)
		if err != nil {
			return err
		}
		a.mu.Lock()
		r.NotAudited = ""
		switch {
		case l.OwnCounter:
			r.NotAudited = "its revisions have a counter of their own"
		case l.First.Time.IsZero():
			r.NotAudited = "its first list has not been completed"
		}
		a.mu.Unlock()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.records, func(gr schema.GroupResource, _ *Record) bool { return !recorded[gr] })
	return nil
}

// record is the record of a resource, as the journal kept it or new.
func (a *Auditor) record(gr schema.GroupResource) (*Record, error) {
	a.mu.Lock()
	r := a.records[gr]
	a.mu.Unlock()
	if r != nil {
		return r, nil
	}
	b, err := a.o.Journal.Note(notePrefix + gr.String())
	if err != nil {
		return nil, err
	}
	r = &Record{Since: a.o.Clock().UTC()}
	if b != nil {
		if err := json.Unmarshal(b, r); err != nil {
			return nil, fmt.Errorf("read what the audit knows of %s: %w", gr, err)
		}
	}
	r.Resource = gr.String()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.records[gr] = r
	return r, nil
}

// dueAt is when a resource is to be audited next; zero: at once. a.mu is held.
func (a *Auditor) dueAt(r *Record) time.Time {
	switch {
	case r.Tried.IsZero(), r.Tried.After(a.o.Clock().Add(clockSlack)):
		return time.Time{}
	case r.Trouble != "":
		return r.Tried.Add(min(a.o.Every/4, longestRetry))
	}
	return r.Tried.Add(a.o.Every)
}

// due are the resources to be audited now, the one with the oldest proof first.
func (a *Auditor) due() []schema.GroupResource {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.o.Clock()
	var all []schema.GroupResource
	for gr, r := range a.records {
		if r.NotAudited == "" && !a.dueAt(r).After(now) {
			all = append(all, gr)
		}
	}
	slices.SortFunc(all, func(x, y schema.GroupResource) int {
		return cmp.Or(-cmp.Compare(a.records[x].Age(now), a.records[y].Age(now)), cmp.Compare(x.String(), y.String()))
	})
	return all
}

// Audit compares one resource with the cluster, and keeps what comes out. What goes wrong on the way is
// in the record; an error is the journal's.
func (a *Auditor) Audit(ctx context.Context, gr schema.GroupResource) error {
	rec, err := a.record(gr)
	if err != nil {
		return err
	}
	f, err := a.form(ctx, gr)
	if err != nil {
		return a.settle(ctx, rec, nil, err)
	}
	a.mu.Lock()
	if rec.Form != "" && rec.Form != f.name {
		rec.FormSince = a.o.Clock().UTC()
		if newest := a.o.Journal.Newest().Time; newest.After(rec.FormSince) { // times of history go on when the clock goes back
			rec.FormSince = newest
		}
	}
	rec.Form, f.since = f.name, rec.FormSince
	a.mu.Unlock()
	var p *pass
	for try := range 2 {
		p = &pass{a: a, resource: gr, form: f, hurry: try > 0}
		if err = p.run(ctx); !errors.Is(err, capture.ErrExpired) || p.pages == 0 {
			break // else its revision was compacted away below it: once more, without pauses
		}
	}
	if err == nil && p.different > 0 {
		err = a.confirmForm(ctx, gr, f)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return a.settle(ctx, rec, p, err)
}

// settle keeps what a pass came to; one with an error has told nothing.
func (a *Auditor) settle(ctx context.Context, rec *Record, p *pass, trouble error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	now := a.o.Clock().UTC()
	a.mu.Lock()
	before := rec.Different
	rec.Tried, rec.Trouble = now, ""
	switch {
	case trouble != nil:
		rec.Trouble = trouble.Error()
	case p.different > 0:
		rec.Different, rec.Differences = p.different, p.suspects
		rec.Found += uint64(max(0, p.different-before))
		if before == 0 {
			rec.FoundAt = now
		}
	default:
		rec.Different, rec.Differences = 0, nil
		rec.Proof = &Proof{Time: now, At: p.at, Objects: p.objects, Reshaped: p.reshaped}
		rec.proven = time.Now()
	}
	after, found := rec.Different, rec.Differences
	b, err := json.Marshal(rec)
	a.mu.Unlock()
	switch {
	case trouble != nil:
		a.log.Debug("a resource could not be audited; it is tried again", zap.String("resource", rec.Resource), zap.Error(trouble))
	case after > before:
		a.log.Error("history differs from the cluster: 'tidemark status' names the objects",
			zap.String("resource", rec.Resource), zap.Int("objects", after), zap.String("kind", string(found[0].Kind)), zap.Stringer("revision", p.at))
	case before > 0 && after == 0:
		a.log.Info("history equals the cluster again", zap.String("resource", rec.Resource), zap.Stringer("revision", p.at))
	}
	if err != nil {
		return err
	}
	return a.o.Journal.SetNote(ctx, notePrefix+rec.Resource, b)
}

// Report tells what is known now. The time of a proof is as today's clock has it: one that was set back since makes it no younger.
func (a *Auditor) Report() *Report {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.o.Clock()
	r := &Report{Every: a.o.Every, Limit: a.o.Limit, Requests: a.requests, Bytes: a.bytes, Objects: a.objects, Resources: []Record{}}
	for _, rec := range a.records {
		c := *rec
		if rec.Proof != nil {
			p := *rec.Proof
			if made := now.Add(-time.Since(rec.proven)); !rec.proven.IsZero() && made.Before(p.Time) {
				p.Time = made.UTC()
			}
			c.Proof = &p
		}
		c.Differences = slices.Clone(rec.Differences)
		r.Resources = append(r.Resources, c)
	}
	slices.SortFunc(r.Resources, compareRecords)
	r.State = r.Judge(now)
	return r
}

func (a *Auditor) count(p capture.ExactPage, objects int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests++
	a.bytes += uint64(p.Bytes)
	a.objects += uint64(objects)
}
