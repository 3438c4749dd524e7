package replay

import (
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestSpread: kinds of one wave are mixed, Services end early, and nothing is lost but what is not written.
func TestSpread(t *testing.T) {
	configs := schema.GroupResource{Resource: "configmaps"}
	var items []*Item
	for _, r := range []schema.GroupResource{configs, secrets, services} {
		for range 20 {
			items = append(items, &Item{Resource: r, Action: ActionCreate})
		}
	}
	items = append(items, &Item{Resource: configs, Action: ActionUnchanged})
	all := spread(items)
	if len(all) != 60 {
		t.Fatalf("%d items, want 60", len(all))
	}
	last := map[schema.GroupResource]int{}
	early := map[schema.GroupResource]int{}
	for i, it := range all {
		last[it.Resource] = i
		if i < 15 {
			early[it.Resource]++
		}
	}
	if last[services] > 52 || last[configs] < 57 || last[secrets] < 57 {
		t.Errorf("the last ones of each kind are at %v of 60: want Services in the first four fifths or so, the others at the end", last)
	}
	for r, n := range early {
		if n < 4 {
			t.Errorf("%d of the first 15 are %s: want each kind among them", n, r)
		}
	}
}
