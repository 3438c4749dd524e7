package cli

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
	"github.com/tidemark-backup/tidemark/volumes"
)

// holed is a history that can be told up to some moment, and not at now.
type holed struct {
	replay.Source
	told  journal.Cut
	err   error // instead
	asked []time.Time
}

func (h *holed) Resolve(context.Context, replay.At) (journal.Cut, error) {
	return journal.Cut{Time: h.told.Time.Add(time.Hour)}, nil
}

func (h *holed) Fold(_ context.Context, cut journal.Cut, _ replay.Scope) iter.Seq2[journal.Event, error] {
	return func(yield func(journal.Event, error) bool) {
		h.asked = append(h.asked, cut.Time)
		switch {
		case h.err != nil:
			yield(journal.Event{}, h.err)
		case cut.Time.After(h.told.Time):
			yield(journal.Event{}, &replay.RangeError{Why: "a hole", To: h.told})
		default:
			body, _ := json.Marshal(&volumes.Backup{Metadata: volumes.Meta{Name: "b"}}) //nolint:errchkjson // a test
			yield(journal.Event{Object: body}, nil)
		}
	}
}

// TestVolumeBackupsBeforeAHole has the records of now lie behind a hole of the history: those of the end of the good stretch are taken, and that is told.
func TestVolumeBackupsBeforeAHole(t *testing.T) {
	noon := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	cut := journal.Cut{Time: noon.Add(-time.Hour)}
	h := &holed{told: journal.Cut{Time: noon}}
	all, warning, err := newestRecords(t.Context(), h, cut)
	if err != nil || len(all) != 1 || !strings.Contains(warning, "after 2026-11-27T12:00:00.000Z are not known") || len(h.asked) != 2 || !h.asked[1].Equal(noon) {
		t.Errorf("%d records, %q, %v, asked at %v", len(all), warning, err, h.asked)
	}
	h = &holed{told: journal.Cut{Time: cut.Time.Add(-time.Minute)}} // the moment of the restore cannot be told either
	if _, _, err := newestRecords(t.Context(), h, cut); !errors.As(err, new(*replay.RangeError)) || len(h.asked) != 2 {
		t.Errorf("before the cut: %v, asked at %v", err, h.asked)
	}
	h = &holed{err: errors.New("the store is away")}
	if _, _, err := (&volumeFlags{which: "before"}).choose(t.Context(), h, cut); !errors.Is(err, h.err) || !strings.Contains(err.Error(), "--volumes none") {
		t.Errorf("another error: %v", err)
	}
}
