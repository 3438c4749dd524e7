package replay

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestInitHooksOfTemplatesAreToldOf warns of a program that Velero would run when Pods are restored, and that is not run here: what makes Pods would keep it.
func TestInitHooksOfTemplatesAreToldOf(t *testing.T) {
	const hook = `annotations: {init.hook.restore.velero.io/container-image: "busybox:1"}`
	for _, c := range []struct {
		resource schema.GroupResource
		spec     string
		action   Action
		told     bool
	}{
		{schema.GroupResource{Group: "apps", Resource: "deployments"}, `{template: {metadata: {` + hook + `}}}`, ActionCreate, true},
		{schema.GroupResource{Group: "apps", Resource: "statefulsets"}, `{template: {metadata: {` + hook + `}}}`, ActionRecreate, true},
		{schema.GroupResource{Group: "batch", Resource: "cronjobs"}, `{jobTemplate: {spec: {template: {metadata: {` + hook + `}}}}}`, ActionCreate, true},
		{schema.GroupResource{Group: "apps", Resource: "deployments"}, `{template: {metadata: {` + hook + `}}}`, ActionUpdate, false},
		{schema.GroupResource{Group: "apps", Resource: "deployments"}, `{template: {metadata: {annotations: {a: init.hook.restore.velero.io/}}}}`, ActionCreate, false},
		{schema.GroupResource{Resource: "pods"}, `{}`, ActionCreate, false},
	} {
		o := fromYAML(t, fmt.Sprintf(`{kind: X, metadata: {name: app, namespace: shop, %s}, spec: %s}`, hook, c.spec))
		p := &planner{plan: &Plan{Items: []*Item{{Resource: c.resource, Namespace: "shop", Name: "app", Action: c.action, create: pack(o.json())}}}}
		p.tellHooks()
		told := strings.Contains(strings.Join(p.plan.Warnings, "\n"), c.resource.String()+" shop/app: the init container")
		if told != c.told {
			t.Errorf("%s %s: warnings %q", c.action, c.resource, p.plan.Warnings)
		}
	}
}
