package replay

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// shownInShort is how many objects of one kind and action the short form names.
const shownInShort = 5

// Detail says how much WriteText tells.
type Detail uint8

const (
	// DetailShort names objects while they are few, and always when they are changed, deleted or cannot
	// be restored.
	DetailShort Detail = iota
	// DetailDiffs also shows what differs.
	DetailDiffs
	// DetailAll also names every object.
	DetailAll
)

// WriteText prints the plan for people: what happens to how many objects of which kind, and why.
func (p *Plan) WriteText(w io.Writer, detail Detail) error {
	var b strings.Builder
	what := p.Purpose
	if what == "" {
		what = fmt.Sprintf("the state at %s (rv:%s)", p.Cut.Time.UTC().Format(time.RFC3339Nano), p.Cut.Revision)
	}
	fmt.Fprintf(&b, "Plan %s: %s\n", p.ID, what)
	if p.Server != "" {
		fmt.Fprintf(&b, "in the cluster at %s\n", p.Server)
	}
	for _, action := range actionOrder {
		p.writeAction(&b, action, detail)
	}
	p.writeTransforms(&b)
	for _, warning := range p.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", warning)
	}
	var counts []string
	for _, action := range actionOrder {
		if n := p.Count(action); n > 0 {
			counts = append(counts, fmt.Sprintf("%d to %s", n, action))
		}
	}
	line := strings.Join(counts, ", ")
	line = strings.NewReplacer("to unchanged", "unchanged", "to fail", "that cannot be restored").Replace(line)
	if line == "" {
		line = "nothing to do"
	}
	fmt.Fprintf(&b, "%s\n", line)
	_, err := io.WriteString(w, b.String())
	return err
}

// writeTransforms tells how many objects each transform changes.
func (p *Plan) writeTransforms(b *strings.Builder) {
	counts := map[string]int{}
	for _, it := range p.Items {
		if !it.Action.writes() {
			continue
		}
		for _, by := range slices.Compact(slices.Sorted(slices.Values(it.Transformed))) {
			counts[by]++
		}
	}
	for _, by := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(b, "changed on the way: %d by %s\n", counts[by], by)
	}
}

// writeAction prints the items of one action, kind by kind.
func (p *Plan) writeAction(b *strings.Builder, action Action, detail Detail) {
	kinds := map[string][]*Item{}
	var order []string
	for _, it := range p.Items {
		if it.Action == action {
			k := it.Resource.String()
			if kinds[k] == nil {
				order = append(order, k)
			}
			kinds[k] = append(kinds[k], it)
		}
	}
	if len(order) == 0 {
		return
	}
	fmt.Fprintf(b, "%s:\n", action)
	loud := action == ActionUpdate || action == ActionRecreate || action == ActionDelete || action == ActionFail
	for _, k := range order {
		items := kinds[k]
		switch {
		case detail == DetailAll || loud:
			for _, it := range items {
				writeItem(b, it, detail)
			}
		case action == ActionSkip:
			writeSkipped(b, k, items, detail)
		case action == ActionUnchanged:
			writeUnchanged(b, k, items)
		default:
			writeNames(b, k, items)
		}
	}
}

func writeNames(b *strings.Builder, kind string, items []*Item) {
	switch {
	case len(items) == 0:
	case len(items) <= shownInShort:
		fmt.Fprintf(b, "  %s: %s\n", kind, names(items))
	default:
		fmt.Fprintf(b, "  %s: %d, such as %s\n", kind, len(items), names(items[:2]))
	}
}

// writeUnchanged also says what stays in objects that have more by now than they had.
func writeUnchanged(b *strings.Builder, kind string, items []*Item) {
	var same []*Item
	for _, it := range items {
		if it.Reason == "" {
			same = append(same, it)
		}
	}
	writeNames(b, kind, same)
	for _, it := range items {
		if it.Reason != "" {
			writeItem(b, it, DetailShort)
		}
	}
}

func names(items []*Item) string {
	list := make([]string, 0, len(items))
	for _, it := range items {
		name := it.Name
		if it.Namespace != "" {
			name = it.Namespace + "/" + it.Name
		}
		list = append(list, name)
	}
	return strings.Join(list, ", ")
}

// writeSkipped prints what is left out, what differs by itself if differences are to be shown.
func writeSkipped(b *strings.Builder, kind string, items []*Item, detail Detail) {
	var rest []*Item
	for _, it := range items {
		if detail >= DetailDiffs && len(it.Diff) > 0 {
			writeItem(b, it, detail)
		} else {
			rest = append(rest, it)
		}
	}
	writeReasons(b, kind, rest)
}

// writeReasons prints why items of one kind are left out, each reason once.
func writeReasons(b *strings.Builder, kind string, items []*Item) {
	seen := map[string][]*Item{}
	var order []string
	for _, it := range items {
		why := it.Reason
		if it.Rule != "" {
			why = it.Rule // the reasons of one rule differ in names only
		}
		if seen[why] == nil {
			order = append(order, why)
		}
		seen[why] = append(seen[why], it)
	}
	slices.Sort(order)
	for _, why := range order {
		list := seen[why]
		if len(list) == 1 {
			fmt.Fprintf(b, "  %s %s: %s\n", kind, names(list), list[0].Reason)
			continue
		}
		fmt.Fprintf(b, "  %s: %d, such as %s: %s\n", kind, len(list), names(list[:1]), list[0].Reason)
	}
}

func writeItem(b *strings.Builder, it *Item, detail Detail) {
	fmt.Fprintf(b, "  %s", it)
	if it.From != "" {
		fmt.Fprintf(b, " (from %s)", it.From)
	}
	if it.Reason != "" {
		fmt.Fprintf(b, ": %s", it.Reason)
	}
	if detail == DetailAll && len(it.Transformed) > 0 {
		fmt.Fprintf(b, " [%s]", strings.Join(it.Transformed, "; "))
	}
	b.WriteString("\n")
	switch {
	case detail >= DetailDiffs:
		var d strings.Builder
		if WriteDiff(&d, "", it.Diff, false) == nil {
			for l := range strings.Lines(d.String()) {
				b.WriteString("      " + l)
			}
		}
	case len(it.Diff) > 0 && it.Action != ActionUnchanged: // its reason names the fields
		fmt.Fprintf(b, "      %s\n", paths(it.Diff))
	}
}
