package compactor_test

import (
	"fmt"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

func (m *small) add(t testing.TB, info journal.ResourceInfo, name string, rv uint64) {
	t.Helper()
	e := journal.Event{Resource: info.GroupResource(), Namespace: "n", Name: name, UID: "u", Op: journal.Modified, Revision: journal.Revision{RV: rv}, Object: fmt.Appendf(nil, `{"rv":"%d"}`, rv)}
	ok(t, m.j.Append(t.Context(), e))
	ok(t, m.j.Flush(t.Context()))
}

// An event of a slow watch lies in a later segment, whose manifest or file is lost: the cut that it
// belongs to is not answered without it, also after a repair.
func TestLateEventInALostSegmentIsNotForgotten(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	_, err := m.s.Connect(t.Context())
	ok(t, err)
	m.add(t, configMaps, "a", 200)
	m.add(t, configMaps, "b", 202)
	ok(t, m.s.Seal(t.Context()))
	cut := m.j.Newest()
	m.add(t, secrets, "late", 201) // belongs to the cut
	ok(t, m.s.Seal(t.Context()))
	seq := m.s.Archive().State().Seq
	m.add(t, configMaps, "c", 203)
	ok(t, m.s.Seal(t.Context()))
	m.add(t, configMaps, "d", 204)
	ok(t, m.s.Seal(t.Context()))
	want, err := foldOf(replay.NewLocal(m.j), cut)
	ok(t, err)
	for _, inARow := range []int{1, 2} {
		bad := memStore(t, flipped(t, mem, seq, inARow))
		a, err := archive.Open(t.Context(), bad, archive.Options{Identities: []age.Identity{m.identity}})
		ok(t, err)
		got, err := foldOf(replay.NewArchived(a.History()), cut)
		if d := cmp.Diff(want, got); err == nil && d != "" {
			t.Errorf("%d manifests damaged: a wrong answer without an error (-want +got):\n%s", inARow, d)
		}
		if inARow == 1 && err != nil {
			t.Errorf("the manifest after the damaged one says the same, and is not believed: %v", err)
		}
	}
	// and after repair has dropped a damaged segment
	all := files(t, mem)
	st := m.s.Archive().State()
	bad := memStore(t, all)
	ok(t, bad.Remove(t.Context(), "cluster-a/"+st.Segments[1].Name))
	a, err := archive.Open(t.Context(), bad, archive.Options{Identities: []age.Identity{m.identity}, Recipients: []age.Recipient{m.identity.Recipient()}})
	ok(t, err)
	if _, err = foldOf(replay.NewArchived(a.History()), cut); err == nil {
		t.Error("an answer without the segment")
	}
	_, err = compactor.Repair(t.Context(), a, false)
	ok(t, err)
	got, err := foldOf(replay.NewArchived(a.History()), cut)
	if d := cmp.Diff(want, got); err == nil && d != "" {
		t.Errorf("after repair, a wrong answer without an error (-want +got):\n%s", d)
	}
}

// A rotation that was cut off, or that meets what a daemon with the new key has written, goes on with the same old key.
func TestRotateGoesOn(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	_, err := m.s.Connect(t.Context())
	ok(t, err)
	for _, name := range []string{"one", "two"} {
		m.record(t, 10)
		_, err = m.s.Snapshot(t.Context(), compactor.SnapshotRequest{Name: name})
		ok(t, err)
	}
	second, err := age.GenerateX25519Identity()
	ok(t, err)
	rotate := func(store archive.Store) (int, int, error) {
		a, err := archive.Open(t.Context(), store, archive.Options{Identities: []age.Identity{m.identity}, Recipients: []age.Recipient{second.Recipient()}, Clock: m.clock.Now})
		ok(t, err)
		return compactor.Rotate(t.Context(), a)
	}
	before, _, err := rotate(&dying{Store: mem, left: 3}) // two for each file
	if err == nil || before == 0 {
		t.Fatalf("cut off after %d files: %v", before, err)
	}
	renewed, others, err := rotate(mem)
	if err != nil || renewed == 0 || others != before {
		t.Errorf("gone on with: %d files, %d left, %v; want %d left", renewed, others, err, before)
	}
	if r, err := verified(t, mem, second); err != nil || r.Damaged() {
		t.Errorf("verify with the new key: %+v, %v", r.Problems, err)
	}
}

// A snapshot must not share the file of one that was deleted (or re-encrypted) by hand.
func TestSnapshotSharesNoFileThatWent(t *testing.T) {
	for _, how := range []string{"delete", "rotate"} {
		t.Run(how, func(t *testing.T) {
			mem := archive.NewMemStore()
			m := newSmall(t, mem)
			_, err := m.s.Connect(t.Context())
			ok(t, err)
			m.record(t, 10)
			_, err = m.s.Snapshot(t.Context(), compactor.SnapshotRequest{Name: "one"})
			ok(t, err)
			hand, err := archive.Open(t.Context(), mem, archive.Options{Identities: []age.Identity{m.identity}, Recipients: []age.Recipient{m.identity.Recipient()}, Clock: m.clock.Now})
			ok(t, err)
			if how == "delete" {
				_, err = compactor.Delete(t.Context(), hand, "one")
			} else {
				_, _, err = compactor.Rotate(t.Context(), hand)
			}
			ok(t, err)
			_, err = m.s.Snapshot(t.Context(), compactor.SnapshotRequest{Name: "two"}) // nothing has changed
			ok(t, err)
			m.clock.add(30 * time.Minute)
			m.s.Archive().Age()
			ok(t, m.s.Merge(t.Context())) // frees
			if r, err := verified(t, mem, m.identity); err != nil || r.Damaged() {
				t.Errorf("verify: %+v, %v", r.Problems, err)
			}
		})
	}
}

// A daemon was stopped for two hours between upload and commit; somebody repairs meanwhile.
func TestRepairDuringALongStopLosesNothing(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	mem.Clock = m.clock.Now
	store := &paused{Store: mem, reached: make(chan struct{}), resume: make(chan struct{})}
	s := m.shipper(t, store)
	_, err := s.Connect(t.Context())
	ok(t, err)
	m.record(t, 10)
	ok(t, s.Seal(t.Context()))
	_, err = s.Snapshot(t.Context(), compactor.SnapshotRequest{Name: "one"})
	ok(t, err)
	m.record(t, 10)
	store.armed = true
	ended := make(chan error, 1)
	go func() { ended <- s.Seal(t.Context()) }()
	<-store.reached
	m.clock.add(2 * time.Hour)
	hand, err := archive.Open(t.Context(), mem, archive.Options{Identities: []age.Identity{m.identity}})
	ok(t, err)
	_, err = compactor.Edit(t.Context(), hand, "one", func(p *archive.Snapshot) error { p.Pinned = true; return nil })
	ok(t, err)
	r, err := compactor.Repair(t.Context(), hand, false)
	ok(t, err)
	close(store.resume)
	if err := <-ended; err == nil || len(r.Removed) == 0 {
		t.Errorf("removed %v, and the seal: %v", r.Removed, err)
	}
	ok(t, s.Seal(t.Context())) // it is taken again
	if v, err := verified(t, mem, m.identity); err != nil || v.Damaged() {
		t.Errorf("verify: %+v, %v", v.Problems, err)
	}
}

// A snapshot of a large cluster takes long. What happens meanwhile is archived meanwhile.
func TestSealingGoesOnDuringASnapshot(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	store := &paused{Store: mem, reached: make(chan struct{}), resume: make(chan struct{}), what: "snapshots/"}
	s := m.shipper(t, store)
	_, err := s.Connect(t.Context())
	ok(t, err)
	m.record(t, 20)
	store.armed = true
	ended := make(chan error, 1)
	go func() {
		_, err := s.Snapshot(t.Context(), compactor.SnapshotRequest{Name: "one"})
		ended <- err
	}()
	<-store.reached
	m.record(t, 20)
	sealed := make(chan error, 1)
	go func() { sealed <- s.Seal(t.Context()) }()
	select {
	case err := <-sealed:
		ok(t, err)
	case <-time.After(10 * time.Second):
		t.Error("sealing waits for a snapshot")
	}
	close(store.resume)
	ok(t, <-ended)
	ok(t, s.Seal(t.Context()))
	ok(t, s.Merge(t.Context()))
	state := s.Archive().State()
	if p := state.Snapshot("one"); p == nil || state.Known.Position.Count-p.Position.Count != 20 {
		t.Errorf("the snapshot %+v is not of 20 events before %+v", p, state.Known.Position)
	}
	for _, cut := range []journal.Cut{state.Snapshot("one").Position.Cut, m.j.Newest()} {
		want, err := foldOf(replay.NewLocal(m.j), cut)
		ok(t, err)
		got, err := foldOf(replay.NewArchived(s.Archive().History()), cut)
		ok(t, err)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("at %s (-journal +archive):\n%s", cut, d)
		}
	}
	if r, err := verified(t, mem, m.identity); err != nil || r.Damaged() {
		t.Errorf("verify: %+v, %v", r.Problems, err)
	}
}
