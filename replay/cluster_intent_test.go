package replay

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
)

// applied makes the objects of a YAML stream by server-side apply.
func (w *world) applied(manager, stream string) {
	w.Helper()
	for doc := range strings.SplitSeq(stream, "\n---\n") {
		o := fromYAML(w.T, doc)
		gr, _ := w.target.resourceOf(o.str("apiVersion"), o.str("kind"))
		_, err := w.target.client(w.resource(gr.String()), o.namespace()).Apply(w.Context(), o.name(), o.unstructured(), metav1.ApplyOptions{FieldManager: manager})
		ok(w.T, err)
	}
}

// intents are objects as a GitOps tool applies them: of each kind three, whose defaults nobody owns.
func intents(namespace string) string {
	var all []string
	for i := range 3 {
		all = append(all, strings.NewReplacer("NS", namespace, "N", fmt.Sprint(i)).Replace(`
apiVersion: v1
kind: ConfigMap
metadata: {name: cN, namespace: NS, labels: {app: web}}
data: {a: "N"}
---
apiVersion: v1
kind: Service
metadata: {name: sN, namespace: NS, finalizers: [example.com/keep]}
spec: {selector: {app: web}, ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: dN, namespace: NS}
spec:
  replicas: 0
  selector: {matchLabels: {app: dN}}
  template:
    metadata: {labels: {app: dN}}
    spec: {containers: [{name: dN, image: "registry.example.com/web:N", ports: [{containerPort: 8080}], env: [{name: A, value: "N"}]}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: scaledN, namespace: NS}
spec:
  selector: {matchLabels: {app: sN}}
  template:
    metadata: {labels: {app: sN}}
    spec: {containers: [{name: web, image: registry.example.com/web}]}`))
	}
	return strings.Join(all, "\n---\n")
}

// testIntents: what was applied is applied again, in one request each, and only where that leads to the same object.
func testIntents(t *testing.T, c *localcluster.Cluster) {
	w := newWorld(t, c.Config())
	w.make("ci", ns("intents"))
	w.applied("flux", intents("intents"))
	for i := range 3 { // who scales owns the replicas, in an entry of a subresource
		w.patch("scaler", "deployments.apps", "intents", fmt.Sprintf("scaled%d", i), `{spec: {replicas: 0}}`, "scale")
	}
	kinds := []string{"configmaps", "services", "deployments.apps"}
	state := func() map[string]string {
		out := map[string]string{}
		for _, gr := range kinds {
			for _, o := range w.list(gr, "intents") {
				if o.name() == "kube-root-ca.crt" {
					continue
				}
				_, entries := creator(o.list("metadata", "managedFields"))
				for _, e := range entries {
					m, _ := e.(map[string]any)
					out[gr+" "+o.name()+" "+object(m).str("manager")+" "+object(m).str("operation")] = string(object(m).sub("fieldsV1").json())
				}
				spec := o.sub("spec")
				for _, f := range []string{"clusterIP", "clusterIPs"} {
					spec.drop(f)
				}
				out[gr+" "+o.name()] = string(spec.json()) + string(object(o.sub("data")).json()) + string(object(o.sub("metadata", "labels")).json())
			}
		}
		return out
	}
	lose := func() {
		for _, gr := range kinds {
			for _, o := range w.list(gr, "intents") {
				w.patch("ci", gr, "intents", o.name(), `{metadata: {finalizers: null}}`)
				w.delete(gr, "intents", o.name())
			}
		}
		for _, gr := range kinds {
			for i := range 3 {
				w.gone(gr, "intents", map[string]string{"configmaps": "c", "services": "s", "deployments.apps": "d"}[gr]+fmt.Sprint(i))
				w.gone("deployments.apps", "intents", fmt.Sprintf("scaled%d", i))
			}
		}
	}
	want := state()
	h := w.record()
	request := RestoreRequest{Scope: InNamespace("intents"), Cut: h.now()}
	lose()

	// Three ConfigMaps are applied. Of three Services, and of three Deployments, one is created and patched, and after a dry run two
	// are applied. What is scaled by another is created and patched, after a dry run that says no. One by one, so that they come in turn.
	var patches atomic.Int64
	var mu sync.Mutex
	writes := map[string]int{}
	counted := c.Config()
	counted.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case r.Method == http.MethodPatch && r.Header.Get("Content-Type") == "application/apply-patch+yaml":
				writes["apply "+r.URL.Query().Get("dryRun")]++
			case r.Method != http.MethodGet && r.Method != http.MethodPatch: // the other patches are made again where a controller was faster
				writes[r.Method]++
			}
			return rt.RoundTrip(r)
		})
	})
	if _, err := w.plan(h, request).Apply(t.Context(), newWorld(t, counted).target, ApplyOptions{Parallel: 1}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, state()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]int{"apply ": 3 + 2 + 2, "apply All": 3, http.MethodPost: 1 + 1 + 3}, writes); diff != "" {
		t.Error(diff)
	}
	for _, o := range w.list("deployments.apps", "intents") {
		if o.at("metadata", "generation") != int64(1) {
			t.Errorf("%s had another spec at first: generation %v", o.name(), o.at("metadata", "generation"))
		}
	}

	// What appears meanwhile is left alone.
	lose()
	p := w.plan(h, request)
	w.make("fast", `{apiVersion: v1, kind: ConfigMap, metadata: {name: c1, namespace: intents}, data: {a: other}}`)
	res, err := p.Apply(t.Context(), w.target, ApplyOptions{})
	if o := w.get("configmaps", "intents", "c1"); err != nil || len(res.Left) != 1 || o.str("data", "a") != "other" || o.label("app") != "" {
		t.Errorf("%v: %+v: %s", err, res, o.json())
	}

	// Lost answers: the object is there, and nothing is written twice.
	lose()
	forgetful := c.Config()
	forgetful.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			resp, err := rt.RoundTrip(r)
			if r.Header.Get("Content-Type") == "application/apply-patch+yaml" && r.URL.Query().Get("dryRun") == "" && err == nil && patches.Add(1) <= 2 {
				_ = resp.Body.Close()
				return nil, syscall.ECONNRESET
			}
			return resp, err
		})
	})
	if res, err := w.plan(h, request).Apply(t.Context(), newWorld(t, forgetful).target, ApplyOptions{}); err != nil || res.Done != 12 || patches.Load() < 4 {
		t.Errorf("%v: %+v after %d applies", err, res, patches.Load())
	}
	if diff := cmp.Diff(want, state()); diff != "" {
		t.Error(diff)
	}

	// Who may create and not patch creates.
	lose()
	w.make("ci", `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: creator, namespace: intents}
rules: [{apiGroups: ["", apps], resources: [configmaps, services, deployments], verbs: [get, list, create]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: creator, namespace: intents}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: creator}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: john}]`)
	cfg, err := c.ConfigFor("john")
	ok(t, err)
	john := newWorld(t, cfg)
	john.eventually("his rights", func() bool {
		_, err := john.target.get(t.Context(), john.resource("configmaps"), "intents", "x")
		return err == nil
	})
	if res, err := w.plan(h, request).Apply(t.Context(), john.target, ApplyOptions{}); err != nil || res.Done != 12 {
		t.Errorf("%v: %+v", err, res)
	}

	// A field that the target does not know, as an older one: it is left out, as by any creation.
	lose()
	for i, e := range h.events {
		if e.Resource.Resource == "configmaps" && e.Name == "c2" {
			h.events[i].Object = []byte(strings.NewReplacer(`"data":{`, `"bogus":{"x":"1"},"data":{`, `"f:data":{`, `"f:bogus":{},"f:data":{`).Replace(string(e.Object)))
		}
	}
	began := time.Now()
	if res, err := w.plan(h, request).Apply(t.Context(), w.target, ApplyOptions{}); err != nil || res.Done != 12 {
		t.Errorf("%v: %+v", err, res)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it was tried again and again: %s", took)
	}
}
