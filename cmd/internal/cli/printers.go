package cli

import (
	"bytes"
	"fmt"
	"io"

	"sigs.k8s.io/yaml"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// jsonPrinter writes objects byte for byte: one alone, several as the items of a v1 List.
type jsonPrinter struct {
	w      io.Writer
	single bool
	n      int
}

const (
	listHead = `{"apiVersion":"v1","kind":"List","metadata":{"resourceVersion":""},"items":[`
	listTail = "]}\n"
)

func (p *jsonPrinter) print(_ *journal.Ledger, e *journal.Event) error {
	lead := ",\n"
	switch {
	case p.single:
		lead = ""
	case p.n == 0:
		lead = listHead + "\n"
	}
	p.n++
	if _, err := io.WriteString(p.w, lead); err != nil {
		return err
	}
	_, err := p.w.Write(e.Object)
	return err
}

func (p *jsonPrinter) finish() error {
	text := "\n" + listTail
	switch {
	case p.single:
		text = "\n"
	case p.n == 0:
		text = listHead + listTail
	}
	_, err := io.WriteString(p.w, text)
	return err
}

// yamlPrinter writes one object alone, several as the items of a v1 List.
type yamlPrinter struct {
	w      io.Writer
	single bool
	n      int
}

func (p *yamlPrinter) print(_ *journal.Ledger, e *journal.Event) error {
	y, err := yaml.JSONToYAML(e.Object)
	if err != nil {
		return fmt.Errorf("write %s as YAML: not a JSON object; see it with -o json", e.ID()) // the cause would quote it
	}
	if p.single {
		_, err := p.w.Write(y)
		return err
	}
	if p.n++; p.n == 1 {
		if _, err := io.WriteString(p.w, "apiVersion: v1\nitems:\n"); err != nil {
			return err
		}
	}
	y = bytes.ReplaceAll(bytes.TrimSuffix(y, []byte("\n")), []byte("\n"), []byte("\n  "))
	y = bytes.ReplaceAll(y, []byte("\n  \n"), []byte("\n\n"))
	_, err = fmt.Fprintf(p.w, "- %s\n", y)
	return err
}

func (p *yamlPrinter) finish() error {
	if p.single {
		return nil
	}
	text := "kind: List\nmetadata:\n  resourceVersion: \"\"\n"
	if p.n == 0 {
		text = "apiVersion: v1\nitems: []\n" + text
	}
	_, err := io.WriteString(p.w, text)
	return err
}

// namePrinter writes "deployment.apps/web", a line for each object.
type namePrinter struct{ w io.Writer }

func (p *namePrinter) print(l *journal.Ledger, e *journal.Event) error {
	_, err := fmt.Fprintf(p.w, "%s/%s\n", replay.Label(l), e.Name)
	return err
}

func (p *namePrinter) finish() error { return nil }
