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
	"github.com/tidemark-backup/tidemark/journal/durable"
)

// Recovered is what Recover made.
type Recovered struct {
	Cluster string           `json:"cluster"`
	From    journal.Position `json:"from"` // where the journal's history begins
	To      journal.Position `json:"to"`
	Keys    int              `json:"keys"`
	Files   int              `json:"files"`
	// Lost are files of the archive that turned out to be lost, and what hangs on them is not in the journal.
	Lost []string `json:"lost,omitempty"`
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
	if _, err := readable(ctx, a, window); err != nil {
		return nil, err
	}
	// First of all: what is read below must be the end of what the old daemon wrote.
	if err := a.Commit(ctx, func(*archive.State) (*archive.Change, error) {
		return &archive.Change{Step: "take over", TakeOver: true}, nil
	}); err != nil {
		return nil, fmt.Errorf("take the archive over: %w", err)
	}
	s := a.State()
	have, err := readable(ctx, a, window)
	if err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	res := &Recovered{Cluster: a.Cluster(), From: have.from, To: s.Known.Position, Files: have.files, Lost: have.lost}
	var failed error
	content := func(yield func(k, v []byte) bool) {
		_, failed = have.tables.All(func(k, v []byte) error {
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
	if err := journal.Rebuild(ctx, dir, jo, a.Cluster(), ao.Journal, s.Known, have.from.Cut, guarded); err != nil {
		return nil, fmt.Errorf("recover from %s: %w", store, err)
	}
	return res, nil
}

// recoverable is the newest stretch of an archive's history.
type recoverable struct {
	from   journal.Position
	tables *journal.Tables
	files  int
	lost   []string
}

// readable opens the newest stretch of history. Files that turn out to be lost are done without, if newer ones do not need them.
func readable(ctx context.Context, a *archive.Archive, window time.Duration) (*recoverable, error) {
	s, have := a.State(), &recoverable{}
	for {
		from, segments, under, err := s.Recoverable(window)
		if err != nil {
			if len(have.lost) > 0 {
				err = fmt.Errorf("archive file %s is lost, and %w", have.lost[0], err)
			}
			return nil, err
		}
		have.from, have.files = from, len(segments)
		if under != nil {
			have.files++
		}
		have.tables, err = a.Tables(ctx, segments, under)
		d, damaged := errors.AsType[*archive.DamageError](err)
		if !damaged {
			return have, err
		}
		without := s.Without(d.File)
		if len(without.Files()) == len(s.Files()) {
			return nil, err
		}
		s, have.lost = without, append(have.lost, d.File)
	}
}

var errStop = errors.New("stopped")
