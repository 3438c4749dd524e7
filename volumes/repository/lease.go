package repository

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"math"
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
	leaseTime  = 15 * time.Minute
	clockSlack = 5 * time.Minute
	// leaseRenewal is how often its holder writes the next file, leaseTry how long that may take, and leaseGivenUp how long after one that was written
	// a try that fails is the last. So it has stopped after another renewal and another try, which leaves the clock of one who looks its five minutes.
	leaseRenewal = 3 * time.Minute
	leaseTry     = time.Minute
	leaseGivenUp = 5 * time.Minute
	// leaseGivenBack is how long giving it back may take: a process that is told to end is killed soon after.
	leaseGivenBack = 20 * time.Second
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
	// tried is when the next file was first tried to be written, and written that of the newest one: no later than the time that it has.
	tried, written time.Time
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
		if n, is := l.numbered(f.Name); is && n >= l.number {
			l.number, newest = n, f
		}
	}
	if newest.Name != "" {
		had, err := l.read(ctx, newest)
		if err != nil {
			return nil, err
		}
		left := leaseTime - time.Since(newest.Time)
		if !had.Released && left > 0 && left <= leaseTime+clockSlack { // beyond, a clock was ahead when it was written
			return nil, fmt.Errorf("%w (%s): try again when it is done; should it be dead, in %s", ErrMaintained, had.Owner, left.Round(time.Second))
		}
	}
	return l, l.next(ctx)
}

func (l *lease) name(number uint64) string { return fmt.Sprintf("%s%020d.json", l.dir, number) }

// numbered is the number of a file; false: it is none of a lease, and somebody else's business.
func (l *lease) numbered(name string) (uint64, bool) {
	n, err := strconv.ParseUint(strings.TrimSuffix(name[len(l.dir):], ".json"), 10, 64)
	return n, err == nil && n < math.MaxUint64 && l.name(n) == name
}

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
	for {
		if l.tried.IsZero() {
			l.tried = time.Now()
		}
		name, had := l.name(l.number+1), l.file
		err = l.store.Create(ctx, name, bytes.NewReader(b), int64(len(b)), archive.CreateOptions{})
		if errors.Is(err, iofs.ErrExist) {
			had, err = l.ours(ctx, name)
		}
		if err != nil {
			return fmt.Errorf("take the right to maintain: %w", err)
		}
		l.number++
		l.written, l.tried = l.tried, time.Time{}
		if had == l.file {
			return nil
		}
	}
}

// ours reads a file that an earlier try of ours has written, whose answer was lost; of another's it returns ErrMaintained.
func (l *lease) ours(ctx context.Context, name string) (had leaseFile, err error) {
	f, err := l.store.Stat(ctx, name)
	if err != nil {
		return had, err
	}
	if had, err = l.read(ctx, f); err == nil && had.ID != l.file.ID {
		err = fmt.Errorf("%w (%s)", ErrMaintained, had.Owner)
	}
	return had, err
}

// hold renews the lease until release, which gives it back. The context ends before the lease does, and when somebody else has taken it.
func (l *lease) hold(ctx context.Context) (held context.Context, release func() error) {
	held, stop := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(leaseRenewal)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-held.Done():
				return
			}
			try, cancel := context.WithTimeout(held, leaseTry)
			err := l.next(try)
			cancel()
			if errors.Is(err, ErrMaintained) || err != nil && time.Since(l.written) >= leaseGivenUp {
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
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseGivenBack)
		defer cancel()
		l.file.Released = true
		if err := l.next(last); err != nil {
			return fmt.Errorf("give back the right to maintain: %w", err)
		}
		if ctx.Err() != nil {
			return nil // the next one does
		}
		return l.tidy(ctx)
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
		if _, is := l.numbered(f.Name); !is || newest.Time.Sub(f.Time) < leaseKept {
			continue
		}
		if err := l.store.Remove(ctx, f.Name); err != nil && !errors.Is(err, archive.ErrHeld) {
			return err
		}
	}
	return nil
}
