package replay

import (
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
)

func TestFieldOwnersOfWhatComesBack(t *testing.T) {
	entry := func(manager, fields string) string {
		return `{manager: ` + manager + `, operation: Update, apiVersion: v1, fieldsType: FieldsV1, fieldsV1: ` + fields + `}`
	}
	helm := entry("helm", `{"f:kind": {}}`)
	for _, tc := range []struct {
		name, body, other string
		owns              bool
	}{
		{name: "annotations that are gone, and the map they were in", body: `metadata: {annotations: {mine: x}}`, other: `{"f:metadata": {"f:annotations": {".": {}, "f:pv.kubernetes.io/bind-completed": {}}}, "f:spec": {"f:volumeName": {}}}`},
		{name: "one that is there", body: `metadata: {annotations: {mine: x}}`, other: `{"f:metadata": {"f:annotations": {".": {}, "f:mine": {}, "f:gone": {}}}}`, owns: true},
		{name: "a status", body: `spec: {}`, other: `{"f:status": {"f:phase": {}}}`},
		{name: "an element that is gone", body: `spec: {ports: [{name: a}], tags: [x]}`, other: `{"f:spec": {"f:ports": {"k:{\"name\":\"b\"}": {".": {}, "f:name": {}}}, "f:tags": {"v:\"y\"": {}}}}`},
		{name: "an element with nothing else", body: `spec: {tags: [x]}`, other: `{"f:spec": {"f:tags": {"v:\"x\"": {}}}}`, owns: true},
		{name: "a field of an element", body: `spec: {ports: [{name: a, port: 1}]}`, other: `{"f:spec": {"f:ports": {"k:{\"name\":\"a\"}": {"f:port": {}}}}}`, owns: true},
		{name: "an element by its place", body: `spec: {ports: [{name: a}]}`, other: `{"f:spec": {"f:ports": {"i:0": {}}}}`, owns: true},
		{name: "a whole map", body: `spec: {selector: {a: b}}`, other: `{"f:spec": {"f:selector": {}}}`, owns: true},
		{name: "no fields at all, as very old servers", body: `spec: {}`, other: `{}`, owns: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			it := &Item{managed: packParts(fromYAML(t, "list: ["+helm+", "+entry("other", tc.other)+"]").list("list"))}
			body := fromYAML(t, tc.body)
			body.put("ConfigMap", "kind")
			want := 1
			if tc.owns {
				want = 2
			}
			if got := it.fieldOwners(body); len(got) != want || object(got[0].(map[string]any)).str("manager") != "helm" && !tc.owns {
				t.Errorf("%d owners, want %d: %v", len(got), want, got)
			}
		})
	}
}

// testClaimManagers: a claim is written to once, and again only when everything else is done: its controller, which writes to it at once, waits long after a conflict.
func testClaimManagers(t *testing.T, c *localcluster.Cluster) {
	w := newWorld(t, c.Config())
	claim := func(name string) string {
		return `{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: ` + name + `, namespace: managers}, spec: {storageClassName: none, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}`
	}
	w.make("helm", ns("managers")+"\n---\n"+claim("one")+"\n---\n"+claim("two")+`
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: managers}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: registry.example.com/web}]}}`)
	for _, name := range []string{"one", "two"} {
		w.patch("binder", "persistentvolumeclaims", "managers", name, `{metadata: {annotations: {pv.kubernetes.io/bound-by-controller: "yes", volume.kubernetes.io/storage-provisioner: p}}}`)
	}
	w.patch("team", "persistentvolumeclaims", "managers", "two", `{metadata: {labels: {cost: team}}}`)
	h := w.record()
	at := h.now()
	w.delete("namespaces", "", "managers")
	w.gone("namespaces", "", "managers")

	var mu sync.Mutex
	var writes []string
	counted := c.Config()
	counted.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodGet && r.URL.Query().Get("dryRun") == "" {
				mu.Lock()
				writes = append(writes, r.Method+" "+r.URL.Path)
				mu.Unlock()
			}
			return rt.RoundTrip(r)
		})
	})
	if _, err := w.plan(h, RestoreRequest{Scope: InNamespace("managers"), Cut: at}).Apply(t.Context(), newWorld(t, counted).target, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	writes = slices.DeleteFunc(writes, func(s string) bool {
		return s != "POST /apis/apps/v1/namespaces/managers/deployments" && s[:5] != "PATCH"
	})
	if diff := cmp.Diff([]string{"POST /apis/apps/v1/namespaces/managers/deployments", "PATCH /api/v1/namespaces/managers/persistentvolumeclaims/two"}, writes); diff != "" {
		t.Error(diff)
	}
	for name, want := range map[string][]string{"one": {"helm"}, "two": {"helm", "team"}} {
		var got []string
		for _, e := range w.get("persistentvolumeclaims", "managers", name).objects("metadata", "managedFields") {
			got = append(got, e.str("manager"))
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s is managed by %v, want %v", name, got, want)
		}
	}
}
