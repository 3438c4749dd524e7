package bench

import (
	"path/filepath"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// TestRestoredEtcdBeginsANewEpoch restores etcd to an earlier state, once under a running
// capture and once while none runs and the new history overtakes the old one. In both cases a
// new epoch begins, the state afterwards is the server's, and the old history can still be read.
func TestRestoredEtcdBeginsANewEpoch(t *testing.T) {
	for name, running := range map[string]bool{"while recording": true, "while stopped, and overtaken": false} {
		t.Run(name, func(t *testing.T) {
			cluster := startCluster(t, localcluster.Options{NoControllers: true})
			d := fastClient(t, cluster.Config())
			createNamespace(t, d, "red")
			w := &traffic{client: d, namespaces: []string{"red"}, resources: []schema.GroupVersionResource{configMaps, secrets}, objects: 8}
			w.run(t.Context(), t, 40, 30)
			saved := filepath.Join(t.TempDir(), "etcd")
			if err := cluster.SaveEtcd(t.Context(), saved); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			r := record(t, cluster.Config(), dir)
			w.run(t.Context(), t, 41, 60) // this is what the restore loses
			for gvr, rv := range w.last() {
				r.await(gvr, rv)
			}
			before := w.last()[configMaps]
			old, _ := exactList(t, cluster.Config(), r.journal.Ledger(configMaps.GroupResource()).ResourceInfo, before)
			if !running {
				r.stop()
			}
			if err := cluster.RestoreEtcd(t.Context(), saved); err != nil {
				t.Fatal(err)
			}
			after := &traffic{client: d, namespaces: []string{"red"}, resources: w.resources, objects: 3}
			changes := 5
			if !running {
				changes = 120
			}
			after.run(t.Context(), t, 42, changes)
			if !running {
				if after.last()[configMaps] < before {
					t.Fatalf("the new history did not overtake the old one: %d < %d", after.last()[configMaps], before)
				}
				r = record(t, cluster.Config(), dir)
			}
			for gvr, rv := range after.last() {
				want := journal.Revision{Epoch: 2, RV: rv}
				eventually(t, 90*time.Second, "epoch 2 of "+gvr.Resource, func() (bool, string) {
					l := r.journal.Ledger(gvr.GroupResource())
					return l.Watermark.Compare(want) >= 0, l.Watermark.String()
				})
			}
			r.mustEqualLive(t, cluster.Config(), configMaps, secrets)

			got := map[string][]byte{}
			cut, err := r.source.Resolve(t.Context(), replay.At{Revision: journal.Revision{Epoch: 1, RV: before}})
			if err != nil {
				t.Fatal(err)
			}
			for e, err := range r.source.Fold(t.Context(), cut, replay.Scope{Resources: []schema.GroupResource{configMaps.GroupResource()}}) {
				if err != nil {
					t.Fatal(err)
				}
				got[e.Namespace+"/"+e.Name] = e.Object
			}
			compareObjects(t, configMaps.GroupResource(), before, got, old)
		})
	}
}
