package cli

import (
	"errors"
	"fmt"
)

// What main needs to tell apart, for the exit code.
var (
	// ErrUsage is returned for a command that cannot be understood or that was refused.
	ErrUsage = errors.New("wrong usage")
	// ErrDifferent is returned by diff when there are differences. It is not a failure.
	ErrDifferent = errors.New("there are differences")
	// ErrTrouble is returned by diff when it could not compare.
	ErrTrouble = errors.New("could not compare")
	// ErrPartly is returned when a restore left something undone.
	ErrPartly = errors.New("partly restored")
	// ErrNotFound is returned for an object that was not there at the moment asked for.
	ErrNotFound = errors.New("not found")
	// ErrDamaged is returned by verify when it found damage.
	ErrDamaged = errors.New("damaged")
	// ErrNotInHistory is returned for an object that the journal never saw, and for a backup of a volume, or a path in it, that is not there.
	ErrNotInHistory = errors.New("not in history")
)

// message is an error that reads as its text alone and is one of the above besides.
type message struct {
	text string
	kind error
}

func (m *message) Error() string { return m.text }
func (m *message) Unwrap() error { return m.kind }

func usage(format string, args ...any) error {
	return &message{fmt.Sprintf(format, args...), ErrUsage}
}

func failure(kind error, format string, args ...any) error {
	return &message{fmt.Sprintf(format, args...), kind}
}

// exitCodes is the help topic of that name. main holds the same table.
const exitCodes = `Exit codes of all commands:

  0  done; for diff: no differences
  1  an error; for diff: there are differences; for get: a named object was not there at that moment
  2  wrong usage, or refused (no answer to the question asked); for diff: could not compare
  3  restored, or backed up, partly: the report says what is missing; running the same command again continues
     (claims that are left out, because a policy says so or because they are not bound, are told, and no failure)
  4  the moment, the namespace or the object is not in the recorded history; the error says what is. For volumes: there is
     no such backup or cluster, or the backup does not hold the path
  5  verify found damage: the report says what it costs and what is still restorable
`
