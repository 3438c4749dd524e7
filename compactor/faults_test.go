package compactor_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/compactor/archive/storetest"
	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/journal"
)

// patiently does a step until it succeeds, as the daemon does, by the same Shipper.
func patiently(t testing.TB, what string, step func() error) (failures int) {
	t.Helper()
	for {
		err := step()
		if err == nil {
			return failures
		}
		for _, e := range []error{archive.ErrFenced, compactor.ErrForeign, compactor.ErrRolledBack, archive.ErrNotExclusive} {
			if errors.Is(err, e) || strings.Contains(err.Error(), "copy of this data directory") {
				t.Fatalf("%s: a store that fails for a while is taken for another writer: %v", what, err)
			}
		}
		if failures++; failures > 200 {
			t.Fatalf("%s: it never succeeds: %v", what, err)
		}
	}
}

// day is what a daemon does in its life with an archive, over a store with faults.
func (m *small) day(t testing.TB, what string, s *compactor.Shipper) (failures int) {
	t.Helper()
	ctx := t.Context()
	failures += patiently(t, what+", connect", func() error { _, err := s.Connect(ctx); return err })
	for i := range 5 {
		m.record(t, 4)
		m.clock.add(20 * time.Second)
		failures += patiently(t, what+", seal", func() error { return s.Seal(ctx) })
		if i == 1 || i == 3 {
			failures += patiently(t, what+", snapshot", func() error { _, err := s.Snapshot(ctx, compactor.SnapshotRequest{}); return err })
		}
		failures += patiently(t, what+", merge", func() error { return s.Merge(ctx) })
	}
	m.clock.add(30 * time.Minute)
	s.Archive().Age()
	failures += patiently(t, what+", retain", func() error { _, err := s.Retain(ctx, false); return err })
	m.record(t, 3)
	failures += patiently(t, what+", seal", func() error { return s.Seal(ctx) })
	return failures
}

// settled checks that all is archived, right, told once, and that no file is left over that nobody knows.
func (m *small) settled(t *testing.T, what string, mem *archive.MemStore) {
	t.Helper()
	m.judge(t, mem, what)
	a, err := archive.Open(t.Context(), mem, archive.Options{Identities: []age.Identity{m.identity}, Clock: m.clock.Now})
	ok(t, err)
	if got := a.State().Known.Position.Count; got != m.j.Position().Count {
		t.Fatalf("%s: %d of %d events are archived", what, got, m.j.Position().Count)
	}
	m.clock.add(3 * time.Hour) // what nobody knows is old by then
	ok(t, mem.Create(t.Context(), "cluster-a/segments/0/newer", strings.NewReader("x"), 1, archive.CreateOptions{}))
	_, err = compactor.Repair(t.Context(), a, false)
	ok(t, err)
	known := a.State().Files()
	for _, g := range a.State().Garbage {
		known[g.Name] = g.File
	}
	for name := range files(t, mem) {
		short := strings.TrimPrefix(name, "cluster-a/")
		if _, ok := known[short]; !ok && !strings.HasSuffix(name, "/newer") && (strings.HasPrefix(short, "segments/") || strings.HasPrefix(short, "snapshots/")) {
			t.Fatalf("%s: %s is left over, and nobody knows it", what, short)
		}
	}
	m.judge(t, mem, what+", swept")
}

// hiccup is a store of which one call, and those right after it, fail; then it works again. With lost,
// writes are done all the same.
type hiccup struct {
	archive.Store
	mu    sync.Mutex
	calls int
	at, n int
	lost  bool
}

func (h *hiccup) call() (done bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls++
	if h.calls < h.at || h.calls >= h.at+h.n {
		return true, nil
	}
	if h.lost {
		return true, storetest.ErrLost
	}
	return false, storetest.ErrUnavailable
}

func (h *hiccup) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	done, err := h.call()
	if done {
		err = errors.Join(h.Store.Create(ctx, name, body, size, o), err)
	}
	return err
}

func (h *hiccup) Remove(ctx context.Context, name string) error {
	done, err := h.call()
	if done {
		err = errors.Join(h.Store.Remove(ctx, name), err)
	}
	return err
}

func (h *hiccup) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if _, err := h.call(); err != nil {
		return err
	}
	return h.Store.ReadAt(ctx, name, p, off)
}

func (h *hiccup) Stat(ctx context.Context, name string) (archive.FileInfo, error) {
	if _, err := h.call(); err != nil {
		return archive.FileInfo{}, err
	}
	return h.Store.Stat(ctx, name)
}

func (h *hiccup) List(ctx context.Context, prefix, after string) iter.Seq2[archive.FileInfo, error] {
	if _, err := h.call(); err != nil {
		return func(yield func(archive.FileInfo, error) bool) { yield(archive.FileInfo{}, err) }
	}
	return h.Store.List(ctx, prefix, after)
}

// The store fails at any call, not done or done and not heard of, for one call or a few, and comes
// back: the same Shipper goes on, is not fenced by itself, and loses nothing.
func TestStoreThatFailsAndComesBack(t *testing.T) {
	for _, lost := range []bool{false, true} {
		for _, n := range []int{1, 4} {
			calls := 1
			for at := 1; at <= calls; at++ {
				mem := archive.NewMemStore()
				m := newSmall(t, mem)
				mem.Clock = m.clock.Now
				store := &hiccup{Store: mem, at: at, n: n, lost: lost}
				s := m.shipper(t, store)
				s.SetRetention(retention.Policy{Window: 10 * time.Minute})
				what := fmt.Sprintf("%d calls fail from call %d on (lost: %v)", n, at, lost)
				m.day(t, what, s)
				if calls = store.calls; at > 1 && at%7 != 0 && testing.Short() {
					continue
				}
				m.settled(t, what, mem)
			}
			t.Logf("%d calls, failing %d at a time, lost: %v", calls, n, lost)
		}
	}
}

// Faults of all kinds, by chance, in reads and writes; and at last the store works.
func TestStoreWithFaultsByChance(t *testing.T) {
	for seed := range uint64(12) {
		mem := archive.NewMemStore()
		m := newSmall(t, mem)
		mem.Clock = m.clock.Now
		store := &storetest.Faulty{Store: mem, Seed: seed, Rates: storetest.Rates{Fail: 0.08, Lose: 0.08, Cut: 0.03, Flip: 0.01}}
		s := m.shipper(t, store)
		s.SetRetention(retention.Policy{Window: 10 * time.Minute})
		what := fmt.Sprintf("seed %d", seed)
		if failures := m.day(t, what, s); failures == 0 {
			t.Errorf("%s: nothing failed: the test proves nothing", what)
		}
		m.settled(t, what, mem)
	}
}

// Every read of a merge that has no local copies gives a wrong bit once: what is committed is right.
func TestWrongBitsAreNeverCommitted(t *testing.T) {
	for at := range 12 {
		mem := archive.NewMemStore()
		m := newSmall(t, mem)
		store := &storetest.Faulty{Store: mem, Seed: uint64(at)}
		s := m.shipper(t, store)
		_, err := s.Connect(t.Context())
		ok(t, err)
		for range 6 {
			m.record(t, 10)
			m.clock.add(10 * time.Second)
			ok(t, s.Seal(t.Context()))
		}
		m.clock.add(time.Hour)
		m.record(t, 1)
		ok(t, s.Seal(t.Context()))
		s = m.shipper(t, store) // it has read nothing yet
		_, err = s.Connect(t.Context())
		ok(t, err)
		store.Flip(at + 1)
		patiently(t, "merge", func() error { return s.Merge(t.Context()) })
		m.judge(t, mem, fmt.Sprintf("%d wrong bits", at+1))
	}
}

// Lists that do not show what is new yet make nobody fork the chain, and no sweep remove what is referred to.
func TestListsThatLag(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	mem.Clock = m.clock.Now
	store := &storetest.Faulty{Store: mem}
	s := m.shipper(t, store)
	_, err := s.Connect(t.Context())
	ok(t, err)
	m.record(t, 5)
	ok(t, s.Seal(t.Context()))
	store.Freeze(true)
	for range 5 {
		m.record(t, 5)
		m.clock.add(20 * time.Second)
		ok(t, s.Seal(t.Context()))
	}
	want := s.Archive().State().Seq
	s = m.shipper(t, store) // the daemon is started anew
	_, err = s.Connect(t.Context())
	ok(t, err)
	if got := s.Archive().State().Seq; got != want {
		t.Errorf("opened at manifest %d, and there are %d", got, want)
	}
	m.record(t, 5)
	ok(t, s.Seal(t.Context()))
	m.clock.add(3 * time.Hour)
	_, err = s.Snapshot(t.Context(), compactor.SnapshotRequest{})
	ok(t, err)
	r, err := s.Repair(t.Context(), false)
	ok(t, err)
	if len(r.Dropped)+len(r.Removed) > 0 {
		t.Errorf("repair dropped %v and removed %v", r.Dropped, r.Removed)
	}
	store.Freeze(false)
	m.settled(t, "lists that lagged", mem)
}

// While no archive can be reached, for longer than the window, capture goes on, the journal keeps
// everything, and the status tells; afterwards all is archived.
func TestJournalKeepsWhatNoArchiveHas(t *testing.T) {
	for _, denied := range []bool{false, true} {
		mem := archive.NewMemStore()
		const window = 16 * time.Minute
		m := newSmall(t, mem, func(o *journal.Options) { o.Window = window })
		store := &storetest.Faulty{Store: mem}
		s := m.shipper(t, store)
		_, err := s.Connect(t.Context())
		ok(t, err)
		m.record(t, 5)
		ok(t, s.Seal(t.Context()))
		archived := m.j.Position().Count
		if denied {
			store.Deny(true)
		} else {
			store.Down(true)
		}
		for range 20 {
			m.record(t, 5)
			m.clock.add(window / 8)
			if err := s.Seal(t.Context()); err == nil {
				t.Fatal("sealed into a store that is down")
			}
			m.j.KeepAfter(s.Keep())
			_, err := m.j.Trim(t.Context())
			ok(t, err)
		}
		st := s.Status()
		if st.PendingEvents != 100 || st.PendingBytes == 0 || st.ArchivedTo.Count != archived || st.Waiting.IsZero() {
			t.Errorf("the status: %+v", st)
		}
		store.Deny(false)
		store.Down(false)
		ok(t, s.Seal(t.Context()))
		if st := s.Status(); st.PendingEvents != 0 || !st.Waiting.IsZero() {
			t.Errorf("the status, caught up: %+v", st)
		}
		m.settled(t, "after the store came back", mem)
	}
}

// The daemon's own loop tells of the trouble, tries again, and forgets it.
func TestRunTellsAndGetsOver(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	store := &storetest.Faulty{Store: mem}
	s, err := compactor.NewShipper(compactor.Options{
		Journal: m.j, Clock: m.clock.Now, Open: func(context.Context) (archive.Store, error) { return store, nil }, SealInterval: 10 * time.Millisecond,
		Archive: archive.Options{Recipients: []age.Recipient{m.identity.Recipient()}, Identities: []age.Identity{m.identity}},
	})
	ok(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	until := func(what string, met func(compactor.Status) bool) {
		t.Helper()
		for begin := time.Now(); !met(s.Status()); time.Sleep(5 * time.Millisecond) {
			if time.Since(begin) > 20*time.Second {
				t.Fatalf("%s: %+v", what, s.Status())
			}
		}
	}
	m.record(t, 5)
	until("sealed", func(st compactor.Status) bool { return st.ArchivedTo.Count > 0 && st.PendingEvents == 0 })
	store.Down(true)
	m.record(t, 5)
	until("told", func(st compactor.Status) bool {
		return strings.Contains(st.Error, "503") && st.PendingEvents == 5 && !st.Since.IsZero() && !st.Stopped
	})
	store.Down(false)
	until("got over", func(st compactor.Status) bool { return st.Error == "" && st.PendingEvents == 0 })
	cancel()
	ok(t, <-ended)
	m.judge(t, mem, "after the run")
}

// Many changes are sealed at once, however long the interval is; few wait for it.
func TestSealingBySize(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	s, err := compactor.NewShipper(compactor.Options{
		Journal: m.j, Clock: m.clock.Now, Open: func(context.Context) (archive.Store, error) { return mem, nil }, SealInterval: time.Hour, SealBytes: 20_000,
		Archive: archive.Options{Recipients: []age.Recipient{m.identity.Recipient()}, Identities: []age.Identity{m.identity}},
	})
	ok(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	for begin := time.Now(); s.Archive() == nil; time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("not connected: %+v", s.Status())
		}
	}
	m.record(t, 10)
	time.Sleep(700 * time.Millisecond) // it looks every 250 ms
	if st := s.Status(); st.PendingEvents != 10 || st.PendingBytes == 0 || st.PendingBytes >= 20_000 {
		t.Fatalf("a few changes: %+v", st)
	}
	for s.Status().PendingBytes < 20_000 && s.Status().PendingEvents > 0 {
		m.record(t, 10)
	}
	for begin := time.Now(); s.Status().PendingEvents > 0; time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("many changes: %+v", s.Status())
		}
	}
	cancel()
	ok(t, <-ended)
}

// What the first lists have found is sealed as soon as they are complete, however long the interval is.
func TestFirstListsAreSealedAtOnce(t *testing.T) {
	mem := archive.NewMemStore()
	m := newEmpty(t, mem)
	m.list(t, configMaps)
	m.list(t, secrets)
	s, err := compactor.NewShipper(compactor.Options{
		Journal: m.j, Clock: m.clock.Now, Open: func(context.Context) (archive.Store, error) { return mem, nil }, SealInterval: time.Hour,
		Archive: archive.Options{Recipients: []age.Recipient{m.identity.Recipient()}, Identities: []age.Identity{m.identity}},
	})
	ok(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	until := func(what string, met func() bool) {
		t.Helper()
		for begin := time.Now(); !met(); time.Sleep(5 * time.Millisecond) {
			if time.Since(begin) > 20*time.Second {
				t.Fatalf("%s: %+v", what, s.Status())
			}
		}
	}
	until("the first seal", func() bool {
		return s.Archive() != nil && s.Archive().State().Known.Position.Time.Equal(m.j.Position().Time)
	})
	m.clock.add(time.Second)
	m.list(t, nodes)
	m.record(t, 3)
	if pending := s.Status().PendingEvents; pending != 3 {
		t.Fatalf("%d wait, not 3", pending)
	}
	ok(t, m.j.SetBegan(t.Context()))
	until("the lists to be sealed", func() bool { return s.Status().PendingEvents == 0 })
	cancel()
	ok(t, <-ended)
}

// The answer to a commit is lost: the manifest is there once, and the writer takes it for its own.
func TestLostAnswerToACommit(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	store := &storetest.Faulty{Store: mem}
	s := m.shipper(t, store)
	_, err := s.Connect(t.Context())
	ok(t, err)
	m.record(t, 5)
	seq := s.Archive().State().Seq
	// The segment's answer is heard, the manifest's is not.
	lose := &losing{Store: store, match: "manifests/"}
	s = m.shipper(t, lose)
	_, err = s.Connect(t.Context())
	ok(t, err)
	lose.on = true
	if err := s.Seal(t.Context()); !errors.Is(err, storetest.ErrLost) {
		t.Fatalf("seal: %v, want the lost answer", err)
	}
	ok(t, s.Seal(t.Context()))
	if got := s.Archive().State().Seq; got != seq+1 {
		t.Errorf("%d manifests since, want 1", got-seq)
	}
	m.record(t, 5)
	ok(t, s.Seal(t.Context()))
	m.judge(t, mem, "after a lost answer")
}

// The answer to a seal is lost, and a snapshot, which is the first to find that seal there, is committed while the next one is on
// its way: it was not another daemon that sealed.
func TestLostAnswerFoundByAnother(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	lose := &losing{Store: mem, match: "manifests/"}
	image := &paused{Store: lose, reached: make(chan struct{}), resume: make(chan struct{}), what: "snapshots/"}
	segment := &paused{Store: image, reached: make(chan struct{}), resume: make(chan struct{}), what: "segments/"}
	s := m.shipper(t, segment)
	_, err := s.Connect(t.Context())
	ok(t, err)
	image.armed = true
	imaged, sealed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := s.Snapshot(t.Context(), compactor.SnapshotRequest{Name: "meanwhile"})
		imaged <- err
	}()
	<-image.reached
	m.record(t, 5)
	lose.on = true
	if err := s.Seal(t.Context()); !errors.Is(err, storetest.ErrLost) {
		t.Fatalf("seal: %v, want the lost answer", err)
	}
	m.record(t, 5)
	segment.armed = true
	go func() { sealed <- s.Seal(t.Context()) }()
	<-segment.reached
	close(image.resume)
	ok(t, <-imaged)
	close(segment.resume)
	ok(t, <-sealed)
	ok(t, s.Seal(t.Context()))
	m.judge(t, mem, "after a lost answer that a snapshot found")
}

// losing loses the answer to the next Create of a name.
type losing struct {
	archive.Store
	match string
	on    bool
}

func (l *losing) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	err := l.Store.Create(ctx, name, body, size, o)
	if err == nil && l.on && strings.Contains(name, l.match) {
		l.on = false
		return storetest.ErrLost
	}
	return err
}
