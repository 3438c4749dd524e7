package replay

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

func testPrune(t *testing.T, w *world) {
	w.make("ci", ns("clean"))
	w.make("ci", `{apiVersion: v1, kind: ConfigMap, metadata: {name: old, namespace: clean, labels: {app: a}}}`)
	w.make("ci", `{apiVersion: v1, kind: ConfigMap, metadata: {name: relabelled, namespace: clean, labels: {app: b}}}`)
	h := w.record()
	w.patch("ci", "configmaps", "clean", "relabelled", `{metadata: {labels: {app: a}}}`)
	w.make("ci", `
apiVersion: v1
kind: ConfigMap
metadata: {name: new, namespace: clean, labels: {app: a}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: clean, labels: {app: web}}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "web:1"}]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: clean-new, labels: {app: a}}`)
	w.eventually("a pod", func() bool { return len(w.list("pods", "clean")) == 1 })
	deletes := func(p *Plan) []string {
		var out []string
		for _, it := range p.Items {
			if it.Action == ActionDelete {
				out = append(out, it.String())
			}
		}
		slices.Sort(out)
		return out
	}
	req := RestoreRequest{Scope: InNamespace("clean"), Prune: true, Cut: h.now()}
	if diff := cmp.Diff([]string{"configmaps clean/new", "deployments.apps clean/web"}, deletes(w.plan(h, req))); diff != "" {
		t.Errorf("pruned, without what controllers own: %s", diff)
	}
	req.MaxDeletes = 1
	if _, err := NewPlan(t.Context(), h, w.target, req); !errors.Is(err, ErrTooManyDeletes) || !strings.Contains(err.Error(), "2 objects") || !strings.Contains(err.Error(), "--max-deletes 2") {
		t.Errorf("over the limit: %v", err)
	}
	selected := RestoreRequest{Scope: InNamespace("clean"), Prune: true}
	selected.Scope.Selector = mustSelector(t, "app=a")
	if diff := cmp.Diff([]string{"configmaps clean/new"}, deletes(w.plan(h, selected))); diff != "" {
		t.Errorf("pruned by label; what had another label then was there: %s", diff)
	}
	roles := RestoreRequest{Prune: true, Scope: Scope{Resources: []schema.GroupResource{{Group: "rbac.authorization.k8s.io", Resource: "clusterroles"}}, Namespaces: []string{ClusterScope}}}
	if got := deletes(w.plan(h, roles)); !slices.Equal(got, []string{"clusterroles.rbac.authorization.k8s.io clean-new"}) {
		t.Errorf("a cluster-scoped kind that is named: %v", got)
	}
	blind := *h
	blind.ledgers = slices.Clone(h.ledgers)
	for i := range blind.ledgers {
		if blind.ledgers[i].Resource == "configmaps" {
			blind.ledgers[i].First = blind.ledgers[i].Watermark // recorded only later
		}
	}
	p := w.plan(&blind, RestoreRequest{Scope: InNamespace("clean"), Prune: true, Cut: h.now()})
	if diff := cmp.Diff([]string{"deployments.apps clean/web"}, deletes(p)); diff != "" {
		t.Errorf("pruned what was not recorded yet: %s", diff)
	}
	if !strings.Contains(strings.Join(p.Warnings, "\n"), "not pruned: configmaps: not recorded yet") {
		t.Errorf("no warning: %q", p.Warnings)
	}
	// What was never recorded was not seen to be missing.
	for why, change := range map[string]func(*Catalog){
		"only namespaces shop": func(c *Catalog) {
			for i := range c.Resources {
				c.Resources[i].Filter = "only namespaces shop"
			}
		},
		"excluded by --exclude": func(c *Catalog) {
			for _, l := range c.Resources {
				c.LeftOut = append(c.LeftOut, journal.LeftOut{Resource: l.GroupResource(), Why: "excluded by --exclude"})
			}
		},
	} {
		p := w.planOf(&edited{h, change}, RestoreRequest{Scope: InNamespace("clean"), Prune: true, Cut: h.now()})
		if got := deletes(p); got != nil || !strings.Contains(strings.Join(p.Warnings, "\n"), why) {
			t.Errorf("%s: pruned %v, warnings %q", why, got, p.Warnings)
		}
	}
	p = w.planOf(&edited{h, func(c *Catalog) {
		c.Resources = slices.DeleteFunc(c.Resources, func(l journal.Ledger) bool { return l.Resource == "configmaps" })
		c.LeftOut = []journal.LeftOut{{Resource: parseGR("configmaps"), Why: "excluded"}}
	}}, RestoreRequest{Scope: InNamespace("clean"), Prune: true, Cut: h.now()})
	if diff := cmp.Diff([]string{"deployments.apps clean/web"}, deletes(p)); diff != "" || !strings.Contains(strings.Join(p.Warnings, "\n"), "not pruned: configmaps: not recorded: excluded") {
		t.Errorf("%s %q", diff, p.Warnings)
	}
	// What is held by somebody is told: it is not gone.
	w.make("ci", `{apiVersion: v1, kind: ConfigMap, metadata: {name: held, namespace: clean, finalizers: [example.com/mine]}}`)
	res := w.apply(w.plan(h, RestoreRequest{Scope: InNamespace("clean"), Prune: true, Cut: h.now()}))
	if len(res.Left) != 1 || res.Left[0].Item.Name != "held" || !strings.Contains(res.Left[0].Message, "not gone yet (finalizers example.com/mine)") {
		t.Errorf("a deletion that is held: %+v", res.Left)
	}
	w.patch("ci", "configmaps", "clean", "held", `{metadata: {finalizers: null}}`)
	w.gone("configmaps", "clean", "new")
	w.gone("deployments.apps", "clean", "web")
	if w.find("clusterroles.rbac.authorization.k8s.io", "", "clean-new") == nil || w.find("configmaps", "clean", "kube-root-ca.crt") == nil {
		t.Error("pruned what is not the namespace's own")
	}
}

// testOtherCluster: what is of another cluster is not changed or deleted unasked.
func testOtherCluster(t *testing.T, w *world) {
	w.make("ci", ns("elsewhere"))
	h := w.record()
	id, err := w.target.ClusterID(t.Context())
	if err != nil || id != w.get("namespaces", "", "kube-system").uid() {
		t.Fatalf("%q: %v", id, err)
	}
	h.clusterID = id
	req := RestoreRequest{Scope: InNamespace("elsewhere"), Cut: h.now(), Prune: true}
	if p := w.plan(h, req); len(p.Warnings) > 0 || p.Cluster != id || p.Server != w.target.Server() || !strings.Contains(planText(p), p.Server) {
		t.Errorf("the same cluster: %+v", p)
	}
	h.clusterID = "another"
	for _, req := range []RestoreRequest{{Prune: true}, {Existing: ExistingUpdate}, {Existing: ExistingRecreate}} {
		req.Scope, req.Cut = InNamespace("elsewhere"), h.now()
		if _, err := NewPlan(t.Context(), h, w.target, req); !errors.Is(err, ErrOtherCluster) || !strings.Contains(err.Error(), "--other-cluster") || !strings.Contains(err.Error(), w.target.Server()) {
			t.Errorf("%+v: %v", req, err)
		}
		req.OtherCluster = true
		if p := w.plan(h, req); !strings.Contains(strings.Join(p.Warnings, "\n"), "another cluster") {
			t.Errorf("%q", p.Warnings)
		}
	}
	if p := w.plan(h, RestoreRequest{Scope: InNamespace("elsewhere")}); !strings.Contains(strings.Join(p.Warnings, "\n"), "another cluster") {
		t.Errorf("%q", p.Warnings)
	}
}

// edited is a history whose catalog a test changes.
type edited struct {
	*history
	change func(*Catalog)
}

func (e *edited) Ledgers(ctx context.Context) (*Catalog, error) {
	c, err := e.history.Ledgers(ctx)
	c.Resources = slices.Clone(c.Resources)
	e.change(c)
	return c, err
}

func testMapping(t *testing.T, w *world) {
	w.make("ci", ns("blue"))
	w.make("ci", `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: blue}
spec: {type: NodePort, ports: [{port: 80, nodePort: 30090}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: blue}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: b, namespace: blue}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: web, namespace: blue}, {kind: ServiceAccount, name: ci, namespace: tools}]`)
	h := w.record()
	req := RestoreRequest{Scope: InNamespace("blue"), NamespaceMappings: map[string]string{"blue": "green"}}
	p := w.plan(h, req)
	if it := w.want(p, "services", "web", ActionCreate, ""); it.Namespace != "green" || it.From != "blue" {
		t.Errorf("%+v", it)
	}
	w.apply(p)
	w.settled(h, req)
	if got := w.get("namespaces", "", "green").label("kubernetes.io/metadata.name"); got != "green" {
		t.Errorf("the copy's name label is %q", got)
	}
	var subjects []string
	for _, s := range w.get("rolebindings.rbac.authorization.k8s.io", "green", "b").objects("subjects") {
		subjects = append(subjects, s.str("namespace")+"/"+s.str("name"))
	}
	if diff := cmp.Diff([]string{"green/web", "tools/ci"}, subjects); diff != "" {
		t.Error(diff)
	}
	if got := w.get("services", "green", "web").objects("spec", "ports")[0].at("nodePort"); got == int64(30090) {
		t.Error("the copy took the original's node port")
	}
}

func testRefusals(t *testing.T, w *world) {
	w.make("ci", ns("strict"))
	w.make("ci", `
apiVersion: v1
kind: ConfigMap
metadata: {name: good, namespace: strict}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: bad, namespace: strict}
---
apiVersion: v1
kind: Pod
metadata: {name: big, namespace: strict}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: fits, namespace: strict}
spec: {containers: [{name: c, image: i}]}`)
	h := w.record()
	for gr, names := range map[string][]string{"configmaps": {"good", "bad"}, "pods": {"big", "fits"}} {
		for _, n := range names {
			if err := w.target.client(w.resource(gr), "strict").Delete(t.Context(), n, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
				t.Fatal(err)
			}
			w.gone(gr, "strict", n)
		}
	}
	w.make("ci", `
apiVersion: v1
kind: ResourceQuota
metadata: {name: one-pod, namespace: strict}
spec: {hard: {pods: "1"}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-bad}
spec:
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]}
  validations: [{expression: "object.metadata.name != 'bad'", message: "bad names are refused"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-bad}
spec: {policyName: no-bad, validationActions: [Deny], matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: strict}}}}`)
	defer w.delete("validatingadmissionpolicybindings.admissionregistration.k8s.io", "", "no-bad")
	w.eventually("the quota, without the Pods that are gone", func() bool { return w.get("resourcequotas", "strict", "one-pod").str("status", "used", "pods") == "0" })
	w.eventually("the policy", func() bool {
		_, err := w.target.client(w.resource("configmaps"), "strict").Create(t.Context(), fromYAML(t, `{apiVersion: v1, kind: ConfigMap, metadata: {name: bad}}`).unstructured(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err != nil
	})
	var progress []Progress
	res, err := w.plan(h, RestoreRequest{Scope: InNamespace("strict")}).Apply(t.Context(), w.target, ApplyOptions{Progress: func(p Progress) { progress = append(progress, p) }})
	if !errors.Is(err, ErrPartly) || res.Failed != 2 || res.Done != 2 {
		t.Fatalf("%v: %+v", err, res)
	}
	all := res.Errors[0].Error() + "\n" + res.Errors[1].Error()
	for _, want := range []string{"exceeded quota", "raise the quota", "bad names are refused", "admission rule"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not in\n%s", want, all)
		}
	}
	if w.find("configmaps", "strict", "good") == nil {
		t.Error("the good one is missing")
	}
	if n := len(progress); n != 4 || progress[n-1].Done != 4 || progress[n-1].Total != 4 {
		t.Errorf("progress %+v", progress)
	}
}
