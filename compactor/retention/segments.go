package retention

import "time"

// Span is a segment: the changes between two moments.
type Span struct {
	ID   string
	From time.Time // of the oldest change
	To   time.Time // of the newest change
	// Age is how old its end is, by the clock that Item.Age goes by.
	Age time.Duration
}

// SpanVerdict says what becomes of a segment, and why.
type SpanVerdict struct {
	Span
	Keep   bool
	Reason string
}

// Segments says of each segment whether it is kept, in the order given. A segment goes only if it is
// older than the window, and ends at or before the full snapshot that the window is built on: what
// is restored is that snapshot and the changes after it. While that snapshot is itself younger than the
// window nothing goes: the moments of the window before it are made of the segments before it. Snapshots that
// are kept beside are restored by themselves and need no segment. items are all verdicts of one Decide with the same policy.
func Segments(spans []Span, items []Verdict, p Policy) []SpanVerdict {
	base := Base(items, p.Window)
	all := make([]SpanVerdict, len(spans))
	for i, s := range spans {
		v := SpanVerdict{Span: s, Keep: true}
		switch {
		case p.Window == 0:
			v.Reason = "the restorable window has no end"
		case base < 0:
			v.Reason = "there is no full snapshot after it yet"
		case s.Age <= p.Window:
			v.Reason = "within the window of " + text(p.Window)
		case s.To.After(items[base].Time):
			v.Reason = "the window is built on it"
		case items[base].Age < p.Window:
			v.Reason = "the window is built on it until a full snapshot is as old as the window"
		default:
			v.Keep, v.Reason = false, "older than the snapshot that the window is built on"
		}
		all[i] = v
	}
	return all
}
