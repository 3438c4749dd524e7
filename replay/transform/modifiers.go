package transform

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"

	jsonpatch "github.com/evanphx/json-patch/v5"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// modifiers is a file of Velero's resource modifiers, version v1. See
// https://velero.io/docs/main/restore-resource-modifiers/
type modifiers struct {
	Version string `json:"version"`
	Rules   []struct {
		Conditions struct {
			GroupResource     string                `json:"groupResource"`
			ResourceNameRegex string                `json:"resourceNameRegex,omitempty"`
			Namespaces        []string              `json:"namespaces,omitempty"`
			LabelSelector     *metav1.LabelSelector `json:"labelSelector,omitempty"`
			Matches           []match               `json:"matches,omitempty"`
		} `json:"conditions"`
		Patches []struct {
			Operation string `json:"operation"`
			From      string `json:"from,omitempty"`
			Path      string `json:"path"`
			Value     string `json:"value,omitempty"`
		} `json:"patches,omitempty"`
		MergePatches     []patchData `json:"mergePatches,omitempty"`
		StrategicPatches []patchData `json:"strategicPatches,omitempty"`
	} `json:"resourceModifierRules"`
}

type match struct {
	Path  string `json:"path"`
	Value string `json:"value,omitempty"`
}

type patchData struct {
	PatchData string `json:"patchData,omitempty"`
}

// rule is one rule, read.
type rule struct {
	name       string // "FILE, rule 2"
	resource   string // pattern
	namespaces []string
	regex      *regexp.Regexp
	selector   labels.Selector
	matches    []jsonpatch.Patch
	patch      jsonpatch.Patch // nil: none
	merge      []json.RawMessage
	strategic  []json.RawMessage
}

// parseModifiers reads a file, or the ConfigMap that holds it as its only key.
func parseModifiers(f File) ([]*rule, error) {
	text := f.Text
	var config struct {
		Kind string            `json:"kind"`
		Data map[string]string `json:"data"`
	}
	if err := yaml.Unmarshal(text, &config); err == nil && config.Kind == "ConfigMap" {
		if len(config.Data) != 1 {
			return nil, fmt.Errorf("%s: the ConfigMap has %d keys, want one, which holds the rules", f.Name, len(config.Data))
		}
		for _, v := range config.Data {
			text = []byte(v)
		}
	}
	var m modifiers
	if err := yaml.UnmarshalStrict(text, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	if m.Version != "v1" {
		return nil, fmt.Errorf("%s: version %q: want v1", f.Name, m.Version)
	}
	if len(m.Rules) == 0 {
		return nil, fmt.Errorf("%s: there are no resourceModifierRules in it", f.Name)
	}
	all := make([]*rule, 0, len(m.Rules))
	for i := range m.Rules {
		r, err := m.rule(i)
		if err != nil {
			return nil, fmt.Errorf("%s, rule %d: %w", f.Name, i+1, err)
		}
		r.name = fmt.Sprintf("%s, rule %d", f.Name, i+1)
		all = append(all, r)
	}
	return all, nil
}

func (m *modifiers) rule(i int) (*rule, error) {
	in := &m.Rules[i]
	r := &rule{resource: in.Conditions.GroupResource, namespaces: in.Conditions.Namespaces}
	if r.resource == "" {
		return nil, errors.New("conditions.groupResource is missing: such as deployments.apps, *.apps or *.*")
	}
	if _, err := path.Match(r.resource, ""); err != nil {
		return nil, fmt.Errorf("groupResource %q: %w", r.resource, err)
	}
	var err error
	if r.regex, err = regexp.Compile(in.Conditions.ResourceNameRegex); err != nil {
		return nil, fmt.Errorf("resourceNameRegex: %w", err)
	}
	r.selector = labels.Everything()
	if in.Conditions.LabelSelector != nil {
		if r.selector, err = metav1.LabelSelectorAsSelector(in.Conditions.LabelSelector); err != nil {
			return nil, fmt.Errorf("labelSelector: %w", err)
		}
	}
	for _, c := range in.Conditions.Matches {
		p, err := decodePatch([]map[string]any{{"op": "test", "path": c.Path, "value": value(c.Value)}})
		if err != nil {
			return nil, fmt.Errorf("matches: %w", err)
		}
		r.matches = append(r.matches, p)
	}
	kinds := 0
	for _, n := range []int{len(in.Patches), len(in.MergePatches), len(in.StrategicPatches)} {
		if n > 0 {
			kinds++
		}
	}
	if kinds != 1 {
		return nil, errors.New("want one of patches, mergePatches and strategicPatches")
	}
	ops := []map[string]any{}
	for _, p := range in.Patches {
		op := map[string]any{"op": p.Operation, "path": p.Path}
		switch p.Operation {
		case "add", "replace", "test":
			op["value"] = value(p.Value)
		case "copy", "move":
			op["from"] = p.From
		case "remove":
		default:
			return nil, fmt.Errorf("operation %q: want add, remove, replace, move, copy or test", p.Operation)
		}
		ops = append(ops, op)
	}
	if len(ops) > 0 {
		if r.patch, err = decodePatch(ops); err != nil {
			return nil, fmt.Errorf("patches: %w", err)
		}
	}
	if r.merge, err = patchJSON(in.MergePatches); err != nil {
		return nil, fmt.Errorf("mergePatches: %w", err)
	}
	if r.strategic, err = patchJSON(in.StrategicPatches); err != nil {
		return nil, fmt.Errorf("strategicPatches: %w", err)
	}
	return r, nil
}

func decodePatch(ops []map[string]any) (jsonpatch.Patch, error) {
	b, err := json.Marshal(ops)
	if err != nil {
		return nil, err
	}
	return jsonpatch.DecodePatch(b)
}

func patchJSON(all []patchData) (out []json.RawMessage, err error) {
	for _, p := range all {
		b, err := yaml.YAMLToJSON([]byte(p.PatchData))
		if err != nil {
			return nil, err
		}
		if len(b) == 0 || b[0] != '{' {
			return nil, errors.New("patchData is no object")
		}
		out = append(out, b)
	}
	return out, nil
}

// value reads a value as Velero does, where all values are strings: what is a number, a boolean, null, an
// object or a list is that, what stands in quotes is a string, and so is everything else.
func value(text string) any {
	var v any
	if text != "" && json.Unmarshal([]byte(text), &v) == nil {
		return json.RawMessage(text)
	}
	return text
}

// applies reports whether the rule is for the object.
func (r *rule) applies(gr schema.GroupResource, namespace string, o map[string]any, b []byte) bool {
	if ok, err := path.Match(r.resource, gr.String()); err != nil || !ok && r.resource != "*.*" && r.resource != "*" {
		return false
	}
	name, _ := at(o, "metadata", "name").(string)
	if len(r.namespaces) > 0 && !slices.Contains(r.namespaces, namespace) || !r.regex.MatchString(name) {
		return false
	}
	set := labels.Set{}
	for k, v := range object(o, "metadata", "labels") {
		set[k], _ = v.(string)
	}
	if !r.selector.Matches(set) {
		return false
	}
	for _, m := range r.matches {
		if _, err := m.Apply(b); err != nil {
			return false
		}
	}
	return true
}

// apply changes an object that the rule is for.
func (r *rule) apply(gr schema.GroupResource, namespace string, o map[string]any) (out map[string]any, did bool, err error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, false, errors.New("the object cannot be written as JSON")
	}
	if !r.applies(gr, namespace, o, b) {
		return o, false, nil
	}
	if r.patch != nil {
		if b, err = r.patch.Apply(b); err != nil {
			return nil, false, fmt.Errorf("the JSON patch does not apply: %w", err)
		}
	}
	for _, p := range r.merge {
		if b, err = jsonpatch.MergePatch(b, p); err != nil {
			return nil, false, errors.New("the merge patch does not apply")
		}
	}
	for _, p := range r.strategic {
		gvk := schema.FromAPIVersionAndKind(str(o, "apiVersion"), str(o, "kind"))
		typed, err := scheme.Scheme.New(gvk)
		if err != nil {
			return nil, false, fmt.Errorf("a strategic patch needs the schema of a built-in kind, and %s is none: use mergePatches", gvk.Kind)
		}
		if b, err = strategicpatch.StrategicMergePatch(b, p, typed); err != nil {
			return nil, false, errors.New("the strategic patch does not apply")
		}
	}
	if err := utiljson.Unmarshal(b, &out); err != nil || out == nil {
		return nil, false, errors.New("what comes out is no object")
	}
	return out, true, nil
}

func str(o map[string]any, key string) string {
	s, _ := o[key].(string)
	return s
}
