package replay

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

// testRehearsal: a server-side dry run finds what a webhook, a quota and validation refuse, and what is
// not there yet is not tried; rights that are missing are told in one go. Nothing is written by it.
func testRehearsal(t *testing.T, w *world) {
	w.make("ci", ns("rehearsed"))
	w.make("ci", `
apiVersion: v1
kind: ConfigMap
metadata: {name: fine, namespace: rehearsed}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: rehearsed}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Secret
metadata: {name: pw, namespace: rehearsed}`)
	w.make("ci", ns("rehearsed-gone"))
	w.make("ci", `{apiVersion: v1, kind: ConfigMap, metadata: {name: inside, namespace: rehearsed-gone}}`)
	h := w.record()
	for _, o := range []string{"configmaps/fine", "services/web", "secrets/pw"} {
		gr, name, _ := strings.Cut(o, "/")
		w.delete(gr, "rehearsed", name)
	}
	w.delete("namespaces", "", "rehearsed-gone")
	w.gone("namespaces", "", "rehearsed-gone")
	w.make("ci", `{apiVersion: v1, kind: ResourceQuota, metadata: {name: none, namespace: rehearsed}, spec: {hard: {services: "0"}}}`)
	w.eventually("the quota", func() bool { return w.get("resourcequotas", "rehearsed", "none").at("status", "hard") != nil })
	req := RestoreRequest{Scope: Scope{Namespaces: []string{"rehearsed", "rehearsed-gone"}}}
	p := w.plan(h, req)
	rejected, tried, untried, err := p.Rehearse(t.Context(), w.target)
	ok(t, err)
	if len(rejected) != 1 || rejected[0].Item.Name != "web" || !strings.Contains(rejected[0].Why, "quota") || tried != 4 || untried != 1 {
		t.Errorf("rejected %v, tried %d, untried %d", rejected, tried, untried)
	}
	for _, o := range []string{"configmaps/fine", "secrets/pw"} {
		gr, name, _ := strings.Cut(o, "/")
		if w.find(gr, "rehearsed", name) != nil {
			t.Errorf("a dry run made %s", o)
		}
	}
	if w.find("namespaces", "", "rehearsed-gone") != nil {
		t.Error("a dry run made a namespace")
	}
	if missing, err := p.Rights(t.Context(), w.target); err != nil || len(missing) > 0 {
		t.Errorf("an administrator lacks %v, %v", missing, err)
	}
	cfg := *w.config
	cfg.Impersonate = rest.ImpersonationConfig{UserName: "tenant-of-rehearsed"}
	w.make("ci", `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: some, namespace: rehearsed}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [create]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: some, namespace: rehearsed}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: some}
subjects: [{kind: User, name: tenant-of-rehearsed, apiGroup: rbac.authorization.k8s.io}]`)
	tenant, err := NewTarget(&cfg)
	ok(t, err)
	want := []string{
		"create namespaces (1 object)", "create secrets in rehearsed (1 object)", "create services in rehearsed (1 object)", "create configmaps in rehearsed-gone (1 object)",
	}
	w.eventually("the tenant's rights", func() bool {
		missing, err := p.Rights(t.Context(), tenant)
		ok(t, err)
		return slices.Equal(missing, want)
	})
}
