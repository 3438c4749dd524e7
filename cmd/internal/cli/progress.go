package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

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
	began    time.Time // of the first object; what was there before does not count
	before   int       // objects done by then
	shown    time.Time
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
	now := time.Now()
	if p.began.IsZero() {
		p.began, p.before, p.shown = now, max(at.Done-1, 0), now
	}
	switch {
	case p.terminal && (now.Sub(p.shown) >= redrawEvery || at.Done == at.Total || at.Waiting != ""):
		p.shown = now
		p.draw(at)
	case !p.terminal && now.Sub(p.shown) >= tellEvery:
		p.shown = now
		p.line("%d of %d objects%s", at.Done, at.Total, p.pace(at, now))
	}
}

const (
	redrawEvery = 50 * time.Millisecond
	tellEvery   = 10 * time.Second
)

// pace tells how fast it goes and how long it will take, once there is something to tell it from.
func (p *progress) pace(at replay.Progress, now time.Time) string {
	took, done := now.Sub(p.began), at.Done-p.before
	if took < 500*time.Millisecond || done < 2 {
		return ""
	}
	rate := float64(done) / took.Seconds()
	left := time.Duration(float64(at.Total-at.Done) / rate * float64(time.Second)).Round(time.Second)
	return fmt.Sprintf(", %.0f/s, %s left", rate, left)
}

func (p *progress) draw(at replay.Progress) {
	const bar = 24
	filled := 0
	if at.Total > 0 {
		filled = bar * at.Done / at.Total
	}
	s := fmt.Sprintf("[%s%s] %d/%d", strings.Repeat("=", filled), strings.Repeat(" ", bar-filled), at.Done, at.Total)
	s += p.pace(at, time.Now())
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
