package compactor

import (
	"fmt"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
)

// A day of seals, one each 5 s, merged as it goes: how many files a moment takes.
func TestADayIsAboutADozenFiles(t *testing.T) {
	begin := time.Date(2026, 5, 4, 0, 0, 0, 0, time.UTC)
	at := func(t time.Time) journal.Position { return journal.Position{Cut: journal.Cut{Time: t}} }
	state := &archive.State{}
	last, n, most, sum, looks := begin, 0, 0, 0, 0
	for now := begin.Add(5 * time.Second); now.Before(begin.Add(36 * time.Hour)); now = now.Add(5 * time.Second) {
		n++
		state.Segments = append(state.Segments, archive.Segment{File: archive.File{Name: fmt.Sprint(n), Size: 1000}, From: at(last), To: at(now)})
		state.Known.Position, last = at(now), now
		for {
			level, inputs := mergeable(state, nil)
			if inputs == nil {
				break
			}
			n++
			merged := archive.Segment{File: archive.File{Name: fmt.Sprint(n)}, Level: level, From: inputs[0].From, To: inputs[len(inputs)-1].To}
			var next []archive.Segment
			for _, g := range state.Segments {
				switch {
				case g.Name == inputs[0].Name:
					next = append(next, merged)
				case g.To.Time.After(inputs[0].From.Time) && !g.To.Time.After(merged.To.Time):
				default:
					next = append(next, g)
				}
				if g.To.Time.Equal(merged.To.Time) && g.Name != inputs[len(inputs)-1].Name {
					t.Fatal("a merge takes what is not its own")
				}
			}
			for _, g := range inputs {
				merged.Size += g.Size
			}
			state.Segments = next
		}
		for i := 1; i < len(state.Segments); i++ {
			if !state.Segments[i].From.Time.Equal(state.Segments[i-1].To.Time) {
				t.Fatalf("a hole at %s", state.Segments[i].From.Time)
			}
		}
		if now.After(begin.Add(24 * time.Hour)) {
			most, sum, looks = max(most, len(state.Segments)), sum+len(state.Segments), looks+1
		}
	}
	t.Logf("%.1f files on average, %d at most", float64(sum)/float64(looks), most)
	if mean := sum / looks; mean > 16 || most > 28 {
		t.Errorf("%d files on average, %d at most: want about a dozen", mean, most)
	}
	if state.Segments[0].To.Time.Sub(state.Segments[0].From.Time) < 23*time.Hour {
		t.Error("yesterday is not one file")
	}
}
