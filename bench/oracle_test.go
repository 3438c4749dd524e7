package bench

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
)

// TestFoldEqualsWhatTheServerHeld is the oracle of docs/design.md, section 4: for many
// revisions R, the journal's fold at R is, byte for byte, what the API server lists at
// exactly R, for every resource.
func TestFoldEqualsWhatTheServerHeld(t *testing.T) {
	cluster := startCluster(t, localcluster.Options{})
	d := fastClient(t, cluster.Config())
	r := record(t, cluster.Config(), t.TempDir())
	w := &traffic{client: d, namespaces: []string{"red", "green", "blue"}, resources: []schema.GroupVersionResource{configMaps, secrets, buckets}, objects: 12}
	for _, ns := range w.namespaces {
		createNamespace(t, d, ns)
	}
	createBuckets(t, d)
	w.run(t.Context(), t, 1, 400)

	last := w.last()
	for gvr, rv := range last {
		r.await(gvr, rv)
	}
	newest := r.journal.Newest().RV
	since := r.journal.Ledger(buckets.GroupResource()).First.RV
	random := rand.New(rand.NewPCG(7, 7))
	compared := 0
	for range 40 {
		a := w.acked[random.IntN(len(w.acked))]
		if a.rv > newest || a.rv < since {
			continue
		}
		for _, l := range r.journal.Ledgers() {
			if !l.Holds(cutOf(a.rv)) || l.OwnCounter {
				continue
			}
			want, ok := exactList(t, cluster.Config(), l.ResourceInfo, a.rv)
			if !ok {
				continue
			}
			compareObjects(t, l.GroupResource(), a.rv, r.fold(l.GroupResource(), a.rv), want)
			compared += len(want)
		}
	}
	if compared < 1000 {
		t.Fatalf("only %d objects were compared", compared)
	}
	for _, l := range r.journal.Ledgers() {
		if len(l.Gaps) > 0 {
			t.Errorf("%s has gaps though nothing was cut off: %+v", l.GroupResource(), l.Gaps)
		}
	}
}

func compareObjects(t *testing.T, gr schema.GroupResource, rv uint64, got, want map[string][]byte) {
	t.Helper()
	for id, w := range want {
		g, ok := got[id]
		if !ok {
			t.Errorf("%s %s at %d: the server had it, the fold has not", gr, id, rv)
		} else if !bytes.Equal(g, w) {
			t.Errorf("%s %s at %d:\nfold   %s\nserver %s", gr, id, rv, g, w)
		}
	}
	for id := range got {
		if _, ok := want[id]; !ok {
			t.Errorf("%s %s at %d: the fold has it, the server had not", gr, id, rv)
		}
	}
}
