package retention_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/tidemark-backup/tidemark/compactor/retention"
)

const (
	hour = time.Hour
	day  = 24 * hour
)

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// full is a full snapshot that the compactor took so long ago.
func full(age time.Duration) retention.Item {
	return retention.Item{ID: age.String(), Time: now.Add(-age), Age: age, Full: true}
}

func with(it retention.Item, change func(*retention.Item)) retention.Item {
	change(&it)
	return it
}

func verdicts(all []retention.Verdict) []string {
	var out []string
	for _, v := range all {
		word := "go"
		if v.Keep {
			word = "keep"
		}
		out = append(out, fmt.Sprintf("%s %s: %s", word, v.ID, v.Reason))
	}
	return out
}

func TestDecide(t *testing.T) {
	week := retention.Policy{Window: 7 * day}
	for _, c := range []struct {
		name  string
		p     retention.Policy
		items []retention.Item
		want  []string
	}{
		{"nothing", week, nil, nil},
		{"no policy", retention.Policy{}, []retention.Item{full(900 * day), full(500 * day), full(hour)}, []string{
			"keep 21600h0m0s: the restorable window, which has no end, is built on it",
			"keep 12000h0m0s: there is no retention policy",
			"keep 1h0m0s: the newest full snapshot",
		}},
		{"the window and what it is built on", week, []retention.Item{full(20 * day), full(9 * day), full(8 * day), full(3 * day), full(hour)}, []string{
			"go 480h0m0s: older than the window of 7d, and no count keeps it",
			"go 216h0m0s: older than the window of 7d, and no count keeps it",
			"keep 192h0m0s: the restorable window of 7d is built on it",
			"keep 72h0m0s: within the window of 7d",
			"keep 1h0m0s: the newest full snapshot",
		}},
		{"the last of all stays, however old", week, []retention.Item{full(90 * day)}, []string{"keep 2160h0m0s: the newest full snapshot"}},
		{"a TTL ends within the window", week, []retention.Item{
			full(8 * day), with(full(2*day), func(i *retention.Item) { i.TTL = day }), with(full(day), func(i *retention.Item) { i.TTL = 36 * hour }), full(hour),
		}, []string{
			"keep 192h0m0s: the restorable window of 7d is built on it",
			"go 48h0m0s: its TTL of 24h0m0s is over since 24h0m0s",
			"keep 24h0m0s: its TTL of 36h0m0s has 12h0m0s to go",
			"keep 1h0m0s: the newest full snapshot",
		}},
		{"a TTL does not take what the window is built on", week, []retention.Item{with(full(8*day), func(i *retention.Item) { i.TTL = day }), full(hour)}, []string{
			"keep 192h0m0s: the restorable window of 7d is built on it", "keep 1h0m0s: the newest full snapshot",
		}},
		{"what holds", week, []retention.Item{
			with(full(30*day), func(i *retention.Item) { i.Pinned = true }), with(full(29*day), func(i *retention.Item) { i.Held, i.TTL = true, day }),
			with(full(28*day), func(i *retention.Item) { i.Manual = true }), full(8 * day), full(hour),
		}, []string{
			"keep 720h0m0s: pinned", "keep 696h0m0s: legal hold", "keep 672h0m0s: taken by hand, without a TTL",
			"keep 192h0m0s: the restorable window of 7d is built on it", "keep 1h0m0s: the newest full snapshot",
		}},
		{"counts", retention.Policy{Window: day, Daily: 2, Monthly: 2}, []retention.Item{full(60 * day), full(40 * day), full(3*day + hour), full(3 * day), full(30 * hour), full(hour)}, []string{
			"keep 1440h0m0s: the last of 2026-09, and not older than 2 monthly",
			"keep 960h0m0s: the last of 2026-10 (2 of 2 monthly)",
			"go 73h0m0s: older than the window of 24h0m0s, and no count keeps it",
			"go 72h0m0s: older than the window of 24h0m0s, and no count keeps it",
			"keep 30h0m0s: the restorable window of 24h0m0s is built on it",
			"keep 1h0m0s: the newest full snapshot",
		}},
		{"a count that would overflow", retention.Policy{Window: day, Yearly: math.MaxInt}, []retention.Item{full(900 * day), full(2 * day), full(hour)}, []string{
			fmt.Sprintf("keep 21600h0m0s: the last of 2024 (2 of %d yearly)", math.MaxInt),
			"keep 48h0m0s: the restorable window of 24h0m0s is built on it", "keep 1h0m0s: the newest full snapshot",
		}},
		{"what has a TTL does not take a day's place", retention.Policy{Window: hour, Daily: 9}, []retention.Item{
			full(3*day + hour), with(full(3*day), func(i *retention.Item) { i.TTL = hour }), full(2 * hour), full(hour / 2),
		}, []string{
			"keep 73h0m0s: the last of 2026-11-22 (2 of 9 daily)", "go 72h0m0s: its TTL of 1h0m0s is over since 2d23h",
			"keep 2h0m0s: the restorable window of 1h0m0s is built on it", "keep 30m0s: the newest full snapshot",
		}},
		{"schedules of parts are counted apart", retention.Policy{Window: hour, Daily: 9}, []retention.Item{
			{ID: "a1", Time: now.Add(-9 * hour), Age: 9 * hour, Group: "a"},
			{ID: "a2", Time: now.Add(-8 * hour), Age: 8 * hour, Group: "a"},
			{ID: "b", Time: now.Add(-7 * hour), Age: 7 * hour, Group: "b"},
			full(6 * hour),
		}, []string{
			"go a1: older than the window of 1h0m0s, and no count keeps it", "keep a2: the last of 2026-11-25 (1 of 9 daily)",
			"keep b: the last of 2026-11-25 (1 of 9 daily)", "keep 6h0m0s: the newest full snapshot",
		}},
		{"days begin where the policy says", retention.Policy{Window: hour, Daily: 9, Location: time.FixedZone("east", 13*3600)}, []retention.Item{
			full(3 * hour), full(3 * hour / 2), full(hour / 2), // 22:00 of the 25th; 23:30; 00:30 of the 26th
		}, []string{
			"go 3h0m0s: older than the window of 1h0m0s, and no count keeps it",
			"keep 1h30m0s: the restorable window of 1h0m0s is built on it", "keep 30m0s: the newest full snapshot",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, verdicts(retention.Decide(c.items, c.p))); d != "" {
				t.Error(d)
			}
		})
	}
}

// A count of 300 years is more than a duration can hold.
func TestALongCountCoversAllTime(t *testing.T) {
	items := []retention.Item{full(9 * day)}
	for n := range 301 { // a clock that runs ahead
		items = append(items, with(full(2*day), func(i *retention.Item) { i.ID, i.Time = fmt.Sprint(n), now.AddDate(n+1, 0, 0) }))
	}
	if v := retention.Decide(items, retention.Policy{Window: day, Yearly: 300})[0]; !v.Keep {
		t.Error(v.Reason)
	}
}

func TestCheckRefuses(t *testing.T) {
	for _, p := range []retention.Policy{{Window: -day}, {Window: time.Second}, {Hourly: -1}, {Daily: -1}, {Weekly: -1}, {Monthly: -1}, {Yearly: -1}} {
		if err := p.Check(); err == nil || !strings.Contains(err.Error(), "want") {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if err := (retention.Policy{Window: time.Minute, Daily: 7}).Check(); err != nil {
		t.Error(err)
	}
}

func TestSegments(t *testing.T) {
	p := retention.Policy{Window: 7 * day}
	span := func(from, to time.Duration) retention.Span {
		return retention.Span{ID: to.String(), From: now.Add(-from), To: now.Add(-to), Age: to}
	}
	items := retention.Decide([]retention.Item{with(full(30*day), func(i *retention.Item) { i.Pinned = true }), full(9 * day), full(2 * day)}, p)
	spans := []retention.Span{span(31*day, 29*day), span(12*day, 9*day), span(10*day, 9*day-time.Second), span(8*day, 5*day)}
	want := []string{
		"older than the snapshot that the window is built on", "older than the snapshot that the window is built on", "the window is built on it", "within the window of 7d",
	}
	for i, v := range retention.Segments(spans, items, p) {
		if v.Reason != want[i] || v.Keep != (i > 1) {
			t.Errorf("%s: keep %t, %s", v.ID, v.Keep, v.Reason)
		}
	}
	for _, v := range slices.Concat(retention.Segments(spans, items, retention.Policy{Daily: 1}), retention.Segments(spans, nil, p)) {
		if !v.Keep {
			t.Errorf("%s goes: %s", v.ID, v.Reason)
		}
	}
}

// The moments of the window that are older than the first full snapshot are made of the segments before it.
func TestNoSegmentGoesWhileEveryFullSnapshotIsYoungerThanTheWindow(t *testing.T) {
	p := retention.Policy{Window: 7 * day}
	old := retention.Span{From: now.Add(-30 * day), To: now.Add(-8 * day), Age: 8 * day}
	for _, c := range []struct {
		oldest time.Duration
		keep   bool
		reason string
	}{
		{hour, true, "the window is built on it until a full snapshot is as old as the window"},
		{7*day - 1, true, "the window is built on it until a full snapshot is as old as the window"},
		{7 * day, false, "older than the snapshot that the window is built on"},
	} {
		items := retention.Decide([]retention.Item{full(c.oldest), full(hour / 2), {ID: "part", Time: now.Add(-8 * day), Age: 8 * day}}, p)
		if v := retention.Segments([]retention.Span{old}, items, p)[0]; v.Keep != c.keep || v.Reason != c.reason {
			t.Errorf("the oldest full snapshot is %s old: keep %t, %s", c.oldest, v.Keep, v.Reason)
		}
	}
}

func drawPolicy(t *rapid.T) retention.Policy {
	count := func(name string) int { return rapid.IntRange(0, 4).Draw(t, name) }
	return retention.Policy{
		Window: rapid.SampledFrom([]time.Duration{0, hour, day, 5 * day}).Draw(t, "window"),
		Hourly: count("hourly"), Daily: count("daily"), Weekly: count("weekly"), Monthly: count("monthly"), Yearly: count("yearly"),
	}
}

// needed is the newest full item at least that old; none: the oldest; nothing at all: -1.
func needed(items []retention.Item, window time.Duration) int {
	at := -1
	for i, it := range items { // oldest first
		if it.Full && (at < 0 || window > 0 && it.Age >= window) {
			at = i
		}
	}
	return at
}

// The archive lives for a while, with a wall clock that jumps ahead and a trusted clock that does not.
func TestNothingGoesEarlyWhateverTheClockDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPolicy(t)
		wall := now
		var items []retention.Item // oldest first
		for n := range rapid.IntRange(1, 60).Draw(t, "steps") {
			passed := time.Duration(rapid.Int64Range(1, int64(30*hour)).Draw(t, "passed"))
			wall = wall.Add(passed)
			if rapid.IntRange(0, 9).Draw(t, "jump") == 0 {
				wall = wall.Add(time.Duration(rapid.Int64Range(0, int64(800*day)).Draw(t, "by")))
			}
			for i := range items {
				items[i].Age += passed
			}
			items = append(items, retention.Item{
				ID: fmt.Sprintf("%03d", n), Time: wall, Full: rapid.IntRange(0, 2).Draw(t, "full") > 0, Pinned: rapid.IntRange(0, 9).Draw(t, "pinned") == 0,
				Held: rapid.IntRange(0, 9).Draw(t, "held") == 0, Manual: rapid.IntRange(0, 4).Draw(t, "manual") == 0,
				TTL: rapid.SampledFrom([]time.Duration{0, 0, 0, hour, 3 * day}).Draw(t, "ttl"), Group: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "group"),
			})
			items = decide(t, items, p)
		}
	})
}

// decide checks one round of retention and returns what it keeps.
func decide(t *rapid.T, items []retention.Item, p retention.Policy) []retention.Item {
	shuffled := slices.Clone(items)
	if rapid.Bool().Draw(t, "backwards") {
		slices.Reverse(shuffled)
	}
	all := retention.Decide(shuffled, p)
	base, last := needed(items, p.Window), -1
	for i, it := range items {
		if it.Full {
			last = i
		}
	}
	var kept []retention.Item
	for i, v := range all {
		if d := cmp.Diff(items[i], v.Item); d != "" {
			t.Fatal(d)
		}
		if v.Reason == "" {
			t.Fatalf("%s has no reason", v.ID)
		}
		if v.Keep {
			kept = append(kept, v.Item)
			continue
		}
		switch {
		case v.Pinned, v.Held, i == base, i == last:
			t.Fatalf("%+v goes: base %d, last %d", v, base, last)
		case v.TTL > 0 && v.Age <= v.TTL, v.TTL == 0 && v.Manual, v.TTL == 0 && (p.Window == 0 || v.Age <= p.Window):
			t.Fatalf("%+v goes early", v)
		case v.TTL == 0 && v.Age <= time.Duration(p.Daily)*day && lastOfDay(items, i):
			t.Fatalf("%+v is the last of its day, and goes", v)
		}
	}
	again := retention.Decide(kept, p)
	for _, v := range again {
		if !v.Keep {
			t.Fatalf("deciding again: %+v goes", v)
		}
	}
	return kept
}

func lastOfDay(items []retention.Item, i int) bool {
	it := items[i]
	return !slices.ContainsFunc(items[i+1:], func(o retention.Item) bool {
		return o.TTL == 0 && !o.Manual && o.Full == it.Full && (it.Full || o.Group == it.Group) && o.Time.Format(time.DateOnly) == it.Time.Format(time.DateOnly)
	})
}
