package replay

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// serving makes a Target that serves resources, given as "group/version Kind resource".
func serving(list ...string) *Target {
	t := &Target{served: servedTable{byResource: map[schema.GroupResource][]servedResource{}, byKind: map[schema.GroupKind]schema.GroupResource{}, failed: map[string]error{}}}
	for _, s := range list {
		f := strings.Fields(s)
		gv, _ := schema.ParseGroupVersion(f[0])
		r := servedResource{GroupVersionResource: gv.WithResource(f[2]), Kind: f[1], Namespaced: true, Verbs: []string{"list", "watch", "delete"}}
		t.served.byResource[r.GroupResource()] = append(t.served.byResource[r.GroupResource()], r)
		t.served.byKind[schema.GroupKind{Group: gv.Group, Kind: f[1]}] = r.GroupResource()
	}
	return t
}

func TestVersionsThatAreNoLongerServed(t *testing.T) {
	target := serving("autoscaling/v2 HorizontalPodAutoscaler horizontalpodautoscalers", "policy/v1 PodDisruptionBudget poddisruptionbudgets", "networking.k8s.io/v1 Ingress ingresses",
		"apps/v1 Deployment deployments", "discovery.k8s.io/v1 EndpointSlice endpointslices")
	for _, tc := range []struct{ name, resource, before, after, why string }{
		{"a served version is kept", "deployments.apps", `{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}}`, `{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}}`, ""},
		{
			"the same structure", "horizontalpodautoscalers.autoscaling", `{apiVersion: autoscaling/v2beta2, kind: HorizontalPodAutoscaler, metadata: {name: x, managedFields: [{manager: m}]}, spec: {a: 1}}`,
			`{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: x}, spec: {a: 1}}`, "",
		},
		{"an older structure", "horizontalpodautoscalers.autoscaling", `{apiVersion: autoscaling/v2beta1, kind: HorizontalPodAutoscaler, metadata: {name: x}}`, "", "it serves autoscaling/v2"},
		{"another meaning", "poddisruptionbudgets.policy", `{apiVersion: policy/v1beta1, kind: PodDisruptionBudget, metadata: {name: x}, spec: {selector: {}}}`, "", "empty selector"},
		{"unknown", "endpointslices.discovery.k8s.io", `{apiVersion: discovery.k8s.io/v1beta1, kind: EndpointSlice, metadata: {name: x}}`, "", "it serves discovery.k8s.io/v1"},
		{
			"an Ingress of another group", "ingresses.extensions",
			`{apiVersion: extensions/v1beta1, kind: Ingress, metadata: {name: x}, spec: {backend: {serviceName: d, servicePort: http}, rules: [{host: h, http: {paths: [{path: /, backend: {serviceName: s, servicePort: 80}}]}}]}}`,
			`{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: x}, spec: {defaultBackend: {service: {name: d, port: {name: http}}}, rules: [{host: h, http: {paths: [{path: /, pathType: ImplementationSpecific, backend: {service: {name: s, port: {number: 80}}}}]}}]}}`, "",
		},
		{
			"a Deployment of another group", "deployments.extensions", `{apiVersion: extensions/v1beta1, kind: Deployment, metadata: {name: x}, spec: {selector: {matchLabels: {a: b}}, rollbackTo: {revision: 1}}}`,
			`{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}, spec: {selector: {matchLabels: {a: b}}}}`, "",
		},
		{"not served at all", "widgets.example.com", `{apiVersion: example.com/v1, kind: Widget, metadata: {name: x}}`, "", "tidemark restore customresourcedefinitions/widgets.example.com --at 1970-01-01T00:"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := &history{}
			h.add(t, 1, tc.resource, tc.before)
			req := &RestoreRequest{Cut: h.now()}
			past := &past{byKey: map[objectKey]*entry{}, byUID: map[string]*entry{}, scaled: map[scaleTarget]bool{}}
			if err := past.fold(t.Context(), h, req, Scope{}); err != nil {
				t.Fatal(err)
			}
			past.moveGroups(target)
			p := &planner{target: target, req: req, past: past, plan: &Plan{}, strategies: map[schema.GroupResource]string{}}
			e := past.list[0]
			it := &Item{Resource: e.gr, Name: e.name, entry: e}
			o, why, err := p.inServedVersion(t.Context(), it, it.entry.object())
			if err != nil || (why == "") != (tc.why == "") || !strings.Contains(why, tc.why) {
				t.Fatalf("%q, %v; want %q", why, err, tc.why)
			}
			if tc.why != "" {
				return
			}
			if diff := cmp.Diff(toYAML(fromYAML(t, tc.after)), toYAML(o)); diff != "" {
				t.Error(diff)
			}
			if it.served.GroupVersion().String() != o.str("apiVersion") {
				t.Errorf("written to %s", it.served.GroupVersion())
			}
		})
	}
}
