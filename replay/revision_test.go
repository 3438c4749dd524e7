package replay_test

import (
	"errors"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// A cluster at rest has revisions that nothing recorded has: leases move it on. They can be asked for as soon as every
// resource is known to be complete up to them.
func TestRevisionsOfAClusterAtRest(t *testing.T) {
	ctx := t.Context()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	j, err := journal.Open("/data", journal.Options{FS: vfs.NewMem(), Key: []byte("0123456789abcdef0123456789abcdef"), Free: func() (uint64, error) { return 1 << 40, nil }})
	ok(err)
	defer j.Close()
	ok(j.Bind(ctx, "c"))
	kinds := []journal.ResourceInfo{
		{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true}, {Version: "v1", Resource: "secrets", Kind: "Secret", Namespaced: true},
	}
	for _, info := range kinds {
		c, err := j.Compare(ctx, journal.Recording{ResourceInfo: info}, 10, "")
		ok(err)
		_, err = c.Commit(ctx, 10)
		ok(err)
	}
	ok(j.SetBegan(ctx))
	ok(j.Append(ctx, journal.Event{Resource: kinds[0].GroupResource(), Namespace: "a", Name: "one", Op: journal.Added, Revision: journal.Revision{RV: 12}, Object: []byte(`{"v":1}`)}))
	src := replay.NewLocal(j)
	at := func(rv uint64) (journal.Cut, error) {
		ok(j.Flush(ctx))
		return src.Resolve(ctx, replay.At{Revision: journal.Revision{RV: rv}})
	}
	refused := func(rv uint64) {
		t.Helper()
		if cut, err := at(rv); !errors.As(err, new(*replay.RangeError)) {
			t.Errorf("rv:%d: %s, %v", rv, cut, err)
		}
	}
	refused(20)
	ok(j.Advance(ctx, kinds[0].GroupResource(), 30))
	refused(20) // of the Secrets nothing is known after 10
	ok(j.Advance(ctx, kinds[1].GroupResource(), 25))
	refused(26)
	cut, err := at(20)
	ok(err)
	if cut.Revision.RV != 20 || cut.Time.IsZero() || cut.Time.After(time.Now()) {
		t.Errorf("resolved to %s", cut)
	}
	n := 0
	for e, err := range src.Fold(ctx, cut, replay.Scope{}) {
		ok(err)
		if n++; e.Name != "one" {
			t.Errorf("it has %s", e.Name)
		}
	}
	if n != 1 {
		t.Errorf("it has %d objects, not 1", n)
	}
}
