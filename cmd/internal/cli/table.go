package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tidwall/gjson"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// tablePrinter writes tables like kubectl's, one for each resource.
type tablePrinter struct {
	w          io.Writer
	wide       bool
	namespaces bool
	prefixed   bool // names carry the resource, as "deployment.apps/web"
	cut        journal.Cut

	ledger *journal.Ledger
	rows   []row
	before bool // a table was written already
}

// row keeps only the cells of an object, never the object.
type row struct {
	namespace, name string
	cells           []string
}

func (p *tablePrinter) print(l *journal.Ledger, e *journal.Event) error {
	if p.ledger != l {
		if err := p.flush(); err != nil {
			return err
		}
		p.ledger = l
	}
	o := gjson.ParseBytes(e.Object)
	var cells []string
	columns := columnsOf[l.GroupResource().String()]
	for _, c := range columns {
		if !c.wide {
			cells = append(cells, text(c.cell(o)))
		}
	}
	cells = append(cells, p.age(o))
	if p.wide {
		for _, c := range columns {
			if c.wide {
				cells = append(cells, text(c.cell(o)))
			}
		}
		cells = append(cells, strconv.FormatUint(e.Revision.RV, 10), human(p.cut.Time.Sub(e.Observed)), e.UID)
	}
	p.rows = append(p.rows, row{e.Namespace, e.Name, cells})
	return nil
}

// age is the object's age at the cut, not now.
func (p *tablePrinter) age(o gjson.Result) string {
	t, err := time.Parse(time.RFC3339, o.Get("metadata.creationTimestamp").String())
	if err != nil {
		return "<unknown>"
	}
	return human(p.cut.Time.Sub(t))
}

func (p *tablePrinter) header() []string {
	var h []string
	if p.namespaces && p.ledger.Namespaced {
		h = append(h, "NAMESPACE")
	}
	h = append(h, "NAME")
	columns := columnsOf[p.ledger.GroupResource().String()]
	for _, c := range columns {
		if !c.wide {
			h = append(h, c.name)
		}
	}
	h = append(h, "AGE")
	if p.wide {
		for _, c := range columns {
			if c.wide {
				h = append(h, c.name)
			}
		}
		h = append(h, "REVISION", "CHANGED", "UID")
	}
	return h
}

// flush writes the table of one resource.
func (p *tablePrinter) flush() error {
	if len(p.rows) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(p.w, 6, 4, 3, ' ', 0)
	if p.before {
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w, strings.Join(p.header(), "\t"))
	for _, r := range p.rows {
		if p.namespaces && p.ledger.Namespaced {
			fmt.Fprint(w, r.namespace+"\t")
		}
		name := r.name
		if p.prefixed {
			name = replay.Label(p.ledger) + "/" + name
		}
		fmt.Fprintln(w, name+"\t"+strings.Join(r.cells, "\t"))
	}
	p.rows, p.before = nil, true
	return w.Flush()
}

func (p *tablePrinter) finish() error { return p.flush() }

// human is kubectl's way of writing an age.
func human(d time.Duration) string {
	if d < 0 {
		d = 0 // clocks of API server and daemon may differ a little
	}
	return duration.HumanDuration(d)
}

// text makes a cell safe for a terminal and for the table: objects hold what anyone wrote.
func text(s string) string {
	if s == "" {
		return "<none>"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// shownName shows the name of a file so that it can be typed again: in quotes when it has what a terminal would not show.
func shownName(s string) string {
	if strings.HasPrefix(s, `"`) || strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
