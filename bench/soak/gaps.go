package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidemark-backup/tidemark/bench/soak/checker"
)

const (
	gapLimit    = 3 * time.Minute  // for a gap made on purpose to be in the ledger
	reasonLimit = time.Minute      // for what explains a gap to be known
	reasonSlack = 20 * time.Second // between it and the gap
	longFault   = 30 * time.Second // after which the server may have forgotten what a daemon missed
)

// injected is a gap that was made on purpose: the history of these revisions was taken away from the daemon.
type injected struct {
	from, to uint64
	of       string // a resource that is bound to have it; empty: any, for what a paused daemon's socket holds is not lost
}

// injectedGap waits to be seen in the ledger.
type injectedGap struct {
	injected
	since time.Time
}

// seen are the resources that have the gap.
func (g *injected) seen(all []checker.Gap) int {
	n, found := 0, g.of == ""
	for _, one := range all {
		if one.From < g.to && one.To > g.from && strings.Contains(one.Cause, "410") {
			n++
			found = found || one.Resource == g.of
		}
	}
	if !found {
		return 0
	}
	return n
}

// ledgered wants the gaps that were made to be in the ledger: the journal's or, of what it forgot by now, the archive's.
func (j *judge) ledgered(ctx context.Context) error {
	j.breaker.mu.Lock()
	for _, g := range j.breaker.gaps {
		j.gaps = append(j.gaps, injectedGap{g, time.Now()})
		j.counts.Gaps++
	}
	j.breaker.gaps = nil
	j.breaker.mu.Unlock()
	if len(j.gaps) == 0 {
		return nil
	}
	var all []checker.Gap
	answers := 0
	for _, s := range []*checker.Source{j.daemon, j.archive} {
		if err := j.asked(ctx, s, "its status", func() error {
			known, err := s.Ledgers(ctx)
			if err == nil {
				all = append(all, known.Gaps()...)
				answers++
			}
			return err
		}); err != nil && !errors.Is(err, checker.ErrNotYet) {
			return err
		}
	}
	var left []injectedGap
	for _, g := range j.gaps {
		switch n := g.seen(all); {
		case n > 0:
			j.counts.Ledgered++
			j.log.note("check", 0, "gap in the ledger", map[string]any{"from": g.from, "to": g.to, "gaps": n}, nil)
		case time.Since(g.since) > gapLimit && answers > 0:
			return &checker.Difference{
				RV: g.to, Resource: "ledger", Key: fmt.Sprintf("%d to %d of %s", g.from, g.to, cmp.Or(g.of, "any resource")), Who: "daemon and archive",
				Want: "a gap, for history was taken away", Have: "no gap",
			}
		default:
			left = append(left, g)
		}
	}
	j.gaps = left
	return nil
}

// reason is what may cost the daemon history that it then calls a gap.
type reason struct {
	what     string
	resource string // what its name ends in; empty: all
	from, to time.Time
}

// reasoned notes that something begins that may cost history; what it returns, that it is over.
func (b *breaker) reasoned(what, resource string) (over func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := len(b.reasons)
	b.reasons = append(b.reasons, reason{what: what, resource: resource, from: time.Now()})
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.reasons[i].to = time.Now()
	}
}

// explained is what happened about the time of a gap that may be its reason, or nothing.
func explained(all []reason, resource string, from, to time.Time) string {
	for i := range all {
		r := &all[i]
		if strings.HasSuffix(resource, r.resource) && !r.from.After(to.Add(reasonSlack)) && (r.to.IsZero() || !r.to.Before(from.Add(-reasonSlack))) {
			return r.what
		}
	}
	return ""
}

// review wants every gap in a ledger to have a reason: who calls history a gap that was there to be read hides that it lost it.
// A reason is a fault of the API server or of etcd, one of any kind that took long, the change of a definition, or that the
// checker's own watch of the resource broke as well: that is how what the server does by itself, on a busy machine, is
// told from what the daemon does. One that is missing for longer than limit is a difference.
func (j *judge) review(limit time.Duration) error {
	j.breaker.mu.Lock()
	reasons := slices.Clone(j.breaker.reasons)
	j.breaker.mu.Unlock()
	for _, s := range []*checker.Source{j.daemon, j.archive} {
		if s.Last == nil {
			continue
		}
		for _, g := range s.Last.Gaps() {
			since, known := j.reviewed[g]
			if known && since.IsZero() {
				continue
			}
			from, to := j.model.When(g.From, g.To)
			why := explained(reasons, g.Resource, from, to)
			if why == "" && j.model.Broke(g.Resource, from.Add(-reasonSlack), to.Add(reasonSlack)) {
				why = "the server ended watches"
				j.log.note("check", 0, "a gap that no fault explains: "+why, g, nil)
			}
			if strings.Contains(g.Cause, "removed from the cluster") && !strings.HasSuffix(g.Resource, ".soak.example.com") {
				why = "" // nobody removed it
			}
			switch {
			case why != "":
				j.reviewed[g] = time.Time{}
				j.counts.Reasoned++
			case !known:
				j.reviewed[g] = time.Now()
			}
			if since = j.reviewed[g]; !since.IsZero() && time.Since(since) >= limit {
				return &checker.Difference{
					RV: g.To, Resource: "ledger", Key: fmt.Sprintf("%d to %d of %s (%s to %s)", g.From, g.To, g.Resource, from.UTC().Format(time.TimeOnly), to.UTC().Format(time.TimeOnly)),
					Who: s.Name, Want: "no gap, for nothing happened that costs history", Have: "a gap: " + g.Cause,
				}
			}
		}
	}
	return nil
}
