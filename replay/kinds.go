package replay

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// ErrUnknownKind is returned for a name that no recorded resource has.
var ErrUnknownKind = errors.New("no recorded resource has that name")

// unknownKind is ErrUnknownKind in words for a person.
type unknownKind string

func (u unknownKind) Error() string      { return string(u) }
func (unknownKind) Is(target error) bool { return target == ErrUnknownKind }

// Kinds knows the recorded resources by the names people use. It asks the ledgers and not a
// cluster, so it works when the cluster, or the kind, is gone.
type Kinds struct {
	Ledgers []journal.Ledger // core group first, then by group and name
	leftOut []journal.LeftOut
}

// NewKinds are those of a catalog.
func NewKinds(c *Catalog) *Kinds {
	k := &Kinds{Ledgers: slices.Clone(c.Resources), leftOut: c.LeftOut}
	slices.SortFunc(k.Ledgers, func(a, b journal.Ledger) int {
		return cmp.Or(cmp.Compare(rank(a.Group), rank(b.Group)), cmp.Compare(a.Group, b.Group), cmp.Compare(a.Resource, b.Resource))
	})
	return k
}

// rank puts Kubernetes' own groups before others, so that "deploy" means what it means to kubectl.
func rank(group string) int {
	switch {
	case group == "":
		return 0
	case !strings.Contains(group, "."):
		return 1
	case strings.HasSuffix(group, ".k8s.io"):
		return 2
	}
	return 3
}

// Get returns the ledger of a resource, or nil.
func (k *Kinds) Get(gr schema.GroupResource) *journal.Ledger {
	for i := range k.Ledgers {
		if k.Ledgers[i].GroupResource() == gr {
			return &k.Ledgers[i]
		}
	}
	return nil
}

// Find returns the resources that a name means: one, or those of a category such as "all".
func (k *Kinds) Find(name string) ([]*journal.Ledger, error) {
	name = strings.ToLower(name)
	word, group, grouped := strings.Cut(name, ".")
	for i := range k.Ledgers {
		l := &k.Ledgers[i]
		if !isNamed(l, word) || grouped && group != l.Group && group != l.Version+"."+l.Group && (l.Group != "" || group != l.Version) {
			continue
		}
		return []*journal.Ledger{l}, nil
	}
	var found []*journal.Ledger
	for i := range k.Ledgers {
		if slices.Contains(k.Ledgers[i].Categories, name) {
			found = append(found, &k.Ledgers[i])
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	if l := k.notRecorded(name); l != nil {
		return nil, unknownKind(fmt.Sprintf("%s are not recorded (%s): 'tidemark run --help' tells how to choose what is", l.Resource, l.Why))
	}
	if len(k.Ledgers) == 0 {
		return nil, unknownKind("nothing is recorded yet: see 'tidemark status'")
	}
	hint, object := "", "; an object is TYPE/NAME, such as deploy/"+name
	if near := k.near(word); len(near) > 0 {
		hint, object = "did you mean "+strings.Join(near, " or ")+"? ", ""
	}
	return nil, unknownKind(fmt.Sprintf("no recorded resource is called %q: %s'tidemark status' lists what is recorded%s", name, hint, object))
}

// notRecorded finds a resource that is left out. Nothing but its plural is known of it.
func (k *Kinds) notRecorded(name string) *journal.LeftOut {
	word, group, grouped := strings.Cut(name, ".")
	short := map[string]string{"ev": "events"}
	if full := short[word]; full != "" {
		word = full
	}
	for i := range k.leftOut {
		r := k.leftOut[i].Resource
		if grouped && group != r.Group {
			continue
		}
		if slices.Contains([]string{word, word + "s", word + "es", strings.TrimSuffix(word, "y") + "ies"}, r.Resource) {
			return &k.leftOut[i]
		}
	}
	return nil
}

func isNamed(l *journal.Ledger, word string) bool {
	return word == l.Resource || word == l.Singular || word == strings.ToLower(l.Kind) || slices.Contains(l.ShortNames, word)
}

// near returns up to three resources with a name like the word.
func (k *Kinds) near(word string) []string {
	type match struct {
		name     string
		distance int
	}
	var found []match
	for i := range k.Ledgers {
		l := &k.Ledgers[i]
		best := len(word)/3 + 1 // more typing errors than that, and it is another word
		hit := len(word) >= 3 && strings.HasPrefix(l.Resource, word)
		for _, n := range append([]string{l.Resource, l.Singular, strings.ToLower(l.Kind)}, l.ShortNames...) {
			if d := EditDistance(word, n); n != "" && d <= best && d < len(n) {
				best, hit = d, true
			}
		}
		if hit {
			found = append(found, match{l.GroupResource().String(), best})
		}
	}
	slices.SortStableFunc(found, func(a, b match) int { return cmp.Compare(a.distance, b.distance) })
	var out []string
	for _, m := range found[:min(3, len(found))] {
		out = append(out, m.name)
	}
	return out
}

// Label is a resource as kubectl names it in "deployment.apps/web".
func Label(l *journal.Ledger) string {
	kind := strings.ToLower(l.Kind)
	if l.Group == "" {
		return kind
	}
	return kind + "." + l.Group
}

// LabelOf is Label for a resource that may not be in the catalog.
func (k *Kinds) LabelOf(gr schema.GroupResource) string {
	if l := k.Get(gr); l != nil {
		return Label(l)
	}
	return gr.String()
}
