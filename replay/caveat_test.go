package replay

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tidemark-backup/tidemark/journal"
)

func cutAt(rv uint64, second int64) journal.Cut {
	return journal.Cut{Revision: journal.Revision{Epoch: 1, RV: rv}, Time: time.Unix(second, 0).UTC()}
}

// ledgerOf is a ledger that knows everything from 1 to 100, and is watched.
func ledgerOf(resource string, change func(*journal.Ledger)) journal.Ledger {
	gr := parseGR(resource)
	l := journal.Ledger{
		ResourceInfo: journal.ResourceInfo{Group: gr.Group, Resource: gr.Resource, Version: "v1", Namespaced: true},
		First:        cutAt(1, 1), Since: cutAt(1, 1), Watermark: cutAt(100, 100),
	}
	if change != nil {
		change(&l)
	}
	return l
}

// TestWhatIsNotKnownForSure: each of these reasons must be told, and must keep a prune from
// deleting what history may only have missed.
func TestWhatIsNotKnownForSure(t *testing.T) {
	maps := parseGR("configmaps")
	for _, tc := range []struct {
		name    string
		ledger  func(*journal.Ledger)
		catalog Catalog
		cut     journal.Cut
		caveats []string
		unsure  string // a part of the reason not to prune; empty: prune
	}{
		{name: "all is known", cut: cutAt(50, 50)},
		{name: "watched, and idle for an hour", cut: cutAt(100, 4000)},
		{name: "watched, and others went on", cut: cutAt(900, 4000)},
		{name: "some namespaces only", cut: cutAt(50, 50), ledger: func(l *journal.Ledger) { l.Filter = "only namespaces shop" }, caveats: []string{"configmaps: recorded only namespaces shop"}, unsure: "only namespaces shop"},
		{name: "forbidden since", cut: cutAt(120, 120), ledger: func(l *journal.Ledger) { l.Interrupted = "forbidden: list" }, caveats: []string{"configmaps: known only up to 1970-01-01T00:01:40Z (forbidden: list): what changed since then may be missing (see 'tidemark status')"}, unsure: "forbidden: list"},
		{name: "forbidden since, the cluster idle", cut: cutAt(100, 120), ledger: func(l *journal.Ledger) { l.Interrupted = "forbidden: list" }, caveats: []string{"configmaps: known only up to 1970-01-01T00:01:40Z (forbidden: list): what changed since then may be missing (see 'tidemark status')"}, unsure: "forbidden: list"},
		{name: "forbidden since, but not then", cut: cutAt(90, 90), ledger: func(l *journal.Ledger) { l.Interrupted = "forbidden: list" }},
		{name: "an own counter goes by time", cut: cutAt(900, 90), ledger: func(l *journal.Ledger) { l.OwnCounter, l.Interrupted = true, "waiting" }},
		{name: "an own counter, later", cut: cutAt(5, 110), ledger: func(l *journal.Ledger) { l.OwnCounter, l.Interrupted = true, "waiting" }, caveats: []string{"configmaps: known only up to 1970-01-01T00:01:40Z (waiting): what changed since then may be missing (see 'tidemark status')"}, unsure: "waiting"},
		{name: "being compared", cut: cutAt(120, 120), ledger: func(l *journal.Ledger) { l.Comparing = "watch lost" }, caveats: []string{"configmaps: known only up to 1970-01-01T00:01:40Z (being compared with the cluster: watch lost): what changed since then may be missing (see 'tidemark status')"}, unsure: "watch lost"},
		{name: "gone and there again", cut: cutAt(50, 50), ledger: func(l *journal.Ledger) { c := cutAt(60, 60); l.Removed = &c }, unsure: "was gone"},
		{name: "not yet", cut: cutAt(5, 5), catalog: Catalog{From: cutAt(1, 1)}, ledger: func(l *journal.Ledger) { l.First, l.Initial = cutAt(10, 10), 3 }, caveats: []string{"configmaps: recorded only since 1970-01-01T00:00:10Z, its 3 objects of then are not in the answer"}, unsure: "not recorded yet"},
		{name: "in a gap", cut: cutAt(50, 50), ledger: func(l *journal.Ledger) {
			l.Gaps = []journal.Gap{{From: cutAt(40, 40), To: cutAt(60, 60), Cause: "expired"}}
		}, caveats: []string{"configmaps: the moment lies in a gap from 1970-01-01T00:00:40Z to 1970-01-01T00:01:00Z (expired): changes in it may be missing"}, unsure: "gap"},
		{name: "left out by now", cut: cutAt(50, 50), catalog: Catalog{LeftOut: []journal.LeftOut{{Resource: maps, Why: "excluded"}}}, caveats: []string{"configmaps: not recorded: excluded"}, unsure: "excluded"},
		{name: "tidemark did not run", cut: cutAt(50, 50), catalog: Catalog{Outages: []journal.Outage{{From: time.Unix(40, 0), To: time.Unix(60, 0)}}}, caveats: []string{"tidemark was not recording from 1970-01-01T00:00:40Z to 1970-01-01T00:01:00Z: what changed in it is known, but not when; this is the state at 1970-01-01T00:00:40Z"}, unsure: "not recording from"},
		{name: "it was not watched", cut: cutAt(50, 50), catalog: Catalog{Outages: []journal.Outage{{Resource: &maps, From: time.Unix(40, 0), To: time.Unix(60, 0)}}}, caveats: []string{"configmaps: tidemark was not recording from 1970-01-01T00:00:40Z to 1970-01-01T00:01:00Z: what changed in it is known, but not when; this is the state at 1970-01-01T00:00:40Z"}, unsure: "not recording from"},
		{name: "after an outage", cut: cutAt(60, 60), catalog: Catalog{Outages: []journal.Outage{{From: time.Unix(40, 0), To: time.Unix(60, 0)}}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := tc.catalog
			c.Resources = []journal.Ledger{ledgerOf("configmaps", tc.ledger)}
			scope := Scope{}
			scope.Resources = append(scope.Resources, maps)
			if diff := cmp.Diff(tc.caveats, c.Caveats(tc.cut, scope)); diff != "" {
				t.Errorf("caveats: %s", diff)
			}
			if why := c.unsure(&c.Resources[0], tc.cut); (why == "") != (tc.unsure == "") || !strings.Contains(why, tc.unsure) {
				t.Errorf("unsure: %q, want %q", why, tc.unsure)
			}
		})
	}
}

func TestCaveatsAreSaidOnce(t *testing.T) {
	c := Catalog{LeftOut: []journal.LeftOut{{Resource: parseGR("events"), Why: "excluded"}}, Outages: []journal.Outage{{From: time.Unix(110, 0), To: time.Unix(130, 0)}}}
	for _, r := range []string{"configmaps", "secrets", "pods", "services"} {
		c.Resources = append(c.Resources, ledgerOf(r, func(l *journal.Ledger) { l.Interrupted, l.Filter = "not connected", "only namespaces shop" }))
	}
	want := []string{
		"tidemark was not recording from 1970-01-01T00:01:50Z to 1970-01-01T00:02:10Z: what changed in it is known, but not when; this is the state at 1970-01-01T00:01:50Z",
		"4 resources: recorded only namespaces shop",
		"4 resources: known only up to 1970-01-01T00:01:40Z (not connected): what changed since then may be missing (see 'tidemark status')",
	}
	if diff := cmp.Diff(want, c.Caveats(cutAt(120, 120), Scope{})); diff != "" {
		t.Error(diff)
	}
	two := Scope{Resources: append(Scope{}.Resources, parseGR("secrets"), parseGR("configmaps"), parseGR("events"))}
	if got := c.Caveats(cutAt(50, 50), two); len(got) != 2 || got[0] != "configmaps, secrets: recorded only namespaces shop" || got[1] != "events: not recorded: excluded" {
		t.Errorf("%q", got)
	}
}
