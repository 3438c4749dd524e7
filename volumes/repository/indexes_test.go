package repository

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kopia/kopia/repo/blob"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// What an index listed looks unneeded without it: nothing may be freed until the index is back, or a person has decided.
func TestALostIndexStopsMaintenance(t *testing.T) {
	for _, back := range []bool{true, false} {
		w, dir, other := newWorld(t), t.TempDir(), t.TempDir()
		write(t, dir+"/a", strings.Repeat("a", 1000))
		write(t, other+"/b", strings.Repeat("b", 1000))
		r := w.open()
		w.back(r, dir)
		maintain(t, r, false)
		had := w.files("x")
		old, err := r.Back(t.Context(), Source{"shop", "other"}, other, BackupOptions{})
		ok(t, err)
		lost := slices.DeleteFunc(w.files("xn"), func(name string) bool { return slices.Contains(had, name) })
		if len(lost) == 0 {
			t.Fatal("the backup wrote no index")
		}
		kept := t.TempDir()
		for _, name := range lost {
			ok(t, os.Rename(w.path(name), filepath.Join(kept, filepath.Base(name))))
		}
		before := append(w.files("p"), w.files("q")...)

		r = w.open()
		v, err := r.Verify(t.Context(), 0)
		ok(t, err)
		if len(v.Errors) == 0 || !strings.Contains(v.Errors[0], lost[0]) {
			t.Errorf("verify tells %v, and not of %s", v.Errors, lost[0])
		}
		for _, now := range []bool{false, true} {
			_, err := r.Maintain(t.Context(), Maintenance{Now: now})
			if !errors.Is(err, ErrLostIndex) || !strings.Contains(err.Error(), lost[0]) || !strings.Contains(err.Error(), "--accept-lost-index") {
				t.Errorf("maintain: %v", err)
			}
		}
		if after := append(w.files("p"), w.files("q")...); !slices.Equal(after, before) {
			t.Errorf("%v became %v", before, after)
		}
		w.back(r, dir) // goes on
		if back {
			for _, name := range lost {
				ok(t, os.Rename(filepath.Join(kept, filepath.Base(name)), w.path(name)))
			}
			r = w.open()
			maintain(t, r, true)
			_, err := r.Restore(t.Context(), old.ID, t.TempDir(), RestoreOptions{KeepOwners: true})
			ok(t, err)
		} else {
			did, err := r.Maintain(t.Context(), Maintenance{Now: true, AcceptLost: true})
			ok(t, err)
			if len(did.Accepted) != len(lost) {
				t.Errorf("accepted %v, lost are %v", did.Accepted, lost)
			}
		}
		for range 2 {
			maintain(t, r, true)
		}
		if v, err := r.Verify(t.Context(), 100); err != nil || len(v.Errors) > 0 {
			t.Errorf("verify: %v, %v", v, err)
		}
		if n := len(w.files("tidemark-indexes-")); n == 0 || n > 2 {
			t.Errorf("%d notes are left", n)
		}
	}
}

// Writers take back no index: somebody else may have noted it.
func TestIndexesGoInMaintenanceOnly(t *testing.T) {
	w := newWorld(t)
	s := newStorage(w.store, "volumes/", false)
	defer s.forget()
	for _, maintaining := range []bool{false, true} {
		ok(t, s.PutBlob(t.Context(), "xn0_1-s1-c1", text("index"), blob.PutOptions{}))
		s.maintaining.Store(maintaining)
		ok(t, s.DeleteBlob(t.Context(), "xn0_1-s1-c1"))
		_, err := s.GetMetadata(t.Context(), "xn0_1-s1-c1")
		if there := err == nil; there == maintaining {
			t.Errorf("maintaining %v: there %v", maintaining, there)
		}
	}
}

func TestWhatSupersedesAnIndex(t *testing.T) {
	for what, c := range map[string]struct{ noted, there, lost string }{
		"all there":                   {"xn0_a-s1-c1 xe1", "xn0_a-s1-c1 xe1", ""},
		"one is lost":                 {"xn0_a-s1-c1 xn0_b-s2-c1", "xn0_b-s2-c1", "xn0_a-s1-c1"},
		"all are lost":                {"xn0_a-s1-c1 xe1 xs0_a-s1-c1 xr0_7_a-s1-c1", "", "xn0_a-s1-c1 xe1 xs0_a-s1-c1 xr0_7_a-s1-c1"},
		"compacted":                   {"xn3_a-s1-c1", "xs3_b-s9-c1", ""},
		"another epoch is compacted":  {"xn3_a-s1-c1", "xs2_b-s9-c1 xs33_c-s8-c1", "xn3_a-s1-c1"},
		"half a compaction":           {"xn3_a-s1-c1", "xs3_b-s9-c2", "xn3_a-s1-c1"},
		"a compaction of two files":   {"xn3_a-s1-c1", "xs3_b-s9-c2 xs3_c-s9-c2", ""},
		"halves of two compactions":   {"xn3_a-s1-c1", "xs3_b-s9-c2 xs3_c-s8-c2", "xn3_a-s1-c1"},
		"in a range":                  {"xn3_a-s1-c1 xs4_a-s1-c1", "xr0_7_b-s9-c1", ""},
		"beyond a range":              {"xn8_a-s1-c1 xs9_a-s1-c1", "xr0_7_b-s9-c1", "xn8_a-s1-c1 xs9_a-s1-c1"},
		"a range in a wider one":      {"xr0_7_a-s1-c1", "xr0_15_b-s9-c1", ""},
		"a range is not in its part":  {"xr0_15_a-s1-c1", "xr0_7_b-s9-c1 xr8_14_b-s9-c1", "xr0_15_a-s1-c1"},
		"a lost compaction":           {"xs3_a-s1-c1", "xn3_b-s9-c1", "xs3_a-s1-c1"},
		"another compaction is there": {"xs3_a-s1-c1", "xs3_b-s9-c1", ""},
		"an old marker":               {"xe1 xe2", "xe3 xe4", ""},
		"the newest marker":           {"xe3 xe4", "xe3 xr0_9_a-s1-c1", "xe4"},
		"not ours to judge":           {"xw1700000000 xz n1 xnfoo", "", ""},
	} {
		ids := func(s string) (all []blob.ID) {
			for name := range strings.FieldsSeq(s) {
				all = append(all, blob.ID(name))
			}
			return all
		}
		if got := unaccounted(ids(c.noted), ids(c.there)); !slices.Equal(got, ids(c.lost)) {
			t.Errorf("%s: %v are lost, want %v", what, got, c.lost)
		}
	}
}

// A damaged note must not name what never was.
func TestADamagedNoteSaysNothing(t *testing.T) {
	ids := []blob.ID{"xn0_a-s1-c1", "xe1"}
	gone := []blob.ID{"xn7_g"}
	b := encodeNote(ids, gone)
	if got, not := decodeNote(b); !slices.Equal(got, ids) || !slices.Equal(not, gone) {
		t.Fatalf("%v", got)
	}
	for i := range b {
		damaged := bytes.Clone(b)
		damaged[i] ^= 1
		if got, _ := decodeNote(damaged); len(got) > 0 {
			t.Errorf("byte %d flipped: %v", i, got)
		}
		if got, _ := decodeNote(b[:i]); len(got) > 0 {
			t.Errorf("cut at %d: %v", i, got)
		}
	}

	w, dir := newWorld(t), t.TempDir()
	write(t, dir+"/a", "a")
	r := w.open()
	w.back(r, dir)
	for _, name := range w.files("tidemark-indexes-") {
		ok(t, os.WriteFile(w.path(name), []byte("xn0_never\n"), 0o600))
	}
	maintain(t, r, false)
	if n, err := r.noted(context.Background()); err != nil || len(n.files) == 0 {
		t.Errorf("notes %+v, %v", n, err)
	}
}

// heldNotes is a store with a lock on notes.
type heldNotes struct{ archive.Store }

func (h heldNotes) Remove(ctx context.Context, name string) error {
	if strings.Contains(name, notePrefix) {
		return archive.ErrHeld
	}
	return h.Store.Remove(ctx, name)
}

// What was accepted stays so, also while a lock keeps the note that names it.
func TestAcceptedForGood(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	write(t, dir+"/a", "a")
	o := w.options()
	o.Store = heldNotes{w.store}
	r, err := Create(t.Context(), o)
	ok(t, err)
	defer func() { ok(t, r.Close(context.WithoutCancel(t.Context()))) }()
	w.back(r, dir)
	ok(t, os.Remove(w.path(w.files("xn")[0])))
	if _, err := r.Maintain(t.Context(), Maintenance{}); !errors.Is(err, ErrLostIndex) {
		t.Fatal(err)
	}
	if did, err := r.Maintain(t.Context(), Maintenance{AcceptLost: true}); err != nil || len(did.Accepted) != 1 {
		t.Fatalf("%+v, %v", did, err)
	}
	for range 2 {
		if did, err := r.Maintain(t.Context(), Maintenance{}); err != nil || len(did.Accepted) > 0 {
			t.Errorf("%+v, %v", did, err)
		}
	}
}
