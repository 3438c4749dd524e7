package schedule

import (
	"fmt"
	"time"
)

// MaxMissed is where counting of missed runs ends, as CronJob's does.
const MaxMissed = 100

// Kind is what is to be done.
type Kind int

const (
	// Wait is for when nothing is due.
	Wait Kind = iota
	// Run is for a run that is to be started.
	Run
	// TooLate is for one that is past its starting deadline.
	TooLate
	// Blocked is for one that has to wait for the end of the run before.
	Blocked
	// Suspended is for a schedule that is.
	Suspended
)

func (k Kind) String() string {
	switch k {
	case Wait:
		return "wait"
	case Run:
		return "run"
	case TooLate:
		return "too late"
	case Blocked:
		return "blocked"
	case Suspended:
		return "suspended"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// Decision says what is to be done at one moment.
type Decision struct {
	Kind Kind
	// At is the time that is due, for Run, TooLate and Blocked. The caller keeps it as the last time
	// when it starts the run, and when it is too late; not when it is blocked.
	At time.Time
	// Missed is how many times before At, and after the last one, passed without a run; at
	// most MaxMissed, which means so many or more.
	Missed int
	// Again is when to ask again, at the latest. It is a time of the wall clock: who sleeps until
	// then should look at the clock now and then, as it can be set. Zero: when the Spec changes.
	// A blocked run should be asked for when the run before ends as well.
	Again time.Time
	// Ahead is by how much the last time lies in the future: the clock was ahead when it ran.
	// No run comes before that time, so that none comes twice; a caller that knows the clock to be
	// right now can set the last time to the present.
	Ahead time.Duration
}

// Due decides which run is due now. last is the scheduled time of the last run (the At of its
// Decision, not when it really started); for a schedule that never ran, the time it was made. Zero
// is now: nothing was missed. running says whether a run of it is going on.
//
// Of all times that were missed only the most recent is due, as with CronJob. No time up to last
// is ever due, whatever the clock does.
func (s *Schedule) Due(last, now time.Time, running bool) Decision {
	if s.spec.Suspend {
		return Decision{Kind: Suspended}
	}
	if last.IsZero() {
		last = now
	}
	if last.After(now) {
		return Decision{Again: s.Next(last), Ahead: last.Sub(now)}
	}
	d := Decision{Again: s.Next(now)}
	if d.At = s.latest(last, now); d.At.IsZero() {
		return d
	}
	d.Missed = s.count(last, d.At)
	switch {
	case s.spec.StartingDeadline > 0 && now.Sub(d.At) > s.spec.StartingDeadline:
		d.Kind = TooLate
	case running && s.spec.Concurrency == Forbid:
		d.Kind = Blocked
	default:
		d.Kind = Run
	}
	return d
}

// latest is the newest time after last, and not after now. It asks Next a few dozen times, however
// long ago last is.
func (s *Schedule) latest(last, now time.Time) time.Time {
	comes := func(after int64) (time.Time, bool) {
		t := s.Next(time.Unix(after, 0))
		return t, !t.IsZero() && !t.After(now)
	}
	// Scheduled times are whole seconds. low has a time after it, high has none.
	low, high := last.Unix(), now.Unix()
	newest, ok := comes(low)
	if !ok {
		return time.Time{}
	}
	for low+1 < high {
		middle := low + (high-low)/2
		if t, ok := comes(middle); ok {
			low, newest = middle, t
		} else {
			high = middle
		}
	}
	return newest
}

// count is how many times lie between the two, without them; at most MaxMissed.
func (s *Schedule) count(last, at time.Time) int {
	n := 0
	for t := s.Next(last); n < MaxMissed && !t.IsZero() && t.Before(at); t = s.Next(t) {
		n++
	}
	return n
}
