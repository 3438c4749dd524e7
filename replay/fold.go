package replay

import (
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// fold calls yield with the newest version, at or before the cut, of each object in scope that
// existed at the cut, until yield returns false. own tells the resources whose cuts go by
// observed time. It is a pure function of the view, the cut and the scope.
func fold(v *journal.View, cut journal.Cut, scope Scope, own map[schema.GroupResource]bool, yield func(journal.Event) bool) error {
	w := walk{View: v, namespaces: slices.Sorted(slices.Values(scope.Namespaces)), names: slices.Sorted(slices.Values(scope.Names))}
	w.resources = slices.SortedFunc(slices.Values(scope.Resources), compareResources)
	for ok := w.first(); ok; {
		ns, gr, name := w.Object()
		if skipped, more := w.skip(ns, gr, name); skipped {
			ok = more
			continue
		}
		e, found, err := versionAt(v, cut, own[gr])
		if err != nil {
			return err
		}
		if found && scope.Selects(e.Object) && !yield(e) {
			return nil
		}
		ok = w.NextObject()
	}
	return nil
}

// versionAt finds the version of the view's current object that was there at the cut.
func versionAt(v *journal.View, cut journal.Cut, byTime bool) (journal.Event, bool, error) {
	if !byTime {
		if !v.Before(cut.Revision) {
			return journal.Event{}, false, nil
		}
		m, err := v.Meta()
		if err != nil || m.Op == journal.Deleted {
			return m, false, err
		}
		e, err := v.Event()
		return e, true, err
	}
	for ok := true; ok; ok = v.NextVersion() {
		m, err := v.Meta()
		if err != nil {
			return m, false, err
		}
		if m.Observed.After(cut.Time) {
			continue
		}
		if m.Op == journal.Deleted {
			return m, false, nil
		}
		e, err := v.Event()
		return e, true, err
	}
	return journal.Event{}, false, nil
}

// walk skips from one wanted object to the next by seeks, so that what is out of scope is
// not read. Its lists are sorted as the view is; an empty list wants everything.
type walk struct {
	*journal.View
	namespaces []string
	resources  []schema.GroupResource
	names      []string
}

func (w *walk) first() bool {
	ns := ""
	if len(w.namespaces) > 0 {
		ns = w.namespaces[0]
	}
	return w.Seek(ns, schema.GroupResource{}, "")
}

// skip moves on when the current object is not wanted; more reports whether there is another.
func (w *walk) skip(ns string, gr schema.GroupResource, name string) (skipped, more bool) {
	if len(w.namespaces) > 0 {
		if i, found := slices.BinarySearch(w.namespaces, ns); !found {
			return true, i < len(w.namespaces) && w.Seek(w.namespaces[i], schema.GroupResource{}, "")
		}
	}
	if len(w.resources) > 0 {
		if i, found := slices.BinarySearchFunc(w.resources, gr, compareResources); !found {
			if i == len(w.resources) {
				return true, w.NextNamespace()
			}
			return true, w.Seek(ns, w.resources[i], "")
		}
	}
	if len(w.names) > 0 {
		if i, found := slices.BinarySearch(w.names, name); !found {
			if i == len(w.names) {
				return true, w.NextResource()
			}
			return true, w.Seek(ns, gr, w.names[i])
		}
	}
	return false, true
}

// compareResources orders as the journal's keys do: by the text form.
func compareResources(a, b schema.GroupResource) int {
	x, y := a.String(), b.String()
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}
