package replay

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
	"k8s.io/apimachinery/pkg/runtime"
)

// revert takes the change from before to after back out of live, field by field: what live still
// has as after is made as before; what has been changed again since stays, and is a conflict, unless
// force. Fields that the change did not touch stay. The result shares nothing with its inputs.
//
// It is a three-way merge as in a version control system: after is the common ancestor, live
// and before are the sides.
func revert(before, after, live object, force bool) (out object, conflicts []FieldDiff) {
	r := reverter{force: force, secret: live.str("kind") == "Secret" && live.str("apiVersion") == "v1"}
	out = runtime.DeepCopyJSON(live)
	r.maps("", before, after, out)
	return out, r.conflicts
}

type reverter struct {
	force     bool
	secret    bool
	conflicts []FieldDiff
}

// maps takes the change of an object's fields back, in place.
func (r *reverter) maps(path string, before, after, live map[string]any) {
	keys := make([]string, 0, len(before)+len(after))
	for k := range before {
		keys = append(keys, k)
	}
	for k := range after {
		if _, both := before[k]; !both {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if v := r.value(path+fieldStep(k), before[k], after[k], live[k]); v == nil {
			delete(live, k)
		} else {
			live[k] = v
		}
	}
}

// value takes the change of one value back and returns what it becomes; nil: it goes.
func (r *reverter) value(path string, before, after, live any) any {
	switch {
	case reflect.DeepEqual(before, after), reflect.DeepEqual(live, before):
		return live
	case reflect.DeepEqual(live, after):
		return runtime.DeepCopyJSONValue(before)
	}
	if l, ok := live.(map[string]any); ok {
		b, okB := mapOrNone(before)
		a, okA := mapOrNone(after)
		if okB && okA {
			r.maps(path, b, a, l)
			if len(l) == 0 && before == nil {
				return nil
			}
			return l
		}
	}
	if l, ok := live.([]any); ok {
		b, okB := listOrNone(before)
		a, okA := listOrNone(after)
		if okB && okA {
			if v, done := r.lists(path, b, a, l); done {
				if len(v) == 0 && before == nil {
					return nil
				}
				return v
			}
		}
	}
	r.conflict(path, live, before)
	if r.force {
		return runtime.DeepCopyJSONValue(before)
	}
	return live
}

func (r *reverter) conflict(path string, live, before any) {
	r.conflicts = append(r.conflicts, FieldDiff{Path: path, Old: r.shown(path, live), New: r.shown(path, before)})
}

// lists takes the change of a list back whose elements can be told apart: by a key, or because they
// are different plain values.
func (r *reverter) lists(path string, before, after, live []any) ([]any, bool) {
	if strings.HasSuffix(path, ".finalizers") || allPlain(before, after, live) && strings.HasPrefix(path, ".metadata.") {
		return revertSet(before, after, live), true
	}
	for _, parts := range mergeKeys {
		bk, ok1 := listKeys(before, parts)
		ak, ok2 := listKeys(after, parts)
		lk, ok3 := listKeys(live, parts)
		if !ok1 || !ok2 || !ok3 {
			continue
		}
		at := func(list []any, keys []string, k string) any {
			if i := slices.Index(keys, k); i >= 0 {
				return list[i]
			}
			return nil
		}
		var out []any
		for i, k := range lk {
			b, a, step := at(before, bk, k), at(after, ak, k), path+elementStep(parts, live[i])
			if b == nil && a != nil && !reflect.DeepEqual(live[i], a) && !r.force { // half an element is none
				r.conflict(step, live[i], nil)
				out = append(out, live[i])
			} else if v := r.value(step, b, a, live[i]); v != nil && (b != nil || a == nil) {
				out = append(out, v)
			}
		}
		for i, k := range bk { // what the change removed, at its place if its neighbour is still there
			if slices.Contains(lk, k) {
				continue
			}
			if v := r.value(path+elementStep(parts, before[i]), before[i], at(after, ak, k), nil); v != nil {
				out = slices.Insert(out, r.place(out, bk, i, parts), v)
			}
		}
		return out, true
	}
	return nil, false
}

// place finds where element i of the list before belongs: after the nearest one before it.
func (r *reverter) place(out []any, bk []string, i int, parts []string) int {
	ok, _ := listKeys(out, parts)
	for j := i - 1; j >= 0; j-- {
		if at := slices.Index(ok, bk[j]); at >= 0 {
			return at + 1
		}
	}
	if i == 0 {
		return 0
	}
	return len(out)
}

// revertSet takes out what came and puts back what went.
func revertSet(before, after, live []any) []any {
	has := func(list []any, v any) bool {
		return slices.ContainsFunc(list, func(o any) bool { return reflect.DeepEqual(o, v) })
	}
	var out []any
	for _, v := range live {
		if has(before, v) || !has(after, v) {
			out = append(out, v)
		}
	}
	for _, v := range before {
		if !has(after, v) && !has(out, v) {
			out = append(out, v)
		}
	}
	return out
}

func allPlain(lists ...[]any) bool {
	for _, l := range lists {
		for _, v := range l {
			switch v.(type) {
			case map[string]any, []any:
				return false
			}
		}
	}
	return true
}

func mapOrNone(v any) (map[string]any, bool) {
	if v == nil {
		return nil, true
	}
	m, ok := v.(map[string]any)
	return m, ok
}

func listOrNone(v any) ([]any, bool) {
	if v == nil {
		return nil, true
	}
	l, ok := v.([]any)
	return l, ok
}

// elementStep is the path step of a list's element, as in DiffObjects.
func elementStep(parts []string, v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "[]"
	}
	steps, ok := stepsBy(parts, []gjson.Result{gjson.ParseBytes(b)})
	if !ok {
		return "[]"
	}
	return steps[0]
}

// shown is a value as a conflict may show it.
func (r *reverter) shown(path string, v any) json.RawMessage {
	if v == nil {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	d := differ{secret: r.secret}
	return d.shown(path, gjson.ParseBytes(b))
}
