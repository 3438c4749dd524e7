package transform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/cel-go/cel" // v0.29.x: later versions have another module path
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"github.com/google/cel-go/ext"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"
)

// Limits of one expression on one object: an expression is somebody's text and must end.
const (
	maxCost        = 1_000_000 // CEL's own units: about as many steps
	checkInterrupt = 100       // steps between looks at the context
)

// Expression changes objects by a CEL expression. See https://cel.dev; the variables and functions
// are those of expressionEnv.
type Expression struct {
	Name string `json:"name"`
	// When chooses objects; empty chooses all. It gives a bool.
	When string `json:"when,omitempty"`
	// Patch gives a JSON merge patch (RFC 7386) of the object: null removes a member, an empty map changes nothing.
	Patch string `json:"patch"`
}

// ParseExpressions reads a file of expressions:
//
//	version: v1
//	transforms:
//	- name: one replica is enough here
//	  when: resource == "deployments.apps" && object.spec.replicas > 1
//	  patch: '{"spec": {"replicas": 1}}'
func ParseExpressions(f File) ([]Expression, error) {
	var in struct {
		Version    string       `json:"version"`
		Transforms []Expression `json:"transforms"`
	}
	if err := yaml.UnmarshalStrict(f.Text, &in); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	if in.Version != "v1" {
		return nil, fmt.Errorf("%s: version %q: want v1", f.Name, in.Version)
	}
	if len(in.Transforms) == 0 {
		return nil, fmt.Errorf("%s: there are no transforms in it", f.Name)
	}
	for i := range in.Transforms {
		e := &in.Transforms[i]
		if e.Patch == "" {
			return nil, fmt.Errorf("%s, transform %d: patch is missing", f.Name, i+1)
		}
		if e.Name == "" {
			e.Name = fmt.Sprintf("transform %d", i+1)
		}
		e.Name = f.Name + ", " + e.Name
	}
	return in.Transforms, nil
}

// expression is a compiled Expression.
type expression struct {
	name        string
	when, patch cel.Program // when may be nil
}

// expressionEnv has the object as it was recorded and cleaned for the restore, its resource such as
// "deployments.apps", its name, its namespace at the cut ("" outside any) and the one it is restored to
// (namespace alone is a reserved word);
// the strings, lists, sets and two-variable macros of CEL; and map.with(map), which gives the first
// map with the entries of the second.
func expressionEnv() (*cel.Env, error) {
	anyMap := cel.MapType(cel.StringType, cel.DynType)
	return cel.NewEnv(
		cel.Variable("object", anyMap), cel.Variable("resource", cel.StringType), cel.Variable("name", cel.StringType),
		cel.Variable("fromNamespace", cel.StringType), cel.Variable("toNamespace", cel.StringType),
		ext.Strings(), ext.Lists(), ext.Sets(), ext.TwoVarComprehensions(),
		cel.Function("with", cel.MemberOverload("map_with_map", []*cel.Type{anyMap, anyMap}, anyMap, cel.BinaryBinding(with))),
	)
}

func with(a, b ref.Val) ref.Val {
	x, ok1 := native(a).(map[string]any)
	y, ok2 := native(b).(map[string]any)
	if !ok1 || !ok2 {
		return types.NewErr("no such overload")
	}
	maps.Copy(x, y)
	return types.DefaultTypeAdapter.NativeToValue(x)
}

// notJSON is what native gives for values that JSON does not have, such as bytes.
type notJSON struct{}

// native is a CEL value as parsed JSON has it. CEL's own conversion makes floats of all numbers.
func native(v ref.Val) any {
	switch v := v.(type) {
	case types.Null:
		return nil
	case types.Bool, types.Int, types.Double, types.String:
		return v.Value()
	case traits.Mapper:
		out := map[string]any{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			key := it.Next()
			name, ok := key.Value().(string)
			member := native(v.Get(key))
			if _, bad := member.(notJSON); bad || !ok {
				return notJSON{}
			}
			out[name] = member
		}
		return out
	case traits.Lister:
		out := []any{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			member := native(it.Next())
			if _, bad := member.(notJSON); bad {
				return notJSON{}
			}
			out = append(out, member)
		}
		return out
	}
	return notJSON{}
}

func compileExpressions(all []Expression) ([]*expression, error) {
	if len(all) == 0 {
		return nil, nil
	}
	env, err := expressionEnv()
	if err != nil {
		return nil, fmt.Errorf("CEL: %w", err)
	}
	compile := func(name, what, text string, want *cel.Type) (cel.Program, error) {
		ast, issues := env.Compile(text)
		if issues.Err() != nil {
			return nil, fmt.Errorf("%s: %s: %w", name, what, issues.Err())
		}
		if got := ast.OutputType(); got.Kind() != want.Kind() && got.Kind() != cel.DynKind {
			return nil, fmt.Errorf("%s: %s gives %s, want %s", name, what, got, want)
		}
		return env.Program(ast, cel.CostLimit(maxCost), cel.InterruptCheckFrequency(checkInterrupt))
	}
	var out []*expression
	for _, in := range all {
		e := &expression{name: in.Name}
		if in.When != "" {
			if e.when, err = compile(in.Name, "when", in.When, cel.BoolType); err != nil {
				return nil, err
			}
		}
		if e.patch, err = compile(in.Name, "patch", in.Patch, cel.MapType(cel.StringType, cel.DynType)); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// apply changes an object that the expression is for.
func (e *expression) apply(gr schema.GroupResource, namespace string, o map[string]any) (out map[string]any, did bool, err error) {
	vars := map[string]any{
		"object": o, "resource": gr.String(), "fromNamespace": namespace,
		"name": at(o, "metadata", "name"), "toNamespace": "",
	}
	if ns, ok := at(o, "metadata", "namespace").(string); ok {
		vars["toNamespace"] = ns
	}
	if e.when != nil {
		v, _, err := e.when.ContextEval(context.Background(), vars)
		if err != nil {
			return nil, false, fmt.Errorf("when: %w", evaluation(err))
		}
		chosen, ok := v.(types.Bool)
		if !ok {
			return nil, false, errors.New("when: it gives no bool")
		}
		if !chosen {
			return o, false, nil
		}
	}
	v, _, err := e.patch.ContextEval(context.Background(), vars)
	if err != nil {
		return nil, false, fmt.Errorf("patch: %w", evaluation(err))
	}
	given, ok := native(v).(map[string]any)
	if !ok {
		return nil, false, errors.New("patch: what it gives is no map that JSON could have")
	}
	patch, err := json.Marshal(given)
	if err != nil {
		return nil, false, errors.New("patch: what it gives cannot be written as JSON")
	}
	before, err := json.Marshal(o)
	if err != nil {
		return nil, false, errors.New("the object cannot be written as JSON")
	}
	after, err := jsonpatch.MergePatch(before, patch)
	if err != nil {
		return nil, false, errors.New("the merge patch does not apply")
	}
	if jsonpatch.Equal(before, after) {
		return o, false, nil
	}
	if err := utiljson.Unmarshal(after, &out); err != nil || out == nil {
		return nil, false, errors.New("what comes out is no object")
	}
	return out, true, nil
}

// evaluation says why an expression failed. CEL's own messages may quote values of the object.
func evaluation(err error) error {
	text := err.Error()
	known := []struct{ part, say string }{
		{"no such key", "a member that it reads is not there: ask with has(...) first"},
		{"no such overload", "a value is of another type than it expects"},
		{"cost limit", "it takes too many steps"},
		{"index out of bounds", "a list is shorter than it expects"},
	}
	if i := slices.IndexFunc(known, func(k struct{ part, say string }) bool { return strings.Contains(text, k.part) }); i >= 0 {
		return errors.New(known[i].say)
	}
	return errors.New("it cannot be evaluated for this object")
}
