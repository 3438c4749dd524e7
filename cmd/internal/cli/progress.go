package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/tidemark-backup/tidemark/replay"
)

// progress shows how far a restore is: a line that is written over on a terminal, and a line
// for what takes long elsewhere.
type progress struct {
	w        io.Writer
	terminal bool
	width    int    // of the terminal
	drawn    bool   // a line is there to be written over
	waiting  string // said last, so that it is said once
	failures int
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, width: 80}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.terminal = true
		if columns, _, err := term.GetSize(int(f.Fd())); err == nil && columns > 20 {
			p.width = columns
		}
	}
	return p
}

// update is the callback of Apply; its calls do not overlap.
func (p *progress) update(at replay.Progress) {
	if at.Err != nil {
		p.failures++ // the report at the end has them all
	}
	if at.Waiting != "" && at.Waiting != p.waiting && !p.terminal {
		p.line("waiting for %s", at.Waiting)
	}
	p.waiting = at.Waiting
	if p.terminal {
		p.draw(at)
	}
}

func (p *progress) draw(at replay.Progress) {
	const bar = 24
	filled := 0
	if at.Total > 0 {
		filled = bar * at.Done / at.Total
	}
	s := fmt.Sprintf("[%s%s] %d/%d", strings.Repeat("=", filled), strings.Repeat(" ", bar-filled), at.Done, at.Total)
	if p.failures > 0 {
		s += fmt.Sprintf("  %d not written", p.failures)
	}
	switch {
	case at.Waiting != "":
		s += "  waiting for " + at.Waiting
	case at.Item != nil:
		s += "  " + at.Item.String()
	}
	if len(s) >= p.width {
		s = s[:p.width-1]
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s", s)
	p.drawn = true
}

func (p *progress) line(format string, args ...any) {
	p.finish()
	fmt.Fprintf(p.w, format+"\n", args...)
}

// finish wipes the line that would have been written over.
func (p *progress) finish() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}
