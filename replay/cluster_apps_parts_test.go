package replay

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// operate is the operator of testdata/apps/operator.yaml. While its Deployment wants replicas it gives each Fleet as many
// Ships as it wants, with names that the API server chooses, and each Ship a log: it would make all of them once
// more if it ran before the Ships of a restored Fleet are back.
func operate(w *world) {
	stop, done := make(chan struct{}), make(chan struct{})
	w.Cleanup(func() { close(stop); <-done })
	target, err := NewTarget(w.config)
	ok(w.T, err)
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			if err := target.refresh(w.Context()); err == nil {
				sail(w, target)
			}
		}
	}()
	w.eventually("the fleet", func() bool {
		return len(w.list("ships.sea.example.com", "app-operator")) == 4 && len(w.list("configmaps", "app-operator")) == 5
	})
	w.eventually("its status", func() bool {
		return w.get("fleets.sea.example.com", "app-operator", "north").at("status", "ships") == int64(3)
	})
}

// sail is one round of the operator. What fails is done in the next.
func sail(w *world, target *Target) {
	ctx := w.Context()
	find := func(gr string) (servedResource, []object) {
		r, served := target.version(parseGR(gr), "")
		if !served {
			return r, nil
		}
		list, err := target.client(r, "app-operator").List(ctx, metav1.ListOptions{})
		if err != nil {
			return r, nil
		}
		var all []object
		for _, u := range list.Items {
			all = append(all, u.Object)
		}
		return r, all
	}
	_, deployments := find("deployments.apps")
	if len(deployments) != 1 || deployments[0].at("spec", "replicas") == int64(0) {
		return
	}
	fleetsAt, fleets := find("fleets.sea.example.com")
	shipsAt, ships := find("ships.sea.example.com")
	logsAt, logs := find("configmaps")
	child := func(r servedResource, apiVersion, kind string, of object, named string) {
		o := object{"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"generateName": named, "namespace": "app-operator", "ownerReferences": []any{map[string]any{
			"apiVersion": of.str("apiVersion"), "kind": of.str("kind"), "name": of.name(), "uid": of.uid(), "controller": true, "blockOwnerDeletion": true,
		}}}}
		_, _ = target.client(r, "app-operator").Create(ctx, o.unstructured(), metav1.CreateOptions{FieldManager: "operator"})
	}
	count := func(list []object, of object) (n int) {
		for _, o := range list {
			if c := o.controller(); c != nil && c.str("uid") == of.uid() {
				n++
			}
		}
		return n
	}
	for _, f := range fleets {
		want, _ := f.at("spec", "ships").(int64)
		have := int64(count(ships, f))
		for range want - have {
			child(shipsAt, "sea.example.com/v1", "Ship", f, f.name()+"-")
		}
		if f.at("status", "ships") != have {
			f.put(have, "status", "ships")
			_, _ = target.client(fleetsAt, "app-operator").UpdateStatus(ctx, f.unstructured(), metav1.UpdateOptions{FieldManager: "operator"})
		}
	}
	for _, s := range ships {
		if count(logs, s) == 0 {
			child(logsAt, "v1", "ConfigMap", s, s.name()+"-log-")
		}
	}
}

// admission is an application that watches over its own namespace: a webhook stamps its ConfigMaps, another refuses those without
// a stamp, and a policy refuses Secrets of a kind of which it has an older one. Restored before its objects, its rules would
// refuse that one. The webhooks run in this process.
func admission(w *world) string {
	server := httptest.NewTLSServer(http.HandlerFunc(review))
	w.Cleanup(server.Close)
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	hook := func(kind, path string) string {
		return fmt.Sprintf(`
apiVersion: admissionregistration.k8s.io/v1
kind: %s
metadata: {name: app-admission-%s, labels: {app.kubernetes.io/part-of: app-admission}}
webhooks:
- name: %s.admission.example.com
  clientConfig: {url: "%s/%s", caBundle: %s}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps], scope: Namespaced}]
  namespaceSelector: {matchLabels: {app.kubernetes.io/part-of: app-admission}}
  objectSelector: {matchExpressions: [{key: app, operator: Exists}]}
  failurePolicy: Fail
  sideEffects: None
  admissionReviewVersions: [v1]
  timeoutSeconds: 5`, kind, path, path, server.URL, path, ca)
	}
	w.make("ci", `{apiVersion: v1, kind: Namespace, metadata: {name: app-admission, labels: {app.kubernetes.io/part-of: app-admission}}}`)
	w.make("ci", `{apiVersion: v1, kind: Secret, metadata: {name: old, namespace: app-admission, labels: {forbidden: "true"}}}`)
	w.make("ci", strings.TrimSpace(hook("MutatingWebhookConfiguration", "stamp")+"\n---\n"+hook("ValidatingWebhookConfiguration", "check")+`
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: app-admission, labels: {app.kubernetes.io/part-of: app-admission}}
spec:
  failurePolicy: Fail
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [secrets]}], namespaceSelector: {matchLabels: {app.kubernetes.io/part-of: app-admission}}}
  validations: [{expression: "!has(object.metadata.labels) || !('forbidden' in object.metadata.labels)", message: secrets of this kind are forbidden}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: app-admission, labels: {app.kubernetes.io/part-of: app-admission}}
spec: {policyName: app-admission, validationActions: [Deny]}`))
	secret := fromYAML(w.T, `{apiVersion: v1, kind: Secret, metadata: {name: new, namespace: app-admission, labels: {forbidden: "true"}}}`)
	w.eventually("the policy", func() bool {
		_, err := w.target.client(w.resource("secrets"), "app-admission").Create(w.Context(), secret.clone().unstructured(), metav1.CreateOptions{})
		if err == nil { // it is not in force yet
			w.delete("secrets", "app-admission", "new")
		}
		return apierrors.IsInvalid(err) || apierrors.IsForbidden(err)
	})
	stamped := func() bool {
		o := fromYAML(w.T, `{apiVersion: v1, kind: ConfigMap, metadata: {name: try, namespace: app-admission, labels: {app: x}}}`)
		u, err := w.target.client(w.resource("configmaps"), "app-admission").Create(w.Context(), o.unstructured(), metav1.CreateOptions{})
		if err != nil {
			return false
		}
		w.delete("configmaps", "app-admission", "try")
		return object(u.Object).annotation("stamped") == "yes"
	}
	w.eventually("the webhooks", stamped)
	return configMap("app-admission", "settings", "app: web") + "---\n" + configMap("app-admission", "other", "app: web")
}

// review answers as the webhooks of the application.
func review(rw http.ResponseWriter, r *http.Request) {
	var in struct {
		Request struct {
			UID    string `json:"uid"`
			Object object `json:"object"`
		} `json:"request"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	answer := map[string]any{"uid": in.Request.UID, "allowed": true}
	stamped := in.Request.Object.annotation("stamped") == "yes"
	switch {
	case r.URL.Path == "/stamp" && !stamped:
		patch := `[{"op": "add", "path": "/metadata/annotations", "value": {"stamped": "yes"}}]`
		answer["patchType"], answer["patch"] = "JSONPatch", base64.StdEncoding.EncodeToString([]byte(patch))
	case r.URL.Path == "/check" && !stamped:
		answer["allowed"], answer["status"] = false, map[string]any{"message": "it is not stamped"}
	}
	rw.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(rw).Encode(map[string]any{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer})
}
