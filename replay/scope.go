package replay

import (
	"slices"

	"github.com/tidwall/gjson"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// ClusterScope is the name that stands for "objects outside any namespace" in Scope.Namespaces.
const ClusterScope = ""

// Scope says what a question is about. The zero Scope is everything.
type Scope struct {
	// Namespaces limits to these; ClusterScope among them means cluster-scoped objects. Nil: all.
	Namespaces []string
	// Resources limits to these. Nil: all.
	Resources []schema.GroupResource
	// Names limits to these object names. Nil: all.
	Names []string
	// Selector limits by label. Nil: all.
	Selector labels.Selector
}

// InNamespace is the scope of everything inside one namespace.
func InNamespace(ns string) Scope { return Scope{Namespaces: []string{ns}} }

// Covers reports whether an object of this name is in scope, labels aside.
func (s *Scope) Covers(gr schema.GroupResource, namespace, name string) bool {
	return has(s.Namespaces, namespace) && has(s.Resources, gr) && has(s.Names, name)
}

// Contains reports whether the event's object is in scope. Of an object whose labels
// changed, each version is judged by its own labels.
func (s *Scope) Contains(e *journal.Event) bool {
	return s.Covers(e.Resource, e.Namespace, e.Name) && s.Selects(e.Object)
}

// Selects reports whether the object's labels match the selector.
func (s *Scope) Selects(object []byte) bool {
	if s.Selector == nil || s.Selector.Empty() {
		return true
	}
	set := labels.Set{}
	gjson.GetBytes(object, "metadata.labels").ForEach(func(k, v gjson.Result) bool {
		set[k.String()] = v.String()
		return true
	})
	return s.Selector.Matches(set)
}

func has[T comparable](list []T, v T) bool { return list == nil || slices.Contains(list, v) }
