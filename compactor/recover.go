package compactor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
)

// Recovered is what Recover made.
type Recovered struct {
	Cluster string           `json:"cluster"`
	From    journal.Position `json:"from"` // where the journal's history begins
	To      journal.Position `json:"to"`
	Keys    int              `json:"keys"`
	Files   int              `json:"files"`
}

// Recover makes a new journal in dir out of the archive: its newest state, and as much of its
// history as the window wants (zero: all that hangs together). The archive then takes the history
// of the new journal only: the daemon that wrote it before, if it comes back, stops archiving.
// Cut off, it is simply run again.
func Recover(ctx context.Context, store archive.Store, ao archive.Options, dir string, jo journal.Options, window time.Duration) (*Recovered, error) {
	if names, err := os.ReadDir(filepath.Join(dir, "journal")); err == nil && len(names) > 0 {
		return nil, fmt.Errorf("%w in %s: recover into an empty directory", journal.ErrNotEmpty, dir)
	}
	if len(ao.Identities) == 0 {
		return nil, fmt.Errorf("%w: give one with --identity FILE", archive.ErrNoIdentity)
	}
	id := make([]byte, 16)
	rand.Read(id)
	ao.Journal = hex.EncodeToString(id)
	a, err := archive.Open(ctx, store, ao)
	if err != nil {
		return nil, err
	}
	// Whoever cannot read it must not take it over.
	if _, segments, under, err := a.State().Recoverable(window); err != nil {
		return nil, err
	} else if _, err := a.Tables(ctx, segments, under); err != nil {
		return nil, err
	}
	// First of all: what is read below must be the end of what the old daemon wrote.
	if err := a.Commit(ctx, func(*archive.State) (*archive.Change, error) {
		return &archive.Change{Step: "take over", TakeOver: true}, nil
	}); err != nil {
		return nil, fmt.Errorf("take the archive over: %w", err)
	}
	s := a.State()
	from, segments, under, err := s.Recoverable(window)
	if err != nil {
		return nil, err
	}
	t, err := a.Tables(ctx, segments, under)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	res := &Recovered{Cluster: a.Cluster(), From: from, To: s.Known.Position, Files: len(segments)}
	if under != nil {
		res.Files++
	}
	var failed error
	content := func(yield func(k, v []byte) bool) {
		_, failed = t.All(func(k, v []byte) error {
			res.Keys++
			if !yield(k, v) {
				return errStop
			}
			return nil
		})
	}
	// A failure in the middle must not end in a journal that looks whole.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	guarded := func(yield func(k, v []byte) bool) {
		content(yield)
		if failed != nil && !errors.Is(failed, errStop) {
			cancel(failed)
			yield(nil, nil)
		}
	}
	if err := journal.Rebuild(ctx, dir, jo, a.Cluster(), ao.Journal, s.Known, from.Cut, guarded); err != nil {
		return nil, fmt.Errorf("recover from %s: %w", store, err)
	}
	return res, nil
}

var errStop = errors.New("stopped")
