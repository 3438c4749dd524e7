package transform

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"
)

func parse(t testing.TB, text string) map[string]any {
	t.Helper()
	b, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var o map[string]any
	if err := utiljson.Unmarshal(b, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func modifier(rules string) Options {
	return Options{Modifiers: []File{{"m.yaml", []byte("version: v1\nresourceModifierRules:\n" + rules)}}}
}

const deployment = `{apiVersion: apps/v1, kind: Deployment, metadata: {name: mysql-1, namespace: shop, labels: {app: db}}, spec: {replicas: 1, template: {spec: {containers: [{name: db, image: "mysql:8"}, {name: log, image: "quay.io/log:1"}]}}}}`

func TestTransforms(t *testing.T) {
	for _, c := range []struct {
		name, resource, object, want string
		options                      Options
		by                           string
	}{
		{
			"a claim's storage class", "persistentvolumeclaims", `{metadata: {name: c, annotations: {volume.beta.kubernetes.io/storage-class: slow}}, spec: {storageClassName: slow}}`,
			`{metadata: {name: c, annotations: {volume.beta.kubernetes.io/storage-class: fast}}, spec: {storageClassName: fast}}`,
			Options{StorageClasses: map[string]string{"slow": "fast"}},
			"storage class slow -> fast",
		},
		{
			"another class stays", "persistentvolumes", `{metadata: {name: c}, spec: {storageClassName: other}}`, `{metadata: {name: c}, spec: {storageClassName: other}}`, Options{StorageClasses: map[string]string{"slow": "fast"}}, "",
		},
		{
			"claims that a StatefulSet makes, and ephemeral ones", "statefulsets.apps",
			`{spec: {volumeClaimTemplates: [{spec: {storageClassName: slow}}], template: {spec: {volumes: [{name: v, ephemeral: {volumeClaimTemplate: {spec: {storageClassName: slow}}}}]}}}}`,
			`{spec: {volumeClaimTemplates: [{spec: {storageClassName: fast}}], template: {spec: {volumes: [{name: v, ephemeral: {volumeClaimTemplate: {spec: {storageClassName: fast}}}}]}}}}`,
			Options{StorageClasses: map[string]string{"slow": "fast"}},
			"storage class slow -> fast",
		},
		{
			"images of one registry, also by their short names", "cronjobs.batch",
			`{spec: {jobTemplate: {spec: {template: {spec: {initContainers: [{image: nginx}], containers: [{image: "team/app:1"}, {image: "quay.io/x:1"}, {image: "docker.io/library/redis@sha256:0"}], volumes: [{image: {reference: "docker.io/data:1"}}]}}}}}}`,
			`{spec: {jobTemplate: {spec: {template: {spec: {initContainers: [{image: r.example/mirror/library/nginx}], containers: [{image: "r.example/mirror/team/app:1"}, {image: "quay.io/x:1"}, {image: "r.example/mirror/library/redis@sha256:0"}], volumes: [{image: {reference: "r.example/mirror/data:1"}}]}}}}}}`,
			Options{Images: []ImageRewrite{{"docker.io", "r.example/mirror"}}},
			"images docker.io -> r.example/mirror",
		},
		{
			"a prefix ends where a part of the name does", "pods", `{spec: {containers: [{image: "quay.io/team-a/x:1"}, {image: "quay.io/team/x:1"}]}}`, `{spec: {containers: [{image: "quay.io/team-a/x:1"}, {image: "r/x:1"}]}}`,
			Options{Images: []ImageRewrite{{"quay.io/team", "r"}}},
			"images quay.io/team -> r",
		},
		{
			"a JSON patch of what the conditions choose", "deployments.apps", deployment, strings.Replace(deployment, "replicas: 1", "replicas: 3", 1),
			modifier(`
- conditions: {groupResource: deployments.apps, resourceNameRegex: "^mysql.*$", namespaces: [shop], labelSelector: {matchLabels: {app: db}}, matches: [{path: /spec/replicas, value: "1"}]}
  patches: [{operation: replace, path: /spec/replicas, value: "3"}]`), "m.yaml, rule 1",
		},
		{
			"a condition that does not hold", "deployments.apps", deployment, deployment,
			modifier(`
- conditions: {groupResource: deployments.apps, matches: [{path: /spec/replicas, value: "2"}]}
  patches: [{operation: replace, path: /spec/replicas, value: "3"}]
- conditions: {groupResource: deployments.apps, namespaces: [other]}
  patches: [{operation: replace, path: /spec/replicas, value: "3"}]
- conditions: {groupResource: deployments.apps, resourceNameRegex: "^pg"}
  patches: [{operation: replace, path: /spec/replicas, value: "3"}]
- conditions: {groupResource: "*.batch"}
  patches: [{operation: replace, path: /spec/replicas, value: "3"}]
- conditions: {groupResource: "*.*", labelSelector: {matchLabels: {app: web}}}
  patches: [{operation: replace, path: /spec/replicas, value: "3"}]`), "",
		},
		{
			"values that look like strings and are none, and the other way round", "configmaps", `{metadata: {name: c}, data: {}}`, `{metadata: {name: c}, data: {a: 1, b: "1", c: true, d: x, e: {f: [1]}, g: null}}`,
			modifier(`
- conditions: {groupResource: configmaps}
  patches:
  - {operation: add, path: /data/a, value: "1"}
  - {operation: add, path: /data/b, value: "\"1\""}
  - {operation: add, path: /data/c, value: "true"}
  - {operation: add, path: /data/d, value: x}
  - {operation: add, path: /data/e, value: '{"f": [1]}'}
  - {operation: add, path: /data/g, value: "null"}`), "m.yaml, rule 1",
		},
		{
			"patterns of resources, and rules one after the other", "deployments.apps", deployment, strings.Replace(strings.Replace(deployment, "replicas: 1", "replicas: 5", 1), "app: db", "app: db, x: z", 1),
			modifier(`
- conditions: {groupResource: "*.apps"}
  mergePatches: [{patchData: "metadata: {labels: {x: z}}"}]
- conditions: {groupResource: "*.*", labelSelector: {matchLabels: {x: z}}}
  mergePatches: [{patchData: '{"spec": {"replicas": 5}}'}]`), "m.yaml, rule 1 m.yaml, rule 2",
		},
		{
			"a strategic patch knows the keys of lists", "deployments.apps", deployment, strings.Replace(deployment, "mysql:8", "mysql:9", 1),
			modifier(`
- conditions: {groupResource: deployments.apps}
  strategicPatches: [{patchData: "spec: {template: {spec: {containers: [{name: db, image: 'mysql:9'}]}}}"}]`), "m.yaml, rule 1",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := New(c.options)
			if err != nil {
				t.Fatal(err)
			}
			o := parse(t, c.object)
			got, by, err := s.Apply(schema.ParseGroupResource(c.resource), "shop", o)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(parse(t, c.want), got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if d := cmp.Diff(parse(t, c.object), o); d != "" {
				t.Errorf("the object itself was changed:\n%s", d)
			}
			if text := strings.Join(by, " "); !strings.HasPrefix(text, c.by) || c.by == "" && text != "" {
				t.Errorf("by %q, want %q", text, c.by)
			}
		})
	}
}

// A rule that fails stops the object, and says no more of it than where it failed.
func TestARuleThatFailsStopsTheObject(t *testing.T) {
	secret := parse(t, `{apiVersion: v1, kind: Secret, metadata: {name: s, namespace: shop}, data: {password: canary}}`)
	for rules, want := range map[string]string{
		"- conditions: {groupResource: secrets}\n  patches: [{operation: replace, path: /spec/none, value: x}]":      "m.yaml, rule 1: the JSON patch does not apply",
		"- conditions: {groupResource: secrets}\n  patches: [{operation: test, path: /data/password, value: other}]": "m.yaml, rule 1: the JSON patch does not apply",
		"- conditions: {groupResource: secrets}\n  patches: [{operation: replace, path: /metadata/name, value: x}]":  "metadata.name",
		"- conditions: {groupResource: secrets}\n  mergePatches: [{patchData: \"metadata: {namespace: x}\"}]":        "--namespace-mappings",
		"- conditions: {groupResource: secrets}\n  strategicPatches: [{patchData: \"data: {$patch: nonsense}\"}]":    "m.yaml, rule 1: the strategic patch does not apply",
		"- conditions: {groupResource: secrets}\n  patches: [{operation: copy, from: /data/none, path: /data/x}]":    "m.yaml, rule 1",
		"- conditions: {groupResource: secrets}\n  patches: [{operation: remove, path: /data/none}]":                 "m.yaml, rule 1",
		"- conditions: {groupResource: secrets}\n  mergePatches: [{patchData: \"kind: ConfigMap\"}]":                 "kind",
	} {
		s, err := New(modifier(rules))
		if err != nil {
			t.Fatalf("%s: %v", rules, err)
		}
		out, _, err := s.Apply(schema.GroupResource{Resource: "secrets"}, "shop", secret)
		if err == nil || out != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", rules, err, want)
		} else if strings.Contains(err.Error(), "canary") {
			t.Errorf("the error tells the Secret: %v", err)
		}
	}
	s, err := New(modifier("- conditions: {groupResource: widgets.example.com}\n  strategicPatches: [{patchData: \"a: b\"}]"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Apply(schema.ParseGroupResource("widgets.example.com"), "shop", parse(t, `{apiVersion: example.com/v1, kind: Widget}`)); err == nil || !strings.Contains(err.Error(), "use mergePatches") {
		t.Errorf("a strategic patch of a custom resource: %v", err)
	}
}

func TestFilesThatCannotBeRead(t *testing.T) {
	rule := "- conditions: {groupResource: pods}\n  patches: [{operation: remove, path: /a}]"
	for text, want := range map[string]string{
		"version: v2\nresourceModifierRules:\n" + rule:                                                                                                 `version "v2"`,
		"version: v1\nresourceModifierRules: []":                                                                                                       "no resourceModifierRules",
		"version: v1\nresourcemodifierrules:\n" + rule + "\nx: y":                                                                                      `unknown field`,
		"version: v1\nresourceModifierRules:\n- conditions: {}\n  patches: [{operation: remove, path: /a}]":                                            "rule 1: conditions.groupResource is missing",
		"version: v1\nresourceModifierRules:\n" + rule + "\n- conditions: {groupResource: pods}":                                                       "rule 2: want one of",
		"version: v1\nresourceModifierRules:\n- conditions: {groupResource: pods}\n  patches: [{operation: merge}]":                                    "want add, remove",
		"version: v1\nresourceModifierRules:\n- conditions: {groupResource: pods, resourceNameRegex: '('}\n  patches: [{operation: remove, path: /a}]": "resourceNameRegex",
		"version: v1\nresourceModifierRules:\n- conditions: {groupResource: pods}\n  mergePatches: [{patchData: '[1]'}]":                               "no object",
		"kind: ConfigMap\ndata: {a: x, b: y}":                                                                                                          "has 2 keys",
	} {
		if _, err := New(Options{Modifiers: []File{{"m.yaml", []byte(text)}}}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "m.yaml") {
			t.Errorf("%s:\n%v, want %s", text, err, want)
		}
	}
	// As people have it in a cluster.
	config := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata:\n  rules.yaml: |\n    version: v1\n    resourceModifierRules:\n    - conditions: {groupResource: pods}\n      patches: [{operation: remove, path: /a}]\n"
	if _, err := New(Options{Modifiers: []File{{"m.yaml", []byte(config)}}}); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"", "a", "=b", "a="} {
		if _, err := ParseImageRewrite(text); err == nil {
			t.Errorf("%q is taken for a rewrite", text)
		}
	}
}

func FuzzModifiers(f *testing.F) {
	f.Add([]byte("version: v1\nresourceModifierRules:\n- conditions: {groupResource: pods}\n  patches: [{operation: remove, path: /a}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := New(Options{Modifiers: []File{{"m", text}}})
		if err != nil {
			return
		}
		_, _, _ = s.Apply(schema.GroupResource{Resource: "pods"}, "a", parse(t, `{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {a: b}}, spec: {containers: [{name: a}]}}`))
	})
}
