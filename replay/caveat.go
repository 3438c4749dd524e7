package replay

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// Caveats are the reasons why an answer about scope at cut may not be the whole truth: gaps
// that the cut falls into, what is not recorded, or was not yet, watches that had not got
// that far. What is the same for many resources is said once. No caveats means that the
// ledger holds the whole span.
func (c *Catalog) Caveats(cut journal.Cut, scope Scope) []string {
	var told shared
	down := c.outage(cut, nil)
	for i := range c.Resources {
		l := &c.Resources[i]
		name := l.GroupResource()
		if !has(scope.Resources, name) || scope.Namespaces != nil && !inside(scope.Namespaces, l.Namespaced) {
			continue
		}
		if l.Filter != "" {
			told.add("recorded "+l.Filter, name)
		}
		if g := l.GapAt(cut); g != nil {
			told.add(fmt.Sprintf("the moment lies in a gap from %s to %s (%s): changes in it may be missing", clock(g.From.Time), clock(g.To.Time), g.Cause), name)
			continue
		}
		if o := c.outage(cut, &name); o != nil && down == nil {
			told.add(unwatched(o), name)
		}
		if !l.Holds(cut) && l.Initial > 0 && l.First.Time.After(c.From.Time) {
			told.add(fmt.Sprintf("recorded only since %s, its %d objects of then are not in the answer", clock(l.First.Time), l.Initial), name)
		}
		if why := behind(l, cut); why != "" {
			told.add(why+": what changed since then may be missing (see 'tidemark status')", name)
		}
	}
	for _, out := range c.LeftOut {
		if slices.Contains(scope.Resources, out.Resource) {
			told.add("not recorded: "+out.Why, out.Resource)
		}
	}
	all := told.lines(3, func(who, text string) string { return who + ": " + text })
	if down != nil {
		all = append([]string{unwatched(down)}, all...)
	}
	return all
}

// unsure says why it cannot be told that something was not there at the cut although history
// has nothing of it; empty when it can be told.
func (c *Catalog) unsure(l *journal.Ledger, cut journal.Cut) string {
	gr := l.GroupResource()
	if i := slices.IndexFunc(c.LeftOut, func(o journal.LeftOut) bool { return o.Resource == gr }); i >= 0 {
		return "not recorded: " + c.LeftOut[i].Why
	}
	o := c.outage(cut, &gr)
	if o == nil {
		o = c.outage(cut, nil)
	}
	switch {
	case l.Filter != "":
		return "recorded " + l.Filter
	case !l.Holds(cut):
		return "not recorded yet at that moment"
	case l.Comparing != "":
		return "being compared with the cluster (" + l.Comparing + ")"
	case l.Removed != nil:
		return "the resource was gone from the cluster, and what is there now is not recorded yet"
	case l.GapAt(cut) != nil:
		return "that moment lies in a gap of the history"
	case o != nil:
		return fmt.Sprintf("tidemark was not recording from %s to %s: what was there at that moment is not known", clock(o.From), clock(o.To))
	}
	return behind(l, cut)
}

// outage finds the span without any recording that the cut falls into: of one resource, or
// of all of them.
func (c *Catalog) outage(cut journal.Cut, gr *schema.GroupResource) *journal.Outage {
	for i := range c.Outages {
		o := &c.Outages[i]
		same := o.Resource == nil && gr == nil || o.Resource != nil && gr != nil && *o.Resource == *gr
		if same && cut.Time.After(o.From) && cut.Time.Before(o.To) {
			return o
		}
	}
	return nil
}

func unwatched(o *journal.Outage) string {
	return fmt.Sprintf("tidemark was not recording from %s to %s: what changed in it is known, but not when; this is the state at %s", clock(o.From), clock(o.To), clock(o.From))
}

// behind says that the cut lies past what is known of a resource, and why; empty when it does
// not. A resource that is watched is known as it is: its watermark moves with its changes and
// with the server's bookmarks only.
func behind(l *journal.Ledger, cut journal.Cut) string {
	past := cut.Time.After(l.Watermark.Time) || !l.OwnCounter && cut.Revision.Compare(l.Watermark.Revision) > 0
	switch {
	case !past || l.Removed != nil:
		return ""
	case l.Comparing != "":
		return fmt.Sprintf("known only up to %s (being compared with the cluster: %s)", clock(l.Watermark.Time), l.Comparing)
	case l.Interrupted != "":
		return fmt.Sprintf("known only up to %s (%s)", clock(l.Watermark.Time), l.Interrupted)
	}
	return ""
}

// shared gathers what there is to say about resources, so that the same is said once.
type shared struct {
	texts []string // in the order they came
	about map[string][]string
}

func (s *shared) add(text string, gr schema.GroupResource) {
	if s.about == nil {
		s.about = map[string][]string{}
	}
	if s.about[text] == nil {
		s.texts = append(s.texts, text)
	}
	s.about[text] = append(s.about[text], gr.String())
}

// lines makes a line of each text, and of those it is about: their names, or, of more than few, their number.
func (s *shared) lines(few int, line func(who, text string) string) []string {
	var all []string
	for _, text := range s.texts {
		who := strings.Join(s.about[text], ", ")
		if n := len(s.about[text]); n > few {
			who = fmt.Sprintf("%d resources", n)
		}
		all = append(all, line(who, text))
	}
	return all
}

func inside(namespaces []string, namespaced bool) bool {
	for _, ns := range namespaces {
		if (ns == ClusterScope) != namespaced {
			return true
		}
	}
	return false
}

func clock(t time.Time) string { return t.UTC().Format(time.RFC3339) }
