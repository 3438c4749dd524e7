package volumes

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"iter"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// history keeps records as a journal does.
type history struct {
	events []journal.Event
	broken error
	killed journal.Op // records of this kind fail: the process is dead by then
}

func (h *history) record(_ context.Context, e journal.Event) error {
	if h.broken != nil {
		return h.broken
	}
	if h.killed != 0 && e.Op == h.killed {
		return errors.New("killed")
	}
	h.events = append(h.events, e)
	return nil
}

func (h *history) recorded(context.Context) iter.Seq2[journal.Event, error] {
	last := map[string]journal.Event{}
	for _, e := range h.events {
		last[e.Name] = e
	}
	return func(yield func(journal.Event, error) bool) {
		for _, e := range last {
			if e.Op != journal.Deleted && !yield(e, nil) {
				return
			}
		}
	}
}

// world is what a Keeper works with.
type world struct {
	*testing.T
	history
	o     Options
	rv    uint64
	now   time.Time
	dir   string // of the store
	cache string // of the repository; empty: each time a new one
	away  error  // what reading content of the store fails with, if in the files whose names begin with from
	from  string
}

// reads is a store that can be away.
type reads struct {
	archive.Store
	w *world
}

func (r reads) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if r.w.away != nil && strings.HasPrefix(filepath.Base(name), cmp.Or(r.w.from, "p")) {
		return r.w.away
	}
	return r.Store.ReadAt(ctx, name, p, off)
}

func newWorld(t *testing.T) *world {
	id, err := age.GenerateX25519Identity()
	ok(t, err)
	dir := t.TempDir()
	store, err := archive.NewDirStore(dir)
	ok(t, err)
	w := &world{T: t, dir: dir, now: time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)}
	w.o = Options{
		Open: func(ctx context.Context, create bool) (*repository.Repository, error) {
			o := repository.Options{Store: reads{store, w}, Cluster: "c1", Identities: []age.Identity{id}, Recipients: []age.Recipient{id.Recipient()}, CacheDir: w.cache}
			if create {
				return repository.Create(ctx, o)
			}
			return repository.Open(ctx, o)
		},
		Record: w.record, Recorded: w.recorded, Clock: func() time.Time { w.now = w.now.Add(time.Second); return w.now },
		Fence: func(context.Context) (journal.Cut, error) {
			w.rv++
			return journal.Cut{Revision: journal.Revision{Epoch: 1, RV: w.rv}, Time: w.now}, nil
		},
	}
	return w
}

func (w *world) back(k *Keeper, path string) *Backup {
	w.Helper()
	b, err := k.Back(w.Context(), BackRequest{Path: path, Namespace: "shop", Claim: "data"}, nil)
	ok(w.T, err)
	return b
}

func TestABackupIsRecordedWithItsMoment(t *testing.T) {
	w := newWorld(t)
	k, dir := New(w.o), t.TempDir()
	ok(t, os.WriteFile(dir+"/a", []byte("alpha"), 0o644))
	t.Chdir(dir)
	l, err := net.Listen("unix", "socket")
	ok(t, err)
	defer l.Close()
	b := w.back(k, dir)
	if len(w.events) != 2 || w.events[0].Op != journal.Added || w.events[1].Op != journal.Modified || w.events[1].Namespace != "shop" {
		t.Fatalf("events %+v", w.events)
	}
	began, err := Parse(w.events[0].Object)
	ok(t, err)
	if began.Status.Phase != Running || began.Status.Before.RV != 1 {
		t.Errorf("it began as %+v", began.Status)
	}
	s := b.Status
	if s.Phase != Done || s.Before.RV != 1 || s.After.RV != 2 || s.Taken.Before(s.Before.Time) || s.Content == nil || s.Content.Files != 1 || b.Duration() <= 0 {
		t.Errorf("it became %+v", s)
	}
	const note = "left out, as who listens makes them anew: 1 socket"
	if !slices.Equal(s.Notes, []string{note}) {
		t.Errorf("it says %q", s.Notes)
	}
	found, err := k.Find(t.Context(), b.Metadata.Name[:8])
	ok(t, err)
	if found.Metadata.Name != b.Metadata.Name {
		t.Errorf("found %s", found.Metadata.Name)
	}

	// The bucket alone tells the same.
	alone := w.o
	alone.Record, alone.Recorded = nil, nil
	all, err := New(alone).List(t.Context())
	ok(t, err)
	if len(all) != 1 || all[0].Metadata.Name != b.Metadata.Name || all[0].Status.After.RV != 2 || all[0].Status.Phase != Done || all[0].Status.Content.ID != s.Content.ID || !slices.Equal(all[0].Status.Notes, []string{note}) {
		t.Errorf("the repository alone tells of %+v", all)
	}
}

func TestAFailedBackupIsRecorded(t *testing.T) {
	w := newWorld(t)
	k := New(w.o)
	b, err := k.Back(t.Context(), BackRequest{Path: "/nowhere/at/all"}, nil)
	if !errors.Is(err, os.ErrNotExist) || b == nil || b.Status.Phase != Failed {
		t.Fatalf("%+v, %v", b, err)
	}
	if _, err := k.Restore(t.Context(), RestoreRequest{Backup: b.Metadata.Name, To: t.TempDir()}, nil); !errors.Is(err, ErrNoContent) {
		t.Errorf("restored: %v", err)
	}
	w.o.Fence = func(context.Context) (journal.Cut, error) { return journal.Cut{}, errors.New("the cluster is away") }
	if b := w.back(New(w.o), t.TempDir()); b.Status.Phase != Done || b.Status.Before.RV != 0 || b.Status.Before.Time.IsZero() {
		t.Errorf("without the cluster: %+v", b.Status)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w.o.Fence = func(context.Context) (journal.Cut, error) { cancel(); return journal.Cut{}, nil }
	if b, err = New(w.o).Back(ctx, BackRequest{Path: t.TempDir()}, nil); !errors.Is(err, context.Canceled) || b.Status.Phase != Failed {
		t.Errorf("cancelled: %+v, %v", b, err)
	}
	if last, _ := Parse(w.events[len(w.events)-1].Object); last.Status.Phase != Failed {
		t.Errorf("the record of the cancelled one is left as %s", last.Status.Phase)
	}
	for _, q := range []BackRequest{{}, {Path: "relative"}, {Path: "/a/../b"}, {Path: "/a", Claim: "data"}} {
		if _, err := k.Back(t.Context(), q, nil); !errors.Is(err, ErrRequest) {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

// TestSettle lets a Keeper find what one before it, which died, was making.
func TestSettle(t *testing.T) {
	w := newWorld(t)
	k, dir := New(w.o), t.TempDir()
	ok(t, os.WriteFile(dir+"/a", []byte("alpha"), 0o644))
	whole := w.back(k, dir)
	w.events = w.events[:1] // it died right after the content was complete
	cut := newBackup("shop", Spec{Claim: "data", Run: "x"}, w.o.Clock())
	ok(t, k.record(t.Context(), cut, journal.Added)) // and another time before it was

	next := New(w.o)
	young := newBackup("shop", Spec{Claim: "data", Run: "y"}, w.o.Clock()) // begun by the new one itself
	ok(t, next.record(t.Context(), young, journal.Added))
	ok(t, next.Settle(t.Context()))
	all, err := next.List(t.Context())
	ok(t, err)
	got := map[string]Phase{}
	for _, b := range all {
		got[b.Metadata.Name] = b.Status.Phase
	}
	if got[whole.Metadata.Name] != Done || got[cut.Metadata.Name] != Failed || got[young.Metadata.Name] != Running {
		t.Errorf("settled as %v", got)
	}
	ok(t, next.Read(t.Context(), whole.Metadata.Name, "a", os.Stderr))
}

func TestDelete(t *testing.T) {
	w := newWorld(t)
	k, dir := New(w.o), t.TempDir()
	ok(t, os.WriteFile(dir+"/a", []byte("alpha"), 0o644))
	b := w.back(k, dir)
	w.broken = errors.New("the disk is full")
	if _, err := k.Delete(t.Context(), b.Metadata.Name); !errors.Is(err, w.broken) {
		t.Fatalf("deleted: %v", err)
	}
	w.broken = nil
	if _, err := k.Delete(t.Context(), b.Metadata.Name); err != nil { // what was begun is completed
		t.Fatal(err)
	}
	if _, err := k.Find(t.Context(), b.Metadata.Name); !errors.Is(err, ErrUnknown) {
		t.Errorf("found: %v", err)
	}
	if v, err := k.Verify(t.Context(), 100); err != nil || v.Backups != 0 {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestVerifyReadsTheStore lets files rot that the Keeper has written, or has read, itself, and has in its cache.
func TestVerifyReadsTheStore(t *testing.T) {
	w := newWorld(t)
	w.cache = t.TempDir()
	k, dir := New(w.o), t.TempDir()
	ok(t, os.MkdirAll(dir+"/sub", 0o755))
	ok(t, os.WriteFile(dir+"/sub/a", randomBytes(4<<10), 0o644))
	b := w.back(k, dir)
	verify := func(k *Keeper) *repository.Verified {
		t.Helper()
		v, err := k.Verify(t.Context(), 100)
		ok(t, err)
		return v
	}
	for range 2 {
		if v := verify(k); len(v.Errors) > 0 || v.Backups != 1 || v.Read < 4<<10 {
			t.Fatalf("whole, and verified as %+v", v)
		}
	}
	if left, err := filepath.Glob(w.cache + "/" + "verify-" + "*"); err != nil || len(left) > 0 {
		t.Errorf("a verification leaves %v, %v", left, err)
	}
	tried := map[byte]int{}
	for _, name := range w.blobs() {
		kind := filepath.Base(name)[0]
		if !strings.ContainsRune("pqxn", rune(kind)) && filepath.Base(name) != "kopia.repository" {
			continue
		}
		tried[kind]++
		whole, err := os.ReadFile(name)
		ok(t, err)
		rotten := bytes.Clone(whole)
		for at := 0; at < len(rotten)*9/10; at += 50 { // not at its end, which is an index that Kopia has twice; most of a small pack is padding
			rotten[at] ^= 1
		}
		ok(t, os.WriteFile(name, rotten, 0o600))
		if v := verify(k); len(v.Errors) == 0 {
			t.Errorf("%s rots, which was not found: %+v", filepath.Base(name), v)
		} else if kind == 'p' && !slices.ContainsFunc(v.Errors, func(text string) bool { return strings.HasPrefix(text, b.Metadata.Name+"/sub/a: ") }) {
			t.Errorf("it is not said where: %q", v.Errors)
		}
		warm := w.cache
		w.cache = "" // which everything that is opened starts without
		for _, cold := range []*Keeper{k, w.alone()} {
			if v := verify(cold); len(v.Errors) == 0 {
				t.Errorf("%s rots, which was not found without a cache: %+v", filepath.Base(name), v)
			}
		}
		w.cache = warm
		ok(t, os.WriteFile(name, whole, 0o600))
	}
	if tried['p'] == 0 || tried['q'] == 0 || tried['x'] == 0 {
		t.Errorf("there was nothing to try with: %v", tried)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// blobs are the files of the repository.
func (w *world) blobs() []string {
	w.Helper()
	all, err := filepath.Glob(w.dir + "/volumes/c1/kopia/*")
	ok(w.T, err)
	return all
}

// TestVerifyGoesOn has a backup whose manifest is gone, and one with a rotten file, before one that is whole.
func TestVerifyGoesOn(t *testing.T) {
	w := newWorld(t)
	k := New(w.o)
	var made []*Backup
	for range 3 {
		dir, had := t.TempDir(), w.blobs()
		ok(t, os.WriteFile(dir+"/a", randomBytes(4<<10), 0o644))
		made = append(made, w.back(k, dir))
		for _, name := range w.blobs() {
			if filepath.Base(name)[0] != 'p' || slices.Contains(had, name) {
				continue
			}
			if w.from = filepath.Base(name); len(made) == 2 {
				ok(t, os.Truncate(name, 2<<10))
			}
		}
	}
	r, err := w.o.Open(t.Context(), false)
	ok(t, err)
	ok(t, r.Forget(t.Context(), made[0].Status.Content.ID))
	ok(t, r.Close(t.Context()))
	for _, percent := range []float64{0, 100} {
		v, err := k.Verify(t.Context(), percent)
		ok(t, err)
		told := strings.Join(v.Errors, "\n")
		if v.Backups != 3 || !strings.Contains(told, made[0].Metadata.Name+": ") || !strings.Contains(told, made[1].Metadata.Name+"/a: ") || strings.Contains(told, made[2].Metadata.Name) {
			t.Errorf("at %g%%: %+v", percent, v)
		}
		if percent == 100 && v.Read < 4<<10 {
			t.Errorf("the whole one was not read: %+v", v)
		}
	}
	w.away = errors.New("the store is away")
	if v, err := k.Verify(t.Context(), 100, made[2].Metadata.Name); !errors.Is(err, w.away) {
		t.Errorf("a store that fails counts as damage: %+v, %v", v, err)
	}
	v, err := k.Verify(t.Context(), 100)
	if !errors.Is(err, w.away) || v == nil {
		t.Fatalf("a file that cannot be read hides the damage of others: %+v, %v", v, err)
	}
	if told := strings.Join(v.Errors, "\n"); !strings.Contains(told, made[0].Metadata.Name+": ") || !strings.Contains(told, made[1].Metadata.Name+"/a: ") || strings.Contains(told, made[2].Metadata.Name) {
		t.Errorf("found: %q", v.Errors)
	}
}

// TestADeletionThatWasCutOff kills the process between the removal of the content and that of the record, or keeps the content from being removed.
func TestADeletionThatWasCutOff(t *testing.T) {
	w := newWorld(t)
	k, dir := New(w.o), t.TempDir()
	ok(t, os.WriteFile(dir+"/a", []byte("alpha"), 0o644))
	b, err := k.Back(t.Context(), BackRequest{Path: dir, Namespace: "shop", Claim: "data"}, nil)
	ok(t, err)
	w.killed = journal.Deleted
	if _, err := k.Delete(t.Context(), b.Metadata.Name); err == nil {
		t.Fatal("nothing was cut off")
	}
	w.killed = 0
	next := New(w.o)
	all, err := next.List(t.Context())
	ok(t, err)
	if len(all) != 1 || all[0].Status.Phase != Deleting || len(Pick(all, PickRequest{At: w.now})) > 0 {
		t.Errorf("a restore would take one that has no content: %+v", all)
	}
	if err := next.Read(t.Context(), b.Metadata.Name, "a", io.Discard); !errors.Is(err, ErrNoContent) {
		t.Errorf("read: %v", err)
	}
	if v, err := next.Verify(t.Context(), 0); err != nil || v.Backups > 0 {
		t.Errorf("it is verified: %+v, %v", v, err)
	}
	ok(t, next.Settle(t.Context()))
	ok(t, next.FinishDeletes(t.Context()))
	if all, err = next.List(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("it is still there: %+v, %v", all, err)
	}
}

// TestDeleteForgetsAllContent has content that no record names: of a mover that died after it was done, and was done again.
func TestDeleteForgetsAllContent(t *testing.T) {
	w := newWorld(t)
	k, dir := New(w.o), t.TempDir()
	ok(t, os.WriteFile(dir+"/a", []byte("alpha"), 0o644))
	done, other := w.back(k, dir), w.back(k, t.TempDir())
	failed := newBackup("shop", Spec{Claim: "data", Run: "x"}, w.o.Clock())
	failed.Status.Phase = Failed
	ok(t, k.record(t.Context(), failed, journal.Added))
	r, err := w.o.Open(t.Context(), false)
	ok(t, err)
	defer r.Close(t.Context())
	for _, b := range []*Backup{done, failed} {
		_, err := r.Back(t.Context(), sourceOf(b), dir, repository.BackupOptions{Tags: func() (map[string]string, error) { return tagsOf(b) }})
		ok(t, err)
		_, err = k.Delete(t.Context(), b.Metadata.Name)
		ok(t, err)
	}
	left, err := r.List(t.Context())
	ok(t, err)
	if len(left) != 1 || left[0].ID != other.Status.Content.ID {
		t.Errorf("what was deleted is still held, or too much is gone: %+v", left)
	}
}

// TestWhatIsLeftGoes makes backups that do not get whole, of a claim that is not backed up any more.
func TestWhatIsLeftGoes(t *testing.T) {
	w := newWorld(t)
	k := New(w.o)
	whole := w.back(k, t.TempDir())
	r, err := w.o.Open(t.Context(), true)
	ok(t, err)
	defer r.Close(t.Context())
	_, err = r.Back(t.Context(), repository.Source{Namespace: "shop", Name: "data"}, "/proc/sys/net/ipv4/route", repository.BackupOptions{}) // it has a file that nobody can read
	if !errors.Is(err, repository.ErrIncomplete) {
		t.Fatal(err)
	}
	left := func(now time.Time) int {
		t.Helper()
		w.now = now
		_, err := k.Maintain(t.Context(), repository.Maintenance{})
		ok(t, err)
		all, err := r.Incomplete(t.Context(), time.Now().Add(time.Hour))
		ok(t, err)
		return len(all)
	}
	if n := left(time.Now().Add(leftFor - time.Hour)); n != 1 {
		t.Errorf("before its time, %d are left", n)
	}
	running := newBackup("shop", Spec{Claim: "data", Run: "x"}, w.o.Clock())
	ok(t, k.record(t.Context(), running, journal.Added))
	if n := left(time.Now().Add(leftFor + time.Hour)); n != 1 {
		t.Errorf("while the claim is backed up, %d are left", n)
	}
	running.Status.Phase = Failed
	ok(t, k.record(t.Context(), running, journal.Modified))
	if n := left(time.Now().Add(leftFor + time.Hour)); n != 0 {
		t.Errorf("after its time, %d are left", n)
	}
	if v, err := k.Verify(t.Context(), 100); err != nil || v.Backups != 1 || len(v.Errors) > 0 {
		t.Errorf("%s, which is whole: %+v, %v", whole.Metadata.Name, v, err)
	}
}

func TestFind(t *testing.T) {
	var all []*Backup
	for _, names := range [][2]string{{"data-20261125-1", "weekly"}, {"data-20261126-2", "nightly"}, {"logs-20261126-3", "nightly"}} {
		all = append(all, &Backup{Metadata: Meta{Name: names[0]}, Spec: Spec{Run: names[1]}})
	}
	for name, want := range map[string]string{
		"data-20261125-1": "data-20261125-1", "weekly": "data-20261125-1", "logs": "logs-20261126-3", "26-2": "data-20261126-2",
		"nothing": "", "": "",
	} {
		b, err := find(all, name)
		if want == "" && !errors.Is(err, ErrUnknown) || want != "" && (err != nil || b.Metadata.Name != want) {
			t.Errorf("%q is %v, %v", name, b, err)
		}
	}
	for _, name := range []string{"data", "nightly"} {
		if b, err := find(all, name); !errors.Is(err, ErrAmbiguous) || errors.Is(err, ErrUnknown) {
			t.Errorf("%q is %v, %v", name, b, err)
		}
	}
}
