package replay

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"

	"github.com/tidwall/gjson"
	"sigs.k8s.io/yaml"
)

const (
	red   = "\x1b[31m"
	green = "\x1b[32m"
	bold  = "\x1b[1m"
	plain = "\x1b[0m"
)

// WriteDiff prints the differences of one object under its title, old values with "-" and new
// ones with "+" in front. Of long texts only the lines that differ are printed. With color,
// ANSI colours are used.
func WriteDiff(w io.Writer, title string, diffs []FieldDiff, color bool) error {
	var b strings.Builder
	paint := func(code, line string) {
		if color {
			line = code + line + plain
		}
		b.WriteString(line + "\n")
	}
	if title != "" {
		paint(bold, title)
	}
	for _, d := range diffs {
		before, after := lines(d.Old), lines(d.New)
		if len(before) == 1 && len(after) <= 1 || len(after) == 1 && len(before) == 0 {
			if len(before) == 1 {
				paint(red, "- "+d.Path+": "+before[0])
			}
			if len(after) == 1 {
				paint(green, "+ "+d.Path+": "+after[0])
			}
			continue
		}
		b.WriteString("  " + d.Path + ":\n")
		head, tail := common(before, after)
		skipped(&b, head)
		for _, l := range before[head : len(before)-tail] {
			paint(red, "-   "+l)
		}
		for _, l := range after[head : len(after)-tail] {
			paint(green, "+   "+l)
		}
		skipped(&b, tail)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func skipped(b *strings.Builder, n int) {
	switch {
	case n == 1:
		b.WriteString("    ... 1 equal line\n")
	case n > 1:
		fmt.Fprintf(b, "    ... %d equal lines\n", n)
	}
}

// common counts the equal lines at the start and at the end.
func common(a, b []string) (head, tail int) {
	for head < len(a) && head < len(b) && a[head] == b[head] {
		head++
	}
	for tail < len(a)-head && tail < len(b)-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	return head, tail
}

// lines is the value as people read it: nothing for no value, one line for a plain one, YAML
// for objects and lists. Control characters never reach the terminal.
func lines(raw json.RawMessage) []string {
	if raw == nil {
		return nil
	}
	v := gjson.ParseBytes(raw)
	text := strings.TrimSpace(string(raw))
	switch {
	case v.Type == gjson.String && v.Str == "":
		return []string{`""`}
	case v.Type == gjson.String:
		text = v.Str
		// A text that reads like something else keeps its quotes: "1" is not 1.
		if p := gjson.Parse(text); gjson.Valid(text) && p.Type != gjson.JSON {
			text = strconv.Quote(text)
		}
	case v.Raw == "{}" || v.Raw == "[]":
	case v.Type == gjson.JSON:
		if y, err := yaml.JSONToYAML(raw); err == nil {
			text = strings.TrimSuffix(string(y), "\n")
		}
	}
	list := strings.Split(text, "\n")
	for i, l := range list {
		if strings.ContainsFunc(l, func(r rune) bool { return r != '\t' && !unicode.IsPrint(r) }) {
			list[i] = strconv.QuoteToGraphic(l)
		}
	}
	return list
}
