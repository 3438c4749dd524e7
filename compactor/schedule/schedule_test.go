package schedule_test

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark-backup/tidemark/compactor/schedule"
)

func parse(t interface{ Fatal(...any) }, cron, zone string) *schedule.Schedule {
	s, err := schedule.Parse(schedule.Spec{Name: "s", Cron: cron, TimeZone: zone})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func at(t interface{ Fatal(...any) }, text string) time.Time {
	m, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNext(t *testing.T) {
	for _, c := range []struct{ name, cron, zone, after, want string }{
		{"the same minute is over", "0 3 * * *", "", "2026-11-25T03:00:00Z", "2026-11-26T03:00:00Z"},
		{"a moment before", "0 3 * * *", "", "2026-11-25T02:59:59.999Z", "2026-11-25T03:00:00Z"},
		{"in a time zone", "0 3 * * *", "Europe/Berlin", "2026-11-25T00:00:00Z", "2026-11-25T03:00:00+01:00"},
		{"a name", "@daily", "America/New_York", "2026-11-25T00:00:00Z", "2026-11-25T00:00:00-05:00"},
		{"either of both days is enough", "0 0 13 * fri", "", "2026-11-25T00:00:00Z", "2026-11-27T00:00:00Z"},
		{"a leap day", "0 0 29 2 *", "", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"},
		{"the day after a leap day", "0 0 29 2 *", "", "2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"},
		{"the 31st", "0 0 31 * *", "", "2026-08-31T00:00:00Z", "2026-10-31T00:00:00Z"},
		{"every", "@every 6h", "", "2026-11-25T05:59:00Z", "2026-11-25T06:00:00Z"},
		{"every, exactly then", "@every 6h", "", "2026-11-25T06:00:00Z", "2026-11-25T12:00:00Z"},
		{"every, before 1970", "@every 1h", "", "1969-12-31T22:30:00Z", "1969-12-31T23:00:00Z"},
		{"every, within a second before 1970", "@every 1h", "", "1969-12-31T23:59:59.5Z", "1970-01-01T00:00:00Z"},

		// Clocks go forward at 2:00 on 2026-03-08 in New York: 2:30 does not come that day.
		{"skipped when clocks go forward", "30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", "2026-03-09T02:30:00-04:00"},
		{"hourly goes on", "0 * * * *", "America/New_York", "2026-03-08T01:00:00-05:00", "2026-03-08T03:00:00-04:00"},
		{"midnight that does not come, Santiago", "0 0 * * *", "America/Santiago", "2026-09-05T12:00:00Z", "2026-09-07T00:00:00-03:00"},
		// They go back at 2:00 on 2026-11-01: 1:30 comes twice.
		{"the first of two", "30 1 * * *", "America/New_York", "2026-11-01T00:00:00-04:00", "2026-11-01T01:30:00-04:00"},
		{"the second of two", "30 1 * * *", "America/New_York", "2026-11-01T01:30:00-04:00", "2026-11-01T01:30:00-05:00"},
		{"the day after", "30 1 * * *", "America/New_York", "2026-11-01T01:30:00-05:00", "2026-11-02T01:30:00-05:00"},
		{"hourly runs in both hours", "0 * * * *", "America/New_York", "2026-11-01T01:00:00-04:00", "2026-11-01T01:00:00-05:00"},
		{"3:00 comes once", "0 3 * * *", "America/New_York", "2026-11-01T00:00:00-04:00", "2026-11-01T03:00:00-05:00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := parse(t, c.cron, c.zone).Next(at(t, c.after))
			if got.Format(time.RFC3339Nano) != c.want {
				t.Errorf("got %s, want %s", got.Format(time.RFC3339Nano), c.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	ok := schedule.Spec{Name: "nightly", Cron: "0 3 * * *"}
	for name, c := range map[string]struct {
		change func(*schedule.Spec)
		want   string
	}{
		"no name":               {func(s *schedule.Spec) { s.Name = "" }, "its name"},
		"no Kubernetes name":    {func(s *schedule.Spec) { s.Name = "A/B" }, "its name"},
		"a long name":           {func(s *schedule.Spec) { s.Name = strings.Repeat("a", 53) }, "52"},
		"nothing":               {func(s *schedule.Spec) { s.Cron = "" }, "five fields"},
		"seconds":               {func(s *schedule.Spec) { s.Cron = "0 0 3 * * *" }, "five fields"},
		"out of range":          {func(s *schedule.Spec) { s.Cron = "61 3 * * *" }, "above maximum"},
		"an empty field":        {func(s *schedule.Spec) { s.Cron = ", 3 * * *" }, "never comes"},
		"February 30":           {func(s *schedule.Spec) { s.Cron = "0 0 30 2 *" }, "never comes"},
		"TZ=":                   {func(s *schedule.Spec) { s.Cron = "TZ=UTC 0 3 * * *" }, "time zone"},
		"CRON_TZ=":              {func(s *schedule.Spec) { s.Cron = "CRON_TZ=UTC 0 3 * * *" }, "time zone"},
		"TZ= that panics":       {func(s *schedule.Spec) { s.Cron = "TZ=UTC" }, "time zone"},
		"every second":          {func(s *schedule.Spec) { s.Cron = "@every 1s" }, "at least 1m"},
		"every, backwards":      {func(s *schedule.Spec) { s.Cron = "@every -1h" }, "at least 1m"},
		"every, not a duration": {func(s *schedule.Spec) { s.Cron = "@every day" }, "at least 1m"},
		"every, in part":        {func(s *schedule.Spec) { s.Cron = "@every 1m0.5s" }, "whole seconds"},
		"another name":          {func(s *schedule.Spec) { s.Cron = "@reboot" }, "@daily"},
		"an unknown zone":       {func(s *schedule.Spec) { s.TimeZone = "Mars/Phobos" }, "Europe/Berlin"},
		"the machine's zone":    {func(s *schedule.Spec) { s.TimeZone = "Local" }, "Europe/Berlin"},
		"a file as zone":        {func(s *schedule.Spec) { s.TimeZone = "../etc/passwd" }, "Europe/Berlin"},
		"a deadline in the past": {
			func(s *schedule.Spec) { s.StartingDeadline = -time.Second }, "0 or more",
		},
		"another concurrency": {func(s *schedule.Spec) { s.Concurrency = 7 }, "Forbid or Allow"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := ok
			c.change(&spec)
			if _, err := schedule.Parse(spec); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
	if _, err := schedule.Parse(ok); err != nil {
		t.Error(err)
	}
}

func TestConcurrencyText(t *testing.T) {
	for _, c := range []schedule.Concurrency{schedule.Forbid, schedule.Allow} {
		b, err := c.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		got := schedule.Concurrency(9)
		if err := got.UnmarshalText(b); err != nil || got != c {
			t.Errorf("%s became %s, %v", c, got, err)
		}
	}
	if _, err := schedule.Concurrency(9).MarshalText(); err == nil {
		t.Error("an unknown concurrency has a text")
	}
	if _, err := schedule.ParseConcurrency("Replace"); err == nil {
		t.Error("Replace was read")
	}
}

var zones = []string{
	"", "UTC", "Europe/Berlin", "America/New_York", "America/Santiago", "America/Sao_Paulo", "Australia/Lord_Howe",
	"Asia/Kolkata", "Asia/Beirut", "Africa/Cairo", "Asia/Kathmandu", "Pacific/Apia", "Antarctica/Troll",
}

var crons = []string{
	"0 3 * * *", "30 2 * * *", "*/15 * * * *", "0 0 * * *", "0 0 1 * *", "0 0 29 2 *", "15 1 * * sun", "0 0 13 * fri",
	"* * * * *", "59 23 31 12 *", "@hourly", "@weekly", "@yearly", "@every 90m", "@every 1m", "@every 25h", "45 0,2 * 3,11 *",
}

// draw makes a schedule, and a time.
func draw(t *rapid.T) (*schedule.Schedule, time.Time) {
	s := parse(t, rapid.SampledFrom(crons).Draw(t, "cron"), rapid.SampledFrom(zones).Draw(t, "zone"))
	return s, drawTime(t)
}

func drawTime(t *rapid.T) time.Time {
	return time.Unix(rapid.Int64Range(1.7e9, 2.2e9).Draw(t, "seconds"), rapid.Int64Range(0, 1e9-1).Draw(t, "ns"))
}

func TestNextIsLaterAndNeverTurnsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, a := draw(t)
		b := a.Add(time.Duration(rapid.Int64Range(0, int64(96*time.Hour)).Draw(t, "later")))
		na, nb := s.Next(a), s.Next(b)
		if !na.After(a) || na.Nanosecond() != 0 {
			t.Fatalf("after %s comes %s", a, na)
		}
		if nb.Before(na) {
			t.Fatalf("after %s comes %s, but after the later %s comes %s", a, na, b, nb)
		}
		if na.After(b) && !na.Equal(nb) {
			t.Fatalf("nothing comes between %s and %s, but after them come %s and %s", a, b, na, nb)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, c := range crons {
		f.Add(c, "Europe/Berlin")
	}
	f.Add("TZ=", "UTC")
	f.Add("*/99999999999999 1-2-3 , ? 7", "../x")
	f.Fuzz(func(t *testing.T, cron, zone string) {
		s, err := schedule.Parse(schedule.Spec{Name: "s", Cron: cron, TimeZone: zone})
		if err != nil {
			return
		}
		now := time.Unix(1.8e9, 0)
		if next := s.Next(now); !next.IsZero() && !next.After(now) {
			t.Errorf("%q in %q: after %s comes %s", cron, zone, now, next)
		}
	})
}
