package replay

import (
	"cmp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// ListedOrder compares two objects of one resource as an API server's lists order them: by their keys in
// etcd, namespace/name. It is not the journal's order, in which "shop" comes before "shop-eu".
func ListedOrder(namespace, name, namespace2, name2 string) int {
	return cmp.Or(listedNamespaces(namespace, namespace2), strings.Compare(name, name2))
}

func listedNamespaces(a, b string) int {
	if a == b {
		return 0
	}
	return strings.Compare(a+"/", b+"/")
}

// ListedNamespaces are the namespaces that the view has objects in, in the order of ListedOrder.
func ListedNamespaces(v *journal.View) []string {
	var all []string
	for ok := v.First(); ok; ok = v.NextNamespace() {
		ns, _, _ := v.Object()
		all = append(all, ns)
	}
	slices.SortFunc(all, listedNamespaces)
	return all
}

// Listing is the fold of one resource at one revision, in the order of ListedOrder.
type Listing struct {
	view     *journal.View
	resource schema.GroupResource
	at       journal.Revision
	spaces   []string // those that are still to come, the current one first
	ok       bool     // the view is at an object of the resource in that one
}

// NewListing begins a listing behind an object; with empty names, at the first one. The view must
// not be used for anything else, and namespaces be what ListedNamespaces gave.
func NewListing(v *journal.View, gr schema.GroupResource, at journal.Revision, namespaces []string, namespace, name string) *Listing {
	l := &Listing{view: v, resource: gr, at: at}
	i, _ := slices.BinarySearchFunc(namespaces, namespace, listedNamespaces)
	if name == "" {
		i = 0
	}
	l.spaces = namespaces[i:]
	l.enter()
	if l.ok && name != "" && l.space() == namespace {
		l.ok = v.Seek(namespace, gr, name) && l.within()
		if l.ok {
			if _, _, at := v.Object(); at == name {
				l.ok = v.NextObject() && l.within()
			}
		}
	}
	return l
}

func (l *Listing) space() string {
	if len(l.spaces) == 0 {
		return ""
	}
	return l.spaces[0]
}

// enter goes to the resource's first object in the current namespace.
func (l *Listing) enter() {
	l.ok = len(l.spaces) > 0 && l.view.Seek(l.spaces[0], l.resource, "") && l.within()
}

func (l *Listing) within() bool {
	ns, gr, _ := l.view.Object()
	return gr == l.resource && ns == l.spaces[0]
}

// Next returns the next object that existed; ok is false behind the last one. An error belongs to that
// object alone, whose event then has its names only.
func (l *Listing) Next() (e journal.Event, ok bool, err error) {
	for len(l.spaces) > 0 {
		if !l.ok {
			l.spaces = l.spaces[1:]
			l.enter()
			continue
		}
		ns, gr, name := l.view.Object()
		e, found, err := versionAt(l.view, journal.Cut{Revision: l.at}, false)
		l.ok = l.view.NextObject() && l.within()
		if err != nil {
			return journal.Event{Resource: gr, Namespace: ns, Name: name}, true, err
		}
		if found {
			return e, true, nil
		}
	}
	return journal.Event{}, false, nil
}

// VersionAt is the version of one object that existed at a revision; found is false when there was none.
func VersionAt(v *journal.View, gr schema.GroupResource, namespace, name string, at journal.Revision) (e journal.Event, found bool, err error) {
	if !v.Seek(namespace, gr, name) {
		return e, false, nil
	}
	if ns, r, n := v.Object(); ns != namespace || r != gr || n != name {
		return e, false, nil
	}
	return versionAt(v, journal.Cut{Revision: at}, false)
}
