package replay

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func testRecreate(t *testing.T, w *world) {
	w.make("ci", ns("fixed"))
	const web = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: fixed}
spec:
  selector: {matchLabels: {app: APP}}
  template: {metadata: {labels: {app: APP}}, spec: {containers: [{name: web, image: "web:1"}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: fixed}
spec: {accessModes: [ACCESS], storageClassName: none, resources: {requests: {storage: 1Gi}}}`
	w.make("ci", strings.NewReplacer("APP", "old", "ACCESS", "ReadWriteOnce").Replace(web))
	h := w.record()
	for _, gr := range []string{"deployments.apps", "persistentvolumeclaims"} {
		name := map[string]string{"deployments.apps": "web", "persistentvolumeclaims": "data"}[gr]
		w.delete(gr, "fixed", name)
		w.gone(gr, "fixed", name)
	}
	w.make("ci", strings.NewReplacer("APP", "new", "ACCESS", "ReadWriteMany").Replace(web))
	req := RestoreRequest{Scope: InNamespace("fixed"), Existing: ExistingUpdate, Exact: true}
	p := w.plan(h, req)
	w.want(p, "deployments.apps", "web", ActionFail, "spec.selector")
	if res, err := p.Apply(t.Context(), w.target, ApplyOptions{}); !errors.Is(err, ErrNotRestored) || errors.Is(err, ErrPartly) || res.Failed != 2 {
		t.Errorf("%v, %+v", err, res)
	}
	req.Existing = ExistingRecreate
	p = w.plan(h, req)
	w.want(p, "deployments.apps", "web", ActionRecreate, "spec.selector")
	w.want(p, "persistentvolumeclaims", "data", ActionFail, "never deleted")
	uid := w.get("deployments.apps", "fixed", "web").uid()
	sets := 0
	for _, it := range p.Items {
		if it.Resource.Resource == "replicasets" && it.Action == ActionDelete && strings.Contains(it.Reason, "makes its own") {
			sets++
		}
	}
	if sets != 1 {
		t.Errorf("the plan does not delete the ReplicaSet that the new Deployment does not select:\n%s", planText(p))
	}
	if res, err := p.Apply(t.Context(), w.target, ApplyOptions{}); !errors.Is(err, ErrPartly) || res.Failed != 1 {
		t.Errorf("%v, %+v", err, res)
	}
	o := w.get("deployments.apps", "fixed", "web")
	if o.uid() == uid || o.str("spec", "selector", "matchLabels", "app") != "old" {
		t.Errorf("not created anew: %v", o.sub("spec", "selector"))
	}
	w.eventually("the pods of the old Deployment to be gone", func() bool {
		for _, pod := range w.list("pods", "fixed") {
			if pod.label("app") == "new" {
				return false
			}
		}
		return true
	})

	// A StatefulSet made anew takes over the Pods it has, and the claims that would go with it.
	const set = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: fixed}
spec:
  serviceName: NAME
  replicas: 1
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete, whenScaled: Retain}
  selector: {matchLabels: {app: db}}
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: db, image: "db:1"}]}}
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], storageClassName: none, resources: {requests: {storage: 1Gi}}}}]`
	w.make("ci", strings.Replace(set, "NAME", "one", 1))
	h = w.record()
	w.delete("statefulsets.apps", "fixed", "db")
	w.gone("statefulsets.apps", "fixed", "db")
	w.eventually("the pod and the claim to be gone", func() bool {
		for _, pod := range w.list("pods", "fixed") {
			if pod.name() == "db-0" && pod.str("spec", "nodeName") == "" { // no kubelet ends it
				_ = w.target.client(w.resource("pods"), "fixed").Delete(t.Context(), "db-0", metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
			}
		}
		return w.find("pods", "fixed", "db-0") == nil && w.find("persistentvolumeclaims", "fixed", "data-db-0") == nil
	})
	w.make("ci", strings.Replace(set, "NAME", "two", 1))
	owner := w.get("statefulsets.apps", "fixed", "db").uid()
	owns := func(gr, name string) bool {
		o := w.find(gr, "fixed", name)
		return o != nil && slices.ContainsFunc(o.objects("metadata", "ownerReferences"), func(ref object) bool { return ref.str("uid") == owner })
	}
	w.eventually("its claim and pod", func() bool { return owns("persistentvolumeclaims", "data-db-0") && owns("pods", "db-0") })
	claim, pod := w.get("persistentvolumeclaims", "fixed", "data-db-0").uid(), w.get("pods", "fixed", "db-0").uid()
	p = w.plan(h, RestoreRequest{Scope: Scope{Namespaces: []string{"fixed"}, Resources: []schema.GroupResource{parseGR("statefulsets.apps")}}, Existing: ExistingRecreate})
	w.want(p, "statefulsets.apps", "db", ActionRecreate, "spec")
	w.apply(p)
	if owner = w.get("statefulsets.apps", "fixed", "db").uid(); !owns("persistentvolumeclaims", "data-db-0") || !owns("pods", "db-0") {
		t.Error("the claim or the pod does not belong to the new StatefulSet")
	}
	if c, o := w.get("persistentvolumeclaims", "fixed", "data-db-0").uid(), w.get("pods", "fixed", "db-0").uid(); c != claim || o != pod {
		t.Error("the claim or the pod went with the old StatefulSet")
	}
}

func testRecreatedOwner(t *testing.T, w *world) {
	w.make("ci", ns("heirs"))
	// A Job's template cannot change; a ConfigMap belongs to the Job.
	const job = `
apiVersion: batch/v1
kind: Job
metadata: {name: j, namespace: heirs}
spec: {suspend: true, template: {spec: {restartPolicy: Never, terminationGracePeriodSeconds: GRACE, containers: [{name: c, image: "a:1"}]}}}`
	owned := func() string {
		return `{apiVersion: v1, kind: ConfigMap, metadata: {name: owned, namespace: heirs, ownerReferences: [{apiVersion: batch/v1, kind: Job, name: j, uid: ` + w.get("jobs.batch", "heirs", "j").uid() + `}]}}`
	}
	w.make("ci", strings.Replace(job, "GRACE", "1", 1))
	w.make("ci", owned())
	h := w.record()
	w.delete("jobs.batch", "heirs", "j")
	w.gone("jobs.batch", "heirs", "j")
	w.gone("configmaps", "heirs", "owned")
	w.make("ci", strings.Replace(job, "GRACE", "2", 1))
	w.make("ci", owned())
	// History knows nothing of the claim; what it holds must not go with the Job.
	w.make("ci", `{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data, namespace: heirs, ownerReferences: [{apiVersion: batch/v1, kind: Job, name: j, uid: `+w.get("jobs.batch", "heirs", "j").uid()+`}]}, spec: {accessModes: [ReadWriteOnce], storageClassName: none, resources: {requests: {storage: 1Gi}}}}`)
	claim := w.get("persistentvolumeclaims", "heirs", "data").uid()
	p := w.plan(h, RestoreRequest{Scope: InNamespace("heirs"), Existing: ExistingRecreate})
	w.want(p, "persistentvolumeclaims", "data", ActionUpdate, "belongs to jobs.batch heirs/j, which is created anew")
	it := w.want(p, "jobs.batch", "j", ActionRecreate, "spec.template")
	if c := w.want(p, "configmaps", "owned", ActionUpdate, "created anew"); c.Wave <= it.Wave {
		t.Errorf("the owned is written in wave %d, its owner in %d", c.Wave, it.Wave)
	}
	w.apply(p)
	uid := w.get("jobs.batch", "heirs", "j").uid()
	for range 20 { // the garbage collector must leave it alone
		if ref := w.get("configmaps", "heirs", "owned").objects("metadata", "ownerReferences"); len(ref) != 1 || ref[0].str("uid") != uid {
			t.Fatalf("owner %v, want the new Job %s", ref, uid)
		}
		if o := w.get("persistentvolumeclaims", "heirs", "data"); o.deleting() || o.uid() != claim || o.objects("metadata", "ownerReferences")[0].str("uid") != uid {
			t.Fatalf("the claim was deleted, or belongs to %v", o.objects("metadata", "ownerReferences"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}
