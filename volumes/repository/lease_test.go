package repository

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// gate is a store that lets the schedule of Kopia's maintenance be written when it is opened.
type gate struct {
	archive.Store
	reached, open chan struct{}
}

// Create implements archive.Store.
func (g *gate) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	if strings.HasSuffix(name, "/kopia.maintenance") {
		select {
		case g.reached <- struct{}{}:
			<-g.open
		case <-g.open:
		}
	}
	return g.Store.Create(ctx, name, body, size, o)
}

// leases are the files of it, newest last, with the path to them.
func (w *world) leases() (all []string) {
	w.Helper()
	for f, err := range w.store.List(w.Context(), "volumes/c1/maintenance/", "") {
		ok(w.T, err)
		all = append(all, strings.TrimPrefix(w.store.String(), "dir://")+"/"+f.Name)
	}
	return all
}

// TestOneMaintainsAtATime has two sessions on one store, as a daemon and a command line elsewhere are: Kopia takes both for one user, and its lock is on
// each one's machine.
func TestOneMaintainsAtATime(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	write(t, dir+"/a", "a")
	w.back(w.open(), dir)
	g := &gate{w.store, make(chan struct{}), make(chan struct{})}
	o := w.options()
	o.Store = g
	first, err := Open(t.Context(), o)
	ok(t, err)
	defer first.Close(context.Background())
	done := make(chan error)
	go func() { done <- first.Maintain(t.Context(), true) }()
	<-g.reached
	second := w.open()
	for _, now := range []bool{false, true} {
		if err := second.Maintain(t.Context(), now); !errors.Is(err, ErrMaintained) || !strings.Contains(err.Error(), "process ") {
			t.Errorf("two at once (now: %v): %v", now, err)
		}
	}
	close(g.open)
	ok(t, <-done)
	ok(t, second.Maintain(t.Context(), true))

	// One that was killed has it until it is over.
	_, err = takeLease(t.Context(), w.store, "volumes/c1/maintenance/")
	ok(t, err)
	if err := second.Maintain(t.Context(), false); !errors.Is(err, ErrMaintained) {
		t.Errorf("beside one that may live: %v", err)
	}
	all := w.leases()
	long := time.Now().Add(-leaseTime - time.Second)
	ok(t, os.Chtimes(all[len(all)-1], long, long))
	ok(t, os.Chtimes(all[0], time.Time{}, long.Add(-leaseKept)))
	ok(t, second.Maintain(t.Context(), false))
	if after := w.leases(); len(after) != len(all)+1 { // two came, and one went
		t.Errorf("files of %v, then %v", all, after)
	}
}

func TestALeaseIsRenewedOrGivenUp(t *testing.T) {
	for name, c := range map[string]struct {
		others bool
		away   error
		after  time.Duration
	}{
		"held": {}, "taken by another": {others: true, after: leaseRenewal}, "the store is away": {away: errors.New("away"), after: leaseGivenUp},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			store := &failing{Store: w.store}
			synctest.Test(t, func(t *testing.T) {
				l, err := takeLease(t.Context(), store, "volumes/c1/maintenance/")
				ok(t, err)
				if c.others {
					ok(t, (&lease{store: w.store, dir: l.dir, number: l.number}).next(t.Context()))
				}
				store.err = c.away
				held, release := l.hold(t.Context())
				begun := time.Now()
				select {
				case <-held.Done():
				case <-time.After(61 * time.Minute):
				}
				took := time.Since(begun)
				if c.away != nil {
					store.err = nil
				}
				ok(t, release())
				switch cause := context.Cause(held); {
				case c.after == 0 && (took != 61*time.Minute || l.number != 1+20+1 || !l.file.Released):
					t.Errorf("%v, %v, %+v", took, cause, l)
				case c.after > 0 && (took != c.after || l.file.Released || c.others != errors.Is(cause, ErrMaintained)):
					t.Errorf("after %v: %v, %+v", took, cause, l)
				}
			})
		})
	}
}

// failing is a store that does not take files when told so.
type failing struct {
	archive.Store
	err error
}

// Create implements archive.Store.
func (f *failing) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	if f.err != nil {
		return f.err
	}
	return f.Store.Create(ctx, name, body, size, o)
}
