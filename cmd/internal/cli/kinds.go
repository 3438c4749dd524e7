package cli

import (
	"cmp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// kinds knows the recorded resources by the names people use. It asks the ledgers and not a
// cluster, so it works when the cluster, or the kind, is gone.
type kinds struct {
	ledgers []journal.Ledger // core group first, then by group and name
	leftOut []journal.LeftOut
}

func newKinds(c *replay.Catalog) *kinds {
	k := &kinds{ledgers: slices.Clone(c.Resources), leftOut: c.LeftOut}
	slices.SortFunc(k.ledgers, func(a, b journal.Ledger) int {
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

// get returns the ledger of a resource, or nil.
func (k *kinds) get(gr schema.GroupResource) *journal.Ledger {
	for i := range k.ledgers {
		if k.ledgers[i].GroupResource() == gr {
			return &k.ledgers[i]
		}
	}
	return nil
}

// find returns the resources that a name means: one, or those of a category such as "all".
func (k *kinds) find(name string) ([]*journal.Ledger, error) {
	name = strings.ToLower(name)
	word, group, grouped := strings.Cut(name, ".")
	for i := range k.ledgers {
		l := &k.ledgers[i]
		if !names(l, word) || grouped && group != l.Group && group != l.Version+"."+l.Group && (l.Group != "" || group != l.Version) {
			continue
		}
		return []*journal.Ledger{l}, nil
	}
	var found []*journal.Ledger
	for i := range k.ledgers {
		if slices.Contains(k.ledgers[i].Categories, name) {
			found = append(found, &k.ledgers[i])
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	if l := k.notRecorded(name); l != nil {
		return nil, failure(ErrNotInHistory, "%s are not recorded (%s): 'tidemark run --help' tells how to choose what is", l.Resource, l.Why)
	}
	if len(k.ledgers) == 0 {
		return nil, failure(ErrNotInHistory, "nothing is recorded yet: see 'tidemark status'")
	}
	hint, object := "", "; an object is TYPE/NAME, such as deploy/"+name
	if near := k.near(word); len(near) > 0 {
		hint, object = "did you mean "+strings.Join(near, " or ")+"? ", ""
	}
	return nil, failure(ErrNotInHistory, "no recorded resource is called %q: %s'tidemark status' lists what is recorded%s", name, hint, object)
}

// notRecorded finds a resource that is left out. Nothing but its plural is known of it.
func (k *kinds) notRecorded(name string) *journal.LeftOut {
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

func names(l *journal.Ledger, word string) bool {
	return word == l.Resource || word == l.Singular || word == strings.ToLower(l.Kind) || slices.Contains(l.ShortNames, word)
}

// near returns up to three resources with a name like the word.
func (k *kinds) near(word string) []string {
	type match struct {
		name     string
		distance int
	}
	var found []match
	for i := range k.ledgers {
		l := &k.ledgers[i]
		best := len(word)/3 + 1 // more typing errors than that, and it is another word
		hit := len(word) >= 3 && strings.HasPrefix(l.Resource, word)
		for _, n := range append([]string{l.Resource, l.Singular, strings.ToLower(l.Kind)}, l.ShortNames...) {
			if d := replay.EditDistance(word, n); n != "" && d <= best && d < len(n) {
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

// label is a resource as kubectl names it in "deployment.apps/web".
func label(l *journal.Ledger) string {
	kind := strings.ToLower(l.Kind)
	if l.Group == "" {
		return kind
	}
	return kind + "." + l.Group
}

// labelOf is label for a resource that may not be in the catalog.
func (k *kinds) labelOf(gr schema.GroupResource) string {
	if l := k.get(gr); l != nil {
		return label(l)
	}
	return gr.String()
}
