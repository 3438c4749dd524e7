package replay

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/replay/transform"
)

const quiet = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: quiet}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "web:1"}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: quiet}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: db, image: "db:1"}]}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: quiet}
spec: {schedule: "0 3 * * *", jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "m:1"}]}}}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: idle, namespace: quiet}
spec: {replicas: 0, selector: {matchLabels: {app: idle}}, template: {metadata: {labels: {app: idle}}, spec: {containers: [{name: c, image: "i:1"}]}}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: quiet}
spec: {selector: {app: web}, ports: [{port: 80}]}`

// testQuiesce restores workloads at rest, dies before it starts them, and is gone on with; undo takes all of it back.
func testQuiesce(t *testing.T, w *world) {
	w.make("ci", ns("quiet"))
	w.make("ci", quiet)
	w.eventually("Pods", func() bool { return len(w.list("pods", "quiet")) == 3 })
	h := w.record()
	w.delete("namespaces", "", "quiet")
	w.gone("namespaces", "", "quiet")
	req := RestoreRequest{Scope: InNamespace("quiet"), Quiesce: true}
	p := w.plan(h, req)
	if n := p.Count(ActionStart); n != 3 {
		t.Errorf("%d workloads to start, want web, db and nightly:\n%s", n, planText(p))
	}
	records := OpenRecords(t.TempDir())
	rec, err := records.Begin(p)
	ok(t, err)
	stop := make(chan struct{})
	_, err = p.Apply(t.Context(), w.target, ApplyOptions{Record: rec, Stop: stop, Progress: func(at Progress) {
		if at.Item != nil && at.Item.Resource.String() == "cronjobs.batch" { // all workloads are there by now
			close(stop)
		}
	}})
	if err == nil {
		t.Fatal("was not stopped")
	}
	ok(t, rec.Close())
	if r := w.get("deployments.apps", "quiet", "web").at("spec", "replicas"); r != int64(0) {
		t.Errorf("web has %v replicas before it is started", r)
	}
	if len(w.list("pods", "quiet")) != 0 || w.get("cronjobs.batch", "quiet", "nightly").at("spec", "suspend") != true {
		t.Error("something runs before it is started")
	}
	rec, err = records.Open(p.ID, true)
	ok(t, err)
	res, err := rec.Plan.Apply(t.Context(), w.target, ApplyOptions{Record: rec})
	ok(t, err)
	if len(res.Left) > 0 {
		t.Errorf("left alone: %v", res.Left)
	}
	ok(t, rec.Close())
	for gr, name := range map[string]string{"deployments.apps": "web", "statefulsets.apps": "db"} {
		want := map[string]int64{"web": 2, "db": 1}[name]
		if r := w.get(gr, "quiet", name).at("spec", "replicas"); r != want {
			t.Errorf("%s has %v replicas, want %d", name, r, want)
		}
	}
	if w.get("cronjobs.batch", "quiet", "nightly").at("spec", "suspend") != false || w.get("deployments.apps", "quiet", "idle").at("spec", "replicas") != int64(0) {
		t.Error("nightly is still suspended, or idle was started")
	}
	w.settled(h, RestoreRequest{Scope: InNamespace("quiet"), Existing: ExistingUpdate})
	rec, err = records.Open(p.ID, false)
	ok(t, err)
	undo, err := NewUndo(t.Context(), w.target, rec.Undo())
	ok(t, err)
	w.want(undo, "deployments.apps", "web", ActionDelete, "")
	w.want(undo, "cronjobs.batch", "nightly", ActionDelete, "")
}

// testStatus brings a status back when it is asked for, by type or by Velero's annotation.
func testStatus(t *testing.T, w *world) {
	w.make("ci", `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.port.example.com}
spec:
  group: port.example.com
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat}
  versions:
  - {name: v1, served: true, storage: true, subresources: {status: {}}, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}`)
	w.make("ci", ns("harbour"))
	w.make("ci", `
apiVersion: port.example.com/v1
kind: Boat
metadata: {name: asked, namespace: harbour, annotations: {velero.io/restore-status: "true"}}
---
apiVersion: port.example.com/v1
kind: Boat
metadata: {name: plain, namespace: harbour}
---
apiVersion: port.example.com/v1
kind: Boat
metadata: {name: never, namespace: harbour, annotations: {velero.io/restore-status: "false"}}`)
	for _, name := range []string{"asked", "plain", "never"} {
		w.patch("operator", "boats.port.example.com", "harbour", name, `{status: {berth: 7}}`, "status")
	}
	h := w.record()
	for i, c := range []struct {
		status []schema.GroupResource
		want   map[string]bool
	}{
		{nil, map[string]bool{"asked": true}},
		{[]schema.GroupResource{AnyResource}, map[string]bool{"asked": true, "plain": true}},
		{[]schema.GroupResource{{Group: "port.example.com", Resource: "boats"}}, map[string]bool{"asked": true, "plain": true}},
	} {
		for _, name := range []string{"asked", "plain", "never"} {
			w.delete("boats.port.example.com", "harbour", name)
			w.gone("boats.port.example.com", "harbour", name)
		}
		p := w.plan(h, RestoreRequest{Scope: InNamespace("harbour"), Status: c.status})
		missing, err := p.Rights(t.Context(), w.target)
		if err != nil || len(missing) > 0 {
			t.Errorf("rights: %q, %v", missing, err)
		}
		w.apply(p)
		for _, name := range []string{"asked", "plain", "never"} {
			if has := w.get("boats.port.example.com", "harbour", name).at("status", "berth") == int64(7); has != c.want[name] {
				t.Errorf("%d: %s has its status: %v", i, name, has)
			}
		}
	}
}

// testNodePorts keeps node ports as Velero's --preserve-nodeports does: those that were chosen, all, or none.
func testNodePorts(t *testing.T, w *world) {
	w.make("ci", ns("ports"))
	w.make("ci", `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: ports}
spec: {type: NodePort, ports: [{name: chosen, port: 80, nodePort: 30555}, {name: given, port: 81}]}`)
	h := w.record()
	port := func(i int) any { return w.get("services", "ports", "web").objects("spec", "ports")[i].at("nodePort") }
	given := port(1)
	for _, c := range []struct {
		policy        NodePortPolicy
		chosen, given bool // stay
	}{{NodePortsChosen, true, false}, {NodePortsKept, true, true}, {NodePortsDropped, false, false}} {
		w.delete("services", "ports", "web")
		w.gone("services", "ports", "web")
		w.apply(w.plan(h, RestoreRequest{Scope: InNamespace("ports"), NodePorts: c.policy}))
		if stays := port(0) == int64(30555); stays != c.chosen {
			t.Errorf("policy %d: the chosen port is %v", c.policy, port(0))
		}
		// The cluster may choose the same one again, which is one in two thousand.
		if stays := port(1) == given; stays != c.given {
			t.Errorf("policy %d: the given port is %v, was %v", c.policy, port(1), given)
		}
		w.settled(h, RestoreRequest{Scope: InNamespace("ports"), NodePorts: c.policy, Existing: ExistingUpdate})
	}
	// A port that is taken costs that Service, which says so.
	w.delete("services", "ports", "web")
	w.gone("services", "ports", "web")
	w.make("ci", `{apiVersion: v1, kind: Service, metadata: {name: taker, namespace: ports}, spec: {type: NodePort, ports: [{port: 1, nodePort: 30555}]}}`)
	p := w.plan(h, RestoreRequest{Scope: InNamespace("ports"), NodePorts: NodePortsKept})
	res, err := p.Apply(t.Context(), w.target, ApplyOptions{})
	if err == nil || len(res.Errors) != 1 || !strings.Contains(res.Errors[0].Error(), "already allocated") {
		t.Errorf("a taken port: %v %v", err, res.Errors)
	}
	w.announced(p, res, "ports", "RestoreFailed")
}

// announced checks that the restore leaves an Event of that reason.
func (w *world) announced(p *Plan, res *Result, namespace, reason string) {
	w.Helper()
	if err := p.Announce(w.Context(), w.target, res); err != nil {
		w.Errorf("announce: %v", err)
	}
	for _, e := range w.list("events.events.k8s.io", namespace) {
		if e.str("reason") == reason && strings.Contains(e.str("note"), p.ID) {
			return
		}
	}
	w.Errorf("there is no Event %s in %s", reason, namespace)
}

// testAbsent names what the target does not have, before anything is written; --transform changes it.
func testAbsent(t *testing.T, w *world) {
	w.make("ci", ns("absent"))
	w.make("ci", `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: only-there}
provisioner: example.com/none
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: absent}
spec: {accessModes: [ReadWriteOnce], storageClassName: only-there, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: pinned, namespace: absent}
spec: {nodeSelector: {kubernetes.io/hostname: node-7}, containers: [{name: c, image: "c:1"}]}`)
	h := w.record()
	w.delete("storageclasses.storage.k8s.io", "", "only-there")
	warned := func(p *Plan, part string) bool { return strings.Contains(strings.Join(p.Warnings, "\n"), part) }
	req := RestoreRequest{Scope: InNamespace("absent"), NamespaceMappings: map[string]string{"absent": "absent-2"}, Cluster: ClusterNone}
	p := w.plan(h, req)
	if !warned(p, "storageclasses.storage.k8s.io only-there: needed by persistentvolumeclaims absent-2/data, and not in the target") || !warned(p, "nodes node-7: needed by pods absent-2/pinned") {
		t.Errorf("not named: %q", p.Warnings)
	}
	req.Cluster = ClusterAuto
	if p := w.plan(h, req); warned(p, "only-there: needed by") {
		t.Errorf("named although it comes back: %q", p.Warnings)
	}
	set, err := transform.New(transform.Options{
		StorageClasses: map[string]string{"only-there": "standard"},
		Expressions:    []transform.Expression{{Name: "unpin", When: `resource == "pods" && has(object.spec.nodeSelector)`, Patch: `{"spec": {"nodeSelector": null}, "metadata": {"labels": {"from": fromNamespace, "to": toNamespace}}}`}},
	})
	ok(t, err)
	req.Transforms, req.Cluster = set, ClusterNone
	p = w.plan(h, req)
	if !warned(p, "standard: needed by") || warned(p, "node-7") || !strings.Contains(planText(p), "changed on the way: 1 by unpin") {
		t.Errorf("transformed: %s", planText(p))
	}
	res := w.apply(p)
	pod := w.get("pods", "absent-2", "pinned")
	if pod.at("spec", "nodeSelector") != nil || pod.label("from") != "absent" || pod.label("to") != "absent-2" {
		t.Errorf("the expression did not apply: %v", pod.at("metadata", "labels"))
	}
	w.announced(p, res, "absent-2", "Restored")
}
