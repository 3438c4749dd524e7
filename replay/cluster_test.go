package replay

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/journal"
)

// TestOnCluster proves against a real API server, with its controllers, what depends on them.
// One control plane serves all of it; each part uses namespaces of its own.
func TestOnCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a control plane; run without -short")
	}
	c, err := localcluster.Start(t.Context(), localcluster.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	for _, part := range []struct {
		name string
		test func(*testing.T, *world)
	}{
		{"a deleted namespace comes back", testDeletedNamespace},
		{"existing objects", testExisting},
		{"immutable fields", testRecreate},
		{"owned objects follow a recreated owner", testRecreatedOwner},
		{"pruning", testPrune},
		{"another namespace", testMapping},
		{"another cluster", testOtherCluster},
		{"refusals cost only their object", testRefusals},
		{"a namespace that is being deleted", testTerminating},
		{"edits between plan and apply", testMeanwhile},
		{"objects that appear between plan and apply", testMeets},
		{"field managers", testFieldManagers},
		{"single objects", testSingle},
		{"cancelled and run again", testCancelled},
		{"a definition that cannot be had", testBrokenDefinition},
		{"owned objects when asked for", testOwned},
		{"cluster-scoped objects that are needed", testNeeded},
		{"scopes in Velero's words", testScopes},
		{"rules", testRules},
		{"claims whose volume is retained", testRetained},
		{"claims whose snapshot is lost", testLostSnapshot},
		{"claims and their content", testContent},
		{"transforms", testTransforms},
		{"workloads at rest until all is there", testQuiesce},
		{"status when it is asked for", testStatus},
		{"what the target does not have", testAbsent},
		{"what the server would refuse", testRehearsal},
		{"undo of a restore", testUndo},
		{"undo of a restored namespace", testUndoNamespace},
		{"stopped, gone on with, undone", testStopped},
		{"gone on with after a death at any item", testDiedAnywhere},
		{"undo of what changed in some time", testUndoTime},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, newWorld(t, c.Config())) })
	}
	troubles(t, c)
}

// world is the cluster as one test sees it.
type world struct {
	*testing.T
	target *Target
	config *rest.Config
}

func newWorld(t *testing.T, cfg *rest.Config) *world {
	target, err := NewTarget(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := target.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &world{t, target, cfg}
}

func (w *world) resource(gr string) servedResource {
	w.Helper()
	r, ok := w.target.version(schema.ParseGroupResource(gr), "")
	if !ok {
		if err := w.target.refresh(w.Context()); err != nil {
			w.Fatal(err)
		}
		if r, ok = w.target.version(schema.ParseGroupResource(gr), ""); !ok {
			w.Fatalf("%s is not served", gr)
		}
	}
	return r
}

// make creates the objects of a YAML stream as the given field manager.
func (w *world) make(manager, stream string) {
	w.Helper()
	for doc := range strings.SplitSeq(stream, "\n---\n") {
		o := fromYAML(w.T, doc)
		gr, ok := w.target.resourceOf(o.str("apiVersion"), o.str("kind"))
		if !ok {
			w.eventually("a kind "+o.str("kind"), func() bool {
				if err := w.target.refresh(w.Context()); err != nil {
					w.Fatal(err)
				}
				gr, ok = w.target.resourceOf(o.str("apiVersion"), o.str("kind"))
				return ok
			})
		}
		client := w.target.client(w.resource(gr.String()), o.namespace())
		w.eventually("creating "+o.name(), func() bool {
			_, err := client.Create(w.Context(), o.clone().unstructured(), metav1.CreateOptions{FieldManager: manager})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
				w.Fatalf("creating %s %s: %v", gr, o.name(), err)
			}
			return err == nil
		})
	}
}

func (w *world) get(gr, namespace, name string) object {
	w.Helper()
	o := w.find(gr, namespace, name)
	if o == nil {
		w.Fatalf("%s %s/%s is not there", gr, namespace, name)
	}
	return o
}

func (w *world) find(gr, namespace, name string) object {
	w.Helper()
	u, err := w.target.get(w.Context(), w.resource(gr), namespace, name)
	if err != nil {
		w.Fatal(err)
	}
	if u == nil {
		return nil
	}
	return u.Object
}

func (w *world) list(gr, namespace string) []object {
	w.Helper()
	var all []object
	if err := w.target.list(w.Context(), w.resource(gr), namespace, func(u *unstructured.Unstructured) { all = append(all, u.Object) }); err != nil {
		w.Fatal(err)
	}
	return all
}

// patch merges YAML into an object as the given field manager.
func (w *world) patch(manager, gr, namespace, name, y string, sub ...string) {
	w.Helper()
	_, err := w.target.client(w.resource(gr), namespace).Patch(w.Context(), name, types.MergePatchType, fromYAML(w.T, y).json(), metav1.PatchOptions{FieldManager: manager}, sub...)
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) delete(gr, namespace, name string) {
	w.Helper()
	background := metav1.DeletePropagationBackground
	if err := w.target.client(w.resource(gr), namespace).Delete(w.Context(), name, metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		w.Fatal(err)
	}
}

func (w *world) gone(gr, namespace, name string) {
	w.Helper()
	w.eventually(gr+" "+name+" to be gone", func() bool { return w.find(gr, namespace, name) == nil })
}

// eventually polls until the condition holds.
func (w *world) eventually(what string, met func() bool) {
	w.Helper()
	for end := time.Now().Add(time.Minute); !met(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("gave up waiting for %s", what)
		}
	}
}

// record makes a history of one moment: all objects of the cluster as they are now, without
// those of the system's namespaces.
func (w *world) record() *history {
	w.Helper()
	if err := w.target.refresh(w.Context()); err != nil {
		w.Fatal(err)
	}
	h := &history{}
	start := journal.Cut{Revision: journal.Revision{Epoch: 1, RV: 1}, Time: time.Unix(1, 0)}
	for gr, served := range w.target.table().byResource {
		r := served[0]
		if !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "watch") {
			continue
		}
		err := w.target.list(w.Context(), r, "", func(u *unstructured.Unstructured) {
			if ns := u.GetNamespace(); strings.HasPrefix(ns, "kube-") {
				return
			}
			var rv uint64
			if _, err := fmt.Sscan(u.GetResourceVersion(), &rv); err != nil {
				w.Fatal(err)
			}
			h.events = append(h.events, journal.Event{
				Resource: gr, Namespace: u.GetNamespace(), Name: u.GetName(), UID: string(u.GetUID()), Op: journal.Added,
				Revision: journal.Revision{Epoch: 1, RV: rv}, Observed: time.Unix(int64(rv), 0), Object: object(u.Object).json(),
			})
		})
		if err != nil {
			w.Fatal(err)
		}
		h.ledgers = append(h.ledgers, journal.Ledger{
			ResourceInfo: journal.ResourceInfo{Group: gr.Group, Version: r.Version, Resource: gr.Resource, Kind: r.Kind, Namespaced: r.Namespaced},
			First:        start, Since: start, Watermark: journal.Cut{Revision: journal.Revision{Epoch: 1, RV: 1 << 60}, Time: time.Unix(1<<40, 0)},
		})
	}
	slices.SortFunc(h.events, func(a, b journal.Event) int { return a.Revision.Compare(b.Revision) })
	return h
}

func (w *world) plan(h *history, req RestoreRequest) *Plan {
	w.Helper()
	if req.Cut.Time.IsZero() {
		req.Cut = h.now()
	}
	return w.planOf(h, req)
}

func (w *world) planOf(src Source, req RestoreRequest) *Plan {
	w.Helper()
	p, err := NewPlan(w.Context(), src, w.target, req)
	if err != nil {
		w.Fatal(err)
	}
	return p
}

// apply applies a plan that must succeed.
func (w *world) apply(p *Plan) *Result {
	w.Helper()
	res, err := p.Apply(w.Context(), w.target, ApplyOptions{})
	if err != nil {
		var b strings.Builder
		for i := range res.Errors {
			fmt.Fprintln(&b, res.Errors[i].Error())
		}
		w.Fatalf("%v\n%s\n%s", err, &b, planText(p))
	}
	return res
}

func planText(p *Plan) string {
	var b strings.Builder
	if err := p.WriteText(&b, DetailAll); err != nil {
		return err.Error()
	}
	return b.String()
}

// want checks one item's action and a part of its reason, and returns it.
func (w *world) want(p *Plan, gr, name string, action Action, reason string) *Item {
	w.Helper()
	for _, it := range p.Items {
		if it.Resource.String() == gr && it.Name == name {
			if it.Action != action || !strings.Contains(it.Reason, reason) {
				w.Errorf("%s %s: %s (%s), want %s (%s)\n%v", gr, name, it.Action, it.Reason, action, reason, it.Diff)
			}
			return it
		}
	}
	w.Fatalf("%s %s is not in the plan:\n%s", gr, name, planText(p))
	return nil
}

// settled checks that restoring again would change nothing.
func (w *world) settled(h *history, req RestoreRequest) {
	w.Helper()
	p := w.plan(h, req)
	for _, it := range p.Items {
		if it.Action != ActionUnchanged && it.Rule == "" {
			w.Errorf("after the restore %s is still to %s (%s): %v", it, it.Action, it.Reason, it.Diff)
		}
	}
}

func ns(name string) string {
	return "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + ", labels: {team: blue}}\n"
}
