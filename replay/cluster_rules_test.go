package replay

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const ruled = `
apiVersion: v1
kind: Pod
metadata: {name: mirror, namespace: ruled, annotations: {kubernetes.io/config.mirror: abc}}
spec: {nodeName: node-1, containers: [{name: c, image: "c:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: ruled}
spec: {nodeName: node-1, restartPolicy: Never, containers: [{name: c, image: "c:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: placed, namespace: ruled}
spec: {nodeName: node-1, priorityClassName: system-node-critical, containers: [{name: c, image: "c:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: dying, namespace: ruled, finalizers: [example.com/hold]}
spec: {containers: [{name: c, image: "c:1"}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: finished, namespace: ruled}
spec: {suspend: true, template: {spec: {restartPolicy: Never, containers: [{name: c, image: "c:1"}]}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot, namespace: ruled}
secrets: [{name: robot-token-abcde}, {name: mine}]
---
apiVersion: v1
kind: Secret
type: kubernetes.io/service-account-token
metadata: {name: default-token-abcde, namespace: ruled, annotations: {kubernetes.io/service-account.name: default}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: ruled-kept}
spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], persistentVolumeReclaimPolicy: Retain, storageClassName: "", hostPath: {path: /tmp/none}, claimRef: {namespace: ruled, name: kept}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: ruled-lost}
spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], persistentVolumeReclaimPolicy: Delete, storageClassName: "", hostPath: {path: /tmp/none}, claimRef: {namespace: ruled, name: lost}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept, namespace: ruled}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", volumeName: ruled-kept, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: lost, namespace: ruled}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", resources: {requests: {storage: 1Gi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: sized, namespace: ruled}
spec: {replicas: 1, selector: {matchLabels: {app: s}}, template: {metadata: {labels: {app: s}}, spec: {containers: [{name: c, image: "c:1"}]}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: sized, namespace: ruled}
spec: {maxReplicas: 5, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: sized}, metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: ruled, annotations: {cert-manager.io/inject-ca-from: ruled/ca}}
webhooks: [{name: a.ruled.example.com, clientConfig: {service: {name: s, namespace: ruled}, caBundle: aW5qZWN0ZWQ=}, failurePolicy: Ignore, sideEffects: None, admissionReviewVersions: [v1], rules: [{apiGroups: [ruled.example.com], apiVersions: [v1], operations: [CREATE], resources: [nothing]}]}]`

// testRules are the rules of which the other tests have no object that a real API server made or took: what is left out,
// what an object loses, and that it lives afterwards.
func testRules(t *testing.T, w *world) {
	w.make("ci", ns("ruled"))
	w.make("ci", ruled[1:])
	now := "2026-01-01T00:00:00Z"
	w.patch("kubelet", "pods", "ruled", "done", `{status: {phase: Succeeded}}`, "status")
	w.patch("kubelet", "jobs.batch", "ruled", "finished", `{spec: {suspend: false}}`)
	w.eventually("the Job to begin", func() bool { return w.get("jobs.batch", "ruled", "finished").at("status", "startTime") != nil })
	w.eventually("the Job to be done", func() bool {
		for _, p := range w.list("pods", "ruled") {
			if c := p.controller(); c != nil && c.str("name") == "finished" && p.str("status", "phase") == "Pending" {
				w.patch("kubelet", "pods", "ruled", p.name(), `{status: {phase: Succeeded, startTime: "`+now+`"}}`, "status")
			}
		}
		for _, c := range w.get("jobs.batch", "ruled", "finished").objects("status", "conditions") {
			if c.str("type") == "Complete" {
				return true
			}
		}
		return false
	})
	w.delete("pods", "ruled", "dying")
	for _, claim := range []string{"kept", "lost"} {
		w.eventually("the claim to be bound", func() bool { return w.get("persistentvolumeclaims", "ruled", claim).str("status", "phase") == "Bound" })
	}
	h := w.record()
	w.patch("ci", "pods", "ruled", "dying", `{metadata: {finalizers: null}}`)
	w.patch("ci", "deployments.apps", "ruled", "sized", `{spec: {replicas: 4}}`)

	// An autoscaler keeps what it sized, of what is there.
	p := w.plan(h, RestoreRequest{Scope: Scope{Namespaces: []string{"ruled"}, Resources: []schema.GroupResource{{Group: "apps", Resource: "deployments"}, autoscalers}}, Existing: ExistingUpdate, Exact: true})
	w.want(p, "deployments.apps", "sized", ActionUnchanged, "")

	for _, pod := range []string{"mirror", "done", "placed"} { // no kubelet will say that they have ended
		at := int64(0)
		ok(t, w.target.client(w.resource("pods"), "ruled").Delete(t.Context(), pod, metav1.DeleteOptions{GracePeriodSeconds: &at}))
	}
	w.delete("validatingwebhookconfigurations.admissionregistration.k8s.io", "", "ruled")
	w.delete("namespaces", "", "ruled")
	for _, pv := range []string{"ruled-kept", "ruled-lost"} {
		w.delete("persistentvolumes", "", pv)
	}
	w.patch("ci", "persistentvolumeclaims", "ruled", "kept", `{metadata: {finalizers: null}}`)
	w.patch("ci", "persistentvolumeclaims", "ruled", "lost", `{metadata: {finalizers: null}}`)
	w.gone("namespaces", "", "ruled")
	for _, pv := range []string{"ruled-kept", "ruled-lost"} {
		w.patchIfThere("persistentvolumes", pv, `{metadata: {finalizers: null}}`)
		w.gone("persistentvolumes", "", pv)
	}

	p = w.plan(h, RestoreRequest{Scope: InNamespace("ruled"), Cluster: ClusterAll})
	for _, c := range []struct{ resource, name, rule string }{
		{"pods", "mirror", "mirror-pod"},
		{"pods", "done", "finished-pod"},
		{"pods", "dying", "being-deleted"},
		{"jobs.batch", "finished", "finished-job"},
		{"secrets", "default-token-abcde", "default-token"},
		{"persistentvolumes", "ruled-lost", "volume-without-data"},
	} {
		if it := w.want(p, c.resource, c.name, ActionSkip, ""); it.Rule != c.rule {
			t.Errorf("%s %s is left out by %q, want %s", c.resource, c.name, it.Rule, c.rule)
		}
	}
	w.apply(p)
	if o := w.get("pods", "ruled", "placed"); o.str("spec", "nodeName") != "" || o.str("spec", "priorityClassName") != "system-node-critical" || o.at("spec", "priority") != int64(2000001000) {
		t.Errorf("the placed Pod came back on %q with priority %v", o.str("spec", "nodeName"), o.at("spec", "priority"))
	}
	if got := w.get("serviceaccounts", "ruled", "robot").objects("secrets"); len(got) != 1 || got[0].str("name") != "mine" {
		t.Errorf("the account has the secrets %v", got)
	}
	w.eventually("the claim to be bound to its volume", func() bool {
		c := w.get("persistentvolumeclaims", "ruled", "kept")
		return c.str("status", "phase") == "Bound" && c.str("spec", "volumeName") == "ruled-kept"
	})
	if c := w.get("persistentvolumeclaims", "ruled", "lost"); c.str("spec", "volumeName") != "" || c.str("status", "phase") != "Pending" {
		t.Errorf("the claim whose volume is lost: %v", c)
	}
	hook := w.get("validatingwebhookconfigurations.admissionregistration.k8s.io", "", "ruled").objects("webhooks")[0]
	if hook.at("clientConfig", "caBundle") != nil {
		t.Error("a CA that was injected came back")
	}
}

// patchIfThere patches a cluster-scoped object that may be gone already.
func (w *world) patchIfThere(gr, name, y string) {
	w.Helper()
	if w.find(gr, "", name) != nil {
		w.patch("ci", gr, "", name, y)
	}
}
