package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
)

// mostShown is how many resources, or outages, the status names before it counts the others.
const mostShown = 5

// writeLimits tells what of the cluster is not recorded.
func writeLimits(b *strings.Builder, st *api.Status) {
	filters := map[string]int{}
	var order []string
	for i := range st.Catalog.Resources {
		f := st.Catalog.Resources[i].Filter
		if f != "" && filters[f] == 0 {
			order = append(order, f)
		}
		filters[f]++
	}
	for _, f := range order {
		what := ""
		if n := filters[f]; n < len(st.Catalog.Resources) {
			what = fmt.Sprintf(" (%s)", count(n, "resource"))
		}
		fmt.Fprintf(b, "\nrecorded: %s%s", text(f), what)
	}
	var left []string
	for _, l := range st.Catalog.LeftOut {
		if !strings.Contains(l.Resource.Resource, "/") {
			left = append(left, l.Resource.String())
		}
	}
	if len(left) > 0 {
		fmt.Fprintf(b, "\nnot recorded: %s", some(left, "others (see -o json)"))
	}
	if len(order)+len(left) > 0 {
		b.WriteString("\n")
	}
}

// some names the first of a list, and counts the others.
func some(list []string, others string) string {
	if len(list) <= mostShown {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s, %d %s", strings.Join(list[:mostShown], ", "), len(list)-mostShown, others)
}

// span is a gap or an outage that several resources had together.
type span struct {
	resources []string
	from, to  time.Time
	inferred  int
	cause     string
}

// fold adds a span to those that it overlaps and shares the cause with, or as a new one.
func fold(all []span, s span) []span {
	for i := range all {
		o := &all[i]
		if o.cause != s.cause || s.from.After(o.to) || o.from.After(s.to) || slices.Contains(o.resources, s.resources[0]) {
			continue
		}
		o.resources = append(o.resources, s.resources...)
		o.inferred += s.inferred
		if s.from.Before(o.from) {
			o.from = s.from
		}
		if s.to.After(o.to) {
			o.to = s.to
		}
		return all
	}
	return append(all, s)
}

func writeGaps(b *strings.Builder, st *api.Status) {
	var all []span
	for i := range st.Catalog.Resources {
		l := &st.Catalog.Resources[i]
		for _, g := range l.Gaps {
			all = fold(all, span{[]string{l.GroupResource().String()}, g.From.Time, g.To.Time, g.Inferred, g.Cause})
		}
	}
	if len(all) == 0 {
		return
	}
	w := tabwriter.NewWriter(b, 6, 4, 3, ' ', 0)
	fmt.Fprintln(w, "\nGAPS IN\tFROM\tTO\tINFERRED\tCAUSE")
	for _, s := range sorted(all) {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", some(s.resources, "others"), stamp(s.from), stamp(s.to), s.inferred, text(s.cause))
	}
	_ = w.Flush() // a strings.Builder takes everything
}

// writeOutages tells of the newest spans whose changes are known, but not their times.
func writeOutages(b *strings.Builder, st *api.Status) {
	var all []span
	for _, o := range st.Catalog.Outages {
		what := "everything"
		if o.Resource != nil {
			what = o.Resource.String()
		}
		all = fold(all, span{resources: []string{what}, from: o.From, to: o.To})
	}
	if len(all) == 0 {
		return
	}
	all = sorted(all)
	w := tabwriter.NewWriter(b, 6, 4, 3, ' ', 0)
	fmt.Fprintln(w, "\nNOT WATCHED\tFROM\tTO\tWHAT CHANGED IN IT IS RECORDED, BUT AT THE TIME OF ITS END")
	if more := len(all) - mostShown; more > 0 {
		fmt.Fprintf(w, "%d older ones (see -o json)\n", more)
		all = all[more:]
	}
	for _, s := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\n", some(s.resources, "others"), stamp(s.from), stamp(s.to))
	}
	_ = w.Flush() // a strings.Builder takes everything
}

func sorted(all []span) []span {
	slices.SortStableFunc(all, func(a, b span) int {
		return cmp.Or(a.from.Compare(b.from), cmp.Compare(a.resources[0], b.resources[0]))
	})
	return all
}
