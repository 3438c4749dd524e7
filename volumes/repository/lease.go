package repository

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// ErrMaintained is returned by Maintain while another process maintains the repository.
var ErrMaintained = errors.New("another process maintains the repository of volumes")

const (
	// leaseTime is how long after its newest file a lease counts, should its holder be dead. Kopia itself refuses to maintain with a clock that is
	// five minutes off.
	leaseTime = 15 * time.Minute
	// leaseRenewal is how often its holder writes the next file, and leaseGivenUp how long after one that was written it stops, if it cannot.
	leaseRenewal = 3 * time.Minute
	leaseGivenUp = 9 * time.Minute
	// leaseKept is how long files of before are kept: a list that lags must not have one begin with a number that was there.
	leaseKept = 24 * time.Hour
)

// lease is the right to maintain a repository, which one process has at a time. Kopia has a lock for it on the machine only. It is made of files with
// increasing numbers, each created once: of several who want the next number, one gets it. The newest file says whose it is.
type lease struct {
	store  archive.Store
	dir    string
	file   leaseFile
	number uint64 // of our newest file
}

// leaseFile is what a file of a lease holds.
type leaseFile struct {
	Owner    string `json:"owner"` // for people
	ID       string `json:"id"`    // random, so that one knows one's own
	Released bool   `json:"released,omitempty"`
}

// takeLease takes it, or returns ErrMaintained.
func takeLease(ctx context.Context, store archive.Store, dir string) (*lease, error) {
	host, _ := os.Hostname()
	l := &lease{store: store, dir: dir, file: leaseFile{Owner: fmt.Sprintf("%s, process %d", host, os.Getpid()), ID: rand.Text()}}
	var newest archive.FileInfo
	for f, err := range store.List(ctx, dir, "") {
		if err != nil {
			return nil, fmt.Errorf("look who maintains: %w", err)
		}
		newest = f
	}
	if newest.Name != "" {
		var err error
		if l.number, err = strconv.ParseUint(strings.TrimSuffix(newest.Name[len(dir):], ".json"), 10, 64); err != nil {
			return nil, fmt.Errorf("look who maintains: %s has no number: remove it", newest.Name)
		}
		had, err := l.read(ctx, newest)
		if err != nil {
			return nil, err
		}
		if left := leaseTime - time.Since(newest.Time); !had.Released && left > 0 {
			return nil, fmt.Errorf("%w (%s): try again when it is done; should it be dead, in %s", ErrMaintained, had.Owner, left.Round(time.Second))
		}
	}
	return l, l.next(ctx)
}

func (l *lease) name(number uint64) string { return fmt.Sprintf("%s%020d.json", l.dir, number) }

// read reads a file. One that says nothing is somebody's all the same.
func (l *lease) read(ctx context.Context, f archive.FileInfo) (had leaseFile, err error) {
	b := make([]byte, min(f.Size, 4<<10))
	err = l.store.ReadAt(ctx, f.Name, b, 0)
	if err != nil {
		return had, fmt.Errorf("look who maintains: %w", err)
	}
	if err := json.Unmarshal(b, &had); err != nil {
		had = leaseFile{Owner: "unknown"}
	}
	return had, nil
}

// next writes the next file, or returns ErrMaintained when somebody else did.
func (l *lease) next(ctx context.Context) error {
	b, err := json.Marshal(l.file)
	if err != nil {
		return err
	}
	name := l.name(l.number + 1)
	err = l.store.Create(ctx, name, bytes.NewReader(b), int64(len(b)), archive.CreateOptions{})
	if errors.Is(err, iofs.ErrExist) {
		err = l.ours(ctx, name)
	}
	if err != nil {
		return fmt.Errorf("take the right to maintain: %w", err)
	}
	l.number++
	return nil
}

// ours returns ErrMaintained unless a file is an earlier try of ours, whose answer was lost.
func (l *lease) ours(ctx context.Context, name string) error {
	f, err := l.store.Stat(ctx, name)
	if err != nil {
		return err
	}
	had, err := l.read(ctx, f)
	if err == nil && had != l.file {
		err = fmt.Errorf("%w (%s)", ErrMaintained, had.Owner)
	}
	return err
}

// hold renews the lease until release, which gives it back. The context ends before the lease does, and when somebody else has taken it.
func (l *lease) hold(ctx context.Context) (held context.Context, release func() error) {
	held, stop := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		last := time.Now()
		tick := time.NewTicker(leaseRenewal)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-held.Done():
				return
			}
			begun := time.Now()
			try, cancel := context.WithTimeout(held, leaseRenewal)
			err := l.next(try)
			cancel()
			switch {
			case err == nil:
				last = begun
			case errors.Is(err, ErrMaintained), time.Since(last) >= leaseGivenUp:
				stop(fmt.Errorf("the maintenance of the repository was given up, so that no other runs beside it: %w", err))
				return
			}
		}
	}()
	return held, func() error {
		lost := held.Err() != nil && ctx.Err() == nil
		stop(nil)
		<-done
		if lost {
			return nil // it is another's, or may be
		}
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseRenewal)
		defer cancel()
		l.file.Released = true
		if err := l.next(last); err != nil {
			return fmt.Errorf("give back the right to maintain: %w", err)
		}
		return l.tidy(last)
	}
}

// tidy removes files of long ago.
func (l *lease) tidy(ctx context.Context) error {
	newest, err := l.store.Stat(ctx, l.name(l.number))
	if err != nil {
		return err
	}
	for f, err := range l.store.List(ctx, l.dir, "") {
		if err != nil {
			return err
		}
		if newest.Time.Sub(f.Time) < leaseKept {
			continue
		}
		if err := l.store.Remove(ctx, f.Name); err != nil && !errors.Is(err, archive.ErrHeld) {
			return err
		}
	}
	return nil
}
