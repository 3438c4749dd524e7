package replay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// Errors of LastAlive.
var (
	// ErrStillLives is returned for an object that is there and is not being deleted.
	ErrStillLives = errors.New("still lives")
	// ErrNeverSeen is returned for an object of which history knows nothing.
	ErrNeverSeen = errors.New("was never seen")
)

// Ref names one object. Namespace is empty for cluster-scoped objects.
type Ref struct {
	Resource        schema.GroupResource
	Namespace, Name string
}

// String names the object: "deployments.apps shop/web".
func (r Ref) String() string { return objectName(r.Resource, r.Namespace, r.Name) }

// Typed is how the CLI takes the object.
func (r Ref) Typed() string {
	if r.Resource == namespaces {
		return "ns/" + r.Name
	}
	s := r.Resource.String() + "/" + r.Name
	if r.Namespace != "" {
		s += " -n " + r.Namespace
	}
	return s
}

// LastAlive finds the last moment at which a deleted object lived, and the change that ended
// it. That is the moment before the deletion began, not before it was done: a Namespace is
// emptied while it is being deleted, and other objects are taken apart by their finalizers.
func LastAlive(ctx context.Context, src Source, ref Ref) (journal.Cut, *Change, error) {
	q := ChangeQuery{Objects: true, Scope: Scope{Namespaces: []string{ref.Namespace}, Resources: []schema.GroupResource{ref.Resource}, Names: []string{ref.Name}}}
	var end *Change              // the change by which the newest deletion began
	known, lived := false, false // it was seen at all; it was alive before end
	for c, err := range src.Changes(ctx, q) {
		if err != nil {
			return journal.Cut{}, nil, fmt.Errorf("reading the history of %s: %w", ref, err)
		}
		dying := c.Op == journal.Deleted || deletingJSON(c.Object)
		switch {
		case !dying:
			end, lived = nil, true
		case end == nil:
			end = keep(c)
			// What has not changed for longer than history is kept has no change to be seen
			// alive in, but lived before this one.
			lived = lived || c.Before != nil && !deletingJSON(c.Before)
		case c.Op == journal.Added: // a new object that was being deleted when it was first seen
			end, lived = keep(c), false
		}
		known = true
	}
	if !known {
		// It may have lived unchanged for longer than history is kept.
		now, err := src.Resolve(ctx, At{})
		if err != nil {
			return journal.Cut{}, nil, err
		}
		for _, err := range src.Fold(ctx, now, q.Scope) {
			if err != nil {
				return journal.Cut{}, nil, fmt.Errorf("reading the history of %s: %w", ref, err)
			}
			known = true
		}
	}
	switch {
	case !known:
		return journal.Cut{}, nil, fmt.Errorf("%s %w%s", ref, ErrNeverSeen, near(ctx, src, ref))
	case end == nil:
		return journal.Cut{}, nil, fmt.Errorf("%s %w: to see how it changed use 'tidemark log %s', to take it back use 'tidemark restore %s --existing update --at ...'", ref, ErrStillLives, ref.Typed(), ref.Typed())
	case !lived:
		return journal.Cut{}, nil, fmt.Errorf("the deletion of %s had begun before it was recorded first, at %s: no moment of its life is known; see 'tidemark status'", ref, end.Observed.UTC().Format(time.RFC3339))
	}
	cut, err := before(ctx, src, end)
	return cut, end, err
}

// emptying is how long the deletions by which a namespace was emptied may lie apart at most.
const emptying = 2 * time.Minute

// EmptiedBefore finds, for a namespace in which nothing of its own was left at the cut, the moment before it was emptied, and how many objects
// were deleted since: who undoes a restore, or is careful, deletes what is in a namespace before the namespace. What controllers make, and
// what goes with the cluster, counts for nothing. Zero objects: something was left, or nothing was deleted in the hour before.
func EmptiedBefore(ctx context.Context, src Source, namespace string, at journal.Cut) (journal.Cut, int, error) {
	catalog, err := src.Ledgers(ctx)
	if err != nil {
		return journal.Cut{}, 0, err
	}
	apart := map[schema.GroupResource]bool{} // their revisions cannot be compared with the cut's
	for i := range catalog.Resources {
		apart[catalog.Resources[i].GroupResource()] = catalog.Resources[i].OwnCounter
	}
	counts := func(e *journal.Event, raw []byte) bool {
		if e.Resource == namespaces || apart[e.Resource] {
			return false
		}
		o, err := parseObject(raw)
		if err != nil {
			return false
		}
		o = o.clone()
		delete(o.sub("metadata"), "deletionTimestamp") // it counts until it is gone
		return !goesByItself(e.Resource, o, &RestoreRequest{}, &past{})
	}
	for e, err := range src.Fold(ctx, at, InNamespace(namespace)) {
		if err != nil {
			return journal.Cut{}, 0, err
		}
		if counts(&e, e.Object) && !deletingJSON(e.Object) {
			return journal.Cut{}, 0, nil
		}
	}
	from := at.Time.Add(-time.Hour)
	for c, err := range src.Changes(ctx, ChangeQuery{From: from, To: at.Time, Scope: Scope{Resources: []schema.GroupResource{namespaces}, Names: []string{namespace}}}) {
		if err != nil {
			return journal.Cut{}, 0, err
		}
		if c.Op == journal.Added { // what was deleted before was in another one
			from = c.Observed
		}
	}
	ends := map[objectKey]*Change{} // the change by which the newest deletion of an object began
	for c, err := range src.Changes(ctx, ChangeQuery{From: from, To: at.Time.Add(slowWatch), Scope: InNamespace(namespace), Objects: true}) {
		if err != nil {
			return journal.Cut{}, 0, err
		}
		raw := c.Object
		if raw == nil {
			raw = c.Before
		}
		k := objectKey{c.Resource, c.Namespace, c.Name}
		switch {
		case !counts(&c.Event, raw) || c.Revision.Compare(at.Revision) > 0:
		case c.Op != journal.Deleted && !deletingJSON(c.Object):
			delete(ends, k)
		case ends[k] == nil:
			ends[k] = keep(c)
		}
	}
	return beforeAll(ctx, src, slices.SortedFunc(maps.Values(ends), func(a, b *Change) int { return b.Observed.Compare(a.Observed) }))
}

// beforeAll is the moment before the newest deletions that lie close together, of some in the order of the newest first, and how many they are.
func beforeAll(ctx context.Context, src Source, ends []*Change) (journal.Cut, int, error) {
	var full journal.Cut
	for i, c := range ends {
		if i > 0 && ends[i-1].Observed.Sub(c.Observed) > emptying {
			return full, i, nil
		}
		cut, err := before(ctx, src, c)
		if err != nil {
			return journal.Cut{}, 0, err
		}
		if i == 0 || cut.Revision.Compare(full.Revision) < 0 {
			full.Revision = cut.Revision
		}
		full.Time = cut.Time
	}
	return full, len(ends), nil
}

// keep makes a change outlive the iteration that gave it.
func keep(c Change) *Change {
	c.Object, c.Before = slices.Clone(c.Object), slices.Clone(c.Before)
	return &c
}

func deletingJSON(raw []byte) bool {
	o, err := parseObject(raw)
	return err == nil && o.deleting()
}

// before is the newest moment before the change. Of a deletion that was found out by a
// comparison only the gap is known in which it happened; then it is the gap's beginning.
func before(ctx context.Context, src Source, c *Change) (journal.Cut, error) {
	cut := journal.Cut{Revision: c.Revision, Time: c.Observed.Add(-time.Nanosecond)}
	if cut.RV > 0 {
		cut.RV--
	}
	if !c.Inferred() {
		return cut, nil
	}
	catalog, err := src.Ledgers(ctx)
	if err != nil {
		return journal.Cut{}, fmt.Errorf("reading the ledgers: %w", err)
	}
	for i := range catalog.Resources {
		l := &catalog.Resources[i]
		if l.GroupResource() != c.Resource {
			continue
		}
		var within *journal.Gap // the one that begins last: what a filter left out may be a longer one
		for j := range l.Gaps {
			if g := &l.Gaps[j]; !g.From.Time.After(c.Observed) && !g.To.Time.Before(c.Observed) && (within == nil || within.From.Time.Before(g.From.Time)) {
				within = g
			}
		}
		if within != nil {
			return within.From, nil
		}
	}
	return cut, nil
}

// near ends the error about an unknown object: names like it, and what to type next.
func near(ctx context.Context, src Source, ref Ref) string {
	names := map[string]bool{}
	scope := Scope{Resources: []schema.GroupResource{ref.Resource}}
	for c, err := range src.Changes(ctx, ChangeQuery{Scope: scope}) {
		if err != nil {
			break // the names are only a help
		}
		if c.Name == ref.Name && c.Namespace != ref.Namespace {
			names[c.Name+" -n "+c.Namespace] = true
		} else if c.Namespace == ref.Namespace && likeName(ref.Name, c.Name) {
			names[c.Name] = true
		}
	}
	where := ""
	if ref.Namespace != "" {
		where = " -n " + ref.Namespace
	}
	hint := fmt.Sprintf(": 'tidemark log %s%s' shows what was", ref.Resource, where)
	if len(names) == 0 {
		return hint
	}
	list := make([]string, 0, len(names))
	for n := range names {
		list = append(list, n)
	}
	slices.Sort(list)
	if len(list) > 5 {
		list = list[:5]
	}
	return "; did you mean " + strings.Join(list, ", ") + "?" + strings.TrimPrefix(hint, ":")
}

// likeName reports whether b may be meant by a: one contains the other, or few letters differ.
func likeName(a, b string) bool {
	if len(a) >= 3 && strings.Contains(b, a) || len(b) >= 3 && strings.Contains(a, b) {
		return true
	}
	return EditDistance(a, b) <= max(1, len(a)/4)
}

// EditDistance is the number of bytes to insert, drop or change to get from a to b: what tells a
// name that was mistyped from another one.
func EditDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
