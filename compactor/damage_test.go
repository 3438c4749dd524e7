package compactor_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// small is a small archive with something of everything, and what it must answer.
type small struct {
	identity *age.X25519Identity
	clock    *clock
	j        *journal.Journal
	s        *compactor.Shipper
	cuts     []journal.Cut
	folds    []map[string]string
	changes  []string
	rv       uint64
}

func newSmall(t testing.TB, store archive.Store, change ...func(*journal.Options)) *small {
	t.Helper()
	m := newEmpty(t, store, change...)
	for _, info := range []journal.ResourceInfo{configMaps, secrets, nodes} {
		m.list(t, info)
	}
	ok(t, m.j.SetBegan(t.Context()))
	return m
}

// newEmpty is a journal before its first lists.
func newEmpty(t testing.TB, store archive.Store, change ...func(*journal.Options)) *small {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	m := &small{identity: identity, clock: &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}, rv: 100}
	o := journal.Options{FS: vfs.NewMem(), Key: []byte("0123456789abcdef0123456789abcdef"), Free: func() (uint64, error) { return 1 << 40, nil }, Clock: m.clock.Now}
	for _, f := range change {
		f(&o)
	}
	m.j, err = journal.Open("/data", o)
	ok(t, err)
	t.Cleanup(func() { _ = m.j.Close() })
	ok(t, m.j.Bind(t.Context(), "cluster-a"))
	m.s = m.shipper(t, store)
	return m
}

// list is the first list of a resource, which has nothing.
func (m *small) list(t testing.TB, info journal.ResourceInfo) {
	t.Helper()
	c, err := m.j.Compare(t.Context(), journal.Recording{ResourceInfo: info}, m.rv, "")
	ok(t, err)
	_, err = c.Commit(t.Context(), m.rv)
	ok(t, err)
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (m *small) shipper(t testing.TB, store archive.Store) *compactor.Shipper {
	t.Helper()
	s, err := compactor.NewShipper(compactor.Options{
		Journal: m.j, Clock: m.clock.Now, Open: func(context.Context) (archive.Store, error) { return store, nil }, Grace: time.Minute,
		Archive: archive.Options{Recipients: []age.Recipient{m.identity.Recipient()}, Identities: []age.Identity{m.identity}},
	})
	ok(t, err)
	return s
}

// record records n changes, and remembers the state after them.
func (m *small) record(t testing.TB, n int) {
	t.Helper()
	for range n {
		m.rv++
		info := []journal.ResourceInfo{configMaps, secrets, nodes}[m.rv%3]
		e := journal.Event{
			Resource: info.GroupResource(), Name: fmt.Sprint("o", m.rv%7), UID: "u", Op: journal.Modified, Revision: journal.Revision{RV: m.rv},
			Object: fmt.Appendf(nil, `{"metadata":{"resourceVersion":"%d"},"data":{"k":"canary"}}`, m.rv),
		}
		if info.Namespaced {
			e.Namespace = fmt.Sprint("ns", m.rv%2)
		}
		if m.rv%11 == 0 {
			e.Op = journal.Deleted
		}
		ok(t, m.j.Append(t.Context(), e))
		ok(t, m.j.Flush(t.Context()))
	}
	cut := m.j.Newest()
	fold, err := foldOf(replay.NewLocal(m.j), cut)
	ok(t, err)
	m.cuts, m.folds = append(m.cuts, cut), append(m.folds, fold)
	m.changes, err = changesOf(replay.NewLocal(m.j))
	ok(t, err)
}

// changesOf is all that a source tells of changes.
func changesOf(src replay.Source) (all []string, err error) {
	for c, err := range src.Changes(context.Background(), replay.ChangeQuery{}) {
		if err != nil {
			return all, err
		}
		all = append(all, fmt.Sprint(c.Observed.UnixNano(), c.Op, c.ID(), c.Revision, string(c.Object)))
	}
	return all, nil
}

// fill makes the archive.
func (m *small) fill(t testing.TB) {
	t.Helper()
	_, err := m.s.Connect(t.Context())
	ok(t, err)
	for i := range 12 {
		m.record(t, 10)
		m.clock.add(20 * time.Second)
		ok(t, m.s.Seal(t.Context()))
		if i == 3 || i == 8 {
			_, err := m.s.Snapshot(t.Context(), compactor.SnapshotRequest{})
			ok(t, err)
		}
		if i == 7 {
			ok(t, m.s.Merge(t.Context()))
			m.clock.add(2 * time.Minute)
			m.s.Archive().Age()
			ok(t, m.s.Merge(t.Context())) // removes what was merged
		}
	}
}

// files are the archive's files.
func files(t testing.TB, store archive.Store) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for f, err := range store.List(t.Context(), "", "") {
		ok(t, err)
		b := make([]byte, f.Size)
		ok(t, store.ReadAt(t.Context(), f.Name, b, 0))
		all[f.Name] = b
	}
	return all
}

// ask asks for every cut. A wrong answer fails the test; an error is told by its cut.
func (m *small) ask(t testing.TB, store archive.Store, what string) (failed map[int]bool) {
	t.Helper()
	failed = map[int]bool{}
	discreet := func(err error) {
		if strings.Contains(err.Error(), "canary") {
			t.Fatalf("%s: an error tells too much: %v", what, err)
		}
	}
	all := func(err error) map[int]bool {
		discreet(err)
		for i := range m.cuts {
			failed[i] = true
		}
		return failed
	}
	a, err := archive.Open(t.Context(), store, archive.Options{Identities: []age.Identity{m.identity}})
	if err != nil {
		return all(err)
	}
	h, lost := a.History(), 0
	h.OnLost = func(*archive.DamageError) { lost++ }
	src := replay.NewArchived(h)
	for i, cut := range m.cuts {
		if cut.Time.After(a.State().Known.Position.Time) {
			failed[i] = true
			continue
		}
		got, err := foldOf(src, cut)
		if err != nil {
			discreet(err)
			failed[i] = true
			continue
		}
		if d := cmp.Diff(m.folds[i], got); d != "" {
			t.Fatalf("%s: a wrong answer at %s (-want +got):\n%s", what, cut, d)
		}
	}
	told, err := changesOf(src)
	if err != nil {
		discreet(err)
	}
	rest := m.changes
	for _, c := range told { // some may be missing; none may be wrong
		i := slices.Index(rest, c)
		if i < 0 {
			t.Fatalf("%s: the log tells of a change that was not, or out of order: %s", what, c)
		}
		rest = rest[i+1:]
	}
	if len(failed) == 0 && err == nil && len(told) < len(m.changes) && lost == 0 && len(a.State().Ranges()) == 1 && a.State().Known.Position.Count == uint64(len(m.changes)) {
		t.Fatalf("%s: %d of %d changes are told, and there is no hole", what, len(told), len(m.changes))
	}
	return failed
}

// memStore makes a store that holds the files.
func memStore(t testing.TB, files map[string][]byte) *archive.MemStore {
	t.Helper()
	s := archive.NewMemStore()
	for name, b := range files {
		ok(t, s.Create(t.Context(), name, bytes.NewReader(b), int64(len(b)), archive.CreateOptions{}))
	}
	return s
}

func verified(t testing.TB, store archive.Store, identity age.Identity) (*compactor.Report, error) {
	t.Helper()
	a, err := archive.Open(t.Context(), store, archive.Options{Identities: []age.Identity{identity}})
	if err != nil {
		return nil, err
	}
	return compactor.Verify(t.Context(), a, compactor.Level{Checksum: true, Percent: 100, Full: true})
}

// Verify writes nothing: it can be killed at any moment, and may be run by whoever may only read.
func TestVerifyWritesNothing(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	m.fill(t)
	store := &dying{Store: mem, left: 0}
	if r, err := verified(t, store, m.identity); err != nil || r.Damaged() || r.Proven == 0 || store.dead {
		t.Errorf("over a store that takes no write: %+v, %v", r, err)
	}
}

// Bytes of every file are flipped, in turn: it is found before it is used, no answer is wrong, and
// what does not depend on the file is still answered. Some twenty bytes of each file are;
// TIDEMARK_EVERY_BYTE=1 takes all of them, and a quarter of an hour.
func TestFlippedBytesAreFound(t *testing.T) {
	store := archive.NewMemStore()
	m := newSmall(t, store)
	m.fill(t)
	all := files(t, store)
	if failed := m.ask(t, store, "undamaged"); len(failed) > 0 {
		t.Fatalf("undamaged, %d of %d cuts are not answered", len(failed), len(m.cuts))
	}
	if r, err := verified(t, store, m.identity); err != nil || r.Damaged() || r.Proven == 0 {
		t.Fatalf("undamaged: %+v, %v", r, err)
	}
	total, n := 0, 0
	for _, name := range slices.Sorted(maps.Keys(all)) {
		total += len(all[name])
		stride := max(1, len(all[name])/20)
		if os.Getenv("TIDEMARK_EVERY_BYTE") != "" {
			stride = 1
		}
		for at := 0; at < len(all[name]); at += stride {
			bad := maps.Clone(all)
			bad[name] = slices.Clone(all[name])
			bad[name][at] ^= 1 << (at % 8)
			m.damaged(t, memStore(t, bad), name, fmt.Sprintf("%s, byte %d of %d", name, at, len(all[name])))
			n++
		}
	}
	t.Logf("%d bytes of %d in %d files", n, total, len(all))
}

// Every file is cut short at several places, and taken away.
func TestTruncatedFilesAreFound(t *testing.T) {
	store := archive.NewMemStore()
	m := newSmall(t, store)
	m.fill(t)
	all := files(t, store)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		size := len(all[name])
		for _, keep := range []int{-1, 0, 1, size / 2, size - 1} {
			bad := maps.Clone(all)
			if keep < 0 {
				delete(bad, name)
			} else {
				bad[name] = all[name][:keep]
			}
			m.damaged(t, memStore(t, bad), name, fmt.Sprintf("%s, %d bytes of %d", name, keep, size))
		}
	}
}

func (m *small) damaged(t *testing.T, store archive.Store, name, what string) {
	t.Helper()
	short := strings.TrimPrefix(name, "cluster-a/")
	failed := m.ask(t, store, what)
	r, err := verified(t, store, m.identity)
	switch {
	case err != nil:
		if !strings.Contains(err.Error(), short) {
			t.Fatalf("%s: verify fails and does not name the file: %v", what, err)
		}
	case !slices.ContainsFunc(r.Problems, func(p compactor.Problem) bool { return p.File == short }) && !m.lastManifestGone(t, store, name):
		t.Fatalf("%s: verify finds %+v", what, r.Problems)
	}
	limit := len(m.cuts) - 1 // a file costs its own span, and never everything
	if strings.HasPrefix(short, "format") || strings.HasPrefix(short, "checkpoints/") || strings.HasPrefix(short, "manifests/") && !last(t, store, name) {
		limit = 0 // the chain of manifests, or the next one, tells the same
	}
	if len(failed) > limit {
		t.Fatalf("%s: %d of %d cuts are not answered", what, len(failed), len(m.cuts))
	}
}

// lastManifestGone reports whether the file was the last link of the chain and is gone as if it had never been:
// what only the journal, and who remembers, can tell.
func (m *small) lastManifestGone(t *testing.T, store archive.Store, name string) bool {
	t.Helper()
	if _, err := store.Stat(t.Context(), name); err == nil || !strings.Contains(name, "manifests/") {
		return false
	}
	return last(t, store, name)
}

// last reports whether no manifest comes after this one.
func last(t *testing.T, store archive.Store, name string) bool {
	t.Helper()
	for f, err := range store.List(t.Context(), "cluster-a/manifests/", name) {
		ok(t, err)
		_ = f
		return false
	}
	return true
}
