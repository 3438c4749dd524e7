package replay

import "testing"

func TestChangeable(t *testing.T) {
	for _, c := range []struct {
		resource, live, path string
		want                 bool
	}{
		{"pods", `{}`, ".metadata.labels.app", true},
		{"pods", `{}`, ".metadata.labels", true},
		{"pods", `{}`, ".metadata.annotations[example.com/a.b]", true},
		{"pods", `{}`, ".metadata.labelsOfMine", false},
		{"pods", `{}`, ".metadata.finalizers", false},
		{"pods", `{}`, ".spec.containers[name=c].image", false},
		{"configmaps", `{}`, ".data.a", true},
		{"configmaps", `{immutable: true}`, ".data.a", false},
		{"configmaps", `{}`, ".immutable", false},
		{"secrets", `{}`, ".type", false},
		{"deployments.apps", `{}`, ".spec.replicas", true},
		{"deployments.apps", `{}`, ".spec.selector.matchLabels.app", false},
		{"jobs.batch", `{}`, ".spec.template.spec.containers[name=c].image", false},
	} {
		got := changeable(parseGR(c.resource), fromYAML(t, c.live), []FieldDiff{{Path: ".metadata.labels.always"}, {Path: c.path}})
		if got != c.want {
			t.Errorf("%s %s %s: %v", c.resource, c.live, c.path, got)
		}
	}
}
