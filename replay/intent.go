package replay

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// An object that a single manager made by server-side apply (GitOps tools do) comes back with its owner of fields in one
// request: the fields that the manager owned are applied in its name. A plain creation would file all fields under an
// update, and need a second request to put that right.
//
// Apply is no creation by itself: it changes what is there. It becomes one by a resourceVersion that no object can have,
// which the API server compares with that of an object that is there (409 Conflict), and ignores when there is none.
//
// What nobody owned, such as defaults, is not sent, so the API server has to come to the same values by itself. Whether it
// does is asked by a dry run, once for all objects whose unowned fields are alike, and looked at in every answer.

// neverThere is the revision of etcd's beginning, before the first write.
const neverThere = "1"

// unchangeable are kinds with fields that cannot be put right once the object is there.
var unchangeable = map[schema.GroupResource]bool{
	{Resource: "pods"}: true, {Group: "batch", Resource: "jobs"}: true, {Resource: "persistentvolumeclaims"}: true,
}

// mostUnowned is how many unowned fields an object may have; what has more is rarely like another.
const mostUnowned = 100

// intent is what a manager applied.
type intent struct {
	manager string
	fields  map[string]any // that it owned: fieldsV1
	applied object
	// shape names the unowned fields, without the names of list elements; empty when all is owned.
	shape string
}

// intent returns what the only manager of an object applied; nil when the object has to be created in the plain way.
func (a *applier) intent(it *Item, body object, entries []any) *intent {
	if len(entries) != 1 || len(body.list("metadata", "ownerReferences")) > 0 {
		return nil
	}
	m, _ := entries[0].(map[string]any)
	e := object(m)
	if e.str("operation") != "Apply" || e.str("manager") == "" || e.str("fieldsType") != "FieldsV1" || e.str("apiVersion") != body.str("apiVersion") {
		return nil
	}
	in := &intent{manager: e.str("manager"), fields: e.sub("fieldsV1")}
	s := &ownedSplit{}
	kept, ok := s.split("", in.fields, map[string]any(body)).(map[string]any)
	if !ok || s.strange || len(s.unowned) > mostUnowned {
		return nil
	}
	in.applied = kept
	for _, f := range []string{"apiVersion", "kind"} {
		in.applied[f] = body[f]
	}
	for _, f := range []string{"name", "namespace"} {
		if v := body.at("metadata", f); v != nil {
			in.applied.put(v, "metadata", f)
		}
	}
	in.applied.put(neverThere, "metadata", "resourceVersion")
	if len(s.unowned) > 0 {
		if unchangeable[it.Resource] {
			return nil
		}
		slices.Sort(s.unowned)
		in.shape = strings.Join(append(slices.Compact(s.unowned), it.Resource.String(), it.served.Version, it.Namespace), "\x00")
	}
	return in
}

// ownedSplit splits an object into what a manager owns and the rest.
type ownedSplit struct {
	unowned []string // path=value
	strange bool     // a set of fields that is not understood
}

// split returns what of v the tree of fieldsV1 owns, nil when that is nothing.
func (s *ownedSplit) split(path string, tree map[string]any, v any) any {
	if len(tree) == 0 { // a leaf, owned as a whole
		return v
	}
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for name, field := range v {
			at := path + "." + name
			sub, owned := tree["f:"+name].(map[string]any)
			switch {
			case owned:
				if kept := s.split(at, sub, field); kept != nil {
					out[name] = kept
				}
			default:
				s.rest(at, field)
			}
		}
		if _, itself := tree["."]; len(out) == 0 && !itself && path != "" {
			return nil
		}
		return out
	case []any:
		return s.list(path, tree, v)
	}
	s.strange = true // fields below a value that has none
	return nil
}

func (s *ownedSplit) list(path string, tree map[string]any, list []any) any {
	keys := map[string]any{} // of elements, parsed
	for k := range tree {
		var v any
		switch {
		case k == ".":
		case (strings.HasPrefix(k, "k:") || strings.HasPrefix(k, "v:")) && utiljson.Unmarshal([]byte(k[2:]), &v) == nil:
			keys[k] = v
		default:
			s.strange = true
		}
	}
	out := []any{}
	for _, element := range list {
		owned := false
		for k, key := range keys {
			if !isElement(k, key, element) {
				continue
			}
			sub, _ := tree[k].(map[string]any)
			if kept := s.split(path+"[]", sub, element); kept != nil {
				out, owned = append(out, kept), true
			}
			break
		}
		if !owned {
			s.rest(path+"[]", element)
		}
	}
	return out
}

// isElement reports whether a key of fieldsV1 means the element of a list.
func isElement(k string, key, element any) bool {
	if strings.HasPrefix(k, "v:") {
		return reflect.DeepEqual(key, element)
	}
	names, _ := key.(map[string]any)
	m, isMap := element.(map[string]any)
	for name, v := range names {
		if !isMap || !reflect.DeepEqual(m[name], v) {
			return false
		}
	}
	return len(names) > 0
}

// rest notes all values of something unowned.
func (s *ownedSplit) rest(path string, v any) {
	switch path {
	case ".apiVersion", ".kind", ".metadata.name", ".metadata.namespace":
		return
	}
	if len(s.unowned) > mostUnowned {
		return
	}
	if m, ok := v.(map[string]any); ok && len(m) > 0 {
		for name, field := range m {
			s.rest(path+"."+name, field)
		}
		return
	}
	if v != nil {
		text, _ := json.Marshal(v) //nolint:errchkjson // out of JSON
		s.unowned = append(s.unowned, path+"="+string(text))
	}
}

// holds reports whether all that want has is in have with the same value.
func holds(have, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		h, ok := have.(map[string]any)
		for name, v := range want {
			if ok = ok && (v == nil || holds(h[name], v)); !ok {
				return false
			}
		}
		return ok
	case []any:
		h, _ := have.([]any)
		if len(h) != len(want) {
			return false
		}
		for i, v := range want {
			if !holds(h[i], v) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(have, want)
}

// owns reports whether the object has the intent's manager as its only one, with the same fields.
func (in *intent) owns(o object) bool {
	_, entries := creator(o.list("metadata", "managedFields"))
	if len(entries) != 1 {
		return false
	}
	m, _ := entries[0].(map[string]any)
	return m["manager"] == in.manager && m["operation"] == "Apply" && reflect.DeepEqual(m["fieldsV1"], any(in.fields))
}

// shape is what is known about objects whose unowned fields are alike.
type shape struct {
	ask  sync.Once
	good bool // the API server makes the same of what is owned
}

// shapes remembers them. The zero value is usable.
type shapes struct {
	mu   sync.Mutex
	of   map[string]*shape
	deaf map[string]bool // resources that cannot be applied
}

// known returns a shape, nil for the first object that has it: only when it is not the last one does asking pay.
func (s *shapes) known(name string) *shape {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[string]*shape{}
	}
	if s.of[name] == nil {
		s.of[name] = &shape{}
		return nil
	}
	return s.of[name]
}

func (s *shapes) isDeaf(r schema.GroupResource, namespace string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deaf[r.String()+"/"+namespace]
}

func (s *shapes) isNowDeaf(r schema.GroupResource, namespace string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deaf == nil {
		s.deaf = map[string]bool{}
	}
	s.deaf[r.String()+"/"+namespace] = true
}

// applicable returns the intent to make the object by, nil when a plain creation is the way. entries are the object's field managers that
// a plain creation leaves to be put back.
func (a *applier) applicable(ctx context.Context, it *Item, body object, entries []any) *intent {
	if a.shapes.isDeaf(it.Resource, it.Namespace) {
		return nil
	}
	in := a.intent(it, body, entries)
	if in == nil || in.shape == "" {
		return in
	}
	s := a.shapes.known(in.shape)
	if s == nil {
		return nil
	}
	s.ask.Do(func() {
		u, err := a.apply(ctx, it, in, metav1.DryRunAll)
		s.good = err == nil && holds(u.Object, map[string]any(body)) && in.owns(u.Object)
	})
	if !s.good {
		return nil
	}
	return in
}

// apply makes the object in the name of its manager. An object that is there is a conflict.
func (a *applier) apply(ctx context.Context, it *Item, in *intent, dryRun ...string) (*unstructured.Unstructured, error) {
	// There is nobody to be in conflict with, and what the API server had once it knows: what it does not is an error anyway.
	force := true
	return a.target.client(it.served, it.Namespace).Patch(ctx, it.Name, types.ApplyPatchType, in.applied.json(),
		metav1.PatchOptions{FieldManager: in.manager, Force: &force, DryRun: dryRun, FieldValidation: metav1.FieldValidationIgnore})
}

// isNoWay reports whether the API server does not take an apply, while it may take a plain creation: another right is
// needed for it, an aggregated API may not have it, and what is refused for its content is asked for once more in
// the plain way, whose answer a person can use.
func (a *applier) isNoWay(it *Item, err error) bool {
	var status apierrors.APIStatus
	if err == nil || !errors.As(err, &status) {
		return false
	}
	switch code := status.Status().Code; code {
	case http.StatusForbidden:
		if apierrors.HasStatusCause(err, "NamespaceTerminating") {
			return false
		}
		a.shapes.isNowDeaf(it.Resource, it.Namespace)
	case http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType, http.StatusNotFound:
		a.shapes.isNowDeaf(it.Resource, it.Namespace)
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
	default:
		return isUntyped(status.Status())
	}
	return true
}

// isUntyped reports that the API server does not take an apply because the object has a field that it does not know, as an older one. A
// creation leaves it out. It tells so as an internal error (sigs.k8s.io/structured-merge-diff).
func isUntyped(s metav1.Status) bool {
	return s.Code == http.StatusInternalServerError && strings.Contains(s.Message, "failed to create typed patch object")
}

// complete gives an object that was just made the values that the API server did not come to by itself.
func (a *applier) complete(ctx context.Context, it *Item, body object, u *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	for range maxRebases {
		whole := body.clone()
		for _, f := range []string{"uid", "resourceVersion", "managedFields"} {
			whole.put(object(u.Object).at("metadata", f), "metadata", f)
		}
		done, err := a.put(ctx, it, whole)
		if !apierrors.IsConflict(err) {
			return done, err
		}
		if u, err = a.target.get(ctx, it.served, it.Namespace, it.Name); err != nil {
			return nil, err
		}
		if u == nil {
			return nil, errors.New("it is gone again")
		}
	}
	return nil, errMeanwhile
}
