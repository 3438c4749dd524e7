package volumes

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/policy"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// TestExpired has backups of two claims, one every six hours for three days, of which a day each and the last two days are kept.
func TestExpired(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 30, 0, 0, time.UTC)
	var all []*Backup
	add := func(claim, name string, hours int, phase Phase, origin string) *Backup {
		at := now.Add(-time.Duration(hours) * time.Hour)
		b := &Backup{Metadata: Meta{Name: name, Namespace: "shop", Created: at}, Spec: Spec{Claim: claim, Origin: origin}, Status: Status{Phase: phase}}
		all = append(all, b)
		return b
	}
	add("b", "b-old-but-last", 100, Done, "schedule/p").Spec.TTL = time.Hour
	add("a", "a-72h", 72, Done, "schedule/p")
	add("a", "a-71h-pinned", 71, Done, "schedule/p").Spec.Pinned = true
	add("a", "a-66h", 66, Done, "schedule/p")
	add("a", "a-65h-failed", 65, Failed, "schedule/p")
	add("a", "a-65h-deleting", 65, Deleting, "schedule/p") // FinishDeletes does
	add("a", "a-64h-by-hand", 64, Done, "manual")
	add("a", "a-64h-by-hand-for-a-day", 64, Done, "manual").Spec.TTL = 24 * time.Hour
	add("a", "a-64h-failed-for-a-day", 64, Failed, "manual").Spec.TTL = 24 * time.Hour
	add("a", "a-64h-by-hand-for-three-days", 64, Done, "manual").Spec.TTL = 72 * time.Hour
	pinned := add("a", "a-64h-pinned-for-a-day", 64, Done, "manual")
	pinned.Spec.TTL, pinned.Spec.Pinned = 24*time.Hour, true
	add("a", "a-63h-of-another", 63, Done, "schedule/q")
	add("a", "a-10h", 10, Done, "schedule/p")
	add("a", "a-1h", 1, Done, "schedule/p")
	add("a", "a-now", 0, Running, "schedule/p")
	for _, c := range []struct {
		rules retention.Policy
		want  []string
	}{
		{retention.Policy{}, []string{"a-64h-by-hand-for-a-day", "a-64h-failed-for-a-day"}},
		{retention.Policy{Window: 24 * time.Hour, Daily: 3}, []string{"a-64h-by-hand-for-a-day", "a-64h-failed-for-a-day", "a-72h"}},
		{retention.Policy{Window: 12 * time.Hour}, []string{"a-64h-by-hand-for-a-day", "a-64h-failed-for-a-day", "a-65h-failed", "a-66h", "a-72h"}},
	} {
		var got []string
		for _, v := range expired(all, map[string]retention.Policy{"p": c.rules}, func(b *Backup) time.Duration { return now.Sub(b.Metadata.Created) }) {
			got = append(got, v.Name)
		}
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.rules, got, c.want)
		}
	}
}

// TestAgeIsCounted has clocks that jump make nothing old, and one that was ahead for a while no backup the newest for ever.
func TestAgeIsCounted(t *testing.T) {
	w := newWorld(t)
	counted, away := 100*time.Hour, error(nil)
	w.o.Age = func() (time.Duration, error) { return counted, away }
	k, dir := New(w.o), t.TempDir()
	passes := func(d time.Duration) { w.now, counted = w.now.Add(d), counted+d }
	back := func() string {
		t.Helper()
		passes(time.Hour)
		b, err := k.Back(t.Context(), BackRequest{Path: dir, TTL: 48 * time.Hour}, nil)
		ok(t, err)
		return b.Metadata.Name
	}
	gone := func(want ...string) {
		t.Helper()
		told, err := k.Retain(t.Context(), nil)
		ok(t, err)
		var got []string
		for _, v := range told {
			got = append(got, v.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("gone %q, want %q", got, want)
		}
	}
	first := back()
	w.now = w.now.AddDate(1, 0, 0)
	ahead := back()
	gone()
	w.now = w.now.AddDate(-1, 0, 0)
	back()
	gone()
	passes(50 * time.Hour)
	away = errors.New("away")
	if told, err := k.Retain(t.Context(), nil); !errors.Is(err, away) || len(told) > 0 {
		t.Errorf("without a count: %+v, %v", told, err)
	}
	away = nil
	gone(first, ahead)

	// Where nobody counts, one of the future is not the newest either.
	w.now = w.now.AddDate(1, 0, 0)
	ahead = back()
	w.now = w.now.AddDate(-1, 0, 0)
	second, last := back(), back()
	w.o.Age = nil
	k = New(w.o)
	passes(50 * time.Hour)
	told, err := k.Retain(t.Context(), nil)
	ok(t, err)
	if i := slices.IndexFunc(told, func(v retention.Verdict) bool { return v.Name == last || v.Name == ahead }); i >= 0 || !slices.ContainsFunc(told, func(v retention.Verdict) bool { return v.Name == second }) {
		t.Errorf("gone: %+v", told)
	}
}

// alone is a Keeper that has nothing but the repository.
func (w *world) alone() *Keeper {
	o := w.o
	o.Record, o.Recorded, o.Cluster = nil, nil, nil
	return New(o)
}

// stored has the repository hold content with the tags of one that was moved, and gives its ID.
func (c *cluster) stored(b *Backup) string {
	c.Helper()
	r, err := c.o.Open(c.Context(), true)
	ok(c.T, err)
	defer r.Close(c.Context())
	res, err := r.Back(c.Context(), sourceOf(b), c.TempDir(), repository.BackupOptions{Tags: func() (map[string]string, error) { return c.tagged[b.Metadata.Name], nil }})
	ok(c.T, err)
	return res.ID
}

// TestRetainWithoutADaemon has the repository alone tell of backups that were moved: their snapshots are gone, unless they are kept, and then they are left to the
// cluster's daemon. A mover that died before it could tell has left one of the same name.
func TestRetainWithoutADaemon(t *testing.T) {
	c := newCluster(t, Cluster{}, claim("shop", "data", nil)...)
	var names, ids []string
	for _, keep := range []bool{false, true, false} {
		by, err := c.back(ClaimsRequest{Action: policy.Move, KeepSnapshots: keep, TTL: time.Hour})
		ok(t, err)
		names = append(names, by["data"].Metadata.Name)
		ids = append(ids, c.stored(by["data"]))
		if !keep {
			ids = append(ids, c.stored(by["data"]))
		}
	}
	c.now = c.now.Add(2 * time.Hour)
	k := c.alone()
	all, err := k.List(t.Context())
	ok(t, err)
	if len(all) != 3 || all[0].Status.Content.ID != ids[1] {
		t.Errorf("%d backups, of the first %+v, want %s", len(all), all[0].Status.Content, ids[1])
	}
	told, err := k.Retain(t.Context(), nil)
	if err != nil || len(told) != 2 || told[0].Name != names[0] || told[0].Keep || told[1].Name != names[1] || !told[1].Keep || !strings.Contains(told[1].Reason, "the daemon of that cluster deletes") {
		t.Errorf("%+v, %v", told, err)
	}
	_, err = k.Pin(t.Context(), names[2], true)
	ok(t, err)
	r, err := c.o.Open(t.Context(), false)
	ok(t, err)
	defer r.Close(t.Context())
	left, err := r.List(t.Context())
	ok(t, err)
	if len(left) != 3 || left[0].ID != ids[2] {
		t.Errorf("the repository still has %+v", left)
	}
}

// TestPin pins backups with history and with the repository alone, each of which the other heeds.
func TestPin(t *testing.T) {
	w := newWorld(t)
	k, dir := New(w.o), t.TempDir()
	ok(t, os.WriteFile(dir+"/a", []byte("alpha"), 0o644))
	first, err := k.Back(t.Context(), BackRequest{Path: dir, TTL: time.Hour, Pinned: true}, nil)
	ok(t, err)
	name := first.Metadata.Name
	w.back(k, dir) // of another volume
	_, err = k.Back(t.Context(), BackRequest{Path: dir}, nil)
	ok(t, err)
	w.now = w.now.Add(2 * time.Hour)
	is := func(k *Keeper, pinned bool) {
		t.Helper()
		b, err := k.Find(t.Context(), name)
		ok(t, err)
		if b.Spec.Pinned != pinned || b.Spec.TTL != time.Hour {
			t.Errorf("history: %v; %+v", k.o.Record != nil, b.Spec)
		}
	}
	stays := func(k *Keeper) {
		t.Helper()
		if _, err := k.Delete(t.Context(), name); !errors.Is(err, errPinned) || !strings.Contains(err.Error(), "'tidemark volumes unpin "+name+"' first") {
			t.Fatalf("deleted: %v", err)
		}
		if gone, err := k.Retain(t.Context(), nil); err != nil || len(gone) > 0 {
			t.Fatalf("retention took %+v, %v", gone, err)
		}
		is(k, true)
	}
	stays(k)
	stays(w.alone())
	for _, pinned := range []bool{false, true, false} {
		_, err := k.Pin(t.Context(), name, pinned)
		ok(t, err)
		is(k, pinned)
		is(w.alone(), pinned)
	}
	_, err = w.alone().Pin(t.Context(), name, true)
	ok(t, err)
	is(k, false) // it does not look there until it would delete it
	stays(k)
	_, err = k.Pin(t.Context(), name, false)
	ok(t, err)
	gone, err := k.Retain(t.Context(), nil)
	if err != nil || len(gone) != 1 || gone[0].Name != name || !strings.Contains(gone[0].Reason, "TTL") {
		t.Fatalf("%+v, %v", gone, err)
	}
	r, err := w.o.Open(t.Context(), false)
	ok(t, err)
	defer r.Close(t.Context())
	if pins, err := r.Pins(t.Context(), tagName); err != nil || len(pins) > 0 {
		t.Errorf("notes of it stay: %v, %v", pins, err)
	}
	running := newBackup("shop", Spec{Claim: "data", Run: "x"}, w.o.Clock())
	ok(t, k.record(t.Context(), running, journal.Added))
	if _, err := k.Pin(t.Context(), running.Metadata.Name, true); !errors.Is(err, ErrRequest) {
		t.Errorf("one that is being made: %v", err)
	}
	if _, err := k.Back(t.Context(), BackRequest{Path: dir, TTL: -time.Hour}, nil); !errors.Is(err, ErrRequest) {
		t.Errorf("a TTL before it begins: %v", err)
	}
}
