package journal

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Outage is a span in which nothing was watched and after which the watches could go on
// without a gap: what changed in it is known, and in which order, but not when. All of it has
// observed times after the outage.
type Outage struct {
	Resource *schema.GroupResource `json:"resource,omitempty"` // nil: all of them, tidemark did not run
	From     time.Time             `json:"from"`
	To       time.Time             `json:"to"`
}

// maxOutages bounds what is kept; the oldest are forgotten first.
const maxOutages = 2000

// AddOutage notes an outage durably.
func (j *Journal) AddOutage(ctx context.Context, o Outage) error {
	return j.do(ctx, entry{exec: func(w *writer) error {
		w.j.mu.Lock()
		defer w.j.mu.Unlock()
		all := append(slices.Clip(w.j.outages), o)
		all = all[max(0, len(all)-maxOutages):]
		for len(all) > 0 && all[0].To.Before(w.j.horizon.Time) {
			all = all[1:]
		}
		b, err := json.Marshal(all)
		if err != nil {
			return err
		}
		w.j.outages = all
		return w.batch.Set(nameKey(prefixMeta, metaOutages), b, nil)
	}})
}

// Outages are the noted outages, oldest first.
func (j *Journal) Outages() []Outage {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return slices.Clip(j.outages)
}

// LastAlive is the newest time at which the journal is known to have been recorded into.
func (j *Journal) LastAlive() time.Time {
	alive := j.Newest().Time
	for _, l := range j.Ledgers() {
		if l.Watermark.Time.After(alive) {
			alive = l.Watermark.Time
		}
	}
	return alive
}

func (j *Journal) loadOutages() error {
	v, err := j.meta(metaOutages)
	if v == nil || err != nil {
		return err
	}
	return json.Unmarshal(v, &j.outages)
}

// SetWatched tells that the resource is being watched (why empty), or why it is not.
func (j *Journal) SetWatched(gr schema.GroupResource, why string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if why == "" {
		delete(j.interrupted, gr)
		j.watched[gr] = true
		return
	}
	j.interrupted[gr] = why
}

// whyInterrupted is why the resource is not being watched; j.mu is held.
func (j *Journal) whyInterrupted(gr schema.GroupResource) string {
	if why := j.interrupted[gr]; why != "" || j.watched[gr] || gr.Group == OwnGroup {
		return why
	}
	return "not watched since tidemark was started"
}
