package replay

import (
	"fmt"
	"time"

	"github.com/tidemark-backup/tidemark/journal"
)

// Caveats are the reasons why an answer about scope at cut may not be the whole truth: gaps
// that the cut falls into, resources that were not recorded yet, watches that had not got
// that far. No caveats means that the ledger holds the whole span.
func (c *Catalog) Caveats(cut journal.Cut, scope Scope) []string {
	var all []string
	for i := range c.Resources {
		l := &c.Resources[i]
		name := l.GroupResource()
		if !has(scope.Resources, name) || scope.Namespaces != nil && !inside(scope.Namespaces, l.Namespaced) {
			continue
		}
		if g := l.GapAt(cut); g != nil {
			all = append(all, fmt.Sprintf("%s: the moment lies in a gap from %s to %s (%s): changes in it may be missing",
				name, clock(g.From.Time), clock(g.To.Time), g.Cause))
			continue
		}
		if !l.Holds(cut) && l.Initial > 0 && l.First.Time.After(c.From.Time) {
			all = append(all, fmt.Sprintf("%s: recorded only since %s, its %d objects of then are not in the answer", name, clock(l.First.Time), l.Initial))
		}
		if l.Removed == nil && cut.Time.Sub(l.Watermark.Time) > staleAfter {
			all = append(all, fmt.Sprintf("%s: known only up to %s: what changed after is missing (see 'tidemark status')", name, clock(l.Watermark.Time)))
		}
	}
	return all
}

// staleAfter is how far a watermark may lie behind a cut before that is worth a word: bookmarks
// move the watermarks of idle resources about once a minute.
const staleAfter = 3 * time.Minute

func inside(namespaces []string, namespaced bool) bool {
	for _, ns := range namespaces {
		if (ns == ClusterScope) != namespaced {
			return true
		}
	}
	return false
}

func clock(t time.Time) string { return t.UTC().Format(time.RFC3339) }
