package journal

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// ResourceInfo is what discovery said about a recorded resource. It is kept in the journal so
// that history stays readable after the resource, or the whole cluster, is gone.
type ResourceInfo struct {
	Group      string   `json:"group,omitempty"`
	Version    string   `json:"version"`  // the version the objects were recorded in last
	Resource   string   `json:"resource"` // plural
	Singular   string   `json:"singular,omitempty"`
	Kind       string   `json:"kind"`
	ShortNames []string `json:"shortNames,omitempty"`
	Categories []string `json:"categories,omitempty"`
	Namespaced bool     `json:"namespaced"`
}

// GroupResource is the name the journal files the resource under.
func (r ResourceInfo) GroupResource() schema.GroupResource {
	return schema.GroupResource{Group: r.Group, Resource: r.Resource}
}

// Gap is a span of one resource's history in which changes may have been missed. Changes that
// led to a different end state are in the journal as inferred events; what came and went
// inside the gap is lost.
type Gap struct {
	From     Cut    `json:"from"` // known to be complete up to here
	To       Cut    `json:"to"`   // and from here on
	Cause    string `json:"cause"`
	Inferred int    `json:"inferred"` // events found by the comparison that closed the gap
}

// Ledger says for one resource which history the journal holds.
type Ledger struct {
	ResourceInfo
	// OwnCounter is set when the resource's revisions do not come from the cluster's main
	// counter (aggregated APIs, an etcd of its own); its cuts go by observed time.
	OwnCounter bool `json:"ownCounter,omitempty"`
	// Filter says what of the resource is not recorded ("only namespaces a, b"); empty: nothing.
	Filter string `json:"filter,omitempty"`
	// FilterFrom is where Filter came into force; nil: with the first list. Its time is zero until the list that brings it is compared.
	FilterFrom *Cut `json:"filterFrom,omitempty"`
	// GapFrom is where the gap of the running comparison begins, when that is before the watermark: what a filter left out, history does not have.
	GapFrom *Cut `json:"gapFrom,omitempty"`
	// First is where recording began: the cut of the first complete list. Zero while that
	// list has not completed.
	First Cut `json:"first"`
	// Initial counts the objects of that list.
	Initial int `json:"initial,omitempty"`
	// Since is where the current continuous span began: First, or the end of the newest gap.
	Since Cut `json:"since"`
	// Watermark: the journal is complete up to here.
	Watermark Cut `json:"watermark"`
	// Removed is set once the resource is gone from discovery (its CRD was deleted): the cut
	// from which on it is known to have no objects.
	Removed *Cut  `json:"removed,omitempty"`
	Gaps    []Gap `json:"gaps,omitempty"` // oldest first
	// Comparing is set while a list is being compared with the journal. It is durable: found
	// at start, it means that the comparison was cut off and has to be made again.
	Comparing string `json:"comparing,omitempty"` // the gap's cause
	// Interrupted says why the resource is not being watched right now; empty while it is. It
	// is not kept: a journal that nothing records into says so of every resource.
	Interrupted string `json:"interrupted,omitempty"`
	// Lag is how long the newest durable event took from the wire to the disk.
	Lag time.Duration `json:"lag,omitempty"`
}

// GapAt returns the gap that the cut falls into, if any.
func (l *Ledger) GapAt(c Cut) *Gap {
	for i := range l.Gaps {
		g := &l.Gaps[i]
		inside := l.compare(c, g.From) > 0 && l.compare(c, g.To) < 0
		if inside || c.Time.After(g.From.Time) && c.Time.Before(g.To.Time) {
			return g
		}
	}
	return nil
}

// Holds reports whether the resource's state at the cut can be told: recording had begun.
func (l *Ledger) Holds(c Cut) bool {
	return !l.First.Time.IsZero() && l.compare(c, l.First) >= 0
}

func (l *Ledger) compare(a, b Cut) int {
	if l.OwnCounter {
		return a.Time.Compare(b.Time)
	}
	return a.Revision.Compare(b.Revision)
}

// Totals are counts over the whole journal.
type Totals struct {
	Events    uint64    `json:"events"`    // events in the journal's time index
	DiskBytes uint64    `json:"diskBytes"` // size of the journal's directory
	Oldest    time.Time `json:"oldest"`    // observed time of the oldest event
	Newest    time.Time `json:"newest"`    // observed time of the newest durable event
}

func cloneLedger(l *Ledger) *Ledger {
	c := *l
	c.Gaps = slices.Clone(l.Gaps)
	if l.Removed != nil {
		removed := *l.Removed
		c.Removed = &removed
	}
	return &c
}

// Ledgers returns what is recorded, sorted by resource. It is the durable state.
func (j *Journal) Ledgers() []Ledger {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.sortedLedgers()
}

// sortedLedgers are copies; j.mu is held.
func (j *Journal) sortedLedgers() []Ledger {
	all := make([]Ledger, 0, len(j.ledgers))
	for _, l := range j.ledgers {
		c := cloneLedger(l)
		c.Interrupted = j.whyInterrupted(l.GroupResource())
		all = append(all, *c)
	}
	slices.SortFunc(all, func(a, b Ledger) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Resource, b.Resource))
	})
	return all
}

// LeftOut is a resource that the cluster has and that is not recorded.
type LeftOut struct {
	Resource schema.GroupResource `json:"resource"`
	Why      string               `json:"why"`
}

// SetLeftOut notes durably what is not recorded.
func (j *Journal) SetLeftOut(ctx context.Context, all []LeftOut) error {
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return j.do(ctx, entry{exec: func(w *writer) error { return w.batch.Set(nameKey(prefixMeta, metaLeftOut), b, nil) }})
}

// LeftOut is what SetLeftOut noted last.
func (j *Journal) LeftOut() (all []LeftOut, err error) {
	v, err := j.meta(metaLeftOut)
	if v == nil || err != nil {
		return nil, err
	}
	return all, json.Unmarshal(v, &all)
}

// Ledger returns the ledger of one resource, nil when it was never recorded.
func (j *Journal) Ledger(gr schema.GroupResource) *Ledger {
	j.mu.RLock()
	defer j.mu.RUnlock()
	if l := j.ledgers[gr]; l != nil {
		return cloneLedger(l)
	}
	return nil
}

// Resume tells where a watch of the resource may go on without a list: the revision up to
// which the journal is complete. ok is false when a list is needed first.
func (j *Journal) Resume(gr schema.GroupResource) (rv uint64, ok bool) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	l := j.ledgers[gr]
	if l == nil || l.First.Time.IsZero() || l.Comparing != "" || l.Removed != nil {
		return 0, false
	}
	if !l.OwnCounter && l.Watermark.Epoch != j.newest.Epoch {
		return 0, false
	}
	return l.Watermark.RV, true
}

// Covers reports whether every resource of the main counter is known to be complete up to the revision, which the journal
// may have no event of: leases, say, move the counter on while nothing that is recorded changes.
func (j *Journal) Covers(r Revision) bool {
	j.mu.RLock()
	defer j.mu.RUnlock()
	covers := false
	for _, l := range j.ledgers {
		if l.OwnCounter || l.First.Time.IsZero() || l.Removed != nil {
			continue
		}
		if l.Comparing != "" || l.Watermark.Epoch != r.Epoch || l.Watermark.RV < r.RV {
			return false
		}
		covers = true
	}
	return covers
}

// NewEpoch begins a new epoch of the main counter: the server's history is known to have gone
// backwards. From then on no watermark of the old epoch is resumed.
func (j *Journal) NewEpoch(ctx context.Context) error {
	return j.do(ctx, entry{exec: func(w *writer) error {
		w.epoch = max(w.epoch, w.max.Epoch) + 1
		return w.tick(Revision{Epoch: w.epoch}, w.j.opts.Clock())
	}})
}

// Newest is the newest durable moment.
func (j *Journal) Newest() Cut {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.newest
}

// Horizon is the moment before which history was trimmed; zero when nothing was.
func (j *Journal) Horizon() Cut {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.horizon
}

// Advanced returns a channel that is closed once there is something newer than what Newest
// returned before the call.
func (j *Journal) Advanced() <-chan struct{} {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.advanced
}

// SetBegan notes, once, that every resource found at the first start has had its first list, or
// cannot have it: from the newest of those lists on the journal can tell the state of the
// whole cluster. While there is no list at all it does nothing.
func (j *Journal) SetBegan(ctx context.Context) error {
	var began Cut
	if err := j.do(ctx, entry{exec: func(w *writer) error {
		for _, l := range w.ledgers {
			if !l.OwnCounter && l.First.Revision.Compare(began.Revision) > 0 {
				began.Revision = l.First.Revision
			}
			if l.First.Time.After(began.Time) {
				began.Time = l.First.Time
			}
		}
		if began.Time.IsZero() || !w.j.Began().Time.IsZero() {
			return nil
		}
		return w.batch.Set(nameKey(prefixMeta, metaBegan), appendWatermark(nil, began), nil)
	}}); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.began.Time.IsZero() {
		j.began = began
	}
	return nil
}

// Began is the cut of SetBegan; zero before.
func (j *Journal) Began() Cut {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.began
}
