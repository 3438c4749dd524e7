package replay

import (
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// rule is what one kind of object needs before it can live again, or why it must not.
type rule struct {
	name      string
	resources []string // such as "deployments.apps"; nil means every resource
	// skip returns why the object is not restored, or nothing.
	skip func(*subject) string
	// guards says that what skip finds is never pruned either: a controller owns it.
	guards bool
	// change prepares the object. It runs on live objects as well, so that what it takes
	// away does not count as a difference.
	change func(*subject)
}

// subject is one object that the rules look at: one of history that is to be restored, or
// a live one that such an object is compared with or that may be pruned.
type subject struct {
	gr       schema.GroupResource
	obj      object // the rules change it
	original object // as it was recorded or read; never changed
	live     bool
	exists   bool // of history's objects: the target has a live one
	req      *RestoreRequest
	past     *past // what else there was at the cut
}

// rules is the table of all rules, in the order they are used. Sources: Kubernetes' own
// validation and controllers, and the reports of Velero's users.
var rules = []rule{
	// What is never restored.
	{name: "never-restored", resources: neverRestored, skip: always("belongs to the running cluster, not to its configuration"), guards: true},
	{name: "being-deleted", skip: skipDeleting},
	{name: "excluded-by-label", skip: skipExcluded, guards: true},
	{name: "volume-backup", skip: skipOwnVolume, guards: true},
	{name: "mirror-pod", resources: []string{"pods"}, skip: skipMirrorPod, guards: true},
	{name: "finished-pod", resources: []string{"pods"}, skip: skipFinishedPod},
	{name: "finished-job", resources: []string{"jobs.batch"}, skip: skipFinishedJob},
	{name: "default-token", resources: []string{"secrets"}, skip: skipDefaultToken, guards: true},
	{name: "root-ca", resources: []string{"configmaps"}, skip: skipRootCA, guards: true},
	{name: "default-service-account", resources: []string{"serviceaccounts"}, skip: skipPlainDefaultAccount, guards: true},
	{name: "api-server-made", resources: []string{"services", "endpoints", "endpointslices.discovery.k8s.io", "servicecidrs.networking.k8s.io"}, skip: skipServerMade, guards: true},
	{name: "auto-api-service", resources: []string{"apiservices.apiregistration.k8s.io"}, skip: skipLocalAPIService, guards: true},
	{name: "controller-endpoints", resources: []string{"endpoints", "endpointslices.discovery.k8s.io"}, skip: skipControllerEndpoints, guards: true},
	{name: "volume-without-data", resources: []string{"persistentvolumes"}, skip: skipDeletedVolume},
	{name: "made-by-controller", resources: remadeResources, skip: skipRemade},

	// What every object loses.
	{name: "server-metadata", change: stripMetadata},
	{name: "status", change: stripStatus},
	{name: "namespace-mapping", change: mapNamespace},

	// By kind.
	{name: "namespace", resources: []string{"namespaces"}, change: fixNamespace},
	{name: "pod", resources: []string{"pods"}, change: fixPod},
	{name: "restore-init-hook", resources: []string{"pods"}, change: addInitHook},
	{name: "deployment-revision", resources: []string{"deployments.apps"}, change: dropAnnotations("deployment.kubernetes.io/revision")},
	{name: "daemonset-generation", resources: []string{"daemonsets.apps"}, change: dropAnnotations("deprecated.daemonset.template.generation")},
	{name: "job-selector", resources: []string{"jobs.batch"}, change: fixJob},
	{name: "autoscaled-replicas", resources: []string{"deployments.apps", "statefulsets.apps", "replicasets.apps", "replicationcontrollers"}, change: leaveReplicas},
	{name: "service-addresses", resources: []string{"services"}, change: fixService},
	{name: "service-account-tokens", resources: []string{"serviceaccounts"}, change: fixServiceAccount},
	{name: "token-secret", resources: []string{"secrets"}, change: fixTokenSecret},
	{name: "binding-subjects", resources: []string{"rolebindings.rbac.authorization.k8s.io", "clusterrolebindings.rbac.authorization.k8s.io"}, change: mapSubjects},
	{name: "claim-binding", resources: []string{"persistentvolumeclaims"}, change: fixClaim},
	{name: "volume-claim", resources: []string{"persistentvolumes"}, change: fixVolume},
	{name: "webhook", resources: webhookResources, change: fixWebhooks},
	{name: "custom-resource-definition", resources: []string{"customresourcedefinitions.apiextensions.k8s.io"}, change: fixDefinition},
	{name: "api-service", resources: []string{"apiservices.apiregistration.k8s.io"}, change: dropInjectedCA("spec", "caBundle")},
}

// neverRestored are resources that tell about the running cluster.
var neverRestored = []string{
	"nodes", "events", "events.events.k8s.io", "componentstatuses", "csinodes.storage.k8s.io", "volumeattachments.storage.k8s.io",
	"csistoragecapacities.storage.k8s.io", "leases.coordination.k8s.io", "leasecandidates.coordination.k8s.io",
	"ipaddresses.networking.k8s.io", "resourceslices.resource.k8s.io", "storageversions.internal.apiserver.k8s.io",
	"certificatesigningrequests.certificates.k8s.io", "pods.metrics.k8s.io", "nodes.metrics.k8s.io",
}

var webhookResources = []string{"validatingwebhookconfigurations.admissionregistration.k8s.io", "mutatingwebhookconfigurations.admissionregistration.k8s.io"}

func (r *rule) covers(gr schema.GroupResource) bool {
	return r.resources == nil || slices.Contains(r.resources, gr.String())
}

// refuse returns why the object is not restored and the rule that says so.
func refuse(s *subject) (reason, name string) {
	for i := range rules {
		if r := &rules[i]; r.skip != nil && r.covers(s.gr) {
			if reason := r.skip(s); reason != "" {
				return reason, r.name
			}
		}
	}
	return "", ""
}

// guarded reports whether a live object must not be pruned, whatever history says.
func guarded(s *subject) bool {
	for i := range rules {
		if r := &rules[i]; r.guards && r.covers(s.gr) && r.skip(s) != "" {
			return true
		}
	}
	return false
}

// prepare makes the object fit for writing, or a live one fit for comparing.
func prepare(s *subject) {
	for i := range rules {
		if r := &rules[i]; r.change != nil && r.covers(s.gr) {
			r.change(s)
		}
	}
}

func always(reason string) func(*subject) string { return func(*subject) string { return reason } }
