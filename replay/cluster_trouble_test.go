package replay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
)

// troubles are the parts of TestOnCluster that need a connection of their own.
func troubles(t *testing.T, c *localcluster.Cluster) {
	for name, test := range map[string]func(*testing.T, *localcluster.Cluster){
		"a bad connection":       testBadConnection,
		"a user with few rights": testTenant,
		"many namespaces":        testManyNamespaces,
		"what was applied":       testIntents,
		"managers of claims":     testClaimManagers,
		"a busy quota":           testBusyQuota,
	} {
		t.Run(name, func(t *testing.T) { test(t, c) })
	}
}

// roundTripper is a transport made of a function.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func manyConfigMaps(namespace string, n int) string {
	var docs []string
	for i := range n {
		docs = append(docs, fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {name: c%d, namespace: %s}, data: {a: eA==}}", i, namespace))
	}
	return strings.Join(docs, "\n---\n")
}

// testBadConnection: every object comes back once, whatever happens on the way: answers that
// are lost after the server did the work, connections that break, 429 and 503.
func testBadConnection(t *testing.T, c *localcluster.Cluster) {
	good := newWorld(t, c.Config())
	good.make("ci", ns("lossy"))
	const n = 40
	good.make("ci", manyConfigMaps("lossy", n))
	h := good.record()
	good.delete("namespaces", "", "lossy")
	good.gone("namespaces", "", "lossy")

	var posts, faults atomic.Int64
	bad := c.Config()
	bad.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/configmaps") {
				return rt.RoundTrip(r)
			}
			answer := func(code int, retryAfter string) (*http.Response, error) {
				faults.Add(1)
				resp := &http.Response{StatusCode: code, Body: http.NoBody, Header: http.Header{}, Request: r}
				if retryAfter != "" {
					resp.Header.Set("Retry-After", retryAfter)
				}
				return resp, nil
			}
			switch posts.Add(1) {
			case 3, 4: // the work is done, the answer is lost
				resp, err := rt.RoundTrip(r)
				if err == nil {
					_ = resp.Body.Close()
				}
				faults.Add(1)
				return nil, syscall.ECONNRESET
			case 6, 7:
				faults.Add(1)
				return nil, syscall.ECONNREFUSED
			case 9, 10:
				return answer(http.StatusTooManyRequests, "1")
			case 12:
				return answer(http.StatusTooManyRequests, "")
			case 14:
				return answer(http.StatusServiceUnavailable, "")
			}
			return rt.RoundTrip(r)
		})
	})
	w := newWorld(t, bad)
	res := w.apply(w.plan(h, RestoreRequest{Scope: InNamespace("lossy")}))
	if res.Done != n+1 || res.Failed != 0 {
		t.Errorf("%+v", res)
	}
	if got := faults.Load(); got != 8 {
		t.Errorf("%d faults happened, want 8", got)
	}
	w.settled(h, RestoreRequest{Scope: InNamespace("lossy")})
	if w.target.throttled.Load() < 3 {
		t.Errorf("%d answers 429 were counted", w.target.throttled.Load())
	}

	// An update whose answer is lost is done all the same.
	for i := range 3 {
		good.patch("ci", "configmaps", "lossy", fmt.Sprintf("c%d", i), `{data: {a: changed}}`)
	}
	var puts atomic.Int64
	forgetful := c.Config()
	forgetful.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			resp, err := rt.RoundTrip(r)
			if r.Method == http.MethodPut && r.URL.Query().Get("dryRun") == "" && err == nil && puts.Add(1) <= 2 {
				_ = resp.Body.Close()
				return nil, syscall.ECONNRESET
			}
			return resp, err
		})
	})
	w = newWorld(t, forgetful)
	if res := w.apply(w.plan(h, RestoreRequest{Scope: InNamespace("lossy"), Existing: ExistingUpdate})); res.Done != 3 || puts.Load() < 4 {
		t.Errorf("%+v with %d updates sent", res, puts.Load())
	}
	w.settled(h, RestoreRequest{Scope: InNamespace("lossy")})

	// On a good connection each object costs one write.
	good.delete("namespaces", "", "lossy")
	good.gone("namespaces", "", "lossy")
	var requests atomic.Int64
	counted := c.Config()
	counted.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			requests.Add(1)
			return rt.RoundTrip(r)
		})
	})
	w = newWorld(t, counted)
	p := w.plan(h, RestoreRequest{Scope: InNamespace("lossy")})
	requests.Store(0)
	w.apply(p)
	if got := requests.Load(); got != n+1 {
		t.Errorf("%d objects took %d requests", n+1, got)
	}
}

// testBusyQuota: what several API servers refuse when they count objects in one quota at the same time comes back all the same. (One alone does not
// refuse: it counts one after another. So the refusals are made up.)
func testBusyQuota(t *testing.T, c *localcluster.Cluster) {
	w := newWorld(t, c.Config())
	const n = 20
	w.make("ci", ns("counted"))
	w.make("ci", manyConfigMaps("counted", n))
	h := w.record()
	for i := range n {
		w.delete("configmaps", "counted", fmt.Sprintf("c%d", i))
	}
	busy := apierrors.NewConflict(quotas, "all", errors.New("the object has been modified; please apply your changes to the latest version and try again"))
	busy.ErrStatus.Kind, busy.ErrStatus.APIVersion = "Status", "v1"
	body, err := json.Marshal(busy.ErrStatus)
	if err != nil {
		t.Fatal(err)
	}
	var posts atomic.Int64
	crowded := c.Config()
	crowded.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/configmaps") || posts.Add(1)%2 == 0 {
				return rt.RoundTrip(r)
			}
			return &http.Response{
				StatusCode: http.StatusConflict, Header: http.Header{"Content-Type": {"application/json"}},
				Body: io.NopCloser(bytes.NewReader(body)), Request: r,
			}, nil
		})
	})
	w = newWorld(t, crowded)
	if res := w.apply(w.plan(h, RestoreRequest{Scope: InNamespace("counted")})); res.Done != n || res.Failed != 0 || posts.Load() < 2*n {
		t.Errorf("%+v, %d creations sent", res, posts.Load())
	}
	w.settled(h, RestoreRequest{Scope: InNamespace("counted")})
}

// testTenant: a user restores with his own rights; what he may not do fails alone.
func testTenant(t *testing.T, c *localcluster.Cluster) {
	w := newWorld(t, c.Config())
	w.make("ci", ns("tenant"))
	w.make("ci", `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: maps, namespace: tenant}
rules: [{apiGroups: [""], resources: [configmaps], verbs: ["*"]}, {apiGroups: [""], resources: [services], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: maps, namespace: tenant}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: maps}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: jane}]
---
apiVersion: v1
kind: Secret
metadata: {name: s, namespace: tenant}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: tenant}
spec: {ports: [{port: 80}]}`)
	w.make("ci", manyConfigMaps("tenant", 5))
	w.make("ci", strings.ReplaceAll(manyConfigMaps("tenant", fewObjects), "ConfigMap", "Secret")) // so many that they are listed
	h := w.record()
	for i := range 5 {
		w.delete("configmaps", "tenant", fmt.Sprintf("c%d", i))
	}
	w.delete("services", "tenant", "web")
	w.gone("services", "tenant", "web")
	w.gone("configmaps", "tenant", "c4")
	cfg, err := c.ConfigFor("jane")
	if err != nil {
		t.Fatal(err)
	}
	jane := newWorld(t, cfg)
	jane.eventually("her rights", func() bool {
		_, err := jane.target.get(t.Context(), jane.resource("configmaps"), "tenant", "x")
		return err == nil
	})
	p := jane.plan(h, RestoreRequest{Scope: InNamespace("tenant")})
	jane.want(p, "secrets", "s", ActionFail, "ask for the right")
	jane.want(p, "namespaces", "tenant", ActionSkip, "may not be read")
	jane.want(p, "configmaps", "c0", ActionCreate, "")
	jane.want(p, "services", "web", ActionCreate, "")
	res, err := p.Apply(t.Context(), jane.target, ApplyOptions{})
	if !errors.Is(err, ErrPartly) || res.Done != 5 {
		t.Fatalf("%v: %+v", err, res)
	}
	var texts []string
	for i := range res.Errors {
		texts = append(texts, res.Errors[i].Error())
	}
	if all := strings.Join(texts, "\n"); !strings.Contains(all, "services tenant/web: ") || !strings.Contains(all, "restore with another kubeconfig") {
		t.Errorf("%s", all)
	}
	if w.find("configmaps", "tenant", "c4") == nil {
		t.Error("what she may write is missing")
	}
}

// testCancelled: a restore that is cut short is completed by running it again.
func testCancelled(t *testing.T, w *world) {
	w.make("ci", ns("twice"))
	w.make("ci", manyConfigMaps("twice", 30))
	h := w.record()
	w.delete("namespaces", "", "twice")
	w.gone("namespaces", "", "twice")
	ctx, cancel := context.WithCancelCause(t.Context())
	req := RestoreRequest{Scope: InNamespace("twice")}
	p := w.plan(h, req)
	res, err := p.Apply(ctx, w.target, ApplyOptions{Parallel: 2, Progress: func(p Progress) {
		if p.Done == 10 {
			cancel(errors.New("ctrl-c"))
		}
	}})
	if err == nil || !strings.Contains(err.Error(), "run it again") || !strings.Contains(err.Error(), "ctrl-c") || res.Done < 9 || res.Done > 15 {
		t.Fatalf("%v: %+v", err, res)
	}
	uids := map[string]string{}
	for _, o := range w.list("configmaps", "twice") {
		uids[o.name()] = o.uid()
	}
	p = w.plan(h, req)
	if made := p.Count(ActionCreate); made > 31-res.Done || made < 31-res.Done-2 {
		t.Errorf("the second plan creates %d after %d were done", made, res.Done)
	}
	w.apply(p)
	for _, o := range w.list("configmaps", "twice") {
		if uid := uids[o.name()]; uid != "" && uid != o.uid() {
			t.Errorf("%s was made twice", o.name())
		}
	}
	w.settled(h, req)
}

// testBrokenDefinition: custom resources without a definition fail together, with one line.
func testBrokenDefinition(t *testing.T, w *world) {
	w.make("ci", ns("custom"))
	w.make("ci", `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: things, singular: thing, kind: Thing}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
  - {name: v1beta1, served: true, storage: false, schema: {openAPIV3Schema: {type: object}}}
---
apiVersion: example.com/v1
kind: Thing
metadata: {name: a, namespace: custom}
---
apiVersion: example.com/v1
kind: Thing
metadata: {name: b, namespace: custom}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c, namespace: custom}`)
	h := w.record()
	const crd = "customresourcedefinitions.apiextensions.k8s.io"

	// A version that is not served any more, of a definition that converts by name only.
	old := &history{ledgers: h.ledgers}
	for _, e := range h.events {
		if e.Resource.Group == "example.com" {
			e.Object = []byte(strings.Replace(string(e.Object), "example.com/v1", "example.com/v1alpha1", 1))
		}
		old.events = append(old.events, e)
	}
	w.delete("things.example.com", "custom", "a")
	w.gone("things.example.com", "custom", "a")
	w.apply(w.plan(old, RestoreRequest{Scope: InNamespace("custom")}))
	w.get("things.example.com", "custom", "a")

	w.delete("namespaces", "", "custom")
	w.delete(crd, "", "things.example.com")
	w.gone(crd, "", "things.example.com")
	w.gone("namespaces", "", "custom")
	broken := &history{ledgers: h.ledgers}
	for _, e := range h.events {
		if e.Resource == definitions {
			e.Object = []byte(strings.Replace(string(e.Object), `"plural":"things"`, `"plural":"Things"`, 1))
		}
		broken.events = append(broken.events, e)
	}
	res, err := w.plan(broken, RestoreRequest{Scope: InNamespace("custom")}).Apply(t.Context(), w.target, ApplyOptions{})
	if !errors.Is(err, ErrPartly) || res.Failed != 3 || len(res.Errors) != 2 || !strings.Contains(res.Errors[1].Error(), "1 more: its definition things.example.com could not be restored") {
		t.Fatalf("%v: %+v", err, res.Errors)
	}
	if w.find("configmaps", "custom", "c") == nil {
		t.Error("the rest did not go on")
	}
	missing := &history{ledgers: h.ledgers}
	for _, e := range h.events {
		if e.Resource != definitions {
			missing.events = append(missing.events, e)
		}
	}
	w.want(w.plan(missing, RestoreRequest{Scope: InNamespace("custom")}), "things.example.com", "a", ActionFail, "restore customresourcedefinitions/things.example.com")
	alone := w.plan(h, RestoreRequest{Scope: Scope{Resources: []schema.GroupResource{definitions}, Names: []string{"things.example.com"}, Namespaces: []string{ClusterScope}}})
	if w.want(alone, crd, "things.example.com", ActionCreate, ""); !strings.Contains(strings.Join(alone.Warnings, "\n"), "'tidemark restore things.example.com -A --at rv:"+alone.Cut.Revision.String()) {
		t.Errorf("nothing is said about the custom resources: %q", alone.Warnings)
	}
	w.apply(w.plan(h, RestoreRequest{Scope: InNamespace("custom")}))
	w.settled(h, RestoreRequest{Scope: InNamespace("custom")})
}

// testOwned: with Owned, what controllers make comes back as it was, and belongs to its
// owners again.
func testOwned(t *testing.T, w *world) {
	w.make("ci", ns("whole"))
	w.make("ci", `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: whole}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "web:1"}]}}`)
	w.eventually("pods", func() bool { return len(w.list("pods", "whole")) == 2 })
	h := w.record()
	pods := map[string]bool{}
	for _, o := range w.list("pods", "whole") {
		pods[o.name()] = true
	}
	w.delete("namespaces", "", "whole")
	w.gone("namespaces", "", "whole")
	w.apply(w.plan(h, RestoreRequest{Scope: InNamespace("whole"), Owned: true}))
	d, sets := w.get("deployments.apps", "whole", "web"), w.list("replicasets.apps", "whole")
	if len(sets) != 1 || sets[0].controller().str("uid") != d.uid() {
		t.Fatalf("%d ReplicaSets of Deployment %s: %v", len(sets), d.uid(), sets[0].controller())
	}
	w.eventually("two pods of the ReplicaSet", func() bool {
		n := 0
		for _, o := range w.list("pods", "whole") {
			if !o.deleting() && o.controller().str("uid") == sets[0].uid() {
				n++
			}
		}
		return n == 2
	})
}

// testManyNamespaces: reading the live state takes requests by kind, not by namespace.
func testManyNamespaces(t *testing.T, c *localcluster.Cluster) {
	w := newWorld(t, c.Config())
	scope := Scope{Resources: []schema.GroupResource{{Resource: "configmaps"}}}
	for i := range fewSpaces + 4 {
		name := fmt.Sprintf("many-%d", i)
		scope.Namespaces = append(scope.Namespaces, name)
		w.make("ci", ns(name))
		w.make("ci", manyConfigMaps(name, 1))
	}
	h := w.record()
	w.delete("configmaps", "many-3", "c0")
	w.gone("configmaps", "many-3", "c0")
	var lists, gets atomic.Int64
	counted := c.Config()
	counted.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/configmaps") {
				lists.Add(1)
			} else if strings.Contains(r.URL.Path, "/configmaps/") {
				gets.Add(1)
			}
			return rt.RoundTrip(r)
		})
	})
	w = newWorld(t, counted)
	p := w.plan(h, RestoreRequest{Scope: scope})
	if p.Count(ActionUnchanged) != fewSpaces+3 || p.Count(ActionCreate) != 1 {
		t.Errorf("%s", planText(p))
	}
	if lists.Load() != 1 || gets.Load() != 0 {
		t.Errorf("%d lists and %d gets", lists.Load(), gets.Load())
	}
}
