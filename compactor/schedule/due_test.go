package schedule_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/tidemark-backup/tidemark/compactor/schedule"
)

func TestDue(t *testing.T) {
	const last, before = "2026-11-24T03:00:00Z", "2026-11-24T12:00:00Z"
	three := at(t, "2026-11-25T03:00:00Z")
	nightly := schedule.Spec{Name: "nightly", Cron: "0 3 * * *"}
	with := func(change func(*schedule.Spec)) schedule.Spec {
		s := nightly
		change(&s)
		return s
	}
	deadline := with(func(s *schedule.Spec) { s.StartingDeadline = time.Hour })
	for _, c := range []struct {
		name      string
		spec      schedule.Spec
		last, now string
		running   bool
		want      schedule.Decision
	}{
		{"nothing yet", nightly, last, before, false, schedule.Decision{Again: three}},
		{"on time", nightly, last, "2026-11-25T03:00:00Z", false, schedule.Decision{Kind: schedule.Run, At: three, Again: three.Add(24 * time.Hour)}},
		{"a moment early", nightly, last, "2026-11-25T02:59:59.999Z", false, schedule.Decision{Again: three}},
		{"late", nightly, last, "2026-11-25T09:00:00Z", false, schedule.Decision{Kind: schedule.Run, At: three, Again: three.Add(24 * time.Hour)}},
		{"only the most recent of many", nightly, "2026-11-20T03:00:00Z", "2026-11-25T09:00:00Z", false, schedule.Decision{
			Kind: schedule.Run, At: three, Missed: 4, Again: three.Add(24 * time.Hour),
		}},
		{"so many that they are not counted", nightly, "1996-11-20T03:00:00Z", "2026-11-25T09:00:00Z", false, schedule.Decision{
			Kind: schedule.Run, At: three, Missed: schedule.MaxMissed, Again: three.Add(24 * time.Hour),
		}},
		{"never ran", nightly, "", "2026-11-25T02:00:00Z", false, schedule.Decision{Again: three}},
		{"made a second ago", nightly, "2026-11-25T02:59:59.5Z", "2026-11-25T03:00:00.5Z", false, schedule.Decision{
			Kind: schedule.Run, At: three, Again: three.Add(24 * time.Hour),
		}},
		{"within the deadline", deadline, last, "2026-11-25T04:00:00Z", false, schedule.Decision{Kind: schedule.Run, At: three, Again: three.Add(24 * time.Hour)}},
		{"past the deadline", deadline, last, "2026-11-25T04:00:00.001Z", false, schedule.Decision{Kind: schedule.TooLate, At: three, Again: three.Add(24 * time.Hour)}},
		{"past the deadline, and running", deadline, last, "2026-11-25T05:00:00Z", true, schedule.Decision{Kind: schedule.TooLate, At: three, Again: three.Add(24 * time.Hour)}},
		{"running", nightly, last, "2026-11-25T03:00:01Z", true, schedule.Decision{Kind: schedule.Blocked, At: three, Again: three.Add(24 * time.Hour)}},
		{"running, and nothing due", nightly, last, before, true, schedule.Decision{Again: three}},
		{
			"running, and both may", with(func(s *schedule.Spec) { s.Concurrency = schedule.Allow }), last, "2026-11-25T03:00:01Z", true,
			schedule.Decision{Kind: schedule.Run, At: three, Again: three.Add(24 * time.Hour)},
		},
		{"suspended", with(func(s *schedule.Spec) { s.Suspend = true }), last, "2026-11-26T03:00:00Z", false, schedule.Decision{Kind: schedule.Suspended}},
		{"the clock was set back", nightly, "2026-11-25T03:00:00Z", "2026-11-25T02:30:00Z", false, schedule.Decision{
			Again: three.Add(24 * time.Hour), Ahead: 30 * time.Minute,
		}},
		{"the clock was set back, and it is that time again", nightly, "2026-11-25T03:00:00Z", "2026-11-25T03:00:00Z", false, schedule.Decision{
			Again: three.Add(24 * time.Hour),
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := schedule.Parse(c.spec)
			if err != nil {
				t.Fatal(err)
			}
			var last time.Time
			if c.last != "" {
				last = at(t, c.last)
			}
			if d := cmp.Diff(c.want, s.Due(last, at(t, c.now), c.running)); d != "" {
				t.Error(d)
			}
		})
	}
}

// Due is compared with a plain walk over all times.
func TestDueIsTheMostRecentMissedTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, last := draw(t)
		now := last.Add(time.Duration(rapid.Int64Range(0, int64(40*24*time.Hour)).Draw(t, "later")))
		var want time.Time
		n := 0
		for m := s.Next(last); !m.IsZero() && !m.After(now); m = s.Next(m) {
			want = m
			n++
		}
		d := s.Due(last, now, false)
		if !d.At.Equal(want) || (d.Kind == schedule.Run) != (n > 0) || d.Missed != min(max(n-1, 0), schedule.MaxMissed) {
			t.Fatalf("from %s to %s: %+v, want %s of %d", last, now, d, want, n)
		}
		if !d.Again.Equal(s.Next(now)) {
			t.Fatalf("again at %s, want %s", d.Again, s.Next(now))
		}
	})
}

// Whatever the clock does, no time runs twice, and what runs is due.
func TestNoTimeRunsTwiceWhateverTheClockDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, now := draw(t)
		last := now
		ran := map[int64]bool{}
		for range rapid.IntRange(1, 30).Draw(t, "looks") {
			step := rapid.SampledFrom([]time.Duration{time.Minute, time.Hour, 30 * 24 * time.Hour}).Draw(t, "unit")
			now = now.Add(time.Duration(rapid.Int64Range(-int64(step), 3*int64(step)).Draw(t, "step")))
			d := s.Due(last, now, rapid.Bool().Draw(t, "running"))
			switch d.Kind {
			case schedule.Run:
				if ran[d.At.Unix()] {
					t.Fatalf("%s runs twice", d.At)
				}
				if d.At.After(now) || !d.At.After(last) {
					t.Fatalf("%s runs at %s, after %s", d.At, now, last)
				}
				ran[d.At.Unix()], last = true, d.At
			case schedule.TooLate:
				t.Fatal("too late, without a deadline")
			case schedule.Wait:
				if !d.Again.After(now) {
					t.Fatalf("wait at %s until %s", now, d.Again)
				}
			}
		}
	})
}

// The loop that a caller writes around Due, on a clock of its own.
func TestALoopRunsEveryTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := parse(t, "*/20 * * * *", "")
		begin := time.Now()
		var ran []time.Duration
		for last := begin; len(ran) < 4; {
			d := s.Due(last, time.Now(), false)
			if d.Kind == schedule.Run {
				ran, last = append(ran, d.At.Sub(begin)), d.At
			}
			time.Sleep(time.Until(d.Again))
		}
		if d := cmp.Diff([]time.Duration{20 * time.Minute, 40 * time.Minute, time.Hour, 80 * time.Minute}, ran); d != "" {
			t.Error(d)
		}
	})
}
