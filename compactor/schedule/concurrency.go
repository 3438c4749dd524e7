package schedule

import "fmt"

// Concurrency says what happens to a run that is due while the one before still runs.
type Concurrency int

const (
	// Forbid leaves the run out until the one before has ended. It is the default.
	Forbid Concurrency = iota
	// Allow lets both run.
	Allow
)

// ParseConcurrency reads Forbid or Allow; nothing is Forbid.
func ParseConcurrency(text string) (Concurrency, error) {
	switch text {
	case "", "Forbid":
		return Forbid, nil
	case "Allow":
		return Allow, nil
	}
	return 0, fmt.Errorf("concurrency %q: want Forbid or Allow", text)
}

func (c Concurrency) String() string {
	switch c {
	case Forbid:
		return "Forbid"
	case Allow:
		return "Allow"
	}
	return fmt.Sprintf("Concurrency(%d)", int(c))
}

// MarshalText implements encoding.TextMarshaler.
func (c Concurrency) MarshalText() ([]byte, error) {
	if _, err := ParseConcurrency(c.String()); err != nil {
		return nil, err
	}
	return []byte(c.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Concurrency) UnmarshalText(text []byte) (err error) {
	*c, err = ParseConcurrency(string(text))
	return err
}
