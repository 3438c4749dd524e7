package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/replay"
)

// TestEditsDuringRestore has people edit objects all the while a restore updates and deletes them: what somebody wrote after
// the plan was made is never lost, neither overwritten nor deleted, and what they left alone is as the plan said.
func TestEditsDuringRestore(t *testing.T) {
	const objects, writers = 300, 4
	cluster := startCluster(t, localcluster.Options{})
	client := fastClient(t, cluster.Config())
	createNamespace(t, client, "edited")
	maps := client.Resource(configMaps).Namespace("edited")
	write := func(i int, value string) {
		u := object("v1", "ConfigMap", "edited", fmt.Sprintf("o%d", i), map[string]any{"data": map[string]any{"value": value}})
		if _, err := maps.Apply(t.Context(), u.GetName(), u, metav1.ApplyOptions{FieldManager: "ci", Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range objects / 2 {
		write(i, "then")
	}
	r := record(t, cluster.Config(), t.TempDir())
	at, err := r.source.Resolve(t.Context(), replay.At{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range objects { // the first half is to be updated, the second to be deleted
		write(i, "now")
	}
	target, err := replay.NewTarget(cluster.Config())
	if err != nil {
		t.Fatal(err)
	}
	p, err := replay.NewPlan(t.Context(), r.source, target, replay.RestoreRequest{Cut: at, Scope: replay.InNamespace("edited"), Existing: replay.ExistingUpdate, Prune: true, MaxDeletes: objects})
	if err != nil {
		t.Fatal(err)
	}
	if p.Count(replay.ActionUpdate) != objects/2 || p.Count(replay.ActionDelete) != objects/2 {
		t.Fatalf("%d to update, %d to delete", p.Count(replay.ActionUpdate), p.Count(replay.ActionDelete))
	}

	ctx, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	edits := map[string]string{} // the last one of each object that the API server took
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 1))
			for n := 0; ctx.Err() == nil; n++ {
				i := random.IntN(objects/writers)*writers + w // nobody else edits this one
				name, value := fmt.Sprintf("o%d", i), fmt.Sprintf("%d-%d", w, n)
				patch := fmt.Appendf(nil, `{"data":{"edit":%q}}`, value)
				_, err := maps.Patch(context.Background(), name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "kubectl-edit"})
				switch {
				case err == nil:
					mu.Lock()
					edits[name] = value
					mu.Unlock()
				case !apierrors.IsNotFound(err):
					t.Error(err)
				}
			}
		})
	}
	res, err := p.Apply(t.Context(), target, replay.ApplyOptions{})
	stop()
	wg.Wait()
	failed := map[string]bool{}
	for i := range res.Errors {
		failed[res.Errors[i].Item.Name] = true
	}
	t.Logf("%d done, %d failed because of an edit, %d objects edited: %v", res.Done, res.Failed, len(edits), err)
	if res.Done == 0 || res.Failed == 0 || len(edits) == 0 {
		t.Fatal("nothing was done, or nothing was edited in time: the test proves nothing")
	}
	for i := range objects {
		name := fmt.Sprintf("o%d", i)
		checkEdited(t, maps, name, i < objects/2, failed[name], edits[name])
	}
}

// checkEdited looks at one object: was says that it was there at the moment that is restored, and so is not to be deleted.
func checkEdited(t *testing.T, maps dynamic.ResourceInterface, name string, was, failed bool, edit string) {
	t.Helper()
	u, err := maps.Get(t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if edit != "" || was || failed {
			t.Errorf("%s is gone (edited %q, failed %v)", name, edit, failed)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	data := u.Object["data"].(map[string]any)
	if have, _ := data["edit"].(string); have != edit {
		t.Errorf("%s has the edit %q, and %q was the last", name, have, edit)
	}
	want := "then"
	if failed {
		want = "now"
	}
	if !was && !failed || data["value"] != want {
		t.Errorf("%s is %v; it failed: %v", name, data, failed)
	}
}
