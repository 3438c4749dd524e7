package replay

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/journal"
)

func TestLastAlive(t *testing.T) {
	const alive = `{kind: Namespace, metadata: {name: shop}}`
	const dying = `{kind: Namespace, metadata: {name: shop, deletionTimestamp: "2026-01-01T00:00:00Z"}}`
	type step struct {
		op  journal.Op
		obj string
	}
	for _, tc := range []struct {
		name  string
		steps []step // revisions 10, 20, ...
		cut   uint64
		end   int // the step that ended it
		err   error
		text  string
		// forgotten says how many changes are older than what is kept of changes
		forgotten int
	}{
		{name: "unchanged for longer than changes are kept", steps: []step{{journal.Added, alive}, {journal.Modified, dying}, {journal.Deleted, dying}}, forgotten: 1, cut: 19, end: 1},
		{name: "unchanged for long, then deleted at once", steps: []step{{journal.Added, alive}, {journal.Modified, alive}, {journal.Deleted, alive}}, forgotten: 2, cut: 29, end: 2},
		{name: "dying for longer than changes are kept", steps: []step{{journal.Added, alive}, {journal.Modified, dying}, {journal.Deleted, dying}}, forgotten: 2, text: "no moment of its life"},
		{name: "alive, and unchanged for long", steps: []step{{journal.Added, alive}}, forgotten: 1, err: ErrStillLives, text: "tidemark log ns/shop"},
		{name: "contents vanish while a namespace is Terminating", steps: []step{{journal.Added, alive}, {journal.Modified, dying}, {journal.Modified, dying}, {journal.Deleted, dying}}, cut: 19, end: 1},
		{name: "deleted at once", steps: []step{{journal.Added, alive}, {journal.Modified, alive}, {journal.Deleted, alive}}, cut: 29, end: 2},
		{name: "still going", steps: []step{{journal.Added, alive}, {journal.Modified, dying}}, cut: 19, end: 1},
		{name: "the second life counts", steps: []step{{journal.Added, alive}, {journal.Deleted, alive}, {journal.Added, alive}, {journal.Modified, dying}, {journal.Deleted, dying}}, cut: 39, end: 3},
		{name: "it lives again", steps: []step{{journal.Added, alive}, {journal.Deleted, alive}, {journal.Added, alive}}, err: ErrStillLives, text: "tidemark log ns/shop"},
		{name: "it was dying when it was first seen", steps: []step{{journal.Added, dying}, {journal.Deleted, dying}}, text: "no moment of its life"},
		{name: "a second life of which only the end was seen", steps: []step{{journal.Added, alive}, {journal.Deleted, alive}, {journal.Added, dying}, {journal.Deleted, dying}}, text: "no moment of its life"},
		{name: "never seen", steps: nil, err: ErrNeverSeen, text: "tidemark log namespaces"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := &history{forgotten: tc.forgotten}
			for _, s := range tc.steps {
				h.add(t, s.op, "namespaces", s.obj)
			}
			cut, c, err := LastAlive(t.Context(), h, Ref{Resource: namespaces, Name: "shop"})
			if tc.err != nil || tc.text != "" {
				if err == nil || tc.err != nil && !errors.Is(err, tc.err) || !strings.Contains(err.Error(), tc.text) {
					t.Fatalf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			end := h.events[tc.end]
			if cut.RV != tc.cut || cut.Epoch != 1 || !cut.Time.Before(end.Observed) || c.Revision != end.Revision {
				t.Errorf("cut %s, ended by %s; want revision %d and the change at %s", cut, c.Revision, tc.cut, end.Revision)
			}
		})
	}
}

func TestLastAliveNamesNearMatches(t *testing.T) {
	h := &history{}
	for _, y := range []string{`{metadata: {name: web, namespace: shop}}`, `{metadata: {name: web-canary, namespace: shop}}`, `{metadata: {name: wbe, namespace: shop}}`, `{metadata: {name: api, namespace: shop}}`, `{metadata: {name: webb, namespace: other}}`} {
		h.add(t, journal.Added, "deployments.apps", y)
	}
	_, _, err := LastAlive(t.Context(), h, Ref{Resource: parseGR("deployments.apps"), Namespace: "shop", Name: "webb"})
	if !errors.Is(err, ErrNeverSeen) || !strings.Contains(err.Error(), "did you mean web, webb -n other?") || !strings.Contains(err.Error(), "tidemark log deployments.apps -n shop") {
		t.Errorf("%v", err)
	}
}

func TestLastAliveBeforeAGap(t *testing.T) {
	h := &history{}
	h.add(t, journal.Added, "namespaces", `{kind: Namespace, metadata: {name: shop}}`)
	h.add(t, journal.Deleted, "namespaces", `{kind: Namespace, metadata: {name: shop}}`)
	h.events[1].Flags = journal.Inferred
	from := journal.Cut{Revision: journal.Revision{Epoch: 1, RV: 15}, Time: h.events[0].Observed.Add(time.Millisecond)}
	h.ledgers = []journal.Ledger{{ResourceInfo: journal.ResourceInfo{Resource: "namespaces"}, Gaps: []journal.Gap{{From: from, To: journal.Cut{Revision: h.events[1].Revision, Time: h.events[1].Observed}}, {To: journal.Cut{Time: h.events[1].Observed.Add(time.Hour)}}}}} // the second one is what a filter left out
	cut, _, err := LastAlive(t.Context(), h, Ref{Resource: namespaces, Name: "shop"})
	if err != nil || cut != from {
		t.Errorf("%v %v: the contents may have vanished anywhere in the gap, which began at %v", cut, err, from)
	}
}

// A slow watch brings a change after the moment up to which changes are taken back, and one of before after its beginning.
func TestReversalsGoByRevision(t *testing.T) {
	h := &history{}
	h.add(t, journal.Added, "secrets", `{metadata: {name: late, namespace: shop}}`)
	h.add(t, journal.Added, "configmaps", `{metadata: {name: from, namespace: shop}}`)
	h.add(t, journal.Added, "secrets", `{metadata: {name: early, namespace: shop}}`) // revision 15, of before
	h.add(t, journal.Added, "configmaps", `{metadata: {name: to, namespace: shop}}`)
	h.add(t, journal.Deleted, "secrets", `{metadata: {name: late, namespace: shop}}`) // revision 35
	h.add(t, journal.Added, "configmaps", `{metadata: {name: after, namespace: shop}}`)
	h.events[2].Revision.RV, h.events[4].Revision.RV = 15, 35
	cut := func(i int) journal.Cut {
		return journal.Cut{Revision: h.events[i].Revision, Time: h.events[i].Observed}
	}
	all, err := Reversals(t.Context(), h, cut(1), cut(3), InNamespace("shop"), "")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range all {
		names = append(names, r.Name)
	}
	if got := strings.Join(names, " "); got != "to late" {
		t.Errorf("taken back: %s", got)
	}
}

// A manager that is named stands for its writes to subresources as well; one that did nothing is an error that names those who did.
func TestReversalsByManager(t *testing.T) {
	const set = `{metadata: {name: a, namespace: shop, managedFields: [{manager: kubectl, operation: Update, subresource: %s, apiVersion: v1, time: "2026-01-01T00:00:0%dZ", fieldsType: FieldsV1, fieldsV1: {"f:data": {"f:k": {}}}}]}, data: {k: "%d"}}`
	h := &history{}
	h.add(t, journal.Added, "configmaps", fmt.Sprintf(set, "scale", 1, 1))
	h.add(t, journal.Modified, "configmaps", fmt.Sprintf(set, "scale", 2, 2))
	from := journal.Cut{Revision: h.events[0].Revision, Time: h.events[0].Observed}
	for manager, want := range map[string]string{"kubectl": "", "kubectl/scale": "", "kubectl/status": "kubectl/scale did", "kube": "kubectl/scale did"} {
		all, err := Reversals(t.Context(), h, from, h.now(), InNamespace("shop"), manager)
		if want == "" && (err != nil || len(all) != 1) || want != "" && (!errors.Is(err, ErrNobody) || !strings.Contains(err.Error(), want)) {
			t.Errorf("by %s: %d, %v", manager, len(all), err)
		}
	}
}

func TestEmptiedBefore(t *testing.T) {
	const pod = `{metadata: {name: web-1, namespace: shop, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web, uid: u, controller: true}]}}`
	type step struct {
		op       journal.Op
		resource string
		obj      string
		wait     time.Duration // before it
	}
	made := []step{
		{journal.Added, "configmaps", `{metadata: {name: a, namespace: shop}}`, 0},
		{journal.Added, "configmaps", `{metadata: {name: kube-root-ca.crt, namespace: shop}}`, 0},
		{journal.Added, "secrets", `{metadata: {name: b, namespace: shop}}`, 0},
		{journal.Added, "pods", pod, 0},
	}
	const dying = `{metadata: {name: b, namespace: shop, deletionTimestamp: "2026-01-01T00:00:00Z"}}`
	for _, tc := range []struct {
		name  string
		steps []step
		n     int
		rv    uint64
	}{
		{"everything is there", nil, 0, 0},
		{"something is left", []step{{journal.Deleted, "configmaps", made[0].obj, 0}}, 0, 0},
		{"all is gone but what controllers made", []step{{journal.Deleted, "configmaps", made[0].obj, 0}, {journal.Deleted, "secrets", made[2].obj, 0}}, 2, 49},
		{"one is being deleted", []step{{journal.Modified, "secrets", dying, 0}, {journal.Deleted, "configmaps", made[0].obj, 0}}, 2, 49},
		{"one went long before", []step{{journal.Deleted, "configmaps", made[0].obj, 0}, {journal.Deleted, "pods", pod, 50 * time.Second}, {journal.Deleted, "secrets", made[2].obj, 5 * time.Minute}}, 1, 69},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, later := &history{}, time.Duration(0)
			for _, s := range append(made, tc.steps...) {
				h.add(t, s.op, s.resource, s.obj)
				later += s.wait
				last := &h.events[len(h.events)-1]
				last.Observed = last.Observed.Add(later)
			}
			full, n, err := EmptiedBefore(t.Context(), h, "shop", h.now())
			if err != nil || n != tc.n || full.RV != tc.rv {
				t.Errorf("%d objects, full at %s, %v; want %d, rv:%d", n, full, err, tc.n, tc.rv)
			}
		})
	}
}
