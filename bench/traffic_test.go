package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// acked is one answer of the API server to a writer: from then on the change is history.
type acked struct {
	resource schema.GroupVersionResource
	rv       uint64
}

// writersPerResource work on the same objects at the same time.
const writersPerResource = 2

// traffic makes random changes, several writers per resource, and collects what the server
// acked. (A deletion's answer has no revision; what they do shows in the state.)
type traffic struct {
	client     dynamic.Interface
	namespaces []string
	resources  []schema.GroupVersionResource
	objects    int // names per resource and namespace

	mu    sync.Mutex
	acked []acked
}

// run makes about n changes per resource, or goes on until ctx ends. Errors of the server end a
// change, not the run: faults are what some tests are about.
func (w *traffic) run(ctx context.Context, t testing.TB, seed uint64, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for i, gvr := range w.resources {
		for writer := range writersPerResource {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(seed, uint64(i*writersPerResource+writer)))
				for range max(n/writersPerResource, 1) {
					if ctx.Err() != nil {
						return
					}
					w.change(ctx, gvr, random)
				}
			})
		}
	}
	wg.Wait()
}

var kinds = map[string][2]string{"configmaps": {"v1", "ConfigMap"}, "secrets": {"v1", "Secret"}, "buckets": {"example.com/v1", "Bucket"}}

func (w *traffic) change(ctx context.Context, gvr schema.GroupVersionResource, random *rand.Rand) {
	ns := w.namespaces[random.IntN(len(w.namespaces))]
	name := fmt.Sprintf("o%d", random.IntN(w.objects))
	c := w.client.Resource(gvr).Namespace(ns)
	kind := kinds[gvr.Resource]
	field := "data"
	if gvr.Resource == "buckets" {
		field = "spec"
	}
	value := strconv.FormatUint(random.Uint64(), 36)
	if gvr.Resource == "secrets" {
		value = "Y2FuYXJ5" // base64
	}
	var got *unstructured.Unstructured
	var err error
	switch random.IntN(10) {
	case 0, 1:
		err = c.Delete(ctx, name, metav1.DeleteOptions{})
	case 2, 3, 4:
		got, err = c.Create(ctx, object(kind[0], kind[1], ns, name, map[string]any{field: map[string]any{"a": value}}), metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			break
		}
		fallthrough
	default:
		patch := fmt.Appendf(nil, `{"%s":{"k%d":%q},"metadata":{"labels":{"l%d":"<&>"}}}`, field, random.IntN(4), value, random.IntN(3))
		got, err = c.Patch(ctx, name, "application/merge-patch+json", patch, metav1.PatchOptions{})
	}
	if err != nil || got == nil {
		return
	}
	rv, err := strconv.ParseUint(got.GetResourceVersion(), 10, 64)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked = append(w.acked, acked{gvr, rv})
}

// last is the highest acknowledged revision of each resource.
func (w *traffic) last() map[schema.GroupVersionResource]uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := map[schema.GroupVersionResource]uint64{}
	for _, a := range w.acked {
		all[a.resource] = max(all[a.resource], a.rv)
	}
	return all
}
