package journal_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tidemark-backup/tidemark/journal"
)

// disk is a disk whose free space tests set.
type disk struct{ free atomic.Uint64 }

func (d *disk) Free() (uint64, error) { return d.free.Load(), nil }

func openOnDisk(t *testing.T, change ...func(*journal.Options)) (*journal.Journal, *disk, *vfs.MemFS) {
	t.Helper()
	d, fs := &disk{}, vfs.NewCrashableMem()
	d.free.Store(1 << 40)
	j := openMem(t, fs, append([]func(*journal.Options){func(o *journal.Options) { o.Free, o.QueueBytes = d.Free, 64<<10 }}, change...)...)
	begin(t, j, configMaps, 10)
	appendAll(t, j, event(journal.Added, configMaps.GroupResource(), "ns", "before", 11, "v"))
	return j, d, fs
}

// fill appends until the queue takes no more, and returns the newest revision it took.
func fill(t *testing.T, j *journal.Journal, from uint64) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	for rv := from; ; rv++ {
		err := j.Append(ctx, event(journal.Added, configMaps.GroupResource(), "ns", fmt.Sprint("o", rv), rv, strings.Repeat("x", 4000)))
		if errors.Is(err, context.DeadlineExceeded) {
			return rv - 1
		}
		if err != nil {
			t.Fatal(err)
		}
		if rv > from+1000 {
			t.Fatal("the queue took 1000 events of 4 KB, its bound is 64 KiB")
		}
	}
}

func TestFullDiskPausesAndGoesOnByItself(t *testing.T) {
	noLeaks(t)
	j, d, fs := openOnDisk(t)
	d.free.Store(1 << 20)
	last := fill(t, j, 12)
	if last < 13 {
		t.Fatalf("the queue took nothing (up to %d)", last)
	}
	eventually(t, "a condition", func() bool { return strings.Contains(j.Condition(), "disk full") })
	if j.Err() != nil {
		t.Fatalf("a full disk is not a failure: %v", j.Err())
	}
	if err := j.SetMark(t.Context(), "now", j.Newest()); !errors.Is(err, journal.ErrPaused) || !strings.Contains(err.Error(), "free space") {
		t.Errorf("a mark on a full disk: %v, want that it says so and does not wait", err)
	}
	if got := j.Ledger(configMaps.GroupResource()).Watermark.RV; got != 11 {
		t.Fatalf("watermark %d while nothing after 11 can be written", got)
	}
	clone := openMem(t, crash(fs, 0))
	if n := len(history(t, clone)); n != 1 {
		t.Fatalf("%d events on the disk, 1 was acknowledged", n)
	}
	closeJournal(t, clone)

	d.free.Store(1 << 40)
	flush(t, j)
	if got := j.Condition(); got != "" {
		t.Fatalf("condition %q after there was space again", got)
	}
	if n := uint64(len(history(t, j))); n != last-10 {
		t.Fatalf("%d events, want %d", n, last-10)
	}
	closeJournal(t, j)
}

func TestCloseWhileTheDiskIsFullDoesNotHang(t *testing.T) {
	noLeaks(t)
	j, d, fs := openOnDisk(t)
	d.free.Store(0)
	waiting := make(chan error, 1)
	if err := j.Append(context.Background(), event(journal.Added, configMaps.GroupResource(), "ns", "never", 12, "v")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a condition", func() bool { return j.Condition() != "" })
	go func() { waiting <- j.Flush(context.Background()) }()
	within(t, "Close", func() { closeJournal(t, j) })
	wantError(t, <-waiting, journal.ErrClosed)
	wantError(t, j.Append(context.Background(), event(journal.Added, configMaps.GroupResource(), "ns", "never", 13, "v")), journal.ErrClosed)
	wantError(t, j.Flush(context.Background()), journal.ErrClosed)
	j = openMem(t, fs)
	defer closeJournal(t, j)
	if rv, ok := j.Resume(configMaps.GroupResource()); !ok || rv != 11 {
		t.Fatalf("Resume %d, %v; want 11: event 12 was never written", rv, ok)
	}
}

// The journal itself may be what fills the disk: then trimming must still be possible.
func TestTrimMakesRoomWhileTheDiskIsFull(t *testing.T) {
	noLeaks(t)
	c := newClock()
	j, d, _ := openOnDisk(t, func(o *journal.Options) { o.Clock, o.Window = c.Now, time.Hour })
	for rv := uint64(12); rv < 40; rv++ {
		appendAll(t, j, event(journal.Modified, configMaps.GroupResource(), "ns", "before", rv, "v"))
	}
	age(t, j, c, 50*time.Minute)
	appendAll(t, j, event(journal.Modified, configMaps.GroupResource(), "ns", "before", 40, "v"))
	d.free.Store(0)
	if err := j.Append(t.Context(), event(journal.Modified, configMaps.GroupResource(), "ns", "before", 41, "v")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a condition", func() bool { return j.Condition() != "" })
	ctx, cancel := context.WithCancel(t.Context())
	trimmed := make(chan struct{})
	go func() {
		defer close(trimmed)
		for ctx.Err() == nil {
			c.add(5 * time.Minute)
			if _, err := j.Trim(ctx); err != nil {
				return
			}
		}
	}()
	eventually(t, "a trim", func() bool {
		totals, err := j.Totals()
		return err == nil && totals.Events < 10
	})
	if got := j.Ledger(configMaps.GroupResource()).Watermark.RV; got != 40 {
		t.Errorf("watermark %d: the trim took what waits for space with it", got)
	}
	d.free.Store(1 << 40)
	flush(t, j)
	cancel()
	<-trimmed
	if got := j.Ledger(configMaps.GroupResource()).Watermark.RV; got != 41 {
		t.Errorf("watermark %d, want 41", got)
	}
	closeJournal(t, j)
}

// age lets d pass with a round of Trim every few minutes, as a daemon does.
func age(t tb, j *journal.Journal, c *clock, d time.Duration) (last journal.TrimResult) {
	t.Helper()
	for step := 5 * time.Minute; d > 0; d -= step {
		c.add(min(step, d))
		res, err := j.Trim(context.Background())
		if err != nil {
			t.Fatalf("trim: %v", err)
		}
		last.Horizon = res.Horizon
		last.Versions += res.Versions
		last.Objects += res.Objects
	}
	return last
}

func TestAppendBlocksWhileTheQueueIsFullOfBytes(t *testing.T) {
	noLeaks(t)
	j, d, _ := openOnDisk(t)
	defer closeJournal(t, j)
	d.free.Store(0)
	last := fill(t, j, 12)
	if queued := (last - 11) * 4000; queued > 64<<10 || queued < 32<<10 {
		t.Errorf("the queue took %d bytes, its bound is %d", queued, 64<<10)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("told to stop")
	result := make(chan error, 1)
	go func() {
		result <- j.Append(ctx, event(journal.Added, configMaps.GroupResource(), "ns", "waits", last+1, strings.Repeat("x", 4000)))
	}()
	select {
	case err := <-result:
		t.Fatalf("Append into a full queue returned %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	cancel(stopped)
	wantError(t, <-result, stopped)
	d.free.Store(1 << 40)
	flush(t, j)
	if n := uint64(len(history(t, j))); n != last-10 {
		t.Errorf("%d events, want %d", n, last-10)
	}
}

func TestAnEventLargerThanTheQueueIsTaken(t *testing.T) {
	noLeaks(t)
	j, _, _ := openOnDisk(t)
	defer closeJournal(t, j)
	within(t, "Append", func() {
		appendAll(t, j, event(journal.Added, configMaps.GroupResource(), "ns", "huge", 12, strings.Repeat("x", 1<<20)))
	})
	if got := len(fold(t, j, journal.Revision{Epoch: 1, RV: 12})[id(configMaps.GroupResource(), "ns", "huge")]); got < 1<<20 {
		t.Errorf("the huge object came back with %d bytes", got)
	}
}
