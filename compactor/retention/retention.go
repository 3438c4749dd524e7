// Package retention decides what is kept, as a pure function that gives a reason for every item.
//
// How old something is goes by a clock that only counts time in which somebody counted (see
// archive.Archive.Age), so a wall clock that jumps cannot make anything old. The wall clock only
// sorts items into hours, days, weeks, months and years.
package retention

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
)

// Policy says what is kept. The zero Policy keeps everything.
type Policy struct {
	// Window is how far back every moment can be restored. Zero: to the beginning.
	Window time.Duration
	// Hourly to Yearly say of how many hours, days, weeks, months and years the last snapshot is kept
	// beyond the window. All zero: those that nobody gave a TTL, and that a schedule or the
	// compactor took, go with the window.
	Hourly, Daily, Weekly, Monthly, Yearly int
	// Location says when days begin. Nil: UTC.
	Location *time.Location
}

// IsZero reports whether the policy keeps everything.
func (p Policy) IsZero() bool {
	return p.Window == 0 && p.Hourly == 0 && p.Daily == 0 && p.Weekly == 0 && p.Monthly == 0 && p.Yearly == 0
}

// Check refuses what cannot be meant.
func (p Policy) Check() error {
	for _, n := range []int{p.Hourly, p.Daily, p.Weekly, p.Monthly, p.Yearly} {
		if n < 0 {
			return fmt.Errorf("retention: %d snapshots cannot be kept: want 0 or more", n)
		}
	}
	if p.Window < 0 || p.Window > 0 && p.Window < time.Minute {
		return fmt.Errorf("retention: a window of %s is too short: want at least 1m, or 0 for everything", p.Window)
	}
	return nil
}

// Item is a snapshot.
type Item struct {
	ID   string
	Name string    // for people
	Time time.Time // the moment whose state it holds
	Age  time.Duration
	// TTL is how long it was asked to be kept; zero: not said.
	TTL          time.Duration
	Pinned, Held bool
	// Full snapshots hold everything; restores of later moments are built on them.
	Full bool
	// Manual snapshots were asked for by a person.
	Manual bool
	// Group is what the counts count apart among snapshots that are not full, such as the schedule
	// that took them: the last of a day of one namespace must not take the place of another's.
	Group string
}

// Verdict says what becomes of an item, and why.
type Verdict struct {
	Item
	Keep   bool
	Reason string
}

// rule is one of the counts of a policy.
type rule struct {
	name   string
	count  int
	length time.Duration // about
	period func(time.Time) string
}

func (p Policy) rules() []rule {
	const day = 24 * time.Hour
	return []rule{
		{"hourly", p.Hourly, time.Hour, func(t time.Time) string { return t.Format("2006-01-02 15h") }},
		{"daily", p.Daily, day, func(t time.Time) string { return t.Format("2006-01-02") }},
		{"weekly", p.Weekly, 7 * day, func(t time.Time) string {
			year, week := t.ISOWeek()
			return fmt.Sprintf("%d-W%02d", year, week)
		}},
		{"monthly", p.Monthly, 31 * day, func(t time.Time) string { return t.Format("2006-01") }},
		{"yearly", p.Yearly, 366 * day, func(t time.Time) string { return strconv.Itoa(t.Year()) }},
	}
}

// Decide says of each item whether it is kept, oldest first. The order of the items does not matter.
//
// A TTL is a promise that ends: when it is over the item goes. What a person asked for without a
// TTL stays until a person deletes it. The rest goes when neither the window nor a count keeps
// it, and never before it is as old as the window. The last of an hour, a day and so on stays until
// it is as old as its count covers, however many newer ones a clock that was ahead has made up. Whatever
// else is said, the newest full snapshot stays, the one that the window is built on, what is pinned, and
// what a legal hold keeps.
//
// Counts see only what they decide about. If the last snapshot of a day were one with a TTL,
// the day would have none once that is over; so such a one takes nobody's place, nor does one
// taken by hand.
//
// Deciding again about what was kept keeps it.
func Decide(items []Item, p Policy) []Verdict {
	all := make([]Verdict, len(items))
	for i, it := range items {
		all[i].Item = it
	}
	slices.SortFunc(all, func(a, b Verdict) int { return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.ID, b.ID)) })
	base := Base(all, p.Window)
	last := -1
	for i := range all {
		if all[i].Full {
			last = i
		}
	}
	counted := p.counted(all)
	for i := range all {
		v := &all[i]
		v.Keep = true
		switch {
		case v.Pinned:
			v.Reason = "pinned"
		case v.Held:
			v.Reason = "legal hold"
		case i == last:
			v.Reason = "the newest full snapshot"
		case i == base:
			v.Reason = "the restorable window, which has no end, is built on it"
			if p.Window > 0 {
				v.Reason = "the restorable window of " + text(p.Window) + " is built on it"
			}
		case v.TTL > 0 && v.Age <= v.TTL:
			v.Reason = "its TTL of " + text(v.TTL) + " has " + text(v.TTL-v.Age) + " to go"
		case v.TTL > 0:
			v.Keep, v.Reason = false, "its TTL of "+text(v.TTL)+" is over since "+text(v.Age-v.TTL)
		case v.Manual:
			v.Reason = "taken by hand, without a TTL"
		case p.IsZero():
			v.Reason = "there is no retention policy"
		case p.Window == 0:
			v.Reason = "the restorable window has no end"
		case v.Age <= p.Window:
			v.Reason = "within the window of " + text(p.Window)
		case counted[i] != "":
			v.Reason = counted[i]
		default:
			v.Keep, v.Reason = false, "older than the window of "+text(p.Window)+", and no count keeps it"
		}
	}
	return all
}

// Base is the index of the full snapshot that the window is built on: the newest one that is as
// old as the window, or else, and for a window without an end, the oldest. It is -1 when there is none. The
// verdicts must be in the order of Decide.
func Base(all []Verdict, window time.Duration) int {
	base := -1
	for i := range all {
		if !all[i].Full {
			continue
		}
		if base < 0 || window > 0 && all[i].Age >= window {
			base = i
		}
	}
	return base
}

// counted gives, for each item, the first count that keeps it.
func (p Policy) counted(all []Verdict) map[int]string {
	loc := p.Location
	if loc == nil {
		loc = time.UTC
	}
	groups := map[string][]int{} // newest first
	for i := range slices.Backward(all) {
		switch v := &all[i]; {
		case v.TTL > 0 || v.Manual:
		case v.Full:
			groups[""] = append(groups[""], i)
		default:
			groups["/"+v.Group] = append(groups["/"+v.Group], i)
		}
	}
	out := map[int]string{}
	for _, r := range p.rules() {
		for _, group := range groups {
			r.mark(all, group, loc, out)
		}
	}
	return out
}

// mark notes which of a group, newest first, the rule keeps.
func (r rule) mark(all []Verdict, group []int, loc *time.Location, out map[int]string) {
	n, before := 0, ""
	for _, i := range group {
		period := r.period(all[i].Time.In(loc))
		if r.count == 0 || period == before {
			continue
		}
		before = period
		n++
		switch {
		case out[i] != "":
		case n <= r.count:
			out[i] = fmt.Sprintf("the last of %s (%d of %d %s)", period, n, r.count, r.name)
		case all[i].Age <= r.covers():
			// The wall clock may have made up the newer periods.
			out[i] = fmt.Sprintf("the last of %s, and not older than %d %s", period, r.count, r.name)
		}
	}
}

// covers is how long ago the rule's last period began, at most.
func (r rule) covers() time.Duration {
	if r.count > int(math.MaxInt64/r.length) {
		return math.MaxInt64
	}
	return time.Duration(r.count) * r.length
}

// text writes a duration for people.
func text(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day && d%day == 0:
		return fmt.Sprintf("%dd", d/day)
	case d >= 2*day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return d.Round(time.Minute).String()
	}
	return d.Round(time.Second).String()
}
