package replay

import (
	"strings"
	"testing"
)

func TestEffectsAreTold(t *testing.T) {
	for _, c := range []struct {
		resource string
		action   Action
		object   string
		want     string // a part of the effect; empty: none
	}{
		{"services", ActionCreate, `{spec: {type: LoadBalancer}}`, "load balancer"},
		{"services", ActionUpdate, `{spec: {type: LoadBalancer}}`, ""},
		{"services", ActionCreate, `{spec: {type: ClusterIP}}`, ""},
		{"persistentvolumeclaims", ActionCreate, `{spec: {}}`, "without its data"},
		{"persistentvolumeclaims", ActionCreate, `{spec: {volumeName: v}}`, "as that is now"},
		{"persistentvolumeclaims", ActionDelete, `{spec: {}}`, "its data with it"},
		{"cronjobs.batch", ActionCreate, `{spec: {}}`, "next time"},
		{"cronjobs.batch", ActionCreate, `{spec: {suspend: true}}`, ""},
		{"validatingwebhookconfigurations.admissionregistration.k8s.io", ActionCreate, `{}`, "backend"},
		{"configmaps", ActionCreate, `{metadata: {annotations: {argocd.argoproj.io/tracking-id: x}}}`, "Argo CD"},
		{"configmaps", ActionUpdate, `{metadata: {labels: {kustomize.toolkit.fluxcd.io/name: x}}}`, "Flux"},
		{"configmaps", ActionUpdate, `{metadata: {managedFields: [{manager: helm-controller}]}}`, "Flux"},
		{"configmaps", ActionUpdate, `{metadata: {managedFields: [{manager: kubectl}]}}`, ""},
	} {
		o := fromYAML(t, c.object)
		it := &Item{Resource: parseGR(c.resource), Name: "x", Action: c.action}
		if c.action == ActionCreate {
			it.create = pack(o.json())
		} else {
			it.live = newFound(o)
		}
		got := strings.Join(effectsOf(it), "; ")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s %s %s: %q, want %q", c.action, c.resource, c.object, got, c.want)
		}
	}
	p := &planner{plan: &Plan{}}
	for _, name := range []string{"a", "b", "c"} {
		p.add(&Item{Resource: parseGR("cronjobs.batch"), Namespace: "n", Name: name, Action: ActionCreate, create: pack([]byte(`{}`))})
	}
	p.add(&Item{Resource: parseGR("cronjobs.batch"), Name: "d", Action: ActionSkip})
	p.warnEffects()
	if want := "cronjobs.batch n/a and 2 more: runs at its next time"; len(p.plan.Warnings) != 1 || p.plan.Warnings[0] != want {
		t.Errorf("warnings %q, want %q", p.plan.Warnings, want)
	}
}
