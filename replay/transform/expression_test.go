package transform

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestExpressions(t *testing.T) {
	for _, c := range []struct{ name, resource, object, when, patch, want string }{
		{
			"sets and removes", "deployments.apps", deployment, "", `{"spec": {"replicas": 0, "paused": true}, "metadata": {"labels": null}}`,
			`{apiVersion: apps/v1, kind: Deployment, metadata: {name: mysql-1, namespace: shop}, spec: {replicas: 0, paused: true, template: {spec: {containers: [{name: db, image: "mysql:8"}, {name: log, image: "quay.io/log:1"}]}}}}`,
		},
		{"not for it", "deployments.apps", deployment, `object.spec.replicas > 1`, `{"spec": {"replicas": 0}}`, ""},
		{"another resource", "deployments.apps", deployment, `resource == "services"`, `{"spec": {"replicas": 0}}`, ""},
		{"an empty patch", "configmaps", `{metadata: {name: a}}`, "", `name == "b" ? {"data": {"x": "y"}} : {}`, ""},
		{
			"members of a list", "pods", `{spec: {containers: [{name: a, image: "x:1"}, {name: b}]}}`, "", `{"spec": {"containers": object.spec.containers.map(c, c.with({"image": has(c.image) ? c.image.replace(":1", ":2") : "none"}))}}`,
			`{spec: {containers: [{name: a, image: "x:2"}, {name: b, image: none}]}}`,
		},
		{"where it comes from and goes to", "configmaps", `{metadata: {name: a, namespace: copy}}`, "", `{"data": {"from": fromNamespace, "to": toNamespace}}`, `{metadata: {name: a, namespace: copy}, data: {from: shop, to: copy}}`},
		{"labels by a rule", "configmaps", `{metadata: {labels: {a: x, b: z}}}`, `has(object.metadata.labels)`, `{"metadata": {"labels": object.metadata.labels.transformMap(k, v, v + "-2")}}`, `{metadata: {labels: {a: x-2, b: z-2}}}`},
		{"large numbers stay whole", "configmaps", `{spec: {size: 9007199254740993}}`, "", `{"spec": {"next": object.spec.size + 1}}`, `{spec: {size: 9007199254740993, next: 9007199254740994}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := New(Options{Expressions: []Expression{{Name: "e", When: c.when, Patch: c.patch}}})
			if err != nil {
				t.Fatal(err)
			}
			o := parse(t, c.object)
			got, by, err := s.Apply(schema.ParseGroupResource(c.resource), "shop", o)
			if err != nil {
				t.Fatal(err)
			}
			want := parse(t, c.object)
			if c.want != "" {
				want = parse(t, c.want)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if (len(by) == 1) != (c.want != "") {
				t.Errorf("changed by %q", by)
			}
			if diff := cmp.Diff(parse(t, c.object), o); diff != "" {
				t.Errorf("the object itself was changed\n%s", diff)
			}
		})
	}
}

// TestBadExpressions are refused when they are read, or stop their object without quoting it.
func TestBadExpressions(t *testing.T) {
	for _, c := range []struct{ when, patch, want string }{
		{"", `{"a": `, "Syntax error"},
		{"", `nothing`, "undeclared reference"},
		{"", `"text"`, "want map"},
		{`"text"`, `{}`, "want bool"},
		{"", `{"a": object.data.nothing}`, "is not there"},
		{"", `{"a": int(object.data.password)}`, "cannot be evaluated"},
		{"", `{"a": object.data.password + 1}`, "another type"},
		{"", `{"a": b"bytes"}`, "no map that JSON could have"},
		{"", `{"a": [1,2,3,4,5,6,7,8,9,10].map(a, [1,2,3,4,5,6,7,8,9,10].map(b, [1,2,3,4,5,6,7,8,9,10].map(c, [1,2,3,4,5,6,7,8,9,10].map(d, [1,2,3,4,5,6,7,8,9,10].map(e, [1,2,3,4,5,6,7,8,9,10].map(f, f)))))) }`, "too many steps"},
		{"", `{"metadata": {"name": "other"}}`, "another object"},
		{"object.data.password", `{}`, "when"},
	} {
		s, err := New(Options{Expressions: []Expression{{Name: "mine", When: c.when, Patch: c.patch}}})
		if err == nil {
			_, _, err = s.Apply(schema.GroupResource{Resource: "secrets"}, "shop", parse(t, `{kind: Secret, metadata: {name: pw, namespace: shop}, data: {password: hunter2}}`))
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "mine") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s %s: %v, want %q", c.when, c.patch, err, c.want)
		}
	}
	for _, c := range []struct{ text, want string }{
		{"version: v2", "want v1"},
		{"version: v1", "no transforms"},
		{"version: v1\ntransforms: [{name: a}]", "patch is missing"},
		{"version: v1\ntransforms: [{patch: '{}', wenn: x}]", "unknown field"},
	} {
		if _, err := ParseExpressions(File{"f.yaml", []byte(c.text)}); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "f.yaml") {
			t.Errorf("%s: %v, want %q", c.text, err, c.want)
		}
	}
}
