package replay

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// object is an object's content. Whole numbers are int64 in it, as client-go wants them.
type object map[string]any

func parseObject(b []byte) (object, error) {
	var o object
	if err := utiljson.Unmarshal(b, (*map[string]any)(&o)); err != nil || o == nil {
		return nil, ErrNotObject // the text must not quote the object
	}
	return o, nil
}

func (o object) clone() object { return runtime.DeepCopyJSON(o) }

func (o object) unstructured() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: o}
}

// json is the object's JSON, keys sorted. Parsed objects always have one.
func (o object) json() []byte {
	b, err := json.Marshal(map[string]any(o))
	if err != nil {
		panic(fmt.Sprintf("an object that cannot be marshalled: %T", err))
	}
	return b
}

// at returns the value at a path of names, nil when there is none.
func (o object) at(path ...string) any {
	var v any = map[string]any(o)
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[p]
	}
	return v
}

func (o object) str(path ...string) string {
	s, _ := o.at(path...).(string)
	return s
}

func (o object) sub(path ...string) object {
	m, _ := o.at(path...).(map[string]any)
	return m
}

func (o object) list(path ...string) []any {
	l, _ := o.at(path...).([]any)
	return l
}

// objects are the members of a list that are objects.
func (o object) objects(path ...string) []object {
	var out []object
	for _, v := range o.list(path...) {
		if m, ok := v.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}

// drop removes the field at the path.
func (o object) drop(path ...string) {
	if m := o.sub(path[:len(path)-1]...); m != nil {
		delete(m, path[len(path)-1])
	}
}

// dropEmpty removes the field when it is an empty object or list.
func (o object) dropEmpty(path ...string) {
	switch v := o.at(path...).(type) {
	case map[string]any:
		if len(v) == 0 {
			o.drop(path...)
		}
	case []any:
		if len(v) == 0 {
			o.drop(path...)
		}
	}
}

// put sets the field at the path, making the objects on the way.
func (o object) put(v any, path ...string) {
	m := map[string]any(o)
	for _, p := range path[:len(path)-1] {
		next, ok := m[p].(map[string]any)
		if !ok {
			next = map[string]any{}
			m[p] = next
		}
		m = next
	}
	m[path[len(path)-1]] = v
}

// putList sets the list at the path; an empty one removes the field.
func (o object) putList(list []any, path ...string) {
	if len(list) == 0 {
		o.drop(path...)
		return
	}
	o.put(list, path...)
}

func (o object) name() string               { return o.str("metadata", "name") }
func (o object) namespace() string          { return o.str("metadata", "namespace") }
func (o object) uid() string                { return o.str("metadata", "uid") }
func (o object) annotation(k string) string { return o.str("metadata", "annotations", k) }
func (o object) label(k string) string      { return o.str("metadata", "labels", k) }
func (o object) deleting() bool             { return o.at("metadata", "deletionTimestamp") != nil }

// without returns the list without the members that drop chooses.
func without(list []any, drop func(object) bool) []any {
	var out []any
	for _, v := range list {
		if m, ok := v.(map[string]any); !ok || !drop(m) {
			out = append(out, v)
		}
	}
	return out
}

// controller returns the owner reference of the object's controller, or nil.
func (o object) controller() object {
	for _, ref := range o.objects("metadata", "ownerReferences") {
		if ref.at("controller") == true {
			return ref
		}
	}
	return nil
}
