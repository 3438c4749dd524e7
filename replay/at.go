package replay

import (
	"fmt"
	"strings"
	"time"

	"github.com/tidemark-backup/tidemark/journal"
)

// At is what a person means by a moment, before history turned it into a cut. Exactly one of
// its parts is set; the zero At is now.
type At struct {
	Time     time.Time        // that moment
	Ago      time.Duration    // that long before the newest moment
	Revision journal.Revision // that revision; epoch 0 is the newest epoch
	Mark     string           // the moment of that name: a backup's, or a mark's
	Before   string           // just before the thing of that name began, such as "restore/NAME"
}

// atHint ends every error about a moment that cannot be read.
const atHint = `want one of: a time like 2026-11-22T10:30:00Z, a duration like 15m (ago), rv:123456, the name of a backup or mark, before:restore/NAME, now`

// timeLayouts are tried in turn; those without a zone are local time, as a clock on the wall.
var timeLayouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999", "2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02"}

// ParseAt reads the forms of --at: RFC 3339 (with fractions; without a zone it is local time),
// a duration ("15m", "2d": ago), "rv:REVISION", "rv:EPOCH/REVISION", a backup's or mark's
// name, "before:restore/NAME", "now" or nothing.
func ParseAt(s string) (At, error) {
	switch {
	case s == "" || s == "now":
		return At{}, nil
	case strings.HasPrefix(s, "rv:"):
		r, err := journal.ParseRevision(s[len("rv:"):])
		if err != nil {
			return At{}, err
		}
		if r.RV == 0 {
			return At{}, fmt.Errorf("%q: there is no revision 0", s)
		}
		return At{Revision: r}, nil
	case strings.HasPrefix(s, "before:"):
		name := s[len("before:"):]
		if name == "" {
			return At{}, fmt.Errorf("%q names nothing: %s", s, atHint)
		}
		return At{Before: name}, nil
	}
	if d, err := parseAgo(s); err == nil {
		if d < 0 {
			return At{}, fmt.Errorf("%q lies in the future: a duration counts backwards from now", s)
		}
		return At{Ago: d}, nil
	}
	for _, layout := range timeLayouts {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return At{Time: t}, nil
		}
	}
	if !validName(s) {
		return At{}, fmt.Errorf("cannot read the moment %q: %s", s, atHint)
	}
	return At{Mark: s}, nil
}

// String gives the form that ParseAt reads.
func (a At) String() string {
	switch {
	case !a.Time.IsZero():
		return a.Time.UTC().Format(time.RFC3339Nano)
	case a.Ago != 0:
		return a.Ago.String()
	case a.Revision.Epoch != 0:
		return "rv:" + a.Revision.String()
	case a.Revision.RV != 0:
		return fmt.Sprintf("rv:%d", a.Revision.RV)
	case a.Before != "":
		return "before:" + a.Before
	case a.Mark != "":
		return a.Mark
	}
	return "now"
}

// parseAgo reads a Go duration, and days besides: "2d", "1d12h".
func parseAgo(s string) (time.Duration, error) {
	days, rest, found := strings.Cut(s, "d")
	if !found {
		return time.ParseDuration(s)
	}
	d, err := time.ParseDuration(days + "h")
	if err != nil || d > 100*365*time.Hour {
		return 0, fmt.Errorf("%q is not a duration", s)
	}
	d *= 24
	if rest == "" {
		return d, nil
	}
	r, err := time.ParseDuration(rest)
	return d + r, err
}

// validName accepts what Kubernetes names may look like, with slashes: it must start with a
// letter, so that a mistyped time is an error and not a name.
func validName(s string) bool {
	if s == "" || len(s) > 253 || (s[0]|0x20) < 'a' || (s[0]|0x20) > 'z' {
		return false
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '.', r == '_', r == '/':
		default:
			return false
		}
	}
	return true
}

// RangeError is returned for a moment whose state the journal cannot tell. Its text names the
// range that can be asked for and the next command to try.
type RangeError struct {
	At       At
	Why      string // "lies before recording began"
	From, To journal.Cut
	// Try is the moment to propose; empty: From, the oldest one.
	Try string
}

// Error names the range and the next command.
func (e *RangeError) Error() string {
	msg := fmt.Sprintf("%s: %s", e.At, e.Why)
	if e.From.Time.IsZero() {
		return msg + "; nothing is restorable yet, the first lists are still running: see 'tidemark status'"
	}
	try := e.Try
	if try == "" {
		try = e.From.Time.UTC().Format(time.RFC3339Nano)
	}
	return fmt.Sprintf("%s; restorable from %s to %s (rv:%s to rv:%s): try '--at %s', or see 'tidemark status'", msg,
		e.From.Time.UTC().Format(time.RFC3339Nano), e.To.Time.UTC().Format(time.RFC3339Nano), e.From.Revision, e.To.Revision, try)
}
