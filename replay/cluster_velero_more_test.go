package replay

import (
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/replay/transform"
)

// veleroRBAC loses a namespace with the roles that lie outside of it; afterwards its account may do again what it might.
func veleroRBAC(t *testing.T, w *world) {
	w.make("ci", ns("v-rbac"))
	w.make("ci", `
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: v-rbac}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: v-rbac-reader}
rules: [{apiGroups: [""], resources: [nodes], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: v-rbac-readers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: v-rbac-reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: v-rbac}]`)
	may := func() bool {
		ask := object{"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": map[string]any{
			"user":               "system:serviceaccount:v-rbac:reader",
			"resourceAttributes": map[string]any{"verb": "list", "resource": "nodes"},
		}}
		u, err := w.target.dyn.Resource(schema.GroupVersionResource{Group: "authorization.k8s.io", Version: "v1", Resource: "subjectaccessreviews"}).Create(t.Context(), ask.unstructured(), metav1.CreateOptions{})
		ok(t, err)
		return object(u.Object).at("status", "allowed") == true
	}
	w.eventually("the right", may)
	h := w.record()
	w.delete("clusterrolebindings.rbac.authorization.k8s.io", "", "v-rbac-readers")
	w.delete("clusterroles.rbac.authorization.k8s.io", "", "v-rbac-reader")
	w.delete("namespaces", "", "v-rbac")
	w.gone("namespaces", "", "v-rbac")
	w.eventually("the right to be gone", func() bool { return !may() })
	w.apply(w.plan(h, RestoreRequest{Scope: InNamespace("v-rbac")}))
	w.eventually("the right again", may)
}

func veleroAnnotations(t *testing.T, w *world) {
	w.make("ci", `{apiVersion: v1, kind: Namespace, metadata: {name: v-notes, labels: {pod-security.kubernetes.io/enforce: baseline}, annotations: {example.com/owner: team blue}}}`)
	h := w.record()
	w.delete("namespaces", "", "v-notes")
	w.gone("namespaces", "", "v-notes")
	w.apply(w.plan(h, RestoreRequest{Scope: InNamespace("v-notes")}))
	o := w.get("namespaces", "", "v-notes")
	if o.annotation("example.com/owner") != "team blue" || o.label("pod-security.kubernetes.io/enforce") != "baseline" {
		t.Errorf("the namespace came back with %v", o.at("metadata"))
	}
}

// veleroVersions restores a custom resource that was recorded in a version that is no longer served.
func veleroVersions(t *testing.T, w *world) {
	w.make("ci", `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: rockbands.music.example.io}
spec:
  group: music.example.io
  scope: Namespaced
  names: {plural: rockbands, singular: rockband, kind: RockBand}
  versions:
  - {name: v1alpha1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
  - {name: v1, served: true, storage: false, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}`)
	w.make("ci", ns("v-versions"))
	w.make("ci", `{apiVersion: music.example.io/v1, kind: RockBand, metadata: {name: beatles, namespace: v-versions}, spec: {leadSinger: John}}`)
	h := w.record()
	for i := range h.events { // as a recorder of that time would have seen it
		if e := &h.events[i]; e.Name == "beatles" {
			o, err := parseObject(e.Object)
			ok(t, err)
			o["apiVersion"] = "music.example.io/v1alpha1"
			e.Object = o.json()
		}
	}
	w.delete("rockbands.music.example.io", "v-versions", "beatles")
	w.patch("ci", "customresourcedefinitions.apiextensions.k8s.io", "", "rockbands.music.example.io", `
spec:
  versions:
  - {name: v1alpha1, served: false, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
  - {name: v1, served: true, storage: false, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}`)
	w.eventually("v1alpha1 to be served no more", func() bool {
		ok(t, w.target.refresh(t.Context()))
		v := w.target.versions(schema.GroupResource{Group: "music.example.io", Resource: "rockbands"})
		return len(v) == 1 && v[0].Version == "v1"
	})
	w.apply(w.plan(h, RestoreRequest{Scope: InNamespace("v-versions")}))
	if o := w.get("rockbands.music.example.io", "v-versions", "beatles"); o.str("apiVersion") != "music.example.io/v1" || o.str("spec", "leadSinger") != "John" {
		t.Errorf("the band came back as %v", o)
	}
}

func veleroModifiers(t *testing.T, w *world) {
	w.make("ci", ns("v-modify"))
	w.make("ci", configMap("v-modify", "json", "kind: json")+"---\n"+configMap("v-modify", "merge")+"---\n"+`
apiVersion: apps/v1
kind: Deployment
metadata: {name: strategic, namespace: v-modify}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "web:1"}, {name: log, image: "log:1"}]}}`)
	h := w.record()
	w.delete("namespaces", "", "v-modify")
	w.gone("namespaces", "", "v-modify")
	set, err := transform.New(transform.Options{Modifiers: []transform.File{{Name: "modifiers.yaml", Text: []byte(`
version: v1
resourceModifierRules:
- conditions: {groupResource: configmaps, labelSelector: {matchLabels: {kind: json}}, matches: [{path: /data/from, value: v-modify}]}
  patches: [{operation: replace, path: /data/from, value: patched}, {operation: add, path: /data/number, value: '"7"'}]
- conditions: {groupResource: configmaps, resourceNameRegex: "^merge$"}
  mergePatches: [{patchData: '{"metadata": {"annotations": {"a": "b"}}, "data": null}'}]
- conditions: {groupResource: deployments.apps, namespaces: [v-modify]}
  strategicPatches: [{patchData: '{"spec": {"replicas": 0, "template": {"spec": {"containers": [{"name": "web", "image": "web:2"}]}}}}'}]
`)}}})
	ok(t, err)
	w.apply(w.plan(h, RestoreRequest{Scope: InNamespace("v-modify"), Transforms: set}))
	if o := w.get("configmaps", "v-modify", "json"); o.str("data", "from") != "patched" || o.str("data", "number") != "7" {
		t.Errorf("JSON patch: %v", o.at("data"))
	}
	if o := w.get("configmaps", "v-modify", "merge"); o.annotation("a") != "b" || o.at("data") != nil {
		t.Errorf("merge patch: %v", o)
	}
	o := w.get("deployments.apps", "v-modify", "strategic")
	var images []string
	for _, c := range o.objects("spec", "template", "spec", "containers") {
		images = append(images, c.str("image"))
	}
	if o.at("spec", "replicas") != int64(0) || !slices.Equal(images, []string{"web:2", "log:1"}) {
		t.Errorf("strategic patch: %v replicas of %q", o.at("spec", "replicas"), images)
	}
}

// veleroOrder sees objects written after what they need.
func veleroOrder(t *testing.T, w *world) {
	w.make("ci", ns("shop"))
	w.make("ci", strings.TrimSpace(shop))
	h := w.record()
	w.patch("ci", "widgets.shop.example.com", "shop", "blue", `{metadata: {finalizers: null}}`)
	w.delete("namespaces", "", "shop")
	w.gone("namespaces", "", "shop")
	w.delete("customresourcedefinitions.apiextensions.k8s.io", "", "widgets.shop.example.com")
	w.gone("customresourcedefinitions.apiextensions.k8s.io", "", "widgets.shop.example.com")
	p := w.plan(h, RestoreRequest{Scope: InNamespace("shop")})
	var order []string
	_, err := p.Apply(t.Context(), w.target, ApplyOptions{Progress: func(at Progress) {
		if at.Item != nil {
			order = append(order, at.Item.Resource.String())
		}
	}})
	ok(t, err)
	for _, pair := range [][2]string{
		{"customresourcedefinitions.apiextensions.k8s.io", "namespaces"},
		{"namespaces", "persistentvolumeclaims"},
		{"persistentvolumeclaims", "serviceaccounts"},
		{"serviceaccounts", "secrets"},
		{"roles.rbac.authorization.k8s.io", "rolebindings.rbac.authorization.k8s.io"},
		{"secrets", "pods"},
		{"configmaps", "pods"},
		{"services", "deployments.apps"},
		{"pods", "deployments.apps"},
		{"deployments.apps", "jobs.batch"},
		{"jobs.batch", "widgets.shop.example.com"},
		{"widgets.shop.example.com", "resourcequotas"},
		{"deployments.apps", "poddisruptionbudgets.policy"},
	} {
		last := -1
		for i, gr := range order {
			if gr == pair[0] {
				last = i
			}
		}
		if first := slices.Index(order, pair[1]); last < 0 || first < 0 || last > first {
			t.Errorf("%s (last at %d) must come before %s (first at %d): %q", pair[0], last, pair[1], first, order)
		}
	}
}

// veleroDeletion forgets the record of a restore: what it restored stays.
func veleroDeletion(t *testing.T, w *world) {
	w.make("ci", ns("v-forget"))
	w.make("ci", configMap("v-forget", "settings"))
	h := w.record()
	w.delete("configmaps", "v-forget", "settings")
	records := OpenRecords(t.TempDir())
	p := w.plan(h, RestoreRequest{Scope: InNamespace("v-forget")})
	rec, err := records.Begin(p)
	ok(t, err)
	_, err = p.Apply(t.Context(), w.target, ApplyOptions{Record: rec})
	ok(t, err)
	ok(t, rec.Close())
	ok(t, records.Remove(p.ID))
	if all, err := records.List(); err != nil || len(all) > 0 {
		t.Errorf("records: %v %v", all, err)
	}
	w.wantNames("v-forget", "settings")
}

// veleroMigration takes an application to a cluster that has never seen it.
func veleroMigration(t *testing.T, w, target *world) {
	w.make("ci", ns("v-move"))
	w.make("ci", `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: parcels.post.example.com}
spec:
  group: post.example.com
  scope: Namespaced
  names: {plural: parcels, singular: parcel, kind: Parcel}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]`)
	w.make("ci", "apiVersion: post.example.com/v1\nkind: Parcel\nmetadata: {name: owner, namespace: v-move}\n")
	owner := w.get("parcels.post.example.com", "v-move", "owner").uid()
	w.make("operator", `{apiVersion: v1, kind: ConfigMap, metadata: {name: owned, namespace: v-move, ownerReferences: [{apiVersion: post.example.com/v1, kind: Parcel, name: owner, uid: `+owner+`, controller: true}]}}`)
	w.make("ci", `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: v-move}
spec: {replicas: 0, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "web:1"}]}}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: v-move}
spec: {selector: {app: web}, ports: [{port: 80}]}`)
	h := w.record()
	before := map[string]bool{}
	for _, e := range h.events {
		before[e.UID] = true
	}
	req := RestoreRequest{Scope: InNamespace("v-move")}
	target.apply(target.plan(h, req))
	target.settled(h, req)
	for _, gr := range []string{"parcels.post.example.com", "configmaps", "deployments.apps", "services"} {
		for _, o := range target.list(gr, "v-move") {
			if before[o.uid()] {
				t.Errorf("%s %s has an object's uid of the other cluster", gr, o.name())
			}
		}
	}
	refs := target.get("configmaps", "v-move", "owned").objects("metadata", "ownerReferences")
	if len(refs) != 1 || refs[0].str("uid") != target.get("parcels.post.example.com", "v-move", "owner").uid() {
		t.Errorf("owned by %v", refs)
	}
}
