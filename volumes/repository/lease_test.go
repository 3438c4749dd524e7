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
	go func() {
		_, err := first.Maintain(t.Context(), Maintenance{Now: true})
		done <- err
	}()
	<-g.reached
	second := w.open()
	for _, now := range []bool{false, true} {
		if _, err := second.Maintain(t.Context(), Maintenance{Now: now}); !errors.Is(err, ErrMaintained) || !strings.Contains(err.Error(), "process ") {
			t.Errorf("two at once (now: %v): %v", now, err)
		}
	}
	close(g.open)
	ok(t, <-done)
	maintain(t, second, true)

	// One that was killed has it until it is over.
	_, err = takeLease(t.Context(), w.store, "volumes/c1/maintenance/")
	ok(t, err)
	if _, err := second.Maintain(t.Context(), Maintenance{}); !errors.Is(err, ErrMaintained) {
		t.Errorf("beside one that may live: %v", err)
	}
	all := w.leases()
	long := time.Now().Add(-leaseTime - time.Second)
	ok(t, os.Chtimes(all[len(all)-1], long, long))
	ok(t, os.Chtimes(all[0], time.Time{}, long.Add(-leaseKept)))
	maintain(t, second, false)
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
		"held": {}, "taken by another": {others: true, after: leaseRenewal}, "the store is away": {away: errors.New("away"), after: 2 * leaseRenewal},
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

// TestReleaseWhileARenewalIsInFlight has the renewal that is cancelled land all the same: it is ours, and the lease is given back.
func TestReleaseWhileARenewalIsInFlight(t *testing.T) {
	w := newWorld(t)
	store := &failing{Store: w.store}
	synctest.Test(t, func(t *testing.T) {
		l, err := takeLease(t.Context(), store, "volumes/c1/maintenance/")
		ok(t, err)
		store.lost = true
		_, release := l.hold(t.Context())
		time.Sleep(leaseRenewal + time.Second)
		store.lost = false
		ok(t, release())
		if len(w.leases()) != 3 || !l.file.Released {
			t.Errorf("files %v, %+v", w.leases(), l)
		}
		_, err = takeLease(t.Context(), store, "volumes/c1/maintenance/")
		ok(t, err)
	})
}

// TestALeaseIsAsOldAsItsFile has the answer to a renewal lost, and the store away soon after: the next try finds the file, which is no newer for that.
func TestALeaseIsAsOldAsItsFile(t *testing.T) {
	w := newWorld(t)
	store := &failing{Store: w.store}
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		l, err := takeLease(t.Context(), store, "volumes/c1/maintenance/")
		ok(t, err)
		held, release := l.hold(t.Context())
		store.lost = true
		time.Sleep(leaseRenewal + time.Second) // it waits until it is over
		store.lost = false
		time.Sleep(leaseRenewal)
		store.err = errors.New("away")
		<-held.Done()
		if took := time.Since(begun); took != 3*leaseRenewal {
			t.Errorf("given up after %v", took)
		}
		store.err = nil
		ok(t, release())
	})
}

// TestReleaseDoesNotWait has the process end while the store is away.
func TestReleaseDoesNotWait(t *testing.T) {
	w := newWorld(t)
	store := &failing{Store: w.store}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l, err := takeLease(ctx, store, "volumes/c1/maintenance/")
		ok(t, err)
		_, release := l.hold(ctx)
		store.lost = true
		cancel()
		begun := time.Now()
		if err := release(); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) > 20*time.Second {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	})
}

// TestForeignFilesBesideALease are in nobody's way, and stay.
func TestForeignFilesBesideALease(t *testing.T) {
	w := newWorld(t)
	dir := "volumes/c1/maintenance/"
	foreign := []string{"README.txt", "00000000000000000007.json.bak", "99999999999999999999.json", "18446744073709551615.json", "20260127.json", "7.json"}
	long := time.Now().Add(-3 * leaseKept)
	for _, name := range foreign {
		ok(t, w.store.Create(t.Context(), dir+name, strings.NewReader("x"), 1, archive.CreateOptions{}))
		ok(t, os.Chtimes(strings.TrimPrefix(w.store.String(), "dir://")+"/"+dir+name, long, long))
	}
	for range 2 {
		l, err := takeLease(t.Context(), w.store, dir)
		ok(t, err)
		if _, err := takeLease(t.Context(), w.store, dir); !errors.Is(err, ErrMaintained) {
			t.Errorf("two at once: %v", err)
		}
		_, release := l.hold(t.Context())
		ok(t, release())
	}
	if all := w.leases(); len(all) != len(foreign)+4 {
		t.Errorf("there are %q", all)
	}
}

// TestALeaseOfTheFuture is of a clock that was ahead, and counts if it may be of now.
func TestALeaseOfTheFuture(t *testing.T) {
	w := newWorld(t)
	_, err := takeLease(t.Context(), w.store, "volumes/c1/maintenance/")
	ok(t, err)
	at := func(ahead time.Duration) error {
		ok(t, os.Chtimes(w.leases()[0], time.Time{}, time.Now().Add(ahead)))
		_, err := takeLease(t.Context(), w.store, "volumes/c1/maintenance/")
		return err
	}
	if err := at(4 * time.Minute); !errors.Is(err, ErrMaintained) {
		t.Errorf("a clock that is a little ahead: %v", err)
	}
	ok(t, at(leaseTime+10*time.Minute))
}

// failing is a store that does not take files when told so, or takes them and does not answer.
type failing struct {
	archive.Store
	err  error
	lost bool
}

// Create implements archive.Store.
func (f *failing) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	if f.err != nil {
		return f.err
	}
	lost := f.lost
	err := f.Store.Create(ctx, name, body, size, o)
	if lost {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}
