package replay

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// creates are the items that a plan creates, by resource and name.
func creates(p *Plan) (all []string) {
	for _, it := range p.Items {
		if it.Action == ActionCreate {
			all = append(all, it.Resource.Resource+"/"+it.Name)
		}
	}
	slices.Sort(all)
	return all
}

const needing = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: needed-class}
provisioner: example.com/none
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: needed-priority}
value: 10
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: needed-role}
rules: []
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: needed-by-binding}
rules: []
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: not-needed}
rules: []
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: needed-binding}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: needed-by-binding}
subjects: [{kind: ServiceAccount, name: web, namespace: needing}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: other-binding}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: not-needed}
subjects: [{kind: ServiceAccount, name: web, namespace: elsewhere}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: needing}
spec: {accessModes: [ReadWriteOnce], storageClassName: needed-class, resources: {requests: {storage: 1Gi}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: b, namespace: needing}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: needed-role}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: needing}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {priorityClassName: needed-priority, containers: [{name: web, image: "web:1"}]}}`

// testNeeded is what Velero calls includeClusterResources: nothing, true and false.
func testNeeded(t *testing.T, w *world) {
	w.make("ci", ns("needing"))
	w.make("ci", strings.TrimSpace(needing))
	h := w.record()
	w.delete("namespaces", "", "needing")
	w.gone("namespaces", "", "needing")
	needed := []string{"clusterrolebindings/needed-binding", "clusterroles/needed-by-binding", "clusterroles/needed-role", "priorityclasses/needed-priority", "storageclasses/needed-class"}
	for _, c := range append(needed, "clusterroles/not-needed") {
		resource, name, _ := strings.Cut(c, "/")
		gr := resource + ".rbac.authorization.k8s.io"
		if resource == "priorityclasses" || resource == "storageclasses" {
			gr = map[string]string{"priorityclasses": "priorityclasses.scheduling.k8s.io", "storageclasses": "storageclasses.storage.k8s.io"}[resource]
		}
		w.delete(gr, "", name)
	}
	scoped := []string{"deployments/web", "namespaces/needing", "persistentvolumeclaims/data", "rolebindings/b"}
	sorted := func(lists ...[]string) []string {
		all := slices.Concat(lists...)
		slices.Sort(all)
		return all
	}
	req := RestoreRequest{Scope: InNamespace("needing"), Cluster: ClusterNone}
	if got := creates(w.plan(h, req)); !slices.Equal(got, scoped) {
		t.Errorf("none of the cluster's: %v", got)
	}
	req.Cluster = ClusterAll
	if got := creates(w.plan(h, req)); !slices.Equal(got, sorted(scoped, needed, []string{"clusterroles/not-needed"})) {
		t.Errorf("all of the cluster's: %v", got)
	}
	req.Cluster = ClusterAuto
	p := w.plan(h, req)
	if got := creates(p); !slices.Equal(got, sorted(scoped, needed)) {
		t.Errorf("what is needed: %v", got)
	}
	w.apply(p)
	// What is there is nobody's to change, whatever else is updated and pruned.
	w.patch("kubectl-edit", "clusterroles.rbac.authorization.k8s.io", "", "needed-role", `{rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]}`)
	req.Existing, req.Prune = ExistingUpdate, true
	p = w.plan(h, req)
	w.want(p, "clusterroles.rbac.authorization.k8s.io", "needed-role", ActionSkip, "left as it is")
	if p.Writes() != 0 {
		t.Errorf("the plan writes:\n%s", planText(p))
	}
}

// testScopes: exclude resources, the label that excludes, and or-selectors; none of them prunes what it
// leaves out.
func testScopes(t *testing.T, w *world) {
	w.make("ci", ns("scopes"))
	w.make("ci", `
apiVersion: v1
kind: ConfigMap
metadata: {name: blue, namespace: scopes, labels: {color: blue}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: red, namespace: scopes, labels: {color: red}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: big, namespace: scopes, labels: {size: big}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: out, namespace: scopes, labels: {color: blue, velero.io/exclude-from-backup: "true"}}
---
apiVersion: v1
kind: Secret
metadata: {name: pw, namespace: scopes, labels: {color: blue}}`)
	h := w.record()
	for _, n := range []string{"blue", "red", "big", "out"} {
		w.delete("configmaps", "scopes", n)
	}
	w.delete("secrets", "scopes", "pw")
	w.make("ci", `
apiVersion: v1
kind: ConfigMap
metadata: {name: new-out, namespace: scopes, labels: {color: blue, velero.io/exclude-from-backup: "true"}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: new-blue, namespace: scopes, labels: {color: blue}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: new-green, namespace: scopes, labels: {color: green}}
---
apiVersion: v1
kind: Secret
metadata: {name: new-pw, namespace: scopes, labels: {color: blue}}`)
	req := RestoreRequest{Scope: InNamespace("scopes"), Prune: true, Existing: ExistingUpdate}
	req.Scope.Selector = AnyOf{mustSelector(t, "color=blue"), mustSelector(t, "size in (big)")}
	req.ExcludeResources = []schema.GroupResource{{Resource: "secrets"}}
	p := w.plan(h, req)
	if got := creates(p); !slices.Equal(got, []string{"configmaps/big", "configmaps/blue"}) {
		t.Errorf("it creates %v", got)
	}
	w.want(p, "configmaps", "out", ActionSkip, "exclude-from-backup")
	if w.want(p, "configmaps", "new-blue", ActionDelete, ""); p.Count(ActionDelete) != 1 {
		t.Errorf("it deletes more:\n%s", planText(p))
	}
	w.apply(p)
	for _, kept := range []string{"new-out", "new-green"} {
		w.get("configmaps", "scopes", kept)
	}
	w.get("secrets", "scopes", "new-pw")
}
