package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// rewindKinds are what TestRewind changes, with random parts of each.
var rewindKinds = []struct {
	gvr  schema.GroupVersionResource
	kind string
	body func(r *rand.Rand) map[string]any
}{
	{configMaps, "ConfigMap", func(r *rand.Rand) map[string]any { return map[string]any{"data": randomData(r, "plain")} }},
	{secrets, "Secret", func(r *rand.Rand) map[string]any { return map[string]any{"data": randomData(r, "Y2FuYXJ5")} }},
	{schema.GroupVersionResource{Version: "v1", Resource: "services"}, "Service", func(r *rand.Rand) map[string]any {
		return map[string]any{"spec": map[string]any{"selector": map[string]any{"app": fmt.Sprint(r.IntN(3))}, "ports": randomPorts(r)}}
	}},
	{schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}, "Deployment", func(r *rand.Rand) map[string]any {
		// The selector cannot be changed: to rewind it the object must be made anew.
		app := map[string]any{"app": fmt.Sprint(r.IntN(2))}
		return map[string]any{"spec": map[string]any{"paused": true, "replicas": int64(0), "selector": map[string]any{"matchLabels": app}, "template": map[string]any{
			"metadata": map[string]any{"labels": app},
			"spec":     map[string]any{"containers": randomContainers(r)},
		}}}
	}},
	{schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"}, "Role", func(r *rand.Rand) map[string]any {
		verbs := []any{"get", "list", "watch"}
		return map[string]any{"rules": []any{map[string]any{"apiGroups": []any{""}, "resources": []any{"pods"}, "verbs": verbs[:1+r.IntN(3)]}}}
	}},
	{buckets, "Bucket", func(r *rand.Rand) map[string]any { return map[string]any{"spec": randomData(r, "any")} }},
}

func randomData(r *rand.Rand, value string) map[string]any {
	out := map[string]any{}
	for i := range 1 + r.IntN(4) {
		out[fmt.Sprintf("k%d", i+r.IntN(3))] = strings.Repeat(value, 1+r.IntN(3))
	}
	return out
}

func randomPorts(r *rand.Rand) []any {
	var out []any
	for i := range 1 + r.IntN(3) {
		out = append(out, map[string]any{"name": fmt.Sprintf("p%d", i), "port": int64(80 + i + 10*r.IntN(2))})
	}
	return out
}

func randomContainers(r *rand.Rand) []any {
	var out []any
	for i := range 1 + r.IntN(3) {
		out = append(out, map[string]any{"name": fmt.Sprintf("c%d", i), "image": fmt.Sprintf("image:%d", r.IntN(5)), "env": []any{map[string]any{"name": "A", "value": fmt.Sprint(r.IntN(9))}}})
	}
	return out
}

// rewound is the cluster as TestRewind sees it.
type rewound struct {
	t      *testing.T
	client dynamic.Interface
	random *rand.Rand
}

// change makes one random change: mostly of what is there, as one of several managers.
func (w *rewound) change(ctx context.Context) {
	k := rewindKinds[w.random.IntN(len(rewindKinds))]
	ns, name := fmt.Sprintf("rewind-%d", w.random.IntN(2)), fmt.Sprintf("o%d", w.random.IntN(6))
	c := w.client.Resource(k.gvr).Namespace(ns)
	manager := []string{"ci", "operator", "kubectl-edit"}[w.random.IntN(3)]
	u := object(k.gvr.GroupVersion().String(), k.kind, ns, name, k.body(w.random))
	u.SetLabels(map[string]string{"l": fmt.Sprint(w.random.IntN(3))})
	if w.random.IntN(3) == 0 {
		u.SetAnnotations(map[string]string{"note": fmt.Sprint(w.random.IntN(9))})
	}
	if w.random.IntN(4) == 0 {
		if owner, err := w.client.Resource(configMaps).Namespace(ns).Get(ctx, fmt.Sprintf("o%d", w.random.IntN(6)), metav1.GetOptions{}); err == nil && k.gvr != configMaps {
			u.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: owner.GetName(), UID: owner.GetUID()}})
		}
	}
	var err error
	switch w.random.IntN(10) {
	case 0, 1:
		orphan := metav1.DeletePropagationOrphan // what it owns stays, so that each change is one change
		err = c.Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &orphan})
	case 2, 3:
		_, err = c.Apply(ctx, name, u, metav1.ApplyOptions{FieldManager: manager, Force: true})
	case 4, 5:
		_, err = c.Patch(ctx, name, types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{"m%d":"%d"}}}`, w.random.IntN(3), w.random.IntN(9)), metav1.PatchOptions{FieldManager: manager})
	default:
		_, err = c.Create(ctx, u, metav1.CreateOptions{FieldManager: manager})
		if apierrors.IsAlreadyExists(err) {
			live, getErr := c.Get(ctx, name, metav1.GetOptions{})
			if getErr != nil {
				return
			}
			u.SetResourceVersion(live.GetResourceVersion())
			if _, err = c.Update(ctx, u, metav1.UpdateOptions{FieldManager: manager}); apierrors.IsInvalid(err) { // a selector
				if err = c.Delete(ctx, name, metav1.DeleteOptions{}); err == nil {
					u.SetResourceVersion("")
					_, err = c.Create(ctx, u, metav1.CreateOptions{FieldManager: manager})
				}
			}
		}
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsInvalid(err) {
		w.t.Fatal(err)
	}
}

// state is all that is there, without what an object cannot get back: its identity and times, what
// the API server chose or counts, and the status. Owners are known by their names.
func (w *rewound) state(ctx context.Context) map[string]any {
	w.t.Helper()
	out := map[string]any{}
	for _, k := range rewindKinds {
		list, err := w.client.Resource(k.gvr).List(ctx, metav1.ListOptions{})
		if err != nil {
			w.t.Fatal(err)
		}
		for _, u := range list.Items {
			if !strings.HasPrefix(u.GetNamespace(), "rewind-") || u.GetName() == "kube-root-ca.crt" {
				continue
			}
			if u.GetDeletionTimestamp() != nil {
				return nil // not settled
			}
			out[fmt.Sprintf("%s %s/%s", k.kind, u.GetNamespace(), u.GetName())] = comparable(&u)
		}
	}
	return out
}

func comparable(u *unstructured.Unstructured) map[string]any {
	u = u.DeepCopy()
	for _, f := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"} {
		unstructured.RemoveNestedField(u.Object, "metadata", f)
	}
	unstructured.RemoveNestedField(u.Object, "status")
	for _, f := range []string{"clusterIP", "clusterIPs"} {
		unstructured.RemoveNestedField(u.Object, "spec", f)
	}
	refs := u.GetOwnerReferences()
	for i := range refs {
		refs[i].UID = ""
	}
	slices.SortFunc(refs, func(a, b metav1.OwnerReference) int { return strings.Compare(a.Name, b.Name) })
	u.SetOwnerReferences(refs)
	return u.Object
}

// TestRewind: from any state, through any changes, an exact restore gives the first state again, and
// its undo the second; and so does taking back all that changed in between, the restore and its undo among it. TIDEMARK_REWINDS=100 tries more.
func TestRewind(t *testing.T) {
	cluster := startCluster(t, localcluster.Options{})
	client := fastClient(t, cluster.Config())
	createBuckets(t, client)
	createNamespace(t, client, "rewind-0")
	createNamespace(t, client, "rewind-1")
	r := record(t, cluster.Config(), t.TempDir())
	target, err := replay.NewTarget(cluster.Config())
	if err != nil {
		t.Fatal(err)
	}
	records := replay.OpenRecords(t.TempDir())
	const changes = 60
	rounds := 7
	if n, err := strconv.Atoi(os.Getenv("TIDEMARK_REWINDS")); err == nil {
		rounds = n
	}
	for round := range rounds {
		seed := uint64(round) + 1
		w := &rewound{t, client, rand.New(rand.NewPCG(seed, 7))}
		for range changes {
			w.change(t.Context())
		}
		s1 := w.settle(t.Context())
		at := w.now(r)
		for range changes {
			w.change(t.Context())
		}
		s2 := w.settle(t.Context())
		w.now(r) // all of it is recorded

		p, err := replay.NewPlan(t.Context(), r.source, target, replay.RestoreRequest{
			Cut: at, Scope: replay.Scope{Namespaces: []string{"rewind-0", "rewind-1"}}, Existing: replay.ExistingRecreate, Exact: true, Prune: true, MaxDeletes: 1000,
		})
		if err != nil {
			t.Fatal(err)
		}
		rec := w.apply(records, p, target)
		if diff := cmp.Diff(s1, w.settle(t.Context())); diff != "" {
			t.Fatalf("seed %d: the restore does not give what was (-was +is)\n%s\n%s", seed, diff, text(p))
		}
		undo, err := replay.NewUndo(t.Context(), target, rec.Undo())
		if err != nil {
			t.Fatal(err)
		}
		w.apply(records, undo, target)
		if diff := cmp.Diff(s2, w.settle(t.Context())); diff != "" {
			t.Fatalf("seed %d: the undo does not give what it was before (-was +is)\n%s\nrestore: %s\nundo: %s", seed, diff, text(p), text(undo))
		}
		now := w.now(r)
		all, err := replay.Reversals(t.Context(), r.source, at, now, replay.Scope{Namespaces: []string{"rewind-0", "rewind-1"}}, "")
		if err != nil {
			t.Fatal(err)
		}
		if undo, err = replay.NewUndo(t.Context(), target, replay.UndoRequest{Reversals: all, MaxDeletes: -1}); err != nil {
			t.Fatal(err)
		}
		w.apply(records, undo, target)
		if diff := cmp.Diff(s1, w.settle(t.Context())); diff != "" {
			t.Fatalf("seed %d: taking back all that changed since does not give what was (-was +is)\n%s\nundo: %s", seed, diff, text(undo))
		}
	}
}

func text(p *replay.Plan) string {
	var b strings.Builder
	if err := p.WriteText(&b, replay.DetailAll); err != nil {
		return err.Error()
	}
	return b.String()
}

func (w *rewound) apply(records *replay.Records, p *replay.Plan, target *replay.Target) *replay.Record {
	w.t.Helper()
	rec, err := records.Begin(p)
	if err != nil {
		w.t.Fatal(err)
	}
	res, err := p.Apply(w.t.Context(), target, replay.ApplyOptions{Record: rec})
	if err != nil {
		w.t.Fatalf("%v: %v\n%s", err, res.Errors, text(p))
	}
	if err := rec.Close(); err != nil {
		w.t.Fatal(err)
	}
	return rec
}

// settle gives the state once the garbage collector has nothing to do any more.
func (w *rewound) settle(ctx context.Context) map[string]any {
	w.t.Helper()
	last := w.state(ctx)
	end := time.Now().Add(time.Minute)
	for same := 0; same < 3; {
		if time.Now().After(end) {
			w.t.Fatal("the cluster does not come to rest")
		}
		time.Sleep(300 * time.Millisecond)
		next := w.state(ctx)
		if next != nil && cmp.Equal(last, next) {
			same++
		} else {
			same, last = 0, next
		}
	}
	return last
}

// now is the present as a moment of the journal, which has everything before it: a change that is made now to each
// kind is recorded after all others of that kind.
func (w *rewound) now(r *recording) journal.Cut {
	w.t.Helper()
	for _, k := range rewindKinds {
		c := w.client.Resource(k.gvr).Namespace("default")
		mark := fmt.Sprint(w.random.Uint64())
		u := object(k.gvr.GroupVersion().String(), k.kind, "default", "marker", k.body(rand.New(rand.NewPCG(1, 1))))
		u.SetAnnotations(map[string]string{"mark": mark})
		done, err := c.Apply(w.t.Context(), "marker", u, metav1.ApplyOptions{FieldManager: "marker"})
		if err != nil {
			w.t.Fatal(err)
		}
		var rv uint64
		if _, err := fmt.Sscan(done.GetResourceVersion(), &rv); err != nil {
			w.t.Fatal(err)
		}
		r.await(k.gvr, rv)
	}
	cut, err := r.source.Resolve(w.t.Context(), replay.At{})
	if err != nil {
		w.t.Fatal(err)
	}
	return cut
}
