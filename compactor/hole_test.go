package compactor_test

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// holed is an archive of four segments without a snapshot, whose second file is gone.
func holed(t *testing.T, snapshotAfter bool) (m *small, store *archive.MemStore, lost archive.Segment) {
	t.Helper()
	store = archive.NewMemStore()
	m = newSmall(t, store)
	_, err := m.s.Connect(t.Context())
	ok(t, err)
	for range 4 {
		m.record(t, 10)
		m.clock.add(20 * time.Second)
		ok(t, m.s.Seal(t.Context()))
	}
	if snapshotAfter {
		_, err := m.s.Snapshot(t.Context(), compactor.SnapshotRequest{})
		ok(t, err)
	}
	lost = m.s.Archive().State().Segments[1]
	ok(t, store.Remove(t.Context(), "cluster-a/"+lost.Name))
	return m, store, lost
}

// A segment in the middle is lost: what lies before it is answered, what lies in or after it is refused with a moment that can be had, and whether
// the archive was repaired since makes no difference.
func TestALostSegmentCostsNoMomentBeforeIt(t *testing.T) {
	m, store, lost := holed(t, false)
	answers := func(what string, h *archive.History) {
		t.Helper()
		src := replay.NewArchived(h)
		refused := func(where string, err error) {
			t.Helper()
			var outside *replay.RangeError
			if !errors.As(err, &outside) || !strings.Contains(outside.Why, "has a hole there") {
				t.Fatalf("%s, %s: %v", what, where, err)
			}
			if !outside.To.Time.Equal(lost.From.Time) {
				t.Errorf("%s, %s: restorable to %s, want %s", what, where, outside.To, lost.From.Cut)
			}
			at, err := replay.ParseAt(outside.Try)
			ok(t, err)
			cut, err := src.Resolve(t.Context(), at)
			ok(t, err)
			if got, err := foldOf(src, cut); err != nil || cmp.Diff(m.folds[0], got) != "" {
				t.Errorf("%s: the moment to try, %s: %v %s", what, outside.Try, err, cmp.Diff(m.folds[0], got))
			}
		}
		// The first to be asked for is now, of which the manifests alone do not tell that it is lost.
		now, err := src.Resolve(t.Context(), replay.At{})
		if err == nil {
			_, err = foldOf(src, now)
		}
		refused("now", err)
		_, err = src.Resolve(t.Context(), replay.At{})
		refused("now, asked again", err)
		_, err = src.Resolve(t.Context(), replay.At{Time: m.cuts[1].Time})
		refused("in the hole", err)
		_, err = src.Resolve(t.Context(), replay.At{Time: m.cuts[2].Time})
		refused("after the hole", err)
		_, err = src.Resolve(t.Context(), replay.At{Revision: m.cuts[2].Revision})
		refused("a revision after the hole", err)
		_, err = src.Resolve(t.Context(), replay.At{Time: m.cuts[0].Time.Add(-time.Hour)})
		if err == nil || !strings.Contains(err.Error(), "before recording began") {
			t.Errorf("%s: before the beginning: %v", what, err)
		}
		told, err := changesOf(src)
		if ok(t, err); len(told) != len(m.changes)-10 {
			t.Errorf("%s: %d of %d changes are told, want all but 10", what, len(told), len(m.changes))
		}
	}
	open := func() *archive.Archive {
		a, err := archive.Open(t.Context(), store, archive.Options{Identities: []age.Identity{m.identity}, Recipients: []age.Recipient{m.identity.Recipient()}})
		ok(t, err)
		return a
	}
	var told []*archive.DamageError
	h := open().History()
	h.OnLost = func(d *archive.DamageError) { told = append(told, d) }
	if _, err := changesOf(replay.NewArchived(open().History())); err == nil || !strings.Contains(err.Error(), lost.Name) || !strings.Contains(err.Error(), "'tidemark repair'") {
		t.Errorf("changes are left out without a word: %v", err)
	}
	answers("before repair", h)
	if len(told) != 1 || told[0].File != lost.Name || !strings.Contains(told[0].Error(), "it is missing: 'tidemark verify'") {
		t.Errorf("told are %v", told)
	}
	_, err := compactor.Recover(t.Context(), store, archive.Options{Identities: []age.Identity{m.identity}, Recipients: []age.Recipient{m.identity.Recipient()}}, t.TempDir(), journal.Options{}, 0)
	if err == nil || !strings.Contains(err.Error(), lost.Name) || !strings.Contains(err.Error(), "tidemark restore --archive") {
		t.Errorf("recover: %v", err)
	}
	_, err = compactor.Repair(t.Context(), open(), false)
	ok(t, err)
	answers("after repair", open().History())
}

// With a full snapshot after the hole a new journal can be made of what comes after it.
func TestRecoverDoesWithoutALostSegment(t *testing.T) {
	m, store, lost := holed(t, true)
	r, err := compactor.Recover(context.Background(), store, archive.Options{Identities: []age.Identity{m.identity}, Recipients: []age.Recipient{m.identity.Recipient()}}, t.TempDir(), journal.Options{}, 0)
	if err != nil || len(r.Lost) != 1 || r.Lost[0] != lost.Name {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := store.Stat(t.Context(), "cluster-a/"+lost.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the lost file: %v", err)
	}
}
