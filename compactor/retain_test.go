package compactor_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/compactor/retention"
)

// older lets the archive get older, as a daemon that looks at the clock every half hour does.
func (m *small) older(d time.Duration) {
	for ; d > 0; d -= 30 * time.Minute {
		m.clock.add(30 * time.Minute)
		m.s.Archive().Age()
	}
}

func TestClockThatJumpsDeletesNothingEarly(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	m.fill(t)
	policy := retention.Policy{Window: 24 * time.Hour}
	m.s.SetRetention(policy)
	m.clock.add(400 * 24 * time.Hour)
	for range 3 {
		r, err := m.s.Retain(t.Context(), false)
		ok(t, err)
		for _, v := range r.Segments {
			if !v.Keep {
				t.Fatalf("a jump of the clock deletes %s: %s", v.Name, v.Reason)
			}
		}
	}
	// Nor does a restart after a long time, or after the clock has jumped back.
	for _, jump := range []time.Duration{200 * 24 * time.Hour, -500 * 24 * time.Hour} {
		m.clock.add(jump)
		m.s = m.shipper(t, mem)
		m.s.SetRetention(policy)
		r, err := m.s.Retain(t.Context(), false)
		ok(t, err)
		for _, v := range r.Segments {
			if !v.Keep {
				t.Fatalf("a restart after %s deletes %s: %s", jump, v.Name, v.Reason)
			}
		}
	}
	m.judge(t, mem, "after the jumps")
	// Time that passes does delete.
	m.record(t, 5)
	_, err := m.s.Snapshot(t.Context(), compactor.SnapshotRequest{})
	ok(t, err)
	m.older(26 * time.Hour)
	r, err := m.s.Retain(t.Context(), false)
	ok(t, err)
	gone := 0
	for _, v := range r.Segments {
		if !v.Keep {
			gone++
		}
	}
	if gone == 0 {
		t.Error("after 26 hours nothing is older than a window of 24")
	}
	m.judge(t, mem, "after retention")
}

// The first full snapshot is not as old as the window for the length of one window: what is before it is all there is of it.
func TestRetentionKeepsTheWindowBeforeTheFirstFullSnapshot(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	_, err := m.s.Connect(t.Context())
	ok(t, err)
	m.s.SetRetention(retention.Policy{Window: time.Hour})
	for range 5 {
		m.record(t, 5)
		m.clock.add(10 * time.Second)
		ok(t, m.s.Seal(t.Context()))
	}
	m.older(2 * time.Hour)
	_, err = m.s.Snapshot(t.Context(), compactor.SnapshotRequest{})
	ok(t, err)
	m.older(30 * time.Minute)
	gone := func() (n int) {
		r, err := m.s.Retain(t.Context(), false)
		ok(t, err)
		for _, v := range r.Segments {
			if !v.Keep {
				n++
			}
		}
		return n
	}
	if n := gone(); n > 0 {
		t.Errorf("%d segments go, and the only full snapshot is half as old as the window", n)
	}
	m.judge(t, mem, "after retention")
	m.older(30 * time.Minute)
	if gone() == 0 {
		t.Error("nothing goes once the snapshot is as old as the window")
	}
}

func TestLockedFilesGoWhenTheLockEnds(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	mem.Clock = m.clock.Now
	var err error
	m.s, err = compactor.NewShipper(compactor.Options{
		Journal: m.j, Clock: m.clock.Now, Open: func(context.Context) (archive.Store, error) { return mem, nil }, Grace: time.Minute,
		Archive: archive.Options{Recipients: []age.Recipient{m.identity.Recipient()}, Identities: []age.Identity{m.identity}, Lock: 48 * time.Hour},
	})
	ok(t, err)
	m.fill(t)
	garbage := len(m.s.Archive().State().Garbage)
	if garbage == 0 {
		t.Fatal("nothing was merged: the test proves nothing")
	}
	m.older(2 * time.Hour)
	ok(t, m.s.Merge(t.Context()))
	if n := len(m.s.Archive().State().Garbage); n < garbage {
		t.Fatalf("%d locked files were removed", garbage-n)
	}
	m.judge(t, mem, "while locked")
	m.older(48 * time.Hour)
	ok(t, m.s.Merge(t.Context()))
	if n := len(m.s.Archive().State().Garbage); n > 0 {
		t.Errorf("%d files are still there after their lock has ended", n)
	}
	m.judge(t, mem, "after the lock")
}

func TestOldManifestsGiveWayToACheckpoint(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	_, err := m.s.Connect(t.Context())
	ok(t, err)
	for range 200 {
		m.record(t, 1)
		m.clock.add(10 * time.Second)
		ok(t, m.s.Seal(t.Context()))
	}
	m.older(50 * time.Hour)
	m.record(t, 1)
	ok(t, m.s.Seal(t.Context()))
	_, err = m.s.Retain(t.Context(), false)
	ok(t, err)
	manifests, checkpoints := 0, 0
	for f, err := range mem.List(t.Context(), "cluster-a/manifests/", "") {
		ok(t, err)
		_ = f
		manifests++
	}
	for f, err := range mem.List(t.Context(), "cluster-a/checkpoints/", "") {
		ok(t, err)
		_ = f
		checkpoints++
	}
	if from := m.s.Archive().State().ChainFrom; from == 0 || manifests > 150 || checkpoints < 2 {
		t.Errorf("the chain begins at %d: %d manifests, %d checkpoints", from, manifests, checkpoints)
	}
	m.cuts, m.folds = m.cuts[195:], m.folds[195:]
	m.judge(t, mem, "after it was shortened")
}

// A writer that stood still while the chain before it was removed must not begin a second one there.
func TestWriterBehindAShortenedChainIsFenced(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	_, err := m.s.Connect(t.Context())
	ok(t, err)
	m.record(t, 1)
	ok(t, m.s.Seal(t.Context()))
	stale, err := archive.Open(t.Context(), mem, archive.Options{})
	ok(t, err)
	for range 200 {
		m.record(t, 1)
		m.clock.add(10 * time.Second)
		ok(t, m.s.Seal(t.Context()))
	}
	m.older(50 * time.Hour)
	m.record(t, 1)
	ok(t, m.s.Seal(t.Context()))
	_, err = m.s.Retain(t.Context(), false)
	ok(t, err)
	if m.s.Archive().State().ChainFrom <= stale.State().Seq {
		t.Fatal("the chain was not shortened: the test proves nothing")
	}
	err = stale.Commit(t.Context(), func(*archive.State) (*archive.Change, error) { return &archive.Change{Step: "edit"}, nil })
	if !errors.Is(err, archive.ErrFenced) {
		t.Errorf("a commit from behind: %v, want ErrFenced", err)
	}
	m.cuts, m.folds = m.cuts[195:], m.folds[195:]
	m.judge(t, mem, "after it")
}

// A checkpoint that is damaged is never what a chain begins with.
func TestChainIsNotShortenedToADamagedCheckpoint(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	_, err := m.s.Connect(t.Context())
	ok(t, err)
	for range 300 {
		m.record(t, 1)
		m.clock.add(10 * time.Second)
		ok(t, m.s.Seal(t.Context()))
	}
	m.older(50 * time.Hour)
	m.record(t, 1)
	ok(t, m.s.Seal(t.Context()))
	points, err := m.s.Archive().Checkpoints(t.Context())
	ok(t, err)
	name := fmt.Sprintf("cluster-a/checkpoints/%020d.json", points[len(points)-3]) // the one that would be it
	b := files(t, mem)[name]
	b[len(b)/2] ^= 1
	ok(t, mem.Remove(t.Context(), name))
	ok(t, mem.Create(t.Context(), name, bytes.NewReader(b), int64(len(b)), archive.CreateOptions{}))
	_, err = m.s.Retain(t.Context(), false)
	ok(t, err)
	if from := m.s.Archive().State().ChainFrom; from == 0 || from == points[len(points)-3] {
		t.Errorf("of %v the chain begins at %d", points, from)
	}
	if failed := m.ask(t, mem, "shortened"); failed[len(m.cuts)-1] {
		t.Error("the newest moment is not answered")
	}
}
