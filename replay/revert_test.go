package replay

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRevert(t *testing.T) {
	for _, c := range []struct {
		name, before, after, live, want string
		conflicts                       string
	}{
		{"a value goes back", `{spec: {replicas: 2}}`, `{spec: {replicas: 5}}`, `{spec: {replicas: 5}}`, `{spec: {replicas: 2}}`, ""},
		{"what was changed again stays", `{spec: {replicas: 2}}`, `{spec: {replicas: 5}}`, `{spec: {replicas: 7}}`, `{spec: {replicas: 7}}`, ".spec.replicas"},
		{"what was taken back by hand is no conflict", `{spec: {replicas: 2}}`, `{spec: {replicas: 5}}`, `{spec: {replicas: 2}}`, `{spec: {replicas: 2}}`, ""},
		{"later changes of other fields stay", `{spec: {replicas: 2}}`, `{spec: {replicas: 5}}`, `{spec: {replicas: 5, paused: true}}`, `{spec: {replicas: 2, paused: true}}`, ""},
		{"what came goes", `{data: {a: "1"}}`, `{data: {a: "1", b: "2"}}`, `{data: {a: "1", b: "2", c: "3"}}`, `{data: {a: "1", c: "3"}}`, ""},
		{"what went comes", `{data: {a: "1", b: "2"}}`, `{data: {a: "1"}}`, `{data: {a: "1", c: "3"}}`, `{data: {a: "1", b: "2", c: "3"}}`, ""},
		{"what came with all that is in it goes but for what came later", `{}`, `{metadata: {labels: {a: "1"}}}`, `{metadata: {labels: {a: "1", b: "2"}}}`, `{metadata: {labels: {b: "2"}}}`, ""},
		{"what came as a whole goes as a whole", `{}`, `{metadata: {labels: {a: "1"}}}`, `{metadata: {labels: {a: "1"}}}`, `{}`, ""},
		{"what came and was changed since stays", `{}`, `{data: {a: "1"}}`, `{data: {a: "9"}}`, `{data: {a: "9"}}`, ".data.a"},
		{
			"an image in one of two containers",
			`{spec: {containers: [{name: web, image: "web:1"}, {name: log, image: "log:1"}]}}`,
			`{spec: {containers: [{name: web, image: "web:2"}, {name: log, image: "log:1"}]}}`,
			`{spec: {containers: [{name: web, image: "web:2"}, {name: log, image: "log:7"}, {name: new, image: "n"}]}}`,
			`{spec: {containers: [{name: web, image: "web:1"}, {name: log, image: "log:7"}, {name: new, image: "n"}]}}`, "",
		},
		{
			"a conflict in one of two containers",
			`{spec: {containers: [{name: web, image: "web:1"}, {name: log, image: "log:1"}]}}`,
			`{spec: {containers: [{name: web, image: "web:2"}, {name: log, image: "log:2"}]}}`,
			`{spec: {containers: [{name: web, image: "web:3"}, {name: log, image: "log:2"}]}}`,
			`{spec: {containers: [{name: web, image: "web:3"}, {name: log, image: "log:1"}]}}`, ".spec.containers[name=web].image",
		},
		{
			"a container that was removed comes back to its place",
			`{c: [{name: a}, {name: b}, {name: c}]}`, `{c: [{name: a}, {name: c}]}`, `{c: [{name: x}, {name: a}, {name: c}]}`, `{c: [{name: x}, {name: a}, {name: b}, {name: c}]}`, "",
		},
		{"a container that was added goes", `{c: [{name: a}]}`, `{c: [{name: a}, {name: b}]}`, `{c: [{name: b}, {name: a}, {name: d}]}`, `{c: [{name: a}, {name: d}]}`, ""},
		{"lists without keys are one value", `{args: [a, b]}`, `{args: [a, c]}`, `{args: [a, c]}`, `{args: [a, b]}`, ""},
		{"and one conflict", `{args: [a, b]}`, `{args: [a, c]}`, `{args: [a, c, d]}`, `{args: [a, c, d]}`, ".args"},
		{"finalizers are a set", `{metadata: {finalizers: [a, b]}}`, `{metadata: {finalizers: [b, c]}}`, `{metadata: {finalizers: [d, c, b]}}`, `{metadata: {finalizers: [d, b, a]}}`, ""},
		{"a kind of value that has become another", `{spec: {p: "1"}}`, `{spec: {p: {x: 1}}}`, `{spec: {p: {x: 1}}}`, `{spec: {p: "1"}}`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, after, live := fromYAML(t, c.before), fromYAML(t, c.after), fromYAML(t, c.live)
			kept := live.clone()
			got, conflicts := revert(before, after, live, false)
			if d := cmp.Diff(fromYAML(t, c.want), got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if d := cmp.Diff(kept, live); d != "" {
				t.Errorf("the live object was changed (-want +got):\n%s", d)
			}
			var paths []string
			for _, f := range conflicts {
				paths = append(paths, f.Path)
			}
			if s := strings.Join(paths, " "); s != c.conflicts {
				t.Errorf("conflicts at %q, want %q", s, c.conflicts)
			}
			// Forced, everything that the change touched is as it was before it.
			forced, _ := revert(before, after, live, true)
			if again, left := revert(before, after, forced, false); len(left) > 0 || !cmp.Equal(again, forced) {
				t.Errorf("forced: %v; again: %v, conflicts %v", forced, again, left)
			}
		})
	}
}

// An element that the change added and somebody changed since is one conflict, not half an element.
func TestRevertKeepsKeysOfChangedElements(t *testing.T) {
	before, after := fromYAML(t, `{c: [{name: a}]}`), fromYAML(t, `{c: [{name: a}, {name: b, image: "1"}]}`)
	live := fromYAML(t, `{c: [{name: a}, {name: b, image: "2"}]}`)
	got, conflicts := revert(before, after, live, false)
	if d := cmp.Diff(live, got); d != "" || len(conflicts) != 1 || conflicts[0].Path != ".c[name=b]" {
		t.Errorf("conflicts %v (-live +got):\n%s", conflicts, d)
	}
}

func TestRevertHidesSecrets(t *testing.T) {
	secret := func(v string) object {
		return fromYAML(t, `{apiVersion: v1, kind: Secret, data: {password: `+v+`}}`)
	}
	_, conflicts := revert(secret("aHVudGVyMQ=="), secret("aHVudGVyMg=="), secret("aHVudGVyMw=="), false)
	if len(conflicts) != 1 || strings.Contains(string(conflicts[0].Old)+string(conflicts[0].New), "aHVudGVy") {
		t.Errorf("conflicts: %s", conflicts)
	}
}
