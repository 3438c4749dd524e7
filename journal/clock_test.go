package journal_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tidemark-backup/tidemark/journal"
)

func TestObservedTimesOnlyGrowWhateverTheClockDoes(t *testing.T) {
	noLeaks(t)
	c, fs := newClock(), vfs.NewMem()
	open := func() *journal.Journal { return openMem(t, fs, func(o *journal.Options) { o.Clock = c.Now }) }
	j := open()
	begin(t, j, configMaps, 10)
	jumps := []time.Duration{0, -time.Hour, 24 * time.Hour, -100 * 24 * time.Hour, time.Second, 3650 * 24 * time.Hour, -3650 * 24 * time.Hour, -60 * 365 * 24 * time.Hour}
	rv := uint64(10)
	for i, jump := range jumps {
		c.add(jump)
		for range 3 {
			rv++
			appendAll(t, j, event(journal.Modified, configMaps.GroupResource(), "ns", "x", rv, "v"))
		}
		if i%2 == 1 {
			closeJournal(t, j)
			j = open()
		}
	}
	defer closeJournal(t, j)
	all := history(t, j)
	if len(all) != 3*len(jumps) {
		t.Fatalf("%d events, want %d", len(all), 3*len(jumps))
	}
	for i := 1; i < len(all); i++ {
		if !all[i].Observed.After(all[i-1].Observed) {
			t.Fatalf("event %d was observed at %v, the one before at %v", i, all[i].Observed, all[i-1].Observed)
		}
	}
}

// checkAllThere reads the object at each of the revisions.
func checkAllThere(t *testing.T, j *journal.Journal, name string, from, to uint64) {
	t.Helper()
	for rv := from; rv <= to; rv++ {
		want := string(event(journal.Modified, configMaps.GroupResource(), "ns", name, rv, "v").Object)
		if got := fold(t, j, journal.Revision{Epoch: 1, RV: rv})[id(configMaps.GroupResource(), "ns", name)]; got != want {
			t.Fatalf("at revision %d: %q, want %q", rv, got, want)
		}
	}
}

func TestAClockThatJumpsAheadCostsNoHistory(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart=", restart), func(t *testing.T) {
			noLeaks(t)
			c, fs := newClock(), vfs.NewMem()
			open := func() *journal.Journal {
				return openMem(t, fs, func(o *journal.Options) { o.Clock, o.Window = c.Now, 24*time.Hour })
			}
			j := open()
			begin(t, j, configMaps, 10)
			for rv := uint64(11); rv <= 30; rv++ {
				age(t, j, c, 10*time.Minute)
				appendAll(t, j, event(journal.Modified, configMaps.GroupResource(), "ns", "x", rv, "v"))
			}
			c.add(10 * 365 * 24 * time.Hour) // a node that starts with a wrong clock
			if restart {
				closeJournal(t, j)
				j = open()
			}
			appendAll(t, j, event(journal.Modified, configMaps.GroupResource(), "ns", "x", 31, "v"))
			age(t, j, c, time.Hour)
			c.add(-10 * 365 * 24 * time.Hour) // and is put right
			appendAll(t, j, event(journal.Modified, configMaps.GroupResource(), "ns", "x", 32, "v"))
			age(t, j, c, time.Hour)
			checkAllThere(t, j, "x", 11, 32)

			// What was observed in the wrong future is trimmed in its time all the same.
			for rv := uint64(33); rv <= 40; rv++ {
				appendAll(t, j, event(journal.Modified, configMaps.GroupResource(), "ns", "x", rv, "v"))
			}
			age(t, j, c, 30*time.Hour)
			if totals, err := j.Totals(); err != nil || totals.Events > 2 {
				t.Errorf("%d events are left though all are older than the window (err %v)", totals.Events, err)
			}
			checkAllThere(t, j, "x", 40, 40)
			closeJournal(t, j)
		})
	}
}

func TestTrimKeepsTheWindowAndTheNewestOfTheLiving(t *testing.T) {
	noLeaks(t)
	c, fs := newClock(), vfs.NewMem()
	j := openMem(t, fs, func(o *journal.Options) { o.Clock, o.Window = c.Now, 24*time.Hour })
	cm := configMaps.GroupResource()
	begin(t, j, configMaps, 10)
	appendAll(t, j, event(journal.Added, cm, "ns", "still", 11, "v"), event(journal.Added, cm, "ns", "gone", 12, "v"), event(journal.Deleted, cm, "ns", "gone", 13, "v"))
	for rv := uint64(14); rv <= 2500; rv++ { // more than one step of a trim, on one hot object
		if err := j.Append(t.Context(), event(journal.Modified, cm, "ns", "hot", rv, "v")); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, j)
	if res := age(t, j, c, 23*time.Hour); res.Versions != 0 || !res.Horizon.Time.IsZero() {
		t.Fatalf("trimmed within the window: %+v", res)
	}
	appendAll(t, j, event(journal.Modified, cm, "ns", "hot", 2501, "v"))
	res := age(t, j, c, 2*time.Hour)
	// Of hot, 2500 is the horizon itself and 2499 the newest before it.
	if want := 2 + 2499 - 14; res.Versions != want || res.Objects != 1 {
		t.Errorf("%d versions of %d objects trimmed, want %d of 1", res.Versions, res.Objects, want)
	}
	for range 2 {
		checkAllThere(t, j, "hot", 2500, 2501)
		live := fold(t, j, journal.Revision{Epoch: 1, RV: 2501})
		if len(live) != 2 || live[id(cm, "ns", "still")] == "" {
			t.Errorf("live after the trim: %v", live)
		}
		if h := j.Horizon(); h.RV != 2500 || h.Time != res.Horizon.Time {
			t.Errorf("horizon %s, want at revision 2500", h)
		}
		closeJournal(t, j)
		j = openMem(t, fs)
	}
	closeJournal(t, j)
}

func TestMomentsOutsideOfWhatNanosecondsTellAreNotTheNewest(t *testing.T) {
	noLeaks(t)
	c := newClock()
	j := openMem(t, vfs.NewMem(), func(o *journal.Options) { o.Clock = c.Now })
	defer closeJournal(t, j)
	begin(t, j, configMaps, 10)
	appendAll(t, j, event(journal.Added, configMaps.GroupResource(), "ns", "x", 11, "v"))
	for _, early := range []time.Time{{}, time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1500, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC), time.Unix(0, 0)} {
		cut, err := j.CutAt(early)
		if err != nil || cut != (journal.Cut{}) {
			t.Errorf("CutAt(%v) = %v, %v; want the zero Cut", early, cut, err)
		}
		tail, err := j.Tail(time.Time{}, early)
		if err != nil {
			t.Fatal(err)
		}
		if tail.Next() {
			t.Errorf("Tail up to %v has events", early)
		}
		if err := tail.Close(); err != nil {
			t.Error(err)
		}
	}
	late := time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC)
	if cut, err := j.CutAt(late); err != nil || cut.RV != 11 {
		t.Errorf("CutAt(%v) = %v, %v; want revision 11", late, cut, err)
	}
	tail, err := j.Tail(time.Time{}, late)
	if err != nil {
		t.Fatal(err)
	}
	if !tail.Next() || tail.Next() {
		t.Error("Tail up to the year 3000 has not the one event")
	}
	if err := tail.Close(); err != nil {
		t.Error(err)
	}
}
