package replay

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
)

const between = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: anchors.sea.example.com}
spec:
  group: sea.example.com
  scope: Namespaced
  names: {plural: anchors, singular: anchor, kind: Anchor}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
---
apiVersion: sea.example.com/v1
kind: Anchor
metadata: {name: iron, namespace: between}
spec: {weight: 9}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: between}
spec: {serviceName: db, replicas: 1, selector: {matchLabels: {app: db}}, template: {metadata: {labels: {app: db}}, spec: {containers: [{name: db, image: "db:1"}]}}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: dump, namespace: between}
spec: {schedule: "0 3 * * *", jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "m:1"}]}}}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: between}
spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}
`

// TestBetweenVersions restores what was recorded on one minor version of Kubernetes into the next, and back. What only the one
// serves fails by itself, with what is served in its place.
func TestBetweenVersions(t *testing.T) {
	if testing.Short() {
		t.Skip("starts control planes; run without -short")
	}
	olderConfig, newerConfig := startPair(t, localcluster.Options{}, localcluster.Options{Newer: true})
	for _, c := range []struct {
		name     string
		from, to *world
	}{
		{"to the newer one", newWorld(t, olderConfig), newWorld(t, newerConfig)},
		{"to the older one", newWorld(t, newerConfig), newWorld(t, olderConfig)},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.from.T, c.to.T = t, t
			w := c.from
			space := "between-" + strings.ReplaceAll(c.name, " ", "-")
			app := strings.NewReplacer("shop.example.com", space+".shop.example.com", "sea.example.com", space+".sea.example.com", "namespace: between", "namespace: "+space, "namespace: shop", "namespace: "+space, "30080", map[bool]string{true: "30081", false: "30082"}[c.from.config == olderConfig])
			w.make("ci", ns(space))
			w.make("ci", strings.TrimSpace(app.Replace(shop)))
			w.make("ci", strings.TrimSpace(app.Replace(between)))
			w.eventually("Pods", func() bool { return len(w.list("pods", space)) == 3 }) // all that its quota allows
			h := w.record()
			before := map[string]bool{}
			for _, e := range h.events {
				before[e.UID] = true
			}
			req := RestoreRequest{Scope: InNamespace(space)}
			p := c.to.plan(h, req)
			c.to.apply(p)
			// The newer one sets fields that the older one did not know; an exact restore leaves them.
			c.to.settled(h, RestoreRequest{Scope: InNamespace(space), Existing: ExistingUpdate, Exact: true})
			for _, it := range p.Items {
				if it.Action == ActionCreate && before[c.to.get(it.Resource.String(), it.Namespace, it.Name).uid()] {
					t.Errorf("%s has the uid it had in the other cluster", it)
				}
			}
			if n := p.Count(ActionCreate); n < 20 {
				t.Errorf("only %d objects were created:\n%s", n, planText(p))
			}
		})
	}
}

// TestServedByOneVersion restores a kind that the newer version serves and the older one does not: the plan says so of that object, and
// all else is restored.
func TestServedByOneVersion(t *testing.T) {
	if testing.Short() {
		t.Skip("starts control planes; run without -short")
	}
	older, newer := startPair(t, localcluster.Options{NoControllers: true}, localcluster.Options{NoControllers: true, Newer: true})
	w, to := newWorld(t, newer), newWorld(t, older)
	bundles := schema.GroupResource{Group: "certificates.k8s.io", Resource: "clustertrustbundles"}
	if len(w.target.versions(bundles)) == 0 || len(to.target.versions(bundles)) > 0 {
		t.Fatalf("%s is served by the newer one %v, and by the older one %v: choose another kind", bundles, w.target.versions(bundles), to.target.versions(bundles))
	}
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	w.make("ci", ns("trusting"))
	w.make("ci", configMap("trusting", "settings"))
	w.make("ci", fmt.Sprintf("{apiVersion: certificates.k8s.io/v1, kind: ClusterTrustBundle, metadata: {name: company}, spec: {trustBundle: %q}}", text))
	h := w.record()
	p := to.plan(h, RestoreRequest{Scope: Scope{Namespaces: []string{"trusting", ClusterScope}, Resources: []schema.GroupResource{namespaces, bundles, {Resource: "configmaps"}}}})
	to.want(p, bundles.String(), "company", ActionFail, "the target does not serve clustertrustbundles.certificates.k8s.io")
	res, err := p.Apply(t.Context(), to.target, ApplyOptions{})
	if !errors.Is(err, ErrPartly) || res.Failed != 1 {
		t.Errorf("applied: %v, %+v", err, res)
	}
	to.wantNames("trusting", "settings")
}
