package journal_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/tidemark-backup/tidemark/journal"
)

// faults makes writes and syncs of files with the suffix fail: the nth after arm, and all later ones.
type faults struct {
	suffix string
	err    error
	left   atomic.Int64
	armed  atomic.Bool
}

func (f *faults) arm(n int64) {
	f.left.Store(n)
	f.armed.Store(true)
}

func (f *faults) String() string { return "faults" }

func (f *faults) MaybeError(op errorfs.Op) error {
	switch op.Kind {
	case errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo, errorfs.OpCreate, errorfs.OpFileFlush:
		if strings.HasPrefix(op.Path, memDir) && !strings.Contains(op.Path, ".") && !strings.Contains(op.Path, "-") {
			return nil // a directory: Pebble panics where nobody can recover, and the process ends
		}
		if f.armed.Load() && strings.HasSuffix(op.Path, f.suffix) && f.left.Add(-1) < 0 {
			return f.err
		}
	}
	return nil
}

var errDisk = errors.New("the disk is broken")

func TestDiskErrorsFailTheJournalAndLoseNothingAcknowledged(t *testing.T) {
	for _, bad := range []struct {
		name string
		err  error
	}{{"broken", errDisk}, {"ENOSPC", syscall.ENOSPC}} {
		for n := range int64(9) {
			t.Run(fmt.Sprint(bad.name, n), func(t *testing.T) {
				fs := vfs.NewCrashableMem()
				f := &faults{suffix: ".log", err: bad.err}
				j := openMem(t, errorfs.Wrap(fs, f))
				begin(t, j, configMaps, 10)
				acked := appendUntilItFails(t, j, func() { f.arm(n * n) })
				if j.Err() == nil || !errors.Is(j.Err(), bad.err) && !strings.Contains(j.Err().Error(), bad.err.Error()) {
					t.Fatalf("Err() = %v, want it to tell of %v", j.Err(), bad.err)
				}
				within(t, "Append, Flush, Bind and Close of a failed journal", func() {
					if err := j.Append(t.Context(), event(journal.Added, configMaps.GroupResource(), "ns", "late", 1<<40, "v")); err == nil {
						t.Error("Append after the failure was accepted")
					}
					if j.Flush(t.Context()) == nil || j.Bind(context.Background(), "other") == nil || j.Close() == nil || j.Close() == nil {
						t.Error("Flush, Bind or Close after the failure said that all is well")
					}
					j.Ledgers()
					j.Newest()
					_ = j.Condition()
				})
				j = openMem(t, crash(fs, uint64(n)))
				defer closeJournal(t, j)
				have := map[uint64]bool{}
				for _, e := range history(t, j) {
					have[e.Revision.RV] = true
				}
				for rv := uint64(11); rv <= acked; rv++ {
					if !have[rv] {
						t.Fatalf("event %d of %d acknowledged is lost", rv, acked)
					}
				}
			})
		}
	}
}

// appendUntilItFails appends until the journal says no and returns the newest revision that
// was flushed.
func appendUntilItFails(t *testing.T, j *journal.Journal, arm func()) (acked uint64) {
	t.Helper()
	within(t, "appending to a disk that breaks", func() {
		for rv := uint64(11); ; rv++ {
			if rv == 100 {
				arm()
			}
			if err := j.Append(context.Background(), event(journal.Added, configMaps.GroupResource(), "ns", fmt.Sprint("o", rv), rv, "v")); err != nil {
				break
			}
			if err := j.Flush(context.Background()); err != nil {
				break
			}
			acked = rv
			if rv > 5000 {
				t.Error("the journal does not notice that its disk is broken")
				break
			}
		}
		<-j.Failed()
	})
	if acked < 99 {
		t.Fatalf("only %d acknowledged", acked)
	}
	return acked
}

func TestErrorsOfTablesAndManifestNeverPanicNorLoseWhatWasAcknowledged(t *testing.T) {
	for _, suffix := range []string{".sst", "MANIFEST-000001", ""} {
		for n := range int64(2) {
			fs := vfs.NewCrashableMem()
			f := &faults{suffix: suffix, err: errDisk}
			j := openMem(t, errorfs.Wrap(fs, f), func(o *journal.Options) { o.BatchEvents = 64 })
			begin(t, j, configMaps, 10)
			body := strings.Repeat("x", 64<<10)
			acked := uint64(10)
			within(t, "appending", func() {
				for rv := uint64(11); rv < 900 && j.Err() == nil; rv++ {
					if rv == 200 {
						f.arm(n * 3)
					}
					e := event(journal.Added, configMaps.GroupResource(), "ns", fmt.Sprint("o", rv), rv, body)
					if j.Append(context.Background(), e) != nil {
						break
					}
					if rv%20 == 0 {
						if j.Flush(context.Background()) != nil {
							break
						}
						acked = rv
					}
				}
			})
			clone := crash(fs, uint64(n))
			f.armed.Store(false)
			within(t, "Close", func() { _ = j.Close() })
			j = openMem(t, clone)
			if n := len(history(t, j)); n < int(acked)-10 {
				t.Fatalf("%s: %d events, %d were acknowledged", suffix, n, acked-10)
			}
			closeJournal(t, j)
		}
	}
}

func TestOpenOnABrokenDiskReturnsAnError(t *testing.T) {
	made := vfs.NewCrashableMem()
	j := openMem(t, made)
	begin(t, j, configMaps, 10)
	appendAll(t, j, event(journal.Added, configMaps.GroupResource(), "ns", "x", 11, "v"))
	closeJournal(t, j)
	opened := 0
	for n := range int64(40) {
		// Of an old journal only tables fail: when Pebble's Open fails after it has written one,
		// a goroutine that it left behind divides by zero.
		for fs, suffix := range map[vfs.FS]string{vfs.NewMem(): "", made.CrashClone(vfs.CrashCloneCfg{}): ".sst"} {
			f := &faults{err: errDisk, suffix: suffix}
			f.arm(n)
			within(t, "Open", func() {
				j, err := tryOpenMem(errorfs.Wrap(fs, f))
				if err == nil {
					opened++
					f.armed.Store(false)
					_ = j.Close()
				} else if !strings.Contains(err.Error(), errDisk.Error()) {
					t.Errorf("Open: %v, want the disk's error", err)
				}
			})
		}
	}
	if opened == 80 {
		t.Fatal("no fault was met")
	}
}
