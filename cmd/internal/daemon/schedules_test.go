package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/compactor/schedule"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// A scheduled run in the middle of which the daemon ends is made by the next daemon, once, unless another is due by then.
func TestACutOffRunIsMadeAgain(t *testing.T) {
	j, err := journal.Open(t.TempDir(), journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	now := time.Date(2026, 3, 1, 3, 0, 30, 0, time.UTC)
	due := now.Truncate(time.Minute)
	daemon := func() *schedules {
		d := &daemon{journal: j}
		d.o.Clock, d.o.Logger = func() time.Time { return now }, zap.NewNop()
		return newSchedules(d)
	}
	for _, again := range []bool{true, false} {
		job := job{Spec: schedule.Spec{Name: "nightly", Cron: "0 3 * * *"}, note: "schedule/" + map[bool]string{true: "a", false: "b"}[again], what: "snapshot", again: again}
		// look lets a new daemon look twice, and gives the times for which something was done. The daemon ends in the middle if it is to.
		look := func(ends bool) (times []time.Time) {
			ctx, end := context.WithCancel(t.Context())
			defer end()
			job.do = func(_ context.Context, at time.Time) {
				times = append(times, at)
				if ends {
					end()
				}
			}
			s := daemon()
			for range 2 {
				var runs sync.WaitGroup
				if _, err := s.look(ctx, job, &runs); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				runs.Wait()
			}
			return times
		}
		must := func(what string, have []time.Time, want ...time.Time) {
			t.Helper()
			if len(have) != len(want) || len(want) > 0 && !have[0].Equal(want[0]) {
				t.Errorf("again %v, %s: %v, want %v", again, what, have, want)
			}
		}
		if err := daemon().keep(t.Context(), job.note, due.Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
		must("when it is due", look(true), due)
		if again {
			must("by the next daemon, which ends as well", look(true), due)
			must("by the next daemon", look(false), due)
		}
		must("by the one after", look(false))
		if err := daemon().keep(t.Context(), job.begun(), due); err != nil {
			t.Fatal(err)
		}
		now = now.Add(24 * time.Hour)
		due = due.Add(24 * time.Hour)
		must("a day later", look(false), due)
		must("and after that", look(false))
		if err := daemon().keep(t.Context(), job.begun(), due); err != nil {
			t.Fatal(err)
		}
		now, job.StartingDeadline = now.Add(2*time.Hour), time.Hour
		must("past its deadline", look(false))
		now = now.Add(-2 * time.Hour)
	}
}

// A schedule of a type that is not recorded fails where somebody reads it, and stores nothing under its name.
func TestAScheduledSnapshotOfAnUnknownTypeFails(t *testing.T) {
	j, err := journal.Open(t.TempDir(), journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := errors.Join(j.Bind(t.Context(), "c"), j.SetBegan(t.Context())); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	core, logs := observer.New(zap.WarnLevel)
	d := &daemon{journal: j, local: replay.NewLocal(j)}
	d.o.Clock = time.Now
	d.o.Logger = zap.New(core, zap.Hooks(func(zapcore.Entry) error { cancel(); return nil }))
	newSchedules(d).take(ctx, Schedule{Spec: schedule.Spec{Name: "nightly"}, Scope: &archive.SnapshotScope{Resources: []string{"deployy"}}}, time.Now())
	all := logs.FilterMessage("a scheduled snapshot failed; it is tried again").All()
	if len(all) != 1 || !strings.Contains(fmt.Sprint(all[0].ContextMap()["error"]), "recorded") {
		t.Fatalf("logged: %v", logs.All())
	}
	if _, _, err := d.scoped(t.Context(), &archive.SnapshotScope{Resources: []string{"deployy"}}); !errors.Is(err, replay.ErrUnknownKind) {
		t.Errorf("%v, want ErrUnknownKind", err)
	}
}
