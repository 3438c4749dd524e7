package replay

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tidemark-backup/tidemark/journal"
)

const shop = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.shop.example.com}
spec:
  group: shop.example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
imagePullSecrets: [{name: registry}]
---
apiVersion: v1
kind: Secret
metadata: {name: registry, namespace: shop}
data: {password: aHVudGVyMg==}
---
apiVersion: v1
kind: Secret
type: kubernetes.io/service-account-token
metadata: {name: web-login, namespace: shop, annotations: {kubernetes.io/service-account.name: web}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
data: {mode: fast}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: shop}
rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: readers, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: web, namespace: shop}, {kind: ServiceAccount, name: ci, namespace: tools}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {serviceAccountName: web, containers: [{name: web, image: "web:1", resources: {requests: {cpu: 10m}}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: lone, namespace: shop}
spec: {containers: [{name: c, image: "lone:1", resources: {requests: {cpu: 10m}}}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: migrate, namespace: shop}
spec: {suspend: true, template: {spec: {restartPolicy: Never, containers: [{name: c, image: "m:1", resources: {requests: {cpu: 10m}}}]}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web, namespace: shop}
spec: {maxReplicas: 5, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}, metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, nodePort: 30080}, {name: https, port: 443}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, ports: [{port: 5432}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: headless, namespace: shop}
subsets: [{addresses: [{ip: 10.9.8.7}], ports: [{port: 5432}]}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: shop}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: small, namespace: shop}
spec: {hard: {pods: "3", requests.cpu: "1"}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: shop}
spec: {accessModes: [ReadWriteOnce], storageClassName: none, resources: {requests: {storage: 1Gi}}}
---
apiVersion: shop.example.com/v1
kind: Widget
metadata: {name: blue, namespace: shop, finalizers: [example.com/keep]}
spec: {size: 3}
`

func testDeletedNamespace(t *testing.T, w *world) {
	w.make("ci", ns("shop"))
	w.eventually("the default account", func() bool { return w.find("serviceaccounts", "shop", "default") != nil })
	w.patch("ci", "serviceaccounts", "shop", "default", `{imagePullSecrets: [{name: registry}]}`)
	w.make("ci", strings.TrimSpace(shop))
	widget := w.get("widgets.shop.example.com", "shop", "blue")
	child := `{apiVersion: v1, kind: ConfigMap, metadata: {name: blue-made, namespace: shop, ownerReferences: [{apiVersion: shop.example.com/v1, kind: Widget, name: blue, controller: true, uid: ` + widget.uid() + `}]}, data: {a: b}}`
	w.make("operator", child)
	w.eventually("two pods of the Deployment", func() bool { return len(w.list("pods", "shop")) == 3 })
	w.eventually("a token", func() bool { return w.get("secrets", "shop", "web-login").at("data", "token") != nil })
	w.eventually("the mirrored slice", func() bool { return len(w.list("endpointslices.discovery.k8s.io", "shop")) >= 2 })
	w.eventually("settings", func() bool { return w.find("configmaps", "shop", "kube-root-ca.crt") != nil })
	h := w.record()
	oldToken := w.get("secrets", "shop", "web-login").str("data", "token")
	autoPort := w.get("services", "shop", "web").objects("spec", "ports")[1].at("nodePort")

	w.patch("ci", "widgets.shop.example.com", "shop", "blue", `{metadata: {finalizers: null}}`)
	w.delete("namespaces", "", "shop")
	w.gone("namespaces", "", "shop")
	w.delete("customresourcedefinitions.apiextensions.k8s.io", "", "widgets.shop.example.com")
	w.gone("customresourcedefinitions.apiextensions.k8s.io", "", "widgets.shop.example.com")
	// The port that the cluster chose goes to somebody else meanwhile.
	w.make("ci", ns("shop-other"))
	other := fromYAML(t, `{apiVersion: v1, kind: Service, metadata: {name: taker, namespace: shop-other}, spec: {type: NodePort, ports: [{port: 1}]}}`)
	other.objects("spec", "ports")[0].put(autoPort, "nodePort")
	w.make("ci", toYAML(other))

	req := RestoreRequest{Scope: InNamespace("shop")}
	p := w.plan(h, req)
	w.want(p, "customresourcedefinitions.apiextensions.k8s.io", "widgets.shop.example.com", ActionCreate, "")
	w.want(p, "namespaces", "shop", ActionCreate, "")
	w.want(p, "configmaps", "kube-root-ca.crt", ActionSkip, "controller manager")
	w.want(p, "serviceaccounts", "default", ActionCreate, "")
	for _, it := range p.Items {
		if gr := it.Resource.String(); (gr == "replicasets.apps" || gr == "pods" && it.Name != "lone" || gr == "endpointslices.discovery.k8s.io") && it.Action != ActionSkip {
			t.Errorf("%s: %s, but its controller makes it", it, it.Action)
		}
	}
	quota, pod, claim, blue, made := w.want(p, "resourcequotas", "small", ActionCreate, ""), w.want(p, "pods", "lone", ActionCreate, ""), w.want(p, "persistentvolumeclaims", "data", ActionCreate, ""),
		w.want(p, "widgets.shop.example.com", "blue", ActionCreate, ""), w.want(p, "configmaps", "blue-made", ActionCreate, "")
	if quota.Wave <= pod.Wave || pod.Wave <= claim.Wave || made.Wave <= blue.Wave {
		t.Errorf("waves: quota %d, pod %d, claim %d; owner %d, owned %d", quota.Wave, pod.Wave, claim.Wave, blue.Wave, made.Wave)
	}
	w.apply(p)
	w.settled(h, req)

	if got := w.get("namespaces", "", "shop").label("team"); got != "blue" {
		t.Errorf("the namespace's label is %q", got)
	}
	if o := w.get("widgets.shop.example.com", "shop", "blue"); o.uid() != w.get("configmaps", "shop", "blue-made").objects("metadata", "ownerReferences")[0].str("uid") {
		t.Error("the owned ConfigMap does not point at the restored Widget")
	} else if diff := cmp.Diff([]any{"example.com/keep"}, o.list("metadata", "finalizers")); diff != "" {
		t.Errorf("finalizers: %s", diff)
	}
	w.eventually("the Deployment's pods", func() bool { return len(w.list("pods", "shop")) == 3 })
	w.eventually("a new token", func() bool {
		token := w.get("secrets", "shop", "web-login").str("data", "token")
		return token != "" && token != oldToken
	})
	ports := w.get("services", "shop", "web").objects("spec", "ports")
	if ports[0].at("nodePort") != int64(30080) || ports[1].at("nodePort") == autoPort {
		t.Errorf("node ports %v and %v; the first was chosen by a person, the second (%v) by the cluster", ports[0].at("nodePort"), ports[1].at("nodePort"), autoPort)
	}
	if pulls := w.get("serviceaccounts", "shop", "default").objects("imagePullSecrets"); len(pulls) != 1 || pulls[0].str("name") != "registry" {
		t.Errorf("the default ServiceAccount pulls with %v", pulls)
	}
	if got := w.get("endpoints", "shop", "headless").objects("subsets"); len(got) != 1 {
		t.Errorf("hand-written Endpoints: %v", got)
	}
	w.patch("ci", "widgets.shop.example.com", "shop", "blue", `{metadata: {finalizers: null}}`)
}

func testExisting(t *testing.T, w *world) {
	w.make("ci", ns("exist"))
	w.make("ci", `
apiVersion: v1
kind: ConfigMap
metadata: {name: same, namespace: exist}
data: {a: "1"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: edited, namespace: exist}
data: {a: "1", gone: "1"}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: exist}
imagePullSecrets: [{name: one}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: exist}
spec:
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "web:1", livenessProbe: {httpGet: {path: /, port: 80}}}]}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: exist}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: exist}
spec: {accessModes: [ReadWriteOnce], storageClassName: none, resources: {requests: {storage: 1Gi}}}`)
	h := w.record()
	w.patch("kubectl-edit", "configmaps", "exist", "edited", `{data: {a: "2", gone: null, new: "1"}, metadata: {finalizers: [example.com/x]}}`)
	w.patch("kubectl-edit", "serviceaccounts", "exist", "web", `{imagePullSecrets: [{name: two}], metadata: {labels: {a: b}}}`)
	w.patch("kubectl-edit", "deployments.apps", "exist", "web", `{spec: {template: {spec: {containers: [{name: web, image: "web:2", livenessProbe: {tcpSocket: {port: 80}}}]}}}}`)
	req := RestoreRequest{Scope: InNamespace("exist")}

	p := w.plan(h, req)
	w.want(p, "configmaps", "same", ActionUnchanged, "")
	w.want(p, "services", "web", ActionUnchanged, "")
	w.want(p, "persistentvolumeclaims", "data", ActionUnchanged, "")
	w.want(p, "deployments.apps", "web", ActionSkip, "--existing update")
	edited := w.want(p, "configmaps", "edited", ActionSkip, "--existing update")
	if len(edited.Diff) != 4 {
		t.Errorf("diff of the skipped ConfigMap: %v", edited.Diff)
	}
	w.want(p, "serviceaccounts", "web", ActionUpdate, "lacks")
	if res := w.apply(p); res.Done != 1 || res.Skipped < 2 {
		t.Errorf("%+v", res)
	}
	if pulls := w.get("serviceaccounts", "exist", "web").objects("imagePullSecrets"); len(pulls) != 2 {
		t.Errorf("merged pull secrets: %v", pulls)
	}
	if got := w.get("configmaps", "exist", "edited").str("data", "a"); got != "2" {
		t.Errorf("existing none wrote %q", got)
	}

	req.Existing = ExistingUpdate
	p = w.plan(h, req)
	w.want(p, "configmaps", "edited", ActionUpdate, "keeps what was added since: .data.new, .metadata.finalizers (--exact removes it)")
	w.want(p, "deployments.apps", "web", ActionUpdate, "exactly") // two kinds of probe at once are invalid
	w.apply(p)
	o := w.get("configmaps", "exist", "edited")
	if diff := cmp.Diff(map[string]any{"a": "1", "gone": "1", "new": "1"}, map[string]any(o.sub("data"))); diff != "" {
		t.Errorf("update: %s", diff)
	}
	probe := w.get("deployments.apps", "exist", "web").objects("spec", "template", "spec", "containers")[0]
	if probe.str("image") != "web:1" || probe.at("livenessProbe", "httpGet") == nil || probe.at("livenessProbe", "tcpSocket") != nil {
		t.Errorf("the Deployment was not made as it was: %v", probe)
	}
	w.want(w.plan(h, req), "configmaps", "edited", ActionUnchanged, "keeps what was added since: .data.new, .metadata.finalizers (--exact removes it)")

	req.Exact = true
	w.apply(w.plan(h, req))
	if o = w.get("configmaps", "exist", "edited"); o.at("data", "new") != nil || o.list("metadata", "finalizers") != nil {
		t.Errorf("--exact left %v %v", o.sub("data"), o.list("metadata", "finalizers"))
	}
	w.settled(h, req)
}

func testTerminating(t *testing.T, w *world) {
	w.make("ci", ns("slow"))
	w.make("ci", `{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: slow}}`)
	w.make("ci", `{apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: slow}}`)
	h := w.record()
	w.patch("ci", "configmaps", "slow", "a", `{metadata: {finalizers: [example.com/hold]}}`)
	w.delete("namespaces", "", "slow")
	w.eventually("the namespace to hang", func() bool {
		o := w.get("namespaces", "", "slow")
		return o.deleting() && condition(o, "NamespaceFinalizersRemaining")
	})
	req := RestoreRequest{Scope: InNamespace("slow")}
	p := w.plan(h, req)
	w.want(p, "namespaces", "slow", ActionCreate, "gone")
	res, err := p.Apply(t.Context(), w.target, ApplyOptions{Wait: 500 * time.Millisecond})
	if !errors.Is(err, ErrNotRestored) || res.Failed != 3 || len(res.Errors) != 2 {
		t.Fatalf("%v: %+v", err, res)
	}
	if msg := res.Errors[0].Error() + res.Errors[1].Error(); !strings.Contains(msg, "example.com/hold") || !strings.Contains(msg, "1 more") {
		t.Errorf("the error does not name the holder, or is not said once: %s", msg)
	}
	single := w.plan(h, RestoreRequest{Scope: Scope{Namespaces: []string{"slow"}, Resources: []schema.GroupResource{{Resource: "configmaps"}}, Names: []string{"b"}}})
	w.want(single, "configmaps", "b", ActionFail, "undelete ns/slow")

	waited := make(chan string, 100)
	go func() {
		<-waited // the restore waits: let the namespace go
		_, err := w.target.client(w.resource("configmaps"), "slow").Patch(t.Context(), "a", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		if err != nil {
			t.Error(err)
		}
	}()
	res, err = w.plan(h, req).Apply(t.Context(), w.target, ApplyOptions{Progress: func(p Progress) {
		if p.Waiting != "" {
			waited <- p.Waiting
		}
	}})
	if err != nil {
		t.Fatalf("%v: %+v", err, res.Errors)
	}
	w.settled(h, req)
}

func testMeanwhile(t *testing.T, w *world) {
	w.make("ci", ns("busy"))
	w.make("ci", `
apiVersion: v1
kind: ConfigMap
metadata: {name: a, namespace: busy}
data: {a: "1"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: busy}
spec:
  paused: true
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "web:1"}]}}`)
	h := w.record()
	w.patch("ci", "configmaps", "busy", "a", `{data: {a: "2"}}`)
	w.patch("ci", "deployments.apps", "busy", "web", `{spec: {minReadySeconds: 5}}`)
	w.make("ci", `{apiVersion: v1, kind: ConfigMap, metadata: {name: new, namespace: busy}}`)
	p := w.plan(h, RestoreRequest{Scope: InNamespace("busy"), Existing: ExistingUpdate, Prune: true, Cut: h.now()}) // exact, as prune is
	w.want(p, "configmaps", "new", ActionDelete, "")
	w.want(p, "deployments.apps", "web", ActionUpdate, "")
	w.patch("kubectl-edit", "configmaps", "busy", "a", `{data: {b: "3"}}`)
	w.patch("kubectl-edit", "configmaps", "busy", "new", `{data: {b: "3"}}`)
	w.patch("controller", "deployments.apps", "busy", "web", `{status: {observedGeneration: 1, conditions: [{type: X, status: "True"}]}}`, "status")
	res, err := p.Apply(t.Context(), w.target, ApplyOptions{})
	if !errors.Is(err, ErrPartly) || res.Failed != 2 || res.Done != 1 {
		t.Fatalf("%v: %+v", err, res)
	}
	for _, e := range res.Errors {
		if !errors.Is(&e, errMeanwhile) || e.Item.Resource.Resource != "configmaps" {
			t.Errorf("%v", e.Error())
		}
	}
	if o := w.get("configmaps", "busy", "a"); o.str("data", "a") != "2" || o.str("data", "b") != "3" {
		t.Errorf("somebody's edit was overwritten: %v", o.sub("data"))
	}
	if o := w.get("deployments.apps", "busy", "web"); o.at("spec", "minReadySeconds") != nil {
		t.Errorf("a status change kept the Deployment from being written: %v", o.at("spec", "minReadySeconds"))
	}
}

func testMeets(t *testing.T, w *world) {
	w.make("ci", ns("race"))
	w.make("ci", `
apiVersion: v1
kind: ConfigMap
metadata: {name: same, namespace: race}
data: {a: "1"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: other, namespace: race}
data: {a: "1"}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: sa, namespace: race}
imagePullSecrets: [{name: one}]`)
	h := w.record()
	for gr, names := range map[string][]string{"configmaps": {"same", "other"}, "serviceaccounts": {"sa"}} {
		for _, n := range names {
			w.delete(gr, "race", n)
			w.gone(gr, "race", n)
		}
	}
	for _, existing := range []ExistingPolicy{ExistingNone, ExistingUpdate} {
		p := w.plan(h, RestoreRequest{Scope: InNamespace("race"), Existing: existing})
		w.want(p, "configmaps", "other", ActionCreate, "")
		w.make("fast", `
apiVersion: v1
kind: ConfigMap
metadata: {name: same, namespace: race}
data: {a: "1"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: other, namespace: race}
data: {a: "2"}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: sa, namespace: race}`)
		res, err := p.Apply(t.Context(), w.target, ApplyOptions{})
		if value := w.get("configmaps", "race", "other").str("data", "a"); res.Done != 2 || value != "2" {
			t.Errorf("%s: %+v, value %s: what the plan did not show was overwritten", existing, res, value)
		}
		switch existing {
		case ExistingUpdate:
			if !errors.Is(err, ErrPartly) || res.Failed != 1 || !errors.Is(&res.Errors[0], errAppeared) {
				t.Errorf("not reported: %v: %+v", err, res)
			}
		default:
			if err != nil || len(res.Left) != 1 || res.Left[0].Item.Name != "other" {
				t.Errorf("%v: %+v", err, res)
			}
		}
		if pulls := w.get("serviceaccounts", "race", "sa").objects("imagePullSecrets"); len(pulls) != 1 {
			t.Errorf("the account was not merged: %v", pulls)
		}
		for gr, names := range map[string][]string{"configmaps": {"same", "other"}, "serviceaccounts": {"sa"}} {
			for _, n := range names {
				w.delete(gr, "race", n)
				w.gone(gr, "race", n)
			}
		}
	}
}

func testFieldManagers(t *testing.T, w *world) {
	w.make("ci", ns("owned"))
	w.make("kubectl-create", `{apiVersion: v1, kind: ConfigMap, metadata: {name: one, namespace: owned}, data: {a: "1"}}`)
	w.make("kubectl-create", `{apiVersion: v1, kind: ConfigMap, metadata: {name: two, namespace: owned}, data: {a: "1"}}`)
	w.patch("kubectl-edit", "configmaps", "owned", "two", `{data: {b: "2"}}`)
	applied := fromYAML(t, `{apiVersion: v1, kind: ConfigMap, metadata: {name: applied, namespace: owned}, data: {a: "1"}}`)
	if _, err := w.target.client(w.resource("configmaps"), "owned").Apply(t.Context(), "applied", applied.unstructured(), metav1.ApplyOptions{FieldManager: "argocd"}); err != nil {
		t.Fatal(err)
	}
	managers := func(name string) map[string]string {
		out := map[string]string{}
		for _, e := range w.get("configmaps", "owned", name).objects("metadata", "managedFields") {
			out[e.str("manager")+"/"+e.str("operation")] = string(e.sub("fieldsV1").json())
		}
		return out
	}
	names := []string{"one", "two", "applied"}
	want := map[string]map[string]string{}
	h := w.record()
	for _, n := range names {
		want[n] = managers(n)
		w.delete("configmaps", "owned", n)
		w.gone("configmaps", "owned", n)
	}
	w.apply(w.plan(h, RestoreRequest{Scope: InNamespace("owned")}))
	for _, n := range names {
		if diff := cmp.Diff(want[n], managers(n)); diff != "" {
			t.Errorf("%s: %s", n, diff)
		}
	}
	// The applier still owns what it applied: leaving a field out removes it.
	applied = fromYAML(t, `{apiVersion: v1, kind: ConfigMap, metadata: {name: applied, namespace: owned}}`)
	u, err := w.target.client(w.resource("configmaps"), "owned").Apply(t.Context(), "applied", applied.unstructured(), metav1.ApplyOptions{FieldManager: "argocd"})
	if err != nil || object(u.Object).at("data") != nil {
		t.Errorf("a later apply: %v, data %v", err, object(u.Object).at("data"))
	}
}

func testSingle(t *testing.T, w *world) {
	w.make("ci", ns("solo"))
	w.make("ci", `{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: solo}}`)
	w.make("ci", `{apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: solo}}`)
	h := w.record()
	one := RestoreRequest{Cut: h.now(), Scope: Scope{Namespaces: []string{"solo"}, Resources: []schema.GroupResource{{Resource: "configmaps"}}, Names: []string{"a"}}}
	w.delete("configmaps", "solo", "a")
	w.gone("configmaps", "solo", "a")
	if p := w.plan(h, one); len(p.Items) != 1 {
		t.Errorf("more than was asked for:\n%s", planText(p))
	}
	w.apply(w.plan(h, one))
	w.settled(h, one)
	const job = `{apiVersion: batch/v1, kind: Job, metadata: {name: j, namespace: solo}, spec: {suspend: true, template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}`
	w.make("ci", job)
	w.make("ci", `{apiVersion: v1, kind: ConfigMap, metadata: {name: owned, namespace: solo, ownerReferences: [{apiVersion: batch/v1, kind: Job, name: j, uid: `+w.get("jobs.batch", "solo", "j").uid()+`}]}}`)
	h = w.record()
	one.Cut = h.now()
	owned := one
	owned.Cut, owned.Scope.Names = h.now(), []string{"owned"}
	w.delete("jobs.batch", "solo", "j")
	w.gone("configmaps", "solo", "owned") // the garbage collector took it
	p := w.plan(h, owned)
	if w.want(p, "configmaps", "owned", ActionCreate, ""); !strings.Contains(strings.Join(p.Warnings, "\n"), "jobs.batch solo/j is neither live nor restored") {
		t.Errorf("warnings %q", p.Warnings)
	}
	if refs := p.Items[0].create.object().list("metadata", "ownerReferences"); refs != nil {
		t.Errorf("it would be collected again: %v", refs)
	}
	w.gone("jobs.batch", "solo", "j")
	w.make("ci", job)
	w.apply(w.plan(h, owned))
	if refs := w.get("configmaps", "solo", "owned").objects("metadata", "ownerReferences"); len(refs) != 1 || refs[0].str("uid") != w.get("jobs.batch", "solo", "j").uid() {
		t.Errorf("owned by %v, want the Job that lives now", refs)
	}
	never := RestoreRequest{Cut: journal.Cut{Revision: journal.Revision{Epoch: 1, RV: 1}, Time: time.Unix(1, 0)}, Scope: one.Scope, Prune: true}
	w.want(w.plan(h, never), "configmaps", "a", ActionDelete, "was not there")
	w.delete("namespaces", "", "solo")
	w.gone("namespaces", "", "solo")
	w.want(w.plan(h, one), "configmaps", "a", ActionFail, "restore namespaces/solo --at rv:1/")
	one.Scope.Names = []string{"nope"}
	if _, err := NewPlan(t.Context(), h, w.target, one); !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), "tidemark log -n solo") {
		t.Errorf("an unknown name: %v", err)
	}
}
