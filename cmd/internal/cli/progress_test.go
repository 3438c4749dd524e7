package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/replay"
)

// TestProgress tells the pace of what this run has done, and what it leaves to be done, and says nothing before it knows.
func TestProgress(t *testing.T) {
	now := time.Now()
	p := &progress{began: now.Add(-10 * time.Second), before: 100}
	for _, c := range []struct {
		done int
		want string
	}{{101, ""}, {200, ", 10/s, 1m20s left"}, {1000, ", 90/s, 0s left"}} {
		if got := p.pace(replay.Progress{Done: c.done, Total: 1000}, now); got != c.want {
			t.Errorf("%d done: %q, want %q", c.done, got, c.want)
		}
	}
	if got := (&progress{began: now}).pace(replay.Progress{Done: 50, Total: 100}, now.Add(time.Millisecond)); got != "" {
		t.Errorf("after a millisecond: %q", got)
	}

	var out bytes.Buffer
	p = newProgress(&out) // no terminal
	p.update(replay.Progress{Done: 1, Total: 3, Item: &replay.Item{}})
	p.update(replay.Progress{Done: 2, Total: 3, Waiting: "a namespace"})
	p.shown = p.shown.Add(-time.Minute)
	p.began = p.began.Add(-time.Minute)
	p.update(replay.Progress{Done: 3, Total: 3, Item: &replay.Item{}})
	if got := out.String(); got != "waiting for a namespace\n3 of 3 objects, 0/s, 0s left\n" || strings.Contains(got, "\x1b") {
		t.Errorf("%q", got)
	}
}
