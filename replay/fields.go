package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
)

// ParseField reads the path of a field as diffs show it, such as .spec.replicas or
// .spec.template.spec.containers[name=web].image; the first dot may be left out.
func ParseField(path string) (string, error) {
	if path == "" {
		return "", fmt.Errorf("a field without a name")
	}
	if path[0] != '.' && path[0] != '[' {
		path = "." + path
	}
	steps := splitPath(path)
	if len(steps) == 0 || steps[0].name == "" {
		return "", fmt.Errorf("%q is no path of a field, such as .spec.replicas", path)
	}
	switch first := steps[0].name; {
	case first == "status":
		return "", fmt.Errorf("%s: a restore of fields restores no status", path)
	case first == "apiVersion", first == "kind", len(steps) == 1 && first == "metadata",
		first == "metadata" && !slices.Contains([]string{"labels", "annotations", "finalizers", "ownerReferences"}, steps[1].name):
		return "", fmt.Errorf("%s is the API server's to set", path)
	}
	return path, nil
}

// planFields plans to make single fields of a live object as they were, and nothing else.
func (p *planner) planFields(it *Item, live, have, want object) error {
	body := live.clone()
	for i, path := range p.req.Fields {
		steps := splitPath(path)
		p.fieldsSeen[i] = p.fieldsSeen[i] || hasField(map[string]any(live), steps) || hasField(map[string]any(want), steps)
		if err := copyField(body, want, steps); err != nil {
			it.Action, it.Reason = ActionFail, fmt.Sprintf("%s: %v", path, err)
			return nil
		}
	}
	diff, err := diffBodies(have, normal(p.req, p.past, it.Resource, body))
	if err != nil {
		return fmt.Errorf("comparing %s: %w", it, err)
	}
	it.update, it.Diff, it.Action = pack(body.json()), diff, ActionUpdate
	if len(diff) == 0 {
		it.Action = ActionUnchanged
		return nil
	}
	p.try(it, func(_ context.Context, refused error) error {
		it.Action, it.Reason = ActionFail, invalid(refused, "does not allow to change")
		return nil
	})
	return nil
}

// ErrNoField is returned by NewPlan for a field that none of the objects has, or had.
var ErrNoField = errors.New("there is no such field")

// unknownField is the error about a field that was looked for in vain. Where some objects have it, the others are as they were.
func (p *planner) unknownField() error {
	compared := slices.ContainsFunc(p.plan.Items, func(it *Item) bool { return it.Action == ActionUpdate || it.Action == ActionUnchanged })
	if i := slices.Index(p.fieldsSeen, false); i >= 0 && compared {
		return fmt.Errorf("%w: --field %s: no object that was chosen has it, and none had it then: 'tidemark get TYPE/NAME -o yaml' shows the names of fields", ErrNoField, p.req.Fields[i])
	}
	return nil
}

// hasField reports whether there is a value at the path.
func hasField(v any, path []pathStep) bool {
	for _, step := range path {
		if step.element != "" {
			list, _ := v.([]any)
			i := findElement(list, step.element)
			if i < 0 {
				return false
			}
			v = list[i]
			continue
		}
		m, _ := v.(map[string]any)
		there := false
		if v, there = m[step.name]; !there {
			return false
		}
	}
	return true
}

// copyField makes the value at the path in to as it is in from; where it is not in from, it goes.
func copyField(to, from map[string]any, path []pathStep) error {
	if len(path) == 0 {
		return nil
	}
	v, there := to[path[0].name]
	w, was := from[path[0].name]
	switch {
	case !was:
		delete(to, path[0].name)
		return nil
	case len(path) == 1 || !there:
		if len(path) > 1 { // what lies around it is not asked for
			return fmt.Errorf("the live object has no .%s for it to be in: restore that", path[0].name)
		}
		to[path[0].name] = runtime.DeepCopyJSONValue(w)
		return nil
	}
	return copyInto(v, w, path[1:], func(v any) { to[path[0].name] = v })
}

// copyInto goes on with copyField in a member; set puts a new value in its place.
func copyInto(to, from any, path []pathStep, set func(any)) error {
	if path[0].element == "" {
		t, ok1 := to.(map[string]any)
		f, ok2 := from.(map[string]any)
		if !ok1 || !ok2 {
			return fmt.Errorf("there is no member .%s", path[0].name)
		}
		return copyField(t, f, path)
	}
	t, ok1 := to.([]any)
	f, ok2 := from.([]any)
	if !ok1 || !ok2 {
		return fmt.Errorf("[%s] is no element of a list", path[0].element)
	}
	i, j := findElement(t, path[0].element), findElement(f, path[0].element)
	switch {
	case j < 0 && i < 0:
		return nil
	case j < 0 && len(path) == 1:
		set(slices.Delete(t, i, i+1))
		return nil
	case j < 0:
		return fmt.Errorf("there was no [%s] then", path[0].element)
	case len(path) == 1 && i < 0:
		set(append(t, runtime.DeepCopyJSONValue(f[j])))
		return nil
	case len(path) == 1:
		t[i] = runtime.DeepCopyJSONValue(f[j])
		return nil
	case i < 0:
		return fmt.Errorf("the live object has no [%s]: restore that", path[0].element)
	}
	return copyInto(t[i], f[j], path[1:], func(v any) { t[i] = v })
}

// findElement finds an element by "name=web", "containerPort=80,protocol=TCP" or its position; -1: none.
func findElement(list []any, element string) int {
	if n, err := strconv.Atoi(element); err == nil {
		if n < 0 || n >= len(list) {
			return -1
		}
		return n
	}
	return slices.IndexFunc(list, func(v any) bool {
		m, ok := v.(map[string]any)
		if !ok {
			return false
		}
		for part := range strings.SplitSeq(element, ",") {
			key, value, found := strings.Cut(part, "=")
			if !found || m[key] == nil || fmt.Sprint(m[key]) != unquote(value) {
				return false
			}
		}
		return true
	})
}
