package repository

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// path is where a file of the store lies.
func (w *world) path(name string) string {
	return strings.TrimPrefix(w.store.String(), "dir://") + "/" + name
}

// age has all packs be written a while ago.
func (w *world) age(by time.Duration) {
	w.Helper()
	then := time.Now().Add(-by)
	for _, name := range append(w.files("p"), w.files("q")...) {
		ok(w.T, os.Chtimes(w.path(name), then, then))
	}
}

// loseIndexes loses the index files that f says have come about by it.
func (w *world) loseIndexes(f func()) {
	w.Helper()
	before := map[string]bool{}
	for _, name := range w.files("x") {
		before[name] = true
	}
	f()
	lost := 0
	for _, name := range w.files("x") {
		if !before[name] {
			lost++
			ok(w.T, os.Remove(w.path(name)))
		}
	}
	if lost == 0 {
		w.Fatal("nothing is lost")
	}
}

// An index that is lost is noticed, and made anew from the packs before maintenance could take them for what nobody needs.
func TestALostIndexIsMadeAnew(t *testing.T) {
	for _, now := range []bool{false, true} {
		w, dir, other := newWorld(t), t.TempDir(), t.TempDir()
		write(t, dir+"/a", "a")
		write(t, other+"/b", strings.Repeat("b", 100_000))
		w.back(w.open(), dir)
		var b *Result
		w.loseIndexes(func() { b = w.back(w.open(), other) })

		v, err := w.open().Verify(t.Context(), 100)
		ok(t, err)
		if len(v.Errors) > 0 {
			t.Errorf("what may be on its way is taken for lost: %v", v.Errors)
		}
		w.age(25 * time.Hour)
		r := w.open()
		if all, err := r.List(t.Context()); err != nil || len(all) != 1 {
			t.Fatalf("%d backups, %v", len(all), err)
		}
		v, err = r.Verify(t.Context(), 100)
		ok(t, err)
		if len(v.Errors) != 1 || !strings.Contains(v.Errors[0], "an index file (x...) is lost: 2 packs hold content") {
			t.Errorf("found %v", v.Errors)
		}
		did, err := r.Maintain(t.Context(), now)
		ok(t, err)
		if did.Recovered != 2 || !did.Full || !now && did.Freed > 0 {
			t.Errorf("%+v", did)
		}
		v, err = w.open().Verify(t.Context(), 100)
		ok(t, err)
		if len(v.Errors) > 0 || v.Backups != 2 {
			t.Errorf("%+v", v)
		}
		to := t.TempDir()
		_, err = w.open().Restore(t.Context(), b.ID, to, RestoreOptions{})
		ok(t, err)
		same(t, described(t, to), described(t, other))
	}
}

// What was forgotten stays forgotten, also while its packs are still there without an index, and when maintenance was killed at it.
func TestWhatWasReleasedIsNotIndexedAnew(t *testing.T) {
	for _, killed := range []bool{false, true} {
		w, dir := newWorld(t), t.TempDir()
		r := w.open()
		write(t, dir+"/a", strings.Repeat("a", 100_000))
		b := w.back(r, dir)
		write(t, dir+"/a", "else")
		w.back(r, dir)
		kept := map[string][]byte{}
		for _, name := range append(w.files("p"), w.files("q")...) {
			var err error
			kept[name], err = os.ReadFile(w.path(name))
			ok(t, err)
		}
		ok(t, r.Forget(t.Context(), b.ID))
		note := w.path("volumes/c1/released.json")
		_, err := r.Maintain(t.Context(), false)
		ok(t, err)
		p, err := r.packs(t.Context())
		ok(t, err)
		ok(t, r.putReleased(t.Context(), p.named)) // as it is while one is at work
		open, err := os.ReadFile(note)
		ok(t, err)
		did, err := r.Maintain(t.Context(), true)
		ok(t, err)
		if did.Freed == 0 {
			t.Fatal("nothing was freed")
		}
		for range 2 { // what was deleted was moved as well; indexes know the time to the second
			time.Sleep(1100 * time.Millisecond)
			maintain(t, r, true)
		}
		for name, content := range kept { // as if freed a day later only
			if _, err := os.Stat(w.path(name)); err != nil {
				ok(t, os.WriteFile(w.path(name), content, 0o600))
			}
		}
		if killed {
			ok(t, os.WriteFile(note, open, 0o600))
		} else {
			p, err := r.packs(t.Context())
			ok(t, err)
			was := packSet{}
			for id := range p.there {
				was[id] = true
			}
			ok(t, r.putReleased(t.Context(), p.unnamed(was)))
		}
		w.age(25 * time.Hour)
		r = w.open()
		v, err := r.Verify(t.Context(), 100)
		ok(t, err)
		if len(v.Errors) > 0 {
			t.Errorf("taken for lost: %v", v.Errors)
		}
		did, err = r.Maintain(t.Context(), true)
		ok(t, err)
		if did.Recovered != 0 || did.Freed == 0 {
			t.Errorf("%+v", did)
		}
		if all, err := r.List(t.Context()); err != nil || len(all) != 1 {
			t.Errorf("%d backups, %v", len(all), err)
		}
	}
}

// When maintenance was done last is of no use once it cannot be read, and must not keep it from being done.
func TestADamagedScheduleIsBegunAnew(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	r := w.open()
	write(t, dir+"/a", "a")
	w.back(r, dir)
	_, err := r.Maintain(t.Context(), false)
	ok(t, err)
	for _, text := range []string{"", "damaged", strings.Repeat("damaged", 100)} {
		ok(t, os.WriteFile(w.path("volumes/c1/kopia/kopia.maintenance"), []byte(text), 0o600))
		did, err := r.Maintain(t.Context(), false)
		ok(t, err)
		if !did.Rescheduled {
			t.Errorf("%+v", did)
		}
		did, err = r.Maintain(t.Context(), false)
		ok(t, err)
		if did.Rescheduled || did.Full {
			t.Errorf("%+v", did)
		}
	}
}

func maintain(t *testing.T, r *Repository, now bool) {
	t.Helper()
	_, err := r.Maintain(t.Context(), now)
	ok(t, err)
}

// unreadableNote does not give the note of what is free.
type unreadableNote struct{ archive.Store }

func (u unreadableNote) Stat(ctx context.Context, name string) (archive.FileInfo, error) {
	if strings.HasSuffix(name, "/released.json") {
		return archive.FileInfo{}, errors.New("the network is down")
	}
	return u.Store.Stat(ctx, name)
}

// A store that does not give the note has not lost anything: that is no damage, and nothing is freed or indexed anew for it.
func TestWhatIsFreeCannotBeRead(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	write(t, dir+"/a", "a")
	w.back(w.open(), dir)
	o := w.options()
	o.Store = unreadableNote{w.store}
	r, err := Open(t.Context(), o)
	ok(t, err)
	defer r.Close(context.Background())
	if v, err := r.Verify(t.Context(), 100); err == nil || !strings.Contains(err.Error(), "the network is down") {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := r.Maintain(t.Context(), true); err == nil || !strings.Contains(err.Error(), "the network is down") {
		t.Errorf("%v", err)
	}
}
