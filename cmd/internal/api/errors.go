package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// wireError is an error in the API: as the body of a failed request, or a stream's last line.
type wireError struct {
	Message string       `json:"error,omitempty"`
	Kind    string       `json:"kind,omitempty"` // one of the kinds below, or empty
	At      string       `json:"at,omitempty"`
	Why     string       `json:"why,omitempty"`
	Try     string       `json:"try,omitempty"`
	From    *journal.Cut `json:"from,omitempty"`
	To      *journal.Cut `json:"to,omitempty"`
}

// The kinds of error that a client tells apart.
const (
	kindRange    = "range"    // a replay.RangeError
	kindRequest  = "request"  // the question cannot be understood
	kindUnknown  = "unknown"  // what was asked for is not there
	kindDenied   = "denied"   // no or wrong token
	kindPartly   = "partly"   // some of it could not be had
	kindStopping = "stopping" // the daemon is about to end
)

// Error is what the daemon answered when it could not do what it was asked.
type Error struct {
	Message string
	Kind    string
}

// Error gives the daemon's own words.
func (e *Error) Error() string { return e.Message }

// Unknown reports whether an error says that what was asked for, a backup of a volume, a path in it or a type of objects, is not there: here, or with the daemon.
func Unknown(err error) bool {
	answer, is := errors.AsType[*Error](err)
	return is && answer.Kind == kindUnknown || errors.Is(err, volumes.ErrUnknown) || errors.Is(err, repository.ErrNoFile) || errors.Is(err, replay.ErrUnknownKind)
}

// Partly reports whether an error says that some of what was asked for could not be had, and all else could: here, or with the daemon.
func Partly(err error) bool {
	answer, is := errors.AsType[*Error](err)
	return is && answer.Kind == kindPartly || errors.Is(err, repository.ErrPartly)
}

// Refused reports whether an error says of a question about volumes or snapshots that it cannot be meant, or that what it asks for may not be done: here, or with the daemon.
func Refused(err error) bool {
	answer, is := errors.AsType[*Error](err)
	return is && answer.Kind == kindRequest || errors.As(asked(err), new(*requestError)) && !errors.Is(err, volumes.ErrPartly)
}

// requestError is a question that cannot be understood.
type requestError struct{ err error }

func (e *requestError) Error() string { return e.err.Error() }
func (e *requestError) Unwrap() error { return e.err }

// Refuse makes an error that Refused finds, here and with the one who asked.
func Refuse(format string, args ...any) error { return badRequest(format, args...) }

func badRequest(format string, args ...any) error { return &requestError{fmt.Errorf(format, args...)} }

var errStopping = errors.New("the daemon is stopping; ask again when it is back")

func toWire(err error) *wireError {
	w := &wireError{Message: err.Error()}
	var re *replay.RangeError
	var bad *requestError
	switch {
	case errors.As(err, &re):
		w.Kind, w.At, w.Why, w.Try, w.From, w.To = kindRange, re.At.String(), re.Why, re.Try, &re.From, &re.To
	case Unknown(err):
		w.Kind = kindUnknown
	case Partly(err):
		w.Kind = kindPartly
	case errors.As(err, &bad):
		w.Kind = kindRequest
	case errors.Is(err, errStopping), errors.Is(err, context.Canceled):
		w.Kind, w.Message = kindStopping, errStopping.Error()
	}
	return w
}

func fromWire(w *wireError) error {
	if w.Kind != kindRange {
		return &Error{Message: w.Message, Kind: w.Kind}
	}
	at, err := replay.ParseAt(w.At)
	if err != nil {
		return &Error{Message: w.Message, Kind: w.Kind}
	}
	re := &replay.RangeError{At: at, Why: w.Why, Try: w.Try}
	if w.From != nil {
		re.From = *w.From
	}
	if w.To != nil {
		re.To = *w.To
	}
	return re
}

func statusOf(w *wireError) int {
	switch w.Kind {
	case kindRange:
		return http.StatusUnprocessableEntity
	case kindRequest:
		return http.StatusBadRequest
	case kindUnknown:
		return http.StatusNotFound
	case kindDenied:
		return http.StatusUnauthorized
	case kindStopping:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
