package compactor_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// damagedStore is the archive with one file of each kind damaged or gone, and one that nobody knows.
func damagedStore(t *testing.T, all map[string][]byte) (store *archive.MemStore, bad []string) {
	t.Helper()
	files := maps.Clone(all)
	for _, kind := range []string{"segments/", "snapshots/"} {
		names := slices.DeleteFunc(slices.Sorted(maps.Keys(all)), func(n string) bool { return !strings.HasPrefix(n, "cluster-a/"+kind) })
		name := names[len(names)/2]
		if kind == "segments/" {
			delete(files, name)
		} else {
			files[name] = slices.Clone(files[name])
			files[name][len(files[name])/2] ^= 1
		}
		bad = append(bad, strings.TrimPrefix(name, "cluster-a/"))
	}
	files["cluster-a/segments/0/nobody-knows.sst.age"] = []byte("x")
	return memStore(t, files), bad
}

func TestRepairMakesAnewWhatTheJournalHas(t *testing.T) {
	first := archive.NewMemStore()
	m := newSmall(t, first)
	m.fill(t)
	store, bad := damagedStore(t, files(t, first))
	if r, err := verified(t, store, m.identity); err != nil || len(r.Problems) != len(bad) || len(r.Unknown) != 1 {
		t.Fatalf("before: %+v, %v", r, err)
	}
	m.s = m.shipper(t, store)
	r, err := m.s.Repair(t.Context(), true)
	ok(t, err)
	if !r.DryRun || len(r.Rebuilt) != len(bad) {
		t.Errorf("dry run: %+v", r)
	}
	if after, err := verified(t, store, m.identity); err != nil || len(after.Problems) != len(bad) {
		t.Errorf("after a dry run: %+v, %v", after, err)
	}
	r, err = m.s.Repair(t.Context(), false)
	ok(t, err)
	if len(r.Rebuilt) != len(bad) || len(r.Dropped) > 0 {
		t.Errorf("made anew: %v, dropped: %v", r.Rebuilt, r.Dropped)
	}
	if failed := m.ask(t, store, "repaired"); len(failed) > 0 {
		t.Errorf("%d cuts are not answered after the repair", len(failed))
	}
	m.judge(t, store, "repaired")
	if _, err := store.Stat(t.Context(), "cluster-a/segments/0/nobody-knows.sst.age"); err != nil {
		t.Error("a new file that nobody knows was removed at once: somebody may be about to commit it")
	}
	if len(r.Young) != 1 || !strings.HasSuffix(r.Young[0], "nobody-knows.sst.age") {
		t.Errorf("the file that stays is not told: %v", r.Young)
	}
}

func TestRepairWithoutAJournalDropsWhatIsLost(t *testing.T) {
	first := archive.NewMemStore()
	m := newSmall(t, first)
	m.fill(t)
	store, bad := damagedStore(t, files(t, first))
	before := m.ask(t, store, "damaged")
	a, err := archive.Open(t.Context(), store, archive.Options{Identities: []age.Identity{m.identity}})
	ok(t, err)
	r, err := compactor.Repair(t.Context(), a, false)
	ok(t, err)
	if len(r.Rebuilt) > 0 || len(r.Dropped) != len(bad) {
		t.Errorf("made anew: %v, dropped: %v", r.Rebuilt, r.Dropped)
	}
	rep, err := verified(t, store, m.identity)
	ok(t, err)
	if rep.Damaged() || len(rep.Lost) != 1 { // what is lost is known, and no alarm any more
		t.Fatalf("afterwards: %+v, known to be lost: %+v", rep.Problems, rep.Lost)
	}
	c, err := replay.NewArchived(a.History()).Ledgers(t.Context())
	ok(t, err)
	for _, l := range c.Resources {
		if n := len(l.Gaps); n != 1 || !strings.Contains(l.Gaps[0].Cause, "archive") || l.GapAt(journal.Cut{Time: rep.Lost[0].To.Add(-1), Revision: journal.Revision{RV: m.rv}}) == nil {
			t.Errorf("%s: the hole is not told as a gap: %+v, and the hole ends at %s", l.GroupResource(), l.Gaps, rep.Lost[0].To)
		}
	}
	if after := m.ask(t, store, "repaired"); len(after) > len(before) {
		t.Errorf("%d cuts were not answered before the repair, %d are not after it", len(before), len(after))
	}
}

// With a key that fits nothing, everything looks unreadable: nothing of it is given up.
func TestRepairWithAWrongKeyDropsNothing(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	m.fill(t)
	wrong, err := age.GenerateX25519Identity()
	ok(t, err)
	a, err := archive.Open(t.Context(), mem, archive.Options{Identities: []age.Identity{wrong}})
	ok(t, err)
	r, err := compactor.Repair(t.Context(), a, false)
	if !errors.Is(err, archive.ErrNoIdentity) || r != nil || !strings.Contains(err.Error(), wrong.Recipient().String()) {
		t.Errorf("repair: %+v, %v", r, err)
	}
	m.judge(t, mem, "after a repair with a wrong key")
}

// The files that only a damaged manifest spoke of look as if nobody knew them: they stay.
func TestRepairSweepsNothingWhileTheChainIsBroken(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	mem.Clock = m.clock.Now
	m.fill(t)
	last := m.s.Archive().State().Seq
	store := memStore(t, flipped(t, mem, last, 1)) // the newest: nothing repeats it
	store.Clock = m.clock.Now
	m.clock.add(3 * time.Hour)
	ok(t, store.Create(t.Context(), "cluster-a/segments/0/newer", strings.NewReader("x"), 1, archive.CreateOptions{})) // the store's clock
	a, err := archive.Open(t.Context(), store, archive.Options{Identities: []age.Identity{m.identity}})
	ok(t, err)
	r, err := compactor.Repair(t.Context(), a, false)
	ok(t, err)
	if len(r.Found.Unknown) < 2 || len(r.Removed) > 0 {
		t.Errorf("unknown: %v, removed: %v", r.Found.Unknown, r.Removed)
	}
}

// A dry run tells what the journal can make anew, and what it has forgotten.
func TestDryRunKnowsWhatTheJournalHasForgotten(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem, func(o *journal.Options) { o.Window = 16 * time.Minute })
	m.fill(t)
	m.j.KeepAfter(m.s.Keep())
	for range 12 {
		m.clock.add(2 * time.Minute)
		_, err := m.j.Trim(t.Context())
		ok(t, err)
	}
	store, bad := damagedStore(t, files(t, mem))
	m.s = m.shipper(t, store)
	dry, err := m.s.Repair(t.Context(), true)
	ok(t, err)
	done, err := m.s.Repair(t.Context(), false)
	ok(t, err)
	if !slices.Equal(dry.Dropped, done.Dropped) || !slices.Equal(dry.Rebuilt, done.Rebuilt) || len(dry.Dropped) != len(bad) {
		t.Errorf("the dry run: anew %v, lost %v; done: anew %v, lost %v", dry.Rebuilt, dry.Dropped, done.Rebuilt, done.Dropped)
	}
}
