package compactor_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// dying is a store whose process dies at the nth write: before it is done, or after it was done and
// before anybody knows. From then on nothing works.
type dying struct {
	archive.Store
	mu    sync.Mutex
	left  int // writes until the end; negative: for ever
	after bool
	dead  bool
}

var errDead = errors.New("the process is dead")

// write counts a write; done tells whether it still happens, err what the caller hears.
func (d *dying) write() (done bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return false, errDead
	}
	if d.left < 0 {
		return true, nil
	}
	if d.left--; d.left >= 0 {
		return true, nil
	}
	d.dead = true
	return d.after, errDead
}

func (d *dying) alive() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errDead
	}
	return nil
}

func (d *dying) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	done, err := d.write()
	if done {
		err = errors.Join(err, d.Store.Create(ctx, name, body, size, o))
	}
	return err
}

func (d *dying) Remove(ctx context.Context, name string) error {
	done, err := d.write()
	if done {
		err = errors.Join(err, d.Store.Remove(ctx, name))
	}
	return err
}

func (d *dying) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	return errors.Join(d.alive(), d.Store.ReadAt(ctx, name, p, off))
}

func (d *dying) Stat(ctx context.Context, name string) (archive.FileInfo, error) {
	f, err := d.Store.Stat(ctx, name)
	return f, errors.Join(d.alive(), err)
}

func (d *dying) List(ctx context.Context, prefix, after string) iter.Seq2[archive.FileInfo, error] {
	if err := d.alive(); err != nil {
		return func(yield func(archive.FileInfo, error) bool) { yield(archive.FileInfo{}, err) }
	}
	return d.Store.List(ctx, prefix, after)
}

// life is everything that is ever done to an archive, in one go.
func (m *small) life(t testing.TB, s *compactor.Shipper, store archive.Store, second *age.X25519Identity, dir string) error {
	ctx := t.Context()
	_, err := s.Connect(ctx)
	for _, step := range []func() error{
		func() error { return s.Seal(ctx) },
		func() error { _, err := s.Snapshot(ctx, compactor.SnapshotRequest{}); return err },
		func() error { return s.Merge(ctx) },
		func() error {
			m.clock.add(30 * time.Minute)
			s.Archive().Age()
			_, err := s.Retain(ctx, false)
			return err
		},
		func() error { _, err := s.Repair(ctx, false); return err },
		func() error {
			a, err := archive.Open(ctx, store, archive.Options{Identities: []age.Identity{m.identity, second}, Recipients: []age.Recipient{second.Recipient(), m.identity.Recipient()}, Clock: m.clock.Now})
			if err == nil {
				_, _, err = compactor.Rotate(ctx, a)
			}
			return err
		},
		func() error {
			_, err := compactor.Recover(ctx, store, archive.Options{Identities: []age.Identity{m.identity}, Clock: m.clock.Now}, dir,
				journal.Options{Free: func() (uint64, error) { return 1 << 40, nil }}, 0)
			return err
		},
	} {
		if err == nil {
			err = step()
		}
	}
	return err
}

// The process is killed at every write to the store, before and after it was done, in every step
// that there is. Nothing is lost, nothing that is referred to is missing, and another process goes on.
func TestKilledAtEveryWrite(t *testing.T) {
	second, err := age.GenerateX25519Identity()
	ok(t, err)
	for n := 0; ; n++ {
		for _, after := range []bool{false, true} {
			done := killedAt(t, n, after, second)
			if done && after {
				t.Logf("%d writes", n)
				return
			}
		}
		if n > 400 {
			t.Fatal("it does not come to an end")
		}
	}
}

func killedAt(t *testing.T, n int, after bool, second *age.X25519Identity) (done bool) {
	t.Helper()
	what := fmt.Sprintf("killed at write %d (done: %v)", n, after)
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	mem.Clock = m.clock.Now
	m.record(t, 10) // some of it is there before
	m.s.SetRetention(retention.Policy{Window: 10 * time.Minute})
	_, err := m.s.Connect(t.Context())
	ok(t, err)
	ok(t, m.s.Seal(t.Context()))
	for range 4 {
		m.record(t, 5)
		m.clock.add(40 * time.Second)
		ok(t, m.s.Seal(t.Context()))
	}
	_, err = m.s.Snapshot(t.Context(), compactor.SnapshotRequest{})
	ok(t, err)
	m.record(t, 10)

	store := &dying{Store: mem, left: n, after: after}
	s := m.shipper(t, store)
	s.SetRetention(retention.Policy{Window: 10 * time.Minute})
	dir := t.TempDir()
	err = m.life(t, s, store, second, dir)
	if err != nil && !store.dead {
		t.Fatalf("%s: it fails by itself: %v", what, err)
	}
	m.judge(t, mem, what+", right after")
	if err == nil {
		return true
	}
	// Another process does it all again. Only if the archive was taken over by then it must not.
	s = m.shipper(t, mem)
	s.SetRetention(retention.Policy{Window: 10 * time.Minute})
	if err := m.life(t, s, mem, second, dir); err != nil && !errors.Is(err, compactor.ErrForeign) && !errors.Is(err, journal.ErrNotEmpty) {
		t.Fatalf("%s: the next process cannot go on: %v", what, err)
	} else if errors.Is(err, compactor.ErrForeign) { // recover was under way: it is run again
		if _, err := compactor.Recover(t.Context(), mem, archive.Options{Identities: []age.Identity{m.identity}, Clock: m.clock.Now}, dir,
			journal.Options{Free: func() (uint64, error) { return 1 << 40, nil }}, 0); err != nil && !errors.Is(err, journal.ErrNotEmpty) {
			t.Fatalf("%s: recover cannot go on: %v", what, err)
		}
	}
	m.judge(t, mem, what+", and again")
	m.recovered(t, dir, what)
	return false
}

// judge checks that the archive is whole and gives right answers.
func (m *small) judge(t *testing.T, store archive.Store, what string) {
	t.Helper()
	r, err := verified(t, store, m.identity)
	if err != nil || r.Damaged() {
		t.Fatalf("%s: verify: %+v, %v", what, r, err)
	}
	a, err := archive.Open(t.Context(), store, archive.Options{Identities: []age.Identity{m.identity}})
	ok(t, err)
	if n := len(r.Restorable); n == 0 || !r.Restorable[n-1].To.Time.Equal(a.State().Known.Position.Time) {
		t.Fatalf("%s: restorable is %+v", what, r.Restorable)
	}
	src := replay.NewArchived(a.History())
	answered := 0
	for i, cut := range m.cuts {
		if !slices.ContainsFunc(r.Restorable, func(g archive.Range) bool { return !cut.Time.After(g.To.Time) && !cut.Time.Before(g.From.Time) }) {
			continue
		}
		got, err := foldOf(src, cut)
		ok(t, err)
		if d := cmp.Diff(m.folds[i], got); d != "" {
			t.Fatalf("%s: a wrong answer at %s (-want +got):\n%s", what, cut, d)
		}
		answered++
	}
	if answered == 0 {
		t.Fatalf("%s: no moment is restorable", what)
	}
}

// recovered checks the journal that Recover made.
func (m *small) recovered(t *testing.T, dir, what string) {
	t.Helper()
	j, err := journal.Open(dir, journal.Options{Free: func() (uint64, error) { return 1 << 40, nil }})
	if err != nil {
		t.Fatalf("%s: open what was recovered: %v", what, err)
	}
	defer j.Close()
	last := len(m.cuts) - 1
	got, err := foldOf(replay.NewLocal(j), m.cuts[last])
	ok(t, err)
	if d := cmp.Diff(m.folds[last], got); d != "" {
		t.Fatalf("%s: the recovered journal (-want +got):\n%s", what, d)
	}
}
