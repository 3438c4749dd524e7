package replay

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// ClusterPolicy says which objects outside any namespace a restore of some namespaces brings back.
// The names are Velero's.
type ClusterPolicy uint8

const (
	// ClusterAuto brings back, when they are missing, those that the restored objects need.
	ClusterAuto ClusterPolicy = iota
	// ClusterAll treats all of them as in scope.
	ClusterAll
	// ClusterNone brings back none; only the namespaces themselves.
	ClusterNone
)

var clusterNames = []string{"auto", "true", "false"}

// String gives the form that ParseClusterPolicy reads.
func (p ClusterPolicy) String() string { return clusterNames[p] }

// ParseClusterPolicy reads auto, true or false.
func ParseClusterPolicy(s string) (ClusterPolicy, error) {
	if i := slices.Index(clusterNames, s); i >= 0 {
		return ClusterPolicy(i), nil
	}
	return 0, fmt.Errorf("%q: want auto, true or false", s)
}

// AnyOf is a selector that matches what one of several matches.
type AnyOf []labels.Selector

var _ labels.Selector = AnyOf(nil)

// Matches implements labels.Selector.
func (a AnyOf) Matches(l labels.Labels) bool {
	return slices.ContainsFunc(a, func(s labels.Selector) bool { return s.Matches(l) })
}

// Empty implements labels.Selector.
func (a AnyOf) Empty() bool { return len(a) == 0 }

// String implements labels.Selector, for people.
func (a AnyOf) String() string {
	texts := make([]string, len(a))
	for i, s := range a {
		texts[i] = s.String()
	}
	return strings.Join(texts, " or ")
}

// Add implements labels.Selector: it cannot.
func (a AnyOf) Add(...labels.Requirement) labels.Selector { return labels.Nothing() }

// Requirements implements labels.Selector: it has none that all objects meet.
func (a AnyOf) Requirements() (labels.Requirements, bool) { return nil, false }

// DeepCopySelector implements labels.Selector.
func (a AnyOf) DeepCopySelector() labels.Selector { return slices.Clone(a) }

// RequiresExactMatch implements labels.Selector.
func (a AnyOf) RequiresExactMatch(string) (string, bool) { return "", false }

// asked is the scope as a source is asked for it, and what of the answer is in scope.
func (r *RestoreRequest) asked(scope Scope) (Scope, func(*journal.Event) bool) {
	any, isAny := scope.Selector.(AnyOf)
	if isAny {
		scope.Selector = nil
	}
	return scope, func(e *journal.Event) bool {
		if slices.Contains(r.ExcludeResources, e.Resource) {
			return false
		}
		return !isAny || (&Scope{Selector: any}).Selects(e.Object)
	}
}

// excludeLabel keeps an object out of backups, and so out of restores: Velero's, which people have on
// their objects.
const excludeLabel = "velero.io/exclude-from-backup"

func skipExcluded(s *subject) string {
	if s.obj.label(excludeLabel) == "true" {
		return "its label " + excludeLabel + " keeps it out"
	}
	return ""
}

// need is a cluster-scoped object that a restored one refers to.
type need struct {
	gr   schema.GroupResource
	name string
}

var (
	volumes        = schema.GroupResource{Resource: "persistentvolumes"}
	storageClasses = schema.GroupResource{Group: "storage.k8s.io", Resource: "storageclasses"}
	clusterRoles   = schema.GroupResource{Group: "rbac.authorization.k8s.io", Resource: "clusterroles"}
	clusterBinds   = schema.GroupResource{Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"}
	priorities     = schema.GroupResource{Group: "scheduling.k8s.io", Resource: "priorityclasses"}
	runtimeClasses = schema.GroupResource{Group: "node.k8s.io", Resource: "runtimeclasses"}
	ingressClasses = schema.GroupResource{Group: "networking.k8s.io", Resource: "ingressclasses"}
	snapClasses    = schema.GroupResource{Group: "snapshot.storage.k8s.io", Resource: "volumesnapshotclasses"}
	snapContents   = schema.GroupResource{Group: "snapshot.storage.k8s.io", Resource: "volumesnapshotcontents"}
	gatewayClasses = schema.GroupResource{Group: "gateway.networking.k8s.io", Resource: "gatewayclasses"}
)

// referring are the resources whose objects may refer to cluster-scoped ones.
var referring = []string{
	"persistentvolumeclaims", "persistentvolumes", "rolebindings.rbac.authorization.k8s.io", "clusterrolebindings.rbac.authorization.k8s.io",
	"ingresses.networking.k8s.io", "gateways.gateway.networking.k8s.io", "volumesnapshots.snapshot.storage.k8s.io", "pods", "replicationcontrollers",
	"deployments.apps", "statefulsets.apps", "daemonsets.apps", "replicasets.apps", "jobs.batch", "cronjobs.batch", "podtemplates",
}

// needs are the cluster-scoped objects that an object refers to.
func (e *entry) needs() []need {
	if !slices.Contains(referring, e.gr.String()) {
		return nil
	}
	return needsOf(e.gr, e.object())
}

func needsOf(gr schema.GroupResource, o object) (all []need) {
	add := func(gr schema.GroupResource, name string) {
		if name != "" {
			all = append(all, need{gr, name})
		}
	}
	switch gr.String() {
	case "persistentvolumeclaims":
		add(volumes, o.str("spec", "volumeName"))
		add(storageClasses, o.str("spec", "storageClassName"))
	case "persistentvolumes":
		add(storageClasses, o.str("spec", "storageClassName"))
	case "rolebindings.rbac.authorization.k8s.io", "clusterrolebindings.rbac.authorization.k8s.io":
		if o.str("roleRef", "kind") == "ClusterRole" {
			add(clusterRoles, o.str("roleRef", "name"))
		}
	case "ingresses.networking.k8s.io":
		add(ingressClasses, o.str("spec", "ingressClassName"))
	case "gateways.gateway.networking.k8s.io":
		add(gatewayClasses, o.str("spec", "gatewayClassName"))
	case "volumesnapshots.snapshot.storage.k8s.io":
		add(snapClasses, o.str("spec", "volumeSnapshotClassName"))
		add(snapContents, o.str("status", "boundVolumeSnapshotContentName"))
	}
	for _, claim := range o.objects("spec", "volumeClaimTemplates") {
		add(storageClasses, claim.str("spec", "storageClassName"))
	}
	for _, pod := range podsOf(o) {
		add(priorities, pod.str("priorityClassName"))
		add(runtimeClasses, pod.str("runtimeClassName"))
	}
	return all
}

// podsOf are the specs of the Pod that an object is, or makes.
func podsOf(o object) (all []object) {
	for _, at := range [][]string{{"spec"}, {"template", "spec"}, {"spec", "template", "spec"}, {"spec", "jobTemplate", "spec", "template", "spec"}} {
		if pod := o.sub(at...); pod != nil && pod.list("containers") != nil {
			all = append(all, pod)
		}
	}
	return all
}

// bindsInto reports whether a ClusterRoleBinding gives rights to accounts of one of the namespaces.
func bindsInto(o object, namespaces []string) bool {
	for _, s := range o.objects("subjects") {
		ns, group := s.str("namespace"), strings.TrimPrefix(s.str("name"), "system:serviceaccounts:")
		if s.str("kind") == "ServiceAccount" && slices.Contains(namespaces, ns) || s.str("kind") == "Group" && slices.Contains(namespaces, group) {
			return true
		}
	}
	return false
}
