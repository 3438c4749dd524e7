package replay

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

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
spec: {serviceName: db, replicas: 1, selector: {matchLabels: {app: db}}, template: {metadata: {labels: {app: db}}, spec: {containers: [{name: db, image: "db:1", resources: {requests: {cpu: 10m}}}]}}}
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

// TestBetweenVersions restores what was recorded on one minor version of Kubernetes into the next, and back.
func TestBetweenVersions(t *testing.T) {
	if testing.Short() {
		t.Skip("starts control planes; run without -short")
	}
	olderConfig, newerConfig := startPair(t, localcluster.Options{}, localcluster.Options{Newer: true})
	wantMinors(t, olderConfig, newerConfig)
	older, newer := newWorld(t, olderConfig), newWorld(t, newerConfig)
	for _, c := range []struct {
		name, space, nodePort string
		from, to              *world
	}{
		{"to the newer one", "upward", "30081", older, newer},
		{"to the older one", "downward", "30082", newer, older},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.from.T, c.to.T = t, t
			// Each direction has definitions, a namespace and a node port of its own: both clusters see both.
			app := strings.NewReplacer("shop.example.com", c.space+".shop.example.com", "sea.example.com", c.space+".sea.example.com",
				"namespace: between", "namespace: "+c.space, "namespace: shop", "namespace: "+c.space, "30080", c.nodePort,
				`pods: "3"`, `pods: "4"`) // room for that of the StatefulSet
			c.from.make("ci", ns(c.space))
			c.from.make("ci", strings.TrimSpace(app.Replace(shop)))
			c.from.make("ci", strings.TrimSpace(app.Replace(between)))
			c.from.make("operator", `{apiVersion: v1, kind: ConfigMap, metadata: {name: forged, namespace: `+c.space+`, ownerReferences: [{apiVersion: `+c.space+
				`.sea.example.com/v1, kind: Anchor, name: iron, controller: true, uid: `+c.from.get("anchors."+c.space+".sea.example.com", c.space, "iron").uid()+`}]}}`)
			c.from.eventually("Pods", func() bool { return len(c.from.list("pods", c.space)) == 4 })
			restoreElsewhere(t, c.from, c.to, c.space)
			restoreOwnedElsewhere(t, c.from, c.to, c.space+"-owned")
		})
	}
}

// restoreElsewhere restores a namespace of one cluster into another that has none of it.
func restoreElsewhere(t *testing.T, from, to *world, space string) {
	h := from.record()
	id, err := from.target.ClusterID(t.Context())
	ok(t, err)
	h.clusterID = id
	p := to.plan(h, RestoreRequest{Scope: InNamespace(space)})
	if !strings.Contains(strings.Join(p.Warnings, "\n"), "another cluster") {
		t.Errorf("warnings %q", p.Warnings)
	}
	to.apply(p)
	// The newer one sets fields that the older one did not know; an exact restore leaves them.
	to.settled(h, RestoreRequest{Scope: InNamespace(space), Existing: ExistingUpdate, Exact: true, OtherCluster: true})
	if n := p.Count(ActionCreate); n < 20 {
		t.Errorf("only %d objects were created:\n%s", n, planText(p))
	}
	to.eventually("Pods", func() bool { return len(to.list("pods", space)) == 4 })
	iron := to.get("anchors."+space+".sea.example.com", space, "iron")
	if got := iron.at("spec", "weight"); got != int64(9) {
		t.Errorf("the custom resource weighs %v, want 9", got)
	}
	if ref := to.get("configmaps", space, "forged").controller(); ref.str("uid") != iron.uid() {
		t.Errorf("what the custom resource owns is owned by %v, want %s", ref, iron.uid())
	}
	// Neither as their own nor as a reference: an owner that is not there has its objects collected.
	for _, live := range to.record().events {
		for _, e := range h.events {
			if bytes.Contains(live.Object, []byte(e.UID)) {
				t.Errorf("%s %s/%s holds the uid that %s %s had in the other cluster", live.Resource, live.Namespace, live.Name, e.Resource, e.Name)
			}
		}
	}
}

// restoreOwnedElsewhere restores a ReplicaSet with its Deployment. Its name holds a hash of the Pod template that another version of
// Kubernetes computes otherwise, and yet the Deployment must take it for its own and make no second one.
func restoreOwnedElsewhere(t *testing.T, from, to *world, space string) {
	from.make("ci", ns(space))
	from.make("ci", `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: `+space+`}
spec: {replicas: 2, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "web:1"}]}}}`)
	from.eventually("Pods", func() bool { return len(from.list("pods", space)) == 2 })
	h := from.record()
	to.apply(to.plan(h, RestoreRequest{Scope: InNamespace(space), Owned: true}))
	observed := func() bool {
		o := to.get("deployments.apps", space, "web")
		return o.at("status", "observedGeneration") == o.at("metadata", "generation") && o.at("status", "updatedReplicas") == int64(2)
	}
	to.eventually("the Deployment to be observed", observed)
	want, sets := from.list("replicasets.apps", space)[0], to.list("replicasets.apps", space)
	if len(sets) != 1 || sets[0].name() != want.name() || sets[0].controller().str("uid") != to.get("deployments.apps", space, "web").uid() {
		t.Errorf("%d ReplicaSets, the first is %s of %v; want only %s", len(sets), sets[0].name(), sets[0].controller(), want.name())
	}
}

// wantMinors checks that the second cluster is of the minor version after that of the first.
func wantMinors(t *testing.T, older, newer *rest.Config) {
	t.Helper()
	minor := func(cfg *rest.Config) int {
		d, err := discovery.NewDiscoveryClientForConfig(cfg)
		ok(t, err)
		v, err := d.ServerVersion()
		ok(t, err)
		n, err := strconv.Atoi(v.Minor)
		ok(t, err)
		return n
	}
	if a, b := minor(older), minor(newer); b != a+1 {
		t.Fatalf("the clusters are of versions 1.%d and 1.%d; this test wants one and the next", a, b)
	}
}

// TestServedByOneVersion restores into the older version a kind that it does not serve, and one that it serves in an earlier version
// only: the plan says so of each object, names what is served, and all else is restored.
func TestServedByOneVersion(t *testing.T) {
	if testing.Short() {
		t.Skip("starts control planes; run without -short")
	}
	// StorageVersionMigration became stable in 1.37, and nobody is given its beta unasked.
	older, newer := startPair(t, localcluster.Options{NoControllers: true, APIServerArgs: []string{
		"--feature-gates=StorageVersionMigrator=true", "--runtime-config=storagemigration.k8s.io/v1beta1=true",
	}}, localcluster.Options{NoControllers: true, Newer: true})
	wantMinors(t, older, newer)
	w, to := newWorld(t, newer), newWorld(t, older)
	bundles := schema.GroupResource{Group: "certificates.k8s.io", Resource: "clustertrustbundles"}
	migrations := schema.GroupResource{Group: "storagemigration.k8s.io", Resource: "storageversionmigrations"}
	if len(w.target.versions(bundles)) == 0 || len(to.target.versions(bundles)) > 0 {
		t.Fatalf("%s is served by the newer one %v, and by the older one %v: choose another kind", bundles, w.target.versions(bundles), to.target.versions(bundles))
	}
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	w.make("ci", ns("trusting"))
	w.make("ci", configMap("trusting", "settings"))
	w.make("ci", fmt.Sprintf("{apiVersion: certificates.k8s.io/v1, kind: ClusterTrustBundle, metadata: {name: company}, spec: {trustBundle: %q}}", text))
	w.make("ci", "{apiVersion: storagemigration.k8s.io/v1, kind: StorageVersionMigration, metadata: {name: secrets}, spec: {resource: {resource: secrets}}}")
	h := w.record()
	p := to.plan(h, RestoreRequest{Scope: Scope{
		Namespaces: []string{"trusting", ClusterScope}, Resources: []schema.GroupResource{namespaces, bundles, migrations, {Resource: "configmaps"}},
	}})
	to.want(p, bundles.String(), "company", ActionFail, "clustertrustbundles.certificates.k8s.io, which is a part of Kubernetes itself: upgrade its API server, or enable the kind there with --runtime-config=certificates.k8s.io/v1=true")
	to.want(p, migrations.String(), "secrets", ActionFail, "it serves storagemigration.k8s.io/v1beta1;")
	to.want(p, migrations.String(), "secrets", ActionFail, "was recorded as storagemigration.k8s.io/v1,")
	res, err := p.Apply(t.Context(), to.target, ApplyOptions{})
	if !errors.Is(err, ErrPartly) || res.Failed != 2 {
		t.Errorf("applied: %v, %+v", err, res)
	}
	to.wantNames("trusting", "settings")
	if to.find(migrations.String(), "", "secrets") != nil {
		t.Error("the migration that the plan could not restore is there")
	}
	// The other way round, the beta comes back as what became of it.
	to.make("ci", "{apiVersion: storagemigration.k8s.io/v1beta1, kind: StorageVersionMigration, metadata: {name: leases}, spec: {resource: {group: coordination.k8s.io, resource: leases}}}")
	w.apply(w.plan(to.record(), RestoreRequest{Scope: Scope{Namespaces: []string{ClusterScope}, Resources: []schema.GroupResource{migrations}}}))
	if got := w.get(migrations.String(), "", "leases").at("spec", "resource", "resource"); got != "leases" {
		t.Errorf("the beta came back with resource %v", got)
	}
}
