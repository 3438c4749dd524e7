package replay

import (
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
)

func TestFieldOwnersOfWhatComesBack(t *testing.T) {
	entry := func(manager, fields string) string {
		return `{manager: ` + manager + `, operation: Update, apiVersion: v1, fieldsType: FieldsV1, fieldsV1: ` + fields + `}`
	}
	helm := entry("helm", `{"f:kind": {}}`)
	gone := `{"f:spec": {"f:gone": {}}}`
	for of, e := range map[string]string{
		"another version": `{manager: other, operation: Update, apiVersion: v1beta1, fieldsType: FieldsV1, fieldsV1: ` + gone + `}`,
		"who applied":     `{manager: other, operation: Apply, apiVersion: v1, fieldsType: FieldsV1, fieldsV1: ` + gone + `}`,
	} {
		it := &Item{managed: packParts(fromYAML(t, "list: ["+helm+", "+e+"]").list("list"))}
		if got := it.fieldOwners(fromYAML(t, "{apiVersion: v1, kind: ConfigMap}")); len(got) != 2 {
			t.Errorf("the entry of %s is left out", of)
		}
	}
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
		{name: "references to owners, whose uids are new ones", body: `metadata: {ownerReferences: [{uid: new}]}`, other: `{"f:metadata": {"f:ownerReferences": {"k:{\"uid\":\"old\"}": {}}}}`, owns: true},
		{name: "no fields at all, as very old servers", body: `spec: {}`, other: `{}`, owns: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			it := &Item{managed: packParts(fromYAML(t, "list: ["+helm+", "+entry("other", tc.other)+"]").list("list"))}
			body := fromYAML(t, tc.body)
			body.put("v1", "apiVersion")
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

// testClaimManagers: who owns nothing of what comes back costs no request, and what is written to a claim after its creation waits for its controller,
// whose own write must not be in conflict with it.
func testClaimManagers(t *testing.T, c *localcluster.Cluster) {
	w := newWorld(t, c.Config())
	claim := func(name string) string {
		return `{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: ` + name + `, namespace: managers}, spec: {storageClassName: none, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}`
	}
	w.make("helm", ns("managers")+"\n---\n"+claim("one")+"\n---\n"+claim("two"))
	for _, name := range []string{"one", "two"} {
		w.patch("binder", "persistentvolumeclaims", "managers", name, `{metadata: {annotations: {pv.kubernetes.io/bound-by-controller: "yes", volume.kubernetes.io/storage-provisioner: p}}}`)
	}
	w.patch("team", "persistentvolumeclaims", "managers", "two", `{metadata: {labels: {cost: team}}}`)
	h := w.record()
	at := h.now()
	w.delete("namespaces", "", "managers")
	w.gone("namespaces", "", "managers")

	// A slow volume controller: it writes what it read some time ago.
	controlled := make(chan error)
	go func() {
		client := w.target.client(w.resource("persistentvolumeclaims"), "managers")
		for sleep(t.Context(), 5*time.Millisecond) {
			u, err := client.Get(t.Context(), "two", metav1.GetOptions{})
			if err != nil {
				continue
			}
			sleep(t.Context(), 200*time.Millisecond)
			object(u.Object).put("p", "metadata", "annotations", "volume.kubernetes.io/storage-provisioner")
			_, err = client.Update(t.Context(), u, metav1.UpdateOptions{FieldManager: "binder"})
			controlled <- err
			return
		}
	}()
	var mu sync.Mutex
	var patched []string
	counted := c.Config()
	counted.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method == http.MethodPatch {
				mu.Lock()
				patched = append(patched, r.URL.Path)
				mu.Unlock()
			}
			return rt.RoundTrip(r)
		})
	})
	if _, err := w.plan(h, RestoreRequest{Scope: InNamespace("managers"), Cut: at}).Apply(t.Context(), newWorld(t, counted).target, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := <-controlled; err != nil {
		t.Errorf("the controller's write: %v", err)
	}
	if diff := cmp.Diff([]string{"/api/v1/namespaces/managers/persistentvolumeclaims/two"}, patched); diff != "" {
		t.Error(diff)
	}
	for name, want := range map[string][]string{"one": {"helm"}, "two": {"binder", "helm", "team"}} {
		var got []string
		for _, e := range w.get("persistentvolumeclaims", "managers", name).objects("metadata", "managedFields") {
			got = append(got, e.str("manager"))
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s is managed by %v, want %v", name, got, want)
		}
	}
}
