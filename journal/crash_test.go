package journal_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tidemark-backup/tidemark/journal"
)

// unsynced are how much of what was never synced survives the power loss, in percent.
var unsynced = []int{0, 30, 70, 100}

func crash(fs *vfs.MemFS, seed uint64) *vfs.MemFS {
	return fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced[seed%4], RNG: rand.New(rand.NewPCG(seed, 1))})
}

func TestPowerLossRightAfterTheFirstEventKeepsIt(t *testing.T) {
	noLeaks(t)
	fs := vfs.NewCrashableMem()
	j := openMem(t, fs)
	begin(t, j, configMaps, 10)
	appendAll(t, j, event(journal.Added, configMaps.GroupResource(), "a", "x", 11, "1"))
	clone := crash(fs, 0)
	closeJournal(t, j)
	j = openMem(t, clone)
	defer closeJournal(t, j)
	if n := len(history(t, j)); n != 1 {
		t.Fatalf("%d events after the power loss, want 1", n)
	}
}

// crashed is a moment of power loss and what had been promised by then.
type crashed struct {
	fs    *vfs.MemFS
	acked uint64 // all events up to this revision were flushed
}

func TestPowerLossLosesNothingAcknowledgedAndNoWatermarkRunsAhead(t *testing.T) {
	noLeaks(t)
	fs := vfs.NewCrashableMem()
	j := openMem(t, fs, func(o *journal.Options) { o.BatchEvents = 7 })
	cm, sec := configMaps.GroupResource(), secrets.GroupResource()
	begin(t, j, configMaps, 10)
	begin(t, j, secrets, 10)

	var mu sync.Mutex
	acked, last := uint64(10), uint64(0)
	var clones []crashed
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for seed := uint64(1); ; seed++ {
			mu.Lock()
			promised := acked
			mu.Unlock()
			c := crashed{crash(fs, seed), promised}
			mu.Lock()
			if promised != last || len(clones) < 40 {
				clones, last = append(clones, c), promised
			}
			mu.Unlock()
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	const top = 3000
	for rv := uint64(11); rv <= top; rv++ {
		gr := cm
		if rv%3 == 0 {
			gr = sec
		}
		if err := j.Append(context.Background(), event(journal.Modified, gr, "ns", fmt.Sprint("o", rv%20), rv, "body")); err != nil {
			t.Fatal(err)
		}
		if rv%50 == 0 {
			flush(t, j)
			now := crash(fs, 0) // the moment after the promise, and only what was synced
			mu.Lock()
			acked = rv
			clones = append(clones, crashed{now, rv})
			mu.Unlock()
		}
	}
	close(stop)
	wg.Wait()
	closeJournal(t, j)

	step := max(1, len(clones)/60)
	for i := 0; i < len(clones); i += step {
		checkCrashed(t, clones[i])
	}
}

func checkCrashed(t *testing.T, c crashed) {
	t.Helper()
	j := openMem(t, c.fs)
	defer closeJournal(t, j)
	have := map[uint64]bool{}
	for _, e := range history(t, j) {
		if have[e.Revision.RV] {
			t.Errorf("revision %d is twice in the history", e.Revision.RV)
		}
		have[e.Revision.RV] = true
	}
	for rv := uint64(11); rv <= c.acked; rv++ {
		if !have[rv] {
			t.Fatalf("event %d was acknowledged (up to %d) and is lost", rv, c.acked)
		}
	}
	for _, info := range []journal.ResourceInfo{configMaps, secrets} {
		mark := ledger(t, j, info).Watermark.RV
		for rv := uint64(11); rv <= mark; rv++ {
			if (rv%3 == 0) == (info.Resource == "secrets") && !have[rv] {
				t.Fatalf("the watermark of %s is %d, but event %d is not there", info.Resource, mark, rv)
			}
		}
		if rv, ok := j.Resume(info.GroupResource()); !ok || rv != mark {
			t.Fatalf("Resume %d, %v; watermark %d", rv, ok, mark)
		}
	}
}

func TestPowerLossDuringAComparisonMakesItAgainWithoutDuplicates(t *testing.T) {
	noLeaks(t)
	ctx := context.Background()
	cm := configMaps.GroupResource()
	var listed []journal.Event
	for i := range 40 {
		listed = append(listed, event(journal.Added, cm, "ns", fmt.Sprintf("o%02d", i), uint64(100+i), "v"))
	}
	for cut := range 8 {
		fs := vfs.NewCrashableMem()
		j := openMem(t, fs)
		begin(t, j, configMaps, 10)
		appendAll(t, j, event(journal.Added, cm, "ns", "gone", 11, "v"), event(journal.Added, cm, "ns", "o00", 12, "old"))
		c, err := j.Compare(ctx, journal.Recording{ResourceInfo: configMaps}, 200, "test")
		if err != nil {
			t.Fatal(err)
		}
		var clones []*vfs.MemFS
		clones = append(clones, crash(fs, uint64(cut)))
		for i, e := range listed {
			if err := c.Add(ctx, e); err != nil {
				t.Fatal(err)
			}
			if i == cut*5 {
				if cut%2 == 0 {
					flush(t, j)
				}
				clones = append(clones, crash(fs, uint64(cut+1)))
			}
		}
		flush(t, j)
		clones = append(clones, crash(fs, uint64(cut+2))) // all listed, nothing committed
		if _, err := c.Commit(ctx, 200); err != nil {
			t.Fatal(err)
		}
		done := crash(fs, uint64(cut+3))
		closeJournal(t, j)

		for _, clone := range clones {
			checkComparedAgain(t, clone, listed)
		}
		j = openMem(t, done)
		if rv, ok := j.Resume(cm); !ok || rv != 200 {
			t.Fatalf("after Commit and a power loss: Resume %d, %v; want 200", rv, ok)
		}
		closeJournal(t, j)
	}
}

func checkComparedAgain(t *testing.T, fs *vfs.MemFS, listed []journal.Event) {
	t.Helper()
	j := openMem(t, fs)
	defer closeJournal(t, j)
	cm := configMaps.GroupResource()
	if rv, ok := j.Resume(cm); ok {
		t.Fatalf("a comparison was cut off, and Resume says %d", rv)
	}
	if got := ledger(t, j, configMaps).Comparing; got != "test" {
		t.Fatalf("the cause of the comparison that was cut off is %q", got)
	}
	relist(t, j, configMaps, 200, "test", listed...)
	seen := map[string]bool{}
	for _, e := range history(t, j) {
		key := fmt.Sprint(e.ID(), " ", e.Revision, " ", e.Op)
		if seen[key] {
			t.Errorf("%s is twice in the history", key)
		}
		seen[key] = true
	}
	if len(seen) != 2+40+1 {
		t.Errorf("%d events, want 2 watched, 40 listed, 1 deletion", len(seen))
	}
	if got := len(fold(t, j, journal.Revision{Epoch: 1, RV: 200})); got != 40 {
		t.Errorf("%d objects live, want 40", got)
	}
	if gaps := ledger(t, j, configMaps).Gaps; len(gaps) != 1 || gaps[0].From.RV != 12 || gaps[0].To.RV != 200 {
		t.Errorf("gaps %+v, want one from 12 to 200", gaps)
	}
}

func TestPowerLossDuringRemoveIsMadeGoodByTheNextOne(t *testing.T) {
	noLeaks(t)
	ctx := context.Background()
	cm := configMaps.GroupResource()
	fs := vfs.NewCrashableMem()
	j := openMem(t, fs, func(o *journal.Options) { o.BatchEvents = 5 })
	begin(t, j, configMaps, 10)
	for i := range 200 {
		if err := j.Append(ctx, event(journal.Added, cm, "ns", fmt.Sprint("o", i), uint64(11+i), "v")); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, j)
	removed := make(chan error, 1)
	go func() { removed <- j.Remove(ctx, cm) }()
	var clones []*vfs.MemFS
	for seed := uint64(0); ; seed++ {
		clones = append(clones, crash(fs, seed))
		select {
		case err := <-removed:
			if err != nil {
				t.Fatal(err)
			}
		default:
			continue
		}
		break
	}
	closeJournal(t, j)
	for i := 0; i < len(clones); i += max(1, len(clones)/15) {
		j := openMem(t, clones[i])
		if err := j.Remove(ctx, cm); err != nil {
			t.Fatal(err)
		}
		l := ledger(t, j, configMaps)
		if l.Removed == nil {
			t.Fatal("not removed")
		}
		if _, ok := j.Resume(cm); ok {
			t.Error("a removed resource is resumed")
		}
		deleted := 0
		for _, e := range history(t, j) {
			if e.Op == journal.Deleted {
				deleted++
			}
		}
		if deleted != 200 {
			t.Errorf("%d deletions, want 200", deleted)
		}
		if got := fold(t, j, j.Newest().Revision); len(got) != 0 {
			t.Errorf("%d objects live after the removal", len(got))
		}
		closeJournal(t, j)
	}
}

// A definition that is deleted while nobody watches takes changes along that nobody saw: bench/soak found versions that
// were neither in the history nor in a gap.
func TestRemovalOfWhatWasNotWatchedIsAGap(t *testing.T) {
	ctx, cm := t.Context(), configMaps.GroupResource()
	j := openMem(t, vfs.NewCrashableMem())
	begin(t, j, configMaps, 10)
	if err := j.Append(ctx, event(journal.Added, cm, "ns", "o", 11, "v")); err != nil {
		t.Fatal(err)
	}
	flush(t, j)
	begin(t, j, secrets, 40) // the main counter has gone on
	if err := j.Remove(ctx, cm); err != nil {
		t.Fatal(err)
	}
	l := ledger(t, j, configMaps)
	if len(l.Gaps) != 1 || l.Gaps[0].From.RV != 11 || l.Gaps[0].To.RV != 40 || l.Gaps[0].Inferred != 1 || l.Since != l.Gaps[0].To {
		t.Errorf("the ledger has the gaps %+v since %+v, want one from 11 to 40", l.Gaps, l.Since)
	}
	closeJournal(t, j)
}
