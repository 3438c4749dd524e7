package replay

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// conversion rewrites objects of a version that is no longer served. do returns why it
// cannot; without do the versions have the same structure.
type conversion struct {
	kind, from, to string // apiVersions
	do             func(object) string
}

// conversions are the removed versions that have a served successor they can be written as.
var conversions = []conversion{
	{"HorizontalPodAutoscaler", "autoscaling/v2beta2", "autoscaling/v2", nil},
	{"PodDisruptionBudget", "policy/v1beta1", "policy/v1", func(o object) string {
		if len(o.sub("spec", "selector")) == 0 {
			return "an empty selector meant no Pods in v1beta1 and means all Pods in v1"
		}
		return ""
	}},
	{"CronJob", "batch/v1beta1", "batch/v1", nil},
	{"Ingress", "networking.k8s.io/v1beta1", "networking.k8s.io/v1", convertIngress},
	{"Ingress", "extensions/v1beta1", "networking.k8s.io/v1", convertIngress},
	{"IngressClass", "networking.k8s.io/v1beta1", "networking.k8s.io/v1", nil},
	{"NetworkPolicy", "extensions/v1beta1", "networking.k8s.io/v1", nil},
	{"Deployment", "extensions/v1beta1", "apps/v1", needsSelector},
	{"Deployment", "apps/v1beta1", "apps/v1", needsSelector},
	{"Deployment", "apps/v1beta2", "apps/v1", needsSelector},
	{"DaemonSet", "extensions/v1beta1", "apps/v1", needsSelector},
	{"DaemonSet", "apps/v1beta2", "apps/v1", needsSelector},
	{"ReplicaSet", "extensions/v1beta1", "apps/v1", needsSelector},
	{"ReplicaSet", "apps/v1beta2", "apps/v1", needsSelector},
	{"StatefulSet", "apps/v1beta1", "apps/v1", needsSelector},
	{"StatefulSet", "apps/v1beta2", "apps/v1", needsSelector},
	{"Role", "rbac.authorization.k8s.io/v1beta1", "rbac.authorization.k8s.io/v1", nil},
	{"RoleBinding", "rbac.authorization.k8s.io/v1beta1", "rbac.authorization.k8s.io/v1", nil},
	{"ClusterRole", "rbac.authorization.k8s.io/v1beta1", "rbac.authorization.k8s.io/v1", nil},
	{"ClusterRoleBinding", "rbac.authorization.k8s.io/v1beta1", "rbac.authorization.k8s.io/v1", nil},
	{"PriorityClass", "scheduling.k8s.io/v1beta1", "scheduling.k8s.io/v1", nil},
	{"StorageClass", "storage.k8s.io/v1beta1", "storage.k8s.io/v1", nil},
	{"CSIDriver", "storage.k8s.io/v1beta1", "storage.k8s.io/v1", nil},
	{"RuntimeClass", "node.k8s.io/v1beta1", "node.k8s.io/v1", nil},
	{"FlowSchema", "flowcontrol.apiserver.k8s.io/v1beta3", "flowcontrol.apiserver.k8s.io/v1", nil},
	{"PriorityLevelConfiguration", "flowcontrol.apiserver.k8s.io/v1beta3", "flowcontrol.apiserver.k8s.io/v1", nil},
	{"ClusterTrustBundle", "certificates.k8s.io/v1beta1", "certificates.k8s.io/v1", nil},
	{"StorageVersionMigration", "storagemigration.k8s.io/v1beta1", "storagemigration.k8s.io/v1", nil},
	{"DeviceTaintRule", "resource.k8s.io/v1alpha3", "resource.k8s.io/v1", nil},
	{"DeviceTaintRule", "resource.k8s.io/v1beta2", "resource.k8s.io/v1", nil},
	{"ValidatingWebhookConfiguration", "admissionregistration.k8s.io/v1beta1", "admissionregistration.k8s.io/v1", convertWebhooks},
	{"MutatingWebhookConfiguration", "admissionregistration.k8s.io/v1beta1", "admissionregistration.k8s.io/v1", convertWebhooks},
}

func needsSelector(o object) string {
	if o.at("spec", "selector") == nil {
		return "apps/v1 needs a selector"
	}
	o.drop("spec", "rollbackTo")
	o.drop("spec", "templateGeneration")
	return ""
}

func convertWebhooks(o object) string {
	for _, w := range o.objects("webhooks") {
		if len(w.list("admissionReviewVersions")) == 0 {
			return "v1 needs admissionReviewVersions"
		}
		if w.str("sideEffects") == "" {
			w.put("None", "sideEffects")
		}
	}
	return ""
}

// convertIngress rewrites backends and path types as networking.k8s.io/v1 has them.
func convertIngress(o object) string {
	backend := func(b object) object {
		if b == nil || b.at("resource") != nil {
			return b
		}
		port := object{}
		switch n := b.at("servicePort").(type) {
		case string:
			port["name"] = n
		default:
			port["number"] = n
		}
		return object{"service": map[string]any{"name": b.str("serviceName"), "port": map[string]any(port)}}
	}
	if b := o.sub("spec", "backend"); b != nil {
		o.put(map[string]any(backend(b)), "spec", "defaultBackend")
		o.drop("spec", "backend")
	}
	for _, r := range o.objects("spec", "rules") {
		for _, path := range r.objects("http", "paths") {
			if b := path.sub("backend"); b != nil {
				path.put(map[string]any(backend(b)), "backend")
			}
			if path.str("pathType") == "" {
				path.put("ImplementationSpecific", "pathType")
			}
		}
	}
	return ""
}

// inServedVersion returns the object that was recorded in a version that the target serves, and sets
// the item's resource; or why there is none.
func (p *planner) inServedVersion(ctx context.Context, it *Item, recorded object) (o object, why string, err error) {
	o = recorded
	apiVersion, kind := o.str("apiVersion"), o.str("kind")
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil || kind == "" {
		return nil, "the recorded object does not name its apiVersion and kind", nil
	}
	served := p.target.versions(it.Resource)
	if len(served) == 0 {
		return p.inComingVersion(it, gv)
	}
	for _, r := range served {
		if r.GroupVersion() == gv {
			it.served = r
			return o, "", nil
		}
	}
	names := make([]string, 0, len(served))
	for _, r := range served {
		names = append(names, r.GroupVersion().String())
	}
	reason := "no conversion is known"
	for _, c := range conversions {
		if c.kind != kind || c.from != apiVersion {
			continue
		}
		if i := slices.Index(names, c.to); i >= 0 {
			it.served = served[i]
			if o, reason = rewrite(o, c.to, c.do); reason == "" {
				return o, "", nil
			}
		}
	}
	none, err := p.sameStructure(ctx, it.Resource)
	if err != nil {
		return nil, "", err
	}
	if none {
		it.served = served[0]
		o, _ = rewrite(o, names[0], nil)
		return o, "", nil
	}
	return nil, fmt.Sprintf("was recorded as %s, which the target does not serve (%s): it serves %s; take the object with 'tidemark get %s %s --at ... -o yaml', and change it by hand",
		apiVersion, reason, strings.Join(names, ", "), it.Resource, it.entry.name), nil
}

func rewrite(o object, to string, do func(object) string) (object, string) {
	o = o.clone()
	o.put(to, "apiVersion")
	o.drop("metadata", "managedFields") // they speak of the old version
	if do != nil {
		if why := do(o); why != "" {
			return nil, why
		}
	}
	return o, ""
}

// inComingVersion finds the version of a custom resource whose definition the plan creates.
func (p *planner) inComingVersion(it *Item, gv schema.GroupVersion) (object, string, error) {
	if err := p.target.table().failed[it.Resource.Group]; err != nil {
		return nil, fmt.Sprintf("the target's API group %s does not answer: %v; see 'kubectl get apiservices', and run this again", it.Resource.Group, err), nil
	}
	name := it.Resource.Resource + "." + it.Resource.Group
	crd := p.past.find(definitions, "", name)
	if crd == nil && builtIn(it.Resource.Group) {
		return nil, fmt.Sprintf("the target does not serve %s, which is a part of Kubernetes itself: upgrade its API server, or enable the kind there with --runtime-config=%s=true and the feature gate it may need", it.Resource, gv), nil
	}
	if crd == nil || crd.refused != "" {
		at := "MOMENT" // an undo has none
		if !p.req.Cut.Time.IsZero() {
			at = p.req.Cut.Time.UTC().Format(time.RFC3339Nano)
		}
		return nil, fmt.Sprintf("the target does not serve %s: restore its definition first, with 'tidemark restore customresourcedefinitions/%s --at %s', or install it", it.Resource, name, at), nil
	}
	def := crd.object()
	for _, v := range def.objects("spec", "versions") {
		if v.at("served") == true && v.str("name") == gv.Version {
			it.served = servedResource{
				GroupVersionResource: gv.WithResource(it.Resource.Resource), Kind: def.str("spec", "names", "kind"),
				Namespaced: def.str("spec", "scope") == "Namespaced", HasStatus: v.at("subresources", "status") != nil,
			}
			return it.entry.object(), "", nil
		}
	}
	return nil, fmt.Sprintf("was recorded as %s, which its definition %s did not serve any more at that moment", gv, name), nil
}

// builtIn reports whether a group is served by the API server itself and not for a CustomResourceDefinition. Groups
// of k8s.io that definitions serve (snapshot.storage.k8s.io, gateway.networking.k8s.io) have one more label.
func builtIn(group string) bool {
	name, inKubernetes := strings.CutSuffix(group, ".k8s.io")
	switch name {
	case "flowcontrol.apiserver", "internal.apiserver", "rbac.authorization":
		return inKubernetes
	case "metrics", "custom.metrics", "external.metrics": // aggregated APIs
		return false
	}
	return !strings.Contains(name, ".") && (inKubernetes || !strings.Contains(group, "."))
}

// sameStructure reports whether all versions of a custom resource have the same structure,
// because its definition converts between them by changing the apiVersion only.
func (p *planner) sameStructure(ctx context.Context, gr schema.GroupResource) (bool, error) {
	r, ok := p.target.version(definitions, "v1")
	if !ok || !strings.Contains(gr.Group, ".") {
		return false, nil
	}
	strategy, known := p.strategies[gr]
	if !known {
		crd, err := p.target.get(ctx, r, "", gr.String())
		if err != nil {
			return false, err
		}
		if crd != nil {
			if strategy = object(crd.Object).str("spec", "conversion", "strategy"); strategy == "" {
				strategy = "None"
			}
		}
		p.strategies[gr] = strategy
	}
	return strategy == "None", nil
}
