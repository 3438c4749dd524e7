package replay

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func mustSelector(t testing.TB, s string) labels.Selector {
	t.Helper()
	sel, err := labels.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

// ruleCase is an object before and after the rules, or why it is left out.
type ruleCase struct {
	rule, name string // what it protects from
	resource   string
	before     string
	after      string   // empty: it is left out
	kept       bool     // not left out, and nothing is said about its form
	others     []string // resource, object, ... that were there as well
	req        RestoreRequest
	exists     bool
}

var ruleCases = []ruleCase{
	{rule: "never-restored", name: "old nodes and events come back as ghosts", resource: "events", before: `{kind: Event, metadata: {name: e, namespace: a}}`},
	{rule: "never-restored", name: "a stale lease blocks a leader election", resource: "leases.coordination.k8s.io", before: `{kind: Lease, metadata: {name: l, namespace: a}}`},
	{rule: "being-deleted", name: "an object that was going comes back forever", resource: "configmaps", before: `{kind: ConfigMap, metadata: {name: c, namespace: a, deletionTimestamp: "2026-01-01T00:00:00Z"}}`},
	{rule: "excluded-by-label", name: "what is kept out of backups comes back", resource: "configmaps", before: `{kind: ConfigMap, metadata: {name: c, namespace: a, labels: {velero.io/exclude-from-backup: "true"}}}`},
	{rule: "excluded-by-label", name: "the label with another value keeps nothing out", resource: "configmaps", before: `{kind: ConfigMap, metadata: {name: c, namespace: a, labels: {velero.io/exclude-from-backup: "false"}}}`, kept: true},
	{rule: "volume-backup", name: "the claim that a backup made of a snapshot comes back", resource: "persistentvolumeclaims", before: `{kind: PersistentVolumeClaim, metadata: {name: c, namespace: a, labels: {tidemark.dev/volume: c}}}`},
	{rule: "mirror-pod", name: "a static pod's mirror is refused by the kubelet", resource: "pods", before: `{kind: Pod, metadata: {name: p, namespace: a, annotations: {kubernetes.io/config.mirror: x}}}`},
	{rule: "finished-pod", name: "finished work is done twice", resource: "pods", before: `{kind: Pod, metadata: {name: p, namespace: a}, status: {phase: Succeeded}}`},
	{rule: "finished-pod", name: "running pods are kept", resource: "pods", before: `{kind: Pod, metadata: {name: p, namespace: a}, status: {phase: Running}}`, kept: true},
	{rule: "finished-job", name: "a finished Job runs again", resource: "jobs.batch", before: `{kind: Job, metadata: {name: j, namespace: a}, status: {conditions: [{type: Complete, status: "True"}]}}`},
	{rule: "finished-job", name: "a running Job is kept", resource: "jobs.batch", before: `{kind: Job, metadata: {name: j, namespace: a}, status: {conditions: [{type: Complete, status: "False"}]}}`, kept: true},
	{rule: "default-token", name: "dead default tokens pile up", resource: "secrets", before: `{kind: Secret, type: kubernetes.io/service-account-token, metadata: {name: default-token-x2b4c, namespace: a, annotations: {kubernetes.io/service-account.name: default}}}`},
	{rule: "root-ca", name: "the old cluster's CA is trusted in the new one", resource: "configmaps", before: `{kind: ConfigMap, metadata: {name: kube-root-ca.crt, namespace: a}}`},
	{rule: "default-service-account", name: "the plain default account is the controller's", resource: "serviceaccounts", before: `{kind: ServiceAccount, metadata: {name: default, namespace: a}, secrets: [{name: default-token-x}]}`},
	{rule: "default-service-account", name: "pull secrets of the default account are lost", resource: "serviceaccounts", before: `{kind: ServiceAccount, metadata: {name: default, namespace: a}, imagePullSecrets: [{name: r}]}`, kept: true},
	{rule: "api-server-made", name: "the kubernetes Service is overwritten", resource: "services", before: `{kind: Service, metadata: {name: kubernetes, namespace: default}, spec: {ports: []}}`},
	{rule: "auto-api-service", name: "local APIServices are overwritten", resource: "apiservices.apiregistration.k8s.io", before: `{kind: APIService, metadata: {name: v1.apps}, spec: {version: v1}}`},
	{rule: "controller-endpoints", name: "dead pods get traffic through old slices", resource: "endpointslices.discovery.k8s.io", before: `{kind: EndpointSlice, metadata: {name: s, namespace: a, labels: {endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io}}}`},
	{rule: "controller-endpoints", name: "hand-written slices are lost", resource: "endpointslices.discovery.k8s.io", before: `{kind: EndpointSlice, metadata: {name: s, namespace: a, labels: {endpointslice.kubernetes.io/managed-by: me}}}`, kept: true},
	{
		rule: "controller-endpoints", name: "dead pods get traffic through old Endpoints", resource: "endpoints", before: `{kind: Endpoints, metadata: {name: s, namespace: a}}`,
		others: []string{"services", `{kind: Service, metadata: {name: s, namespace: a}, spec: {selector: {app: x}}}`},
	},
	{
		rule: "controller-endpoints", name: "hand-written Endpoints are lost", resource: "endpoints", before: `{kind: Endpoints, metadata: {name: s, namespace: a}}`, kept: true,
		others: []string{"services", `{kind: Service, metadata: {name: s, namespace: a}, spec: {}}`},
	},
	{rule: "volume-without-data", name: "a volume without its storage is Failed", resource: "persistentvolumes", before: `{kind: PersistentVolume, metadata: {name: v}, spec: {persistentVolumeReclaimPolicy: Delete}}`},
	{
		rule: "made-by-controller", name: "twice as many pods as replicas", resource: "pods", before: `{kind: Pod, metadata: {name: p, namespace: a, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: rs, uid: u, controller: true}]}}`,
		others: []string{"replicasets.apps", `{kind: ReplicaSet, metadata: {name: rs, namespace: a, uid: u}}`},
	},
	{
		rule: "made-by-controller", name: "pods are brought back when asked for", resource: "pods", before: `{kind: Pod, metadata: {name: p, namespace: a, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: rs, uid: u, controller: true}]}}`, kept: true,
		others: []string{"replicasets.apps", `{kind: ReplicaSet, metadata: {name: rs, namespace: a, uid: u}}`}, req: RestoreRequest{Owned: true},
	},
	{
		rule: "made-by-controller", name: "all pods of a namespace are made beside those of their controllers", resource: "pods", before: `{kind: Pod, metadata: {name: p, namespace: a, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: rs, uid: u, controller: true}]}}`,
		req: RestoreRequest{Scope: Scope{Resources: []schema.GroupResource{{Resource: "pods"}}}},
	},
	{
		rule: "made-by-controller", name: "pods that are named are meant", resource: "pods", before: `{kind: Pod, metadata: {name: p, namespace: a, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: rs, uid: u, controller: true}]}}`, kept: true,
		req: RestoreRequest{Scope: Scope{Resources: []schema.GroupResource{{Resource: "pods"}}}, Named: true},
	},
	{rule: "made-by-controller", name: "pods whose controller does not come back are lost", resource: "pods", before: `{kind: Pod, metadata: {name: p, namespace: a, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: rs, uid: u, controller: true}]}}`, kept: true},
	{
		rule: "made-by-controller", name: "what an operator may never make again is lost", resource: "replicasets.apps", before: `{kind: ReplicaSet, metadata: {name: rs, namespace: a, ownerReferences: [{apiVersion: argoproj.io/v1alpha1, kind: Deployment, name: r, uid: u, controller: true}]}}`, kept: true,
		others: []string{"rollouts.argoproj.io", `{kind: Deployment, metadata: {name: r, namespace: a, uid: u}}`},
	},
	{
		rule: "made-by-controller", name: "pods are made anew although their ReplicaSet is left to its Deployment", resource: "pods", before: `{kind: Pod, metadata: {name: p, namespace: a, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: rs, uid: u, controller: true}]}}`,
		others: []string{
			"replicasets.apps", `{kind: ReplicaSet, metadata: {name: rs, namespace: a, uid: u, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: d, uid: d, controller: true}]}}`,
			"deployments.apps", `{kind: Deployment, metadata: {name: d, namespace: a, uid: d}}`,
		},
	},
	{
		rule: "server-metadata", name: "the API server refuses a resourceVersion on create", resource: "configmaps",
		before: `{kind: ConfigMap, metadata: {name: c, namespace: a, uid: u, resourceVersion: "1", generation: 2, creationTimestamp: x, selfLink: s, generateName: c-, managedFields: [{manager: m}], labels: {}, finalizers: [f], annotations: {k: v}}}`,
		after:  `{kind: ConfigMap, metadata: {name: c, namespace: a, finalizers: [f], annotations: {k: v}}}`,
	},
	{rule: "status", name: "a status of yesterday misleads controllers", resource: "ingresses.networking.k8s.io", before: `{kind: Ingress, metadata: {name: i, namespace: a}, status: {x: 1}}`, after: `{kind: Ingress, metadata: {name: i, namespace: a}}`},
	{
		rule: "namespace-mapping", name: "a copy lands in the original namespace", resource: "configmaps", before: `{kind: ConfigMap, metadata: {name: c, namespace: a}}`, after: `{kind: ConfigMap, metadata: {name: c, namespace: b}}`,
		req: RestoreRequest{NamespaceMappings: map[string]string{"a": "b"}},
	},
	{
		rule: "namespace", name: "a copied namespace keeps its security labels under its new name", resource: "namespaces",
		before: `{kind: Namespace, metadata: {name: a, labels: {kubernetes.io/metadata.name: a, pod-security.kubernetes.io/enforce: restricted}}, spec: {finalizers: [kubernetes]}}`,
		after:  `{kind: Namespace, metadata: {name: b, labels: {kubernetes.io/metadata.name: b, pod-security.kubernetes.io/enforce: restricted}}}`,
		req:    RestoreRequest{NamespaceMappings: map[string]string{"a": "b"}},
	},
	{
		rule: "pod", name: "a pod stays on a node that is gone, with a token that is not valid", resource: "pods",
		before: `{kind: Pod, metadata: {name: p, namespace: a}, spec: {nodeName: n, priority: 5, priorityClassName: high, ephemeralContainers: [{name: e}], volumes: [{name: kube-api-access-x, projected: {}}, {name: data, emptyDir: {}}], initContainers: [{name: i, volumeMounts: [{name: kube-api-access-x, mountPath: /x}]}], containers: [{name: c, volumeMounts: [{name: data, mountPath: /d}, {name: kube-api-access-x, mountPath: /var/run/secrets/kubernetes.io/serviceaccount}]}]}}`,
		after:  `{kind: Pod, metadata: {name: p, namespace: a}, spec: {priorityClassName: high, volumes: [{name: data, emptyDir: {}}], initContainers: [{name: i}], containers: [{name: c, volumeMounts: [{name: data, mountPath: /d}]}]}}`,
	},
	{
		rule: "pod", name: "a pod mounts a token secret of an old cluster", resource: "pods",
		before: `{kind: Pod, metadata: {name: p, namespace: a}, spec: {volumes: [{name: sa-token-x, secret: {secretName: sa-token-x}}], containers: [{name: c, volumeMounts: [{name: sa-token-x, mountPath: /var/run/secrets/kubernetes.io/serviceaccount}]}]}}`,
		after:  `{kind: Pod, metadata: {name: p, namespace: a}, spec: {containers: [{name: c}]}}`,
	},
	{
		rule: "restore-init-hook", name: "what has to be done before a restored pod runs is not done", resource: "pods",
		before: `{kind: Pod, metadata: {name: p, namespace: a, annotations: {init.hook.restore.velero.io/container-image: "busybox:1", init.hook.restore.velero.io/command: '["sh", "-c", "true"]'}}, spec: {initContainers: [{name: i}], containers: [{name: c, volumeMounts: [{name: data, mountPath: /d}]}]}}`,
		after:  `{kind: Pod, metadata: {name: p, namespace: a, annotations: {init.hook.restore.velero.io/container-image: "busybox:1", init.hook.restore.velero.io/command: '["sh", "-c", "true"]'}}, spec: {initContainers: [{name: restore-hook, image: "busybox:1", command: [sh, -c, "true"], volumeMounts: [{name: data, mountPath: /d}]}, {name: i}], containers: [{name: c, volumeMounts: [{name: data, mountPath: /d}]}]}}`,
	},
	{
		rule: "deployment-revision", name: "a rollout number counts as a difference", resource: "deployments.apps",
		before: `{kind: Deployment, metadata: {name: d, namespace: a, annotations: {deployment.kubernetes.io/revision: "3"}}}`, after: `{kind: Deployment, metadata: {name: d, namespace: a}}`,
	},
	{
		rule: "daemonset-generation", name: "a generation number counts as a difference", resource: "daemonsets.apps",
		before: `{kind: DaemonSet, metadata: {name: d, namespace: a, annotations: {deprecated.daemonset.template.generation: "3", k: v}}}`, after: `{kind: DaemonSet, metadata: {name: d, namespace: a, annotations: {k: v}}}`,
	},
	{
		rule: "job-selector", name: "a Job never finds its pods by the old uid", resource: "jobs.batch",
		before: `{kind: Job, metadata: {name: j, namespace: a}, spec: {selector: {matchLabels: {batch.kubernetes.io/controller-uid: u}}, template: {metadata: {labels: {controller-uid: u, batch.kubernetes.io/controller-uid: u, job-name: j, batch.kubernetes.io/job-name: j, app: x}}}}}`,
		after:  `{kind: Job, metadata: {name: j, namespace: a}, spec: {template: {metadata: {labels: {app: x}}}}}`,
	},
	{
		rule: "job-selector", name: "a Job carries the uid of its former self as a label", resource: "jobs.batch",
		before: `{kind: Job, metadata: {name: j, namespace: a, uid: u, labels: {controller-uid: u, batch.kubernetes.io/controller-uid: u, app: x}}, spec: {template: {}}}`,
		after:  `{kind: Job, metadata: {name: j, namespace: a, labels: {app: x}}, spec: {template: {}}}`,
	},
	{
		rule: "job-selector", name: "a label that somebody wrote is lost", resource: "jobs.batch",
		before: `{kind: Job, metadata: {name: j, namespace: a, uid: u, labels: {controller-uid: mine}}, spec: {template: {}}}`,
		after:  `{kind: Job, metadata: {name: j, namespace: a, labels: {controller-uid: mine}}, spec: {template: {}}}`,
	},
	{
		rule: "job-selector", name: "a selector that somebody wrote is kept", resource: "jobs.batch",
		before: `{kind: Job, metadata: {name: j, namespace: a}, spec: {manualSelector: true, selector: {matchLabels: {app: x}}, template: {metadata: {labels: {app: x}}}}}`,
		after:  `{kind: Job, metadata: {name: j, namespace: a}, spec: {manualSelector: true, selector: {matchLabels: {app: x}}, template: {metadata: {labels: {app: x}}}}}`,
	},
	{
		rule: "autoscaled-replicas", name: "a rewind scales a busy service down", resource: "deployments.apps", exists: true,
		before: `{kind: Deployment, metadata: {name: d, namespace: a}, spec: {replicas: 2, paused: true}}`, after: `{kind: Deployment, metadata: {name: d, namespace: a}, spec: {paused: true}}`,
		others: []string{"horizontalpodautoscalers.autoscaling", `{kind: HorizontalPodAutoscaler, metadata: {name: h, namespace: a}, spec: {scaleTargetRef: {kind: Deployment, name: d}}}`},
	},
	{
		rule: "autoscaled-replicas", name: "a new workload starts with the size it had", resource: "deployments.apps",
		before: `{kind: Deployment, metadata: {name: d, namespace: a}, spec: {replicas: 2}}`, after: `{kind: Deployment, metadata: {name: d, namespace: a}, spec: {replicas: 2}}`,
		others: []string{"horizontalpodautoscalers.autoscaling", `{kind: HorizontalPodAutoscaler, metadata: {name: h, namespace: a}, spec: {scaleTargetRef: {kind: Deployment, name: d}}}`},
	},
	{
		rule: "service-addresses", name: "an address that somebody else has by now is refused", resource: "services",
		before: `{kind: Service, metadata: {name: s, namespace: a}, spec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], healthCheckNodePort: 31000, ports: [{port: 80, protocol: TCP, nodePort: 30001}]}}`,
		after:  `{kind: Service, metadata: {name: s, namespace: a}, spec: {ports: [{port: 80, protocol: TCP}]}}`,
	},
	{
		rule: "service-addresses", name: "a headless Service gets an address", resource: "services",
		before: `{kind: Service, metadata: {name: s, namespace: a}, spec: {clusterIP: None, clusterIPs: [None]}}`, after: `{kind: Service, metadata: {name: s, namespace: a}, spec: {clusterIP: None, clusterIPs: [None]}}`,
	},
	{
		rule: "service-addresses", name: "a port that a person chose is lost", resource: "services",
		before: `{kind: Service, metadata: {name: s, namespace: a, managedFields: [{manager: m, fieldsV1: {"f:spec": {"f:ports": {'k:{"port":80,"protocol":"TCP"}': {"f:nodePort": {}}}}}}]}, spec: {clusterIP: 10.0.0.1, ports: [{port: 80, protocol: TCP, nodePort: 30001}, {port: 81, protocol: TCP, nodePort: 30002}]}}`,
		after:  `{kind: Service, metadata: {name: s, namespace: a}, spec: {ports: [{port: 80, protocol: TCP, nodePort: 30001}, {port: 81, protocol: TCP}]}}`,
	},
	{
		rule: "service-addresses", name: "addresses that kubectl apply asked for are lost", resource: "services",
		before: `{kind: Service, metadata: {name: s, namespace: a, annotations: {kubectl.kubernetes.io/last-applied-configuration: '{"spec":{"clusterIP":"10.0.0.1","ports":[{"port":80,"nodePort":30001}]}}'}}, spec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], ports: [{port: 80, protocol: TCP, nodePort: 30001}]}}`,
		after:  `{kind: Service, metadata: {name: s, namespace: a, annotations: {kubectl.kubernetes.io/last-applied-configuration: '{"spec":{"clusterIP":"10.0.0.1","ports":[{"port":80,"nodePort":30001}]}}'}}, spec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], ports: [{port: 80, protocol: TCP, nodePort: 30001}]}}`,
	},
	{
		rule: "service-account-tokens", name: "an account refers to tokens that are not valid", resource: "serviceaccounts",
		before: `{kind: ServiceAccount, metadata: {name: web, namespace: a}, secrets: [{name: web-token-x}, {name: web-dockercfg-y}, {name: mine}]}`, after: `{kind: ServiceAccount, metadata: {name: web, namespace: a}, secrets: [{name: mine}]}`,
	},
	{
		rule: "token-secret", name: "a token of the old account is kept as if it were valid", resource: "secrets",
		before: `{kind: Secret, type: kubernetes.io/service-account-token, metadata: {name: t, namespace: a, annotations: {kubernetes.io/service-account.name: web, kubernetes.io/service-account.uid: u}}, data: {token: eA==, ca.crt: eA==, namespace: eA==, extra: eA==}}`,
		after:  `{kind: Secret, type: kubernetes.io/service-account-token, metadata: {name: t, namespace: a, annotations: {kubernetes.io/service-account.name: web}}, data: {extra: eA==}}`,
	},
	{
		rule: "token-secret", name: "other secrets keep what they hold", resource: "secrets",
		before: `{kind: Secret, type: Opaque, metadata: {name: t, namespace: a}, data: {token: eA==}}`, after: `{kind: Secret, type: Opaque, metadata: {name: t, namespace: a}, data: {token: eA==}}`,
	},
	{
		rule: "binding-subjects", name: "a copy's accounts have no rights", resource: "clusterrolebindings.rbac.authorization.k8s.io",
		before: `{kind: ClusterRoleBinding, metadata: {name: b}, subjects: [{kind: ServiceAccount, name: x, namespace: a}, {kind: ServiceAccount, name: y, namespace: c}, {kind: Group, name: g}]}`,
		after:  `{kind: ClusterRoleBinding, metadata: {name: b}, subjects: [{kind: ServiceAccount, name: x, namespace: b}, {kind: ServiceAccount, name: y, namespace: c}, {kind: Group, name: g}]}`,
		req:    RestoreRequest{NamespaceMappings: map[string]string{"a": "b"}},
	},
	{
		rule: "claim-binding", name: "a claim is Lost for want of its old volume", resource: "persistentvolumeclaims",
		before: `{kind: PersistentVolumeClaim, metadata: {name: c, namespace: a, labels: {tidemark.dev/taken-together: x}, annotations: {pv.kubernetes.io/bind-completed: "yes", pv.kubernetes.io/bound-by-controller: "yes", volume.kubernetes.io/storage-provisioner: p, volume.beta.kubernetes.io/storage-provisioner: p, volume.kubernetes.io/selected-node: n, k: v}}, spec: {volumeName: v, storageClassName: s}}`,
		after:  `{kind: PersistentVolumeClaim, metadata: {name: c, namespace: a, annotations: {k: v}}, spec: {storageClassName: s}}`,
	},
	{
		rule: "claim-binding", name: "a claim loses the volume that comes back with it", resource: "persistentvolumeclaims",
		before: `{kind: PersistentVolumeClaim, metadata: {name: c, namespace: a}, spec: {volumeName: v}}`, after: `{kind: PersistentVolumeClaim, metadata: {name: c, namespace: a}, spec: {volumeName: v}}`,
		others: []string{"persistentvolumes", `{kind: PersistentVolume, metadata: {name: v}, spec: {persistentVolumeReclaimPolicy: Retain}}`},
	},
	{
		rule: "volume-claim", name: "a volume waits for a claim that has another uid now", resource: "persistentvolumes",
		before: `{kind: PersistentVolume, metadata: {name: v, annotations: {pv.kubernetes.io/bound-by-controller: "yes"}}, spec: {persistentVolumeReclaimPolicy: Retain, claimRef: {name: c, namespace: a, uid: u, resourceVersion: "1"}}}`,
		after:  `{kind: PersistentVolume, metadata: {name: v}, spec: {persistentVolumeReclaimPolicy: Retain, claimRef: {name: c, namespace: b}}}`,
		req:    RestoreRequest{NamespaceMappings: map[string]string{"a": "b"}},
	},
	{
		rule: "webhook", name: "a webhook trusts a CA that was replaced", resource: "validatingwebhookconfigurations.admissionregistration.k8s.io",
		before: `{kind: ValidatingWebhookConfiguration, metadata: {name: w, annotations: {cert-manager.io/inject-ca-from: a/b}}, webhooks: [{name: x, sideEffects: Unknown, clientConfig: {caBundle: eA==, service: {name: s}}}]}`,
		after:  `{kind: ValidatingWebhookConfiguration, metadata: {name: w, annotations: {cert-manager.io/inject-ca-from: a/b}}, webhooks: [{name: x, sideEffects: None, clientConfig: {service: {name: s}}}]}`,
	},
	{
		rule: "webhook", name: "a CA that a person gave is kept", resource: "mutatingwebhookconfigurations.admissionregistration.k8s.io",
		before: `{kind: MutatingWebhookConfiguration, metadata: {name: w}, webhooks: [{name: x, sideEffects: NoneOnDryRun, clientConfig: {caBundle: eA==}}]}`,
		after:  `{kind: MutatingWebhookConfiguration, metadata: {name: w}, webhooks: [{name: x, sideEffects: NoneOnDryRun, clientConfig: {caBundle: eA==}}]}`,
	},
	{
		rule: "custom-resource-definition", name: "a definition from v1beta1 is refused", resource: "customresourcedefinitions.apiextensions.k8s.io",
		before: `{kind: CustomResourceDefinition, metadata: {name: d}, spec: {preserveUnknownFields: true, conversion: {strategy: Webhook, webhook: {clientConfig: {caBundle: eA==}}}}, status: {storedVersions: [v1]}}`,
		after:  `{kind: CustomResourceDefinition, metadata: {name: d}, spec: {preserveUnknownFields: false, conversion: {strategy: Webhook, webhook: {clientConfig: {caBundle: eA==}}}}}`,
	},
	{
		rule: "api-service", name: "an aggregated API trusts a CA that was replaced", resource: "apiservices.apiregistration.k8s.io",
		before: `{kind: APIService, metadata: {name: s, annotations: {cert-manager.io/inject-ca-from: a/b}}, spec: {caBundle: eA==, service: {name: s}}}`,
		after:  `{kind: APIService, metadata: {name: s, annotations: {cert-manager.io/inject-ca-from: a/b}}, spec: {service: {name: s}}}`,
	},
}

// pastOf makes the past of a case: its object first.
func (c *ruleCase) past(t *testing.T) *past {
	h := &history{}
	h.add(t, 1, c.resource, c.before)
	for i := 0; i < len(c.others); i += 2 {
		h.add(t, 1, c.others[i], c.others[i+1])
	}
	p := &past{byKey: map[objectKey]*entry{}, byUID: map[string]*entry{}, scaled: map[scaleTarget]bool{}}
	req := c.req
	req.Cut = h.now()
	if err := p.fold(t.Context(), h, &req, Scope{}); err != nil {
		t.Fatal(err)
	}
	p.refuseAll(&req)
	return p
}

func TestRules(t *testing.T) {
	tested := map[string]bool{}
	for _, c := range ruleCases {
		tested[c.rule] = true
		t.Run(c.rule+"/"+strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			p := c.past(t)
			o := fromYAML(t, c.before)
			i := slices.IndexFunc(p.list, func(e *entry) bool { return e.gr.String() == c.resource && e.name == o.name() })
			e := p.list[i]
			switch {
			case c.after == "" && !c.kept:
				if e.rule != c.rule || e.refused == "" {
					t.Errorf("left out by %q (%s), want by %q", e.rule, e.refused, c.rule)
				}
				return
			case e.refused != "":
				t.Fatalf("left out by %s: %s", e.rule, e.refused)
			case c.kept:
				return
			}
			prepare(&subject{gr: e.gr, obj: o, original: e.object(), exists: c.exists, req: &c.req, past: p})
			if diff := cmp.Diff(toYAML(fromYAML(t, c.after)), toYAML(o)); diff != "" {
				t.Error(diff)
			}
			// The rules are done with an object after one pass, and a live object that was
			// restored so is equal to what was wanted.
			live := o.clone()
			prepare(&subject{gr: e.gr, obj: live, original: live.clone(), live: true, exists: true, req: &c.req, past: p})
			want := fromYAML(t, c.before)
			prepare(&subject{gr: e.gr, obj: want, original: e.object(), exists: true, req: &c.req, past: p})
			if e.gr.Resource == "services" || e.gr.Resource == "persistentvolumeclaims" {
				return // a live one is told by its own managers
			}
			if diff := cmp.Diff(toYAML(want), toYAML(live)); diff != "" {
				t.Errorf("the restored object differs from the wanted one: %s", diff)
			}
		})
	}
	for _, r := range rules {
		if !tested[r.name] {
			t.Errorf("rule %s has no test", r.name)
		}
	}
}

func TestRulesGuardWhatControllersMake(t *testing.T) {
	for _, c := range ruleCases {
		i := slices.IndexFunc(rules, func(r rule) bool { return r.name == c.rule })
		if rules[i].skip == nil || c.kept || c.rule == "made-by-controller" {
			continue
		}
		p := c.past(t)
		e := p.list[slices.IndexFunc(p.list, func(e *entry) bool { return e.gr.String() == c.resource })]
		if got := guarded(&subject{gr: e.gr, obj: e.object(), original: e.object(), live: true, req: &c.req, past: p}); got != rules[i].guards {
			t.Errorf("%s (%s): guarded from pruning %v, want %v", c.rule, c.name, got, rules[i].guards)
		}
	}
}

func TestWavesOwnersBeforeOwned(t *testing.T) {
	item := func(gr, name string, owners ...*Item) *Item {
		it := &Item{Resource: parseGR(gr), Namespace: "a", Name: name, Action: ActionCreate}
		for _, o := range owners {
			it.owners = append(it.owners, pendingOwner{key: o.key()})
		}
		return it
	}
	cr := item("widgets.example.com", "w")
	cm := item("configmaps", "made", cr)
	deep := item("secrets", "deeper", cm)
	a, b := item("configmaps", "a"), item("configmaps", "b")
	a.owners, b.owners = []pendingOwner{{key: b.key()}}, []pendingOwner{{key: a.key()}}
	del, delLast := &Item{Resource: parseGR("configmaps"), Action: ActionDelete}, &Item{Resource: parseGR("deployments.apps"), Action: ActionDelete}
	order := []*Item{
		item("customresourcedefinitions.apiextensions.k8s.io", "d"), item("namespaces", "n"), item("storageclasses.storage.k8s.io", "s"), item("persistentvolumes", "p"), item("persistentvolumeclaims", "c"),
		item("serviceaccounts", "s"), item("rolebindings.rbac.authorization.k8s.io", "r"), item("secrets", "s"), item("pods", "p"), item("deployments.apps", "d"),
		cr, cm, deep, item("resourcequotas", "q"), item("mutatingwebhookconfigurations.admissionregistration.k8s.io", "m"), delLast, del,
	}
	setWaves(append(slices.Clone(order), a, b))
	for i := 1; i < len(order); i++ {
		if order[i].Wave <= order[i-1].Wave {
			t.Errorf("%s (wave %d) must come after %s (wave %d)", order[i], order[i].Wave, order[i-1], order[i-1].Wave)
		}
	}
}

func TestMergeKeepsWhatOthersAdded(t *testing.T) {
	live := fromYAML(t, `{metadata: {uid: u, finalizers: [x]}, spec: {clusterIP: 1.2.3.4, replicas: 3, list: [new], ports: [{port: 80, nodePort: 1, name: b}, {port: 81, nodePort: 2}], volumes: [{name: token}, {name: mine}], injected: {a: 1}}, status: {s: 1}}`)
	have := fromYAML(t, `{metadata: {finalizers: [x]}, spec: {replicas: 3, list: [new], ports: [{port: 80, name: b}, {port: 81}], volumes: [{name: mine}], injected: {a: 1}}}`)
	want := fromYAML(t, `{metadata: {finalizers: [y], labels: {k: v}}, spec: {replicas: 2, list: [old, older], ports: [{port: 82}, {port: 80, name: a}], volumes: [{name: data}]}}`)
	kept := fromYAML(t, `{metadata: {uid: u, finalizers: [y, x], labels: {k: v}}, spec: {clusterIP: 1.2.3.4, replicas: 2, list: [old, older], ports: [{port: 82}, {port: 80, nodePort: 1, name: a}, {port: 81, nodePort: 2}], volumes: [{name: data}, {name: token}, {name: mine}], injected: {a: 1}}, status: {s: 1}}`)
	exact := fromYAML(t, `{metadata: {uid: u, finalizers: [y], labels: {k: v}}, spec: {clusterIP: 1.2.3.4, replicas: 2, list: [old, older], ports: [{port: 82}, {port: 80, nodePort: 1, name: a}], volumes: [{name: data}, {name: token}]}, status: {s: 1}}`)
	before := live.clone()
	if diff := cmp.Diff(toYAML(kept), toYAML(merge(live, have, want, false))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(toYAML(exact), toYAML(merge(live, have, want, true))); diff != "" {
		t.Errorf("exact: %s", diff)
	}
	if !maps.EqualFunc(before, live, func(a, b any) bool { return cmp.Equal(a, b) }) {
		t.Error("merge changed the live object")
	}
}

func TestErrorsNeverQuoteSecrets(t *testing.T) {
	err := apierrors.NewInvalid(schema.GroupKind{Kind: "Secret"}, "s", field.ErrorList{field.Invalid(field.NewPath("data"), "aHVudGVyMg==", "is immutable")})
	got := hint(&Item{Resource: secrets, Namespace: "a", Name: "s"}, err).Error()
	if strings.Contains(got, "aHVudGVyMg") || !strings.Contains(got, "refuses data;") {
		t.Errorf("%s", got)
	}
	denied := apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "s", errors.New(`admission webhook "w" denied the request: value hunter2 is weak`))
	for _, err := range []error{denied, fmt.Errorf("writing: %w", denied), apierrors.NewBadRequest("cannot decode hunter2"), apierrors.NewInternalError(errors.New("failed calling webhook: hunter2"))} {
		got = hint(&Item{Resource: secrets, Namespace: "a", Name: "s"}, err).Error()
		if strings.Contains(got, "hunter2") || !strings.Contains(got, "not shown") {
			t.Errorf("%s", got)
		}
		if strings.Contains(err.Error(), "admission webhook") && !strings.Contains(got, "an admission rule of the cluster refuses") {
			t.Errorf("no advice: %s", got)
		}
		if got = hint(&Item{Resource: parseGR("configmaps"), Namespace: "a", Name: "s"}, err).Error(); !strings.Contains(got, "hunter2") {
			t.Errorf("hidden without need: %s", got)
		}
	}
	if got = hint(&Item{Resource: secrets}, errMeanwhile).Error(); got != errMeanwhile.Error() {
		t.Errorf("our own words: %s", got)
	}
	if got = invalid(err, "does not allow to change"); got != "the API server does not allow to change data" {
		t.Errorf("%s", got)
	}
}
