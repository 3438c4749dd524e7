package replay

import (
	"strings"
	"testing"

	"github.com/tidemark-backup/tidemark/replay/transform"
)

// testTransforms is Velero's resource modifiers and storage class mapping, beside image rewriting, into another
// namespace: shown in the plan, done as shown; an object for which a rule fails is not restored.
func testTransforms(t *testing.T, w *world) {
	w.make("ci", ns("changing"))
	w.make("ci", `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: changing}
spec: {accessModes: [ReadWriteOnce], storageClassName: old-class, resources: {requests: {storage: 1Gi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: changing}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "nginx:1"}]}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: changing}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Secret
metadata: {name: pw, namespace: changing}
data: {password: Q0FOQVJZ}`)
	h := w.record()
	set, err := transform.New(transform.Options{
		StorageClasses: map[string]string{"old-class": "new-class"},
		Images:         []transform.ImageRewrite{{From: "docker.io", To: "registry.example.com/mirror"}},
		Modifiers: []transform.File{{Name: "m.yaml", Text: []byte(`
version: v1
resourceModifierRules:
- conditions: {groupResource: deployments.apps, namespaces: [changing]}
  patches: [{operation: replace, path: /spec/replicas, value: "0"}]
- conditions: {groupResource: services}
  patches: [{operation: add, path: /spec/ports/0/nodePort, value: "30999"}]
- conditions: {groupResource: secrets}
  patches: [{operation: replace, path: /data/none/below, value: x}]
`)}},
	})
	ok(t, err)
	req := RestoreRequest{Scope: InNamespace("changing"), NamespaceMappings: map[string]string{"changing": "changed"}, Transforms: set}
	p := w.plan(h, req)
	w.want(p, "secrets", "pw", ActionFail, "m.yaml, rule 3")
	text := planText(p)
	for _, want := range []string{"changed on the way: 1 by images docker.io -> registry.example.com/mirror", "changed on the way: 1 by storage class old-class -> new-class", "changed on the way: 1 by m.yaml, rule 1"} {
		if !strings.Contains(text, want) {
			t.Errorf("the plan does not say %q", want)
		}
	}
	if strings.Contains(text, "Q0FOQVJZ") {
		t.Error("the plan tells a Secret")
	}
	if _, err := p.Apply(t.Context(), w.target, ApplyOptions{}); err == nil || !strings.Contains(err.Error(), "1 of") {
		t.Errorf("applied: %v", err)
	}
	web := w.get("deployments.apps", "changed", "web")
	if image := web.objects("spec", "template", "spec", "containers")[0].str("image"); web.at("spec", "replicas") != int64(0) || image != "registry.example.com/mirror/library/nginx:1" {
		t.Errorf("the Deployment has %v replicas of %s", web.at("spec", "replicas"), image)
	}
	if class := w.get("persistentvolumeclaims", "changed", "data").str("spec", "storageClassName"); class != "new-class" {
		t.Errorf("the claim is of class %s", class)
	}
	if port := w.get("services", "changed", "web").objects("spec", "ports")[0].at("nodePort"); port != int64(30999) {
		t.Errorf("the Service's port is %v", port)
	}
	if w.find("secrets", "changed", "pw") != nil {
		t.Error("an object was restored although a rule for it failed")
	}
	// Once more: what is there is as it would be made.
	req.Existing = ExistingUpdate
	p = w.plan(h, req)
	w.want(p, "deployments.apps", "web", ActionUnchanged, "")
	w.want(p, "persistentvolumeclaims", "data", ActionUnchanged, "")
}
