package compactor_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
)

// flipped are the store's files with a byte flipped in n manifests from seq on.
func flipped(t testing.TB, store archive.Store, seq uint64, n int) map[string][]byte {
	t.Helper()
	all := files(t, store)
	for i := range uint64(n) {
		name := fmt.Sprintf("cluster-a/manifests/%020d.json", seq+i)
		if all[name] == nil {
			t.Fatalf("there is no %s", name)
		}
		all[name][len(all[name])/2] ^= 1
	}
	return all
}

// A damaged manifest is told, costs nothing, and does not keep repair from sweeping: the next one
// says the same.
func TestDamagedManifestCostsNothing(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	m.fill(t)
	want := m.s.Archive().State()
	for seq := uint64(1); seq < want.Seq; seq++ {
		store := memStore(t, flipped(t, mem, seq, 1))
		a, err := archive.Open(t.Context(), store, archive.Options{Identities: []age.Identity{m.identity}})
		ok(t, err)
		got := a.State()
		if len(got.Segments) != len(want.Segments) || len(got.Snapshots) != len(want.Snapshots) || len(got.Garbage) != len(want.Garbage) || got.Journal != want.Journal || len(got.Lost) > 0 {
			t.Errorf("manifest %d damaged: %d segments, %d snapshots, %d to remove, lost %v: want %d, %d, %d", seq,
				len(got.Segments), len(got.Snapshots), len(got.Garbage), got.Lost, len(want.Segments), len(want.Snapshots), len(want.Garbage))
		}
		if a.Broken() || len(a.Damage()) != 1 || !strings.Contains(a.Damage()[0].Error(), "nothing is lost") {
			t.Errorf("manifest %d damaged: it is told as %v", seq, a.Damage())
		}
		r, err := compactor.Verify(t.Context(), a, compactor.Level{})
		ok(t, err)
		if len(r.Problems) != 1 || !strings.HasPrefix(r.Problems[0].Cost, "nothing") {
			t.Errorf("manifest %d damaged: verify finds %+v", seq, r.Problems)
		}
	}
}

// A chain with a checkpoint: what is damaged around it costs nothing.
func TestDamageAroundACheckpoint(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	m.fill(t)
	p := m.s.Archive().State().Snapshots[0]
	for m.s.Archive().State().Seq < 66 {
		_, err := compactor.Edit(t.Context(), m.s.Archive(), p.ID, func(p *archive.Snapshot) error { p.Pinned = !p.Pinned; return nil })
		ok(t, err)
	}
	m.record(t, 3)
	ok(t, m.s.Seal(t.Context()))
	all := files(t, mem)
	const point = "cluster-a/checkpoints/00000000000000000064.json"
	if all[point] == nil {
		t.Fatal("there is no checkpoint 64")
	}
	for seq := 63; seq <= 67; seq++ {
		name := fmt.Sprintf("cluster-a/manifests/%020d.json", seq)
		for _, lost := range [][]string{{name}, {name, point}} {
			bad := maps.Clone(all)
			for _, f := range lost {
				bad[f] = slices.Clone(all[f])
				bad[f][len(bad[f])/3] ^= 4
			}
			m.damaged(t, memStore(t, bad), name, strings.Join(lost, ", "))
		}
	}
	for at := 0; at < len(all[point]); at += len(all[point]) / 30 {
		bad := maps.Clone(all)
		bad[point] = slices.Clone(all[point])
		bad[point][at] ^= 1 << (at % 8)
		m.damaged(t, memStore(t, bad), point, fmt.Sprintf("%s, byte %d", point, at))
	}
}

// rewritten replaces strings in the body of an envelope, and makes its hash anew.
func rewritten(b []byte, old, changed string) []byte {
	const head = len(`{"sha256":"","body":`) + 2*sha256.Size
	body := bytes.Replace(b[head:len(b)-2], []byte(old), []byte(changed), 1)
	return fmt.Appendf(nil, `{"sha256":"%x","body":%s}`+"\n", sha256.Sum256(body), body)
}

// What a newer version wrote is refused as such, also when its fields have other types.
func TestNewerVersionIsNotDamage(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	m.fill(t)
	for _, file := range []string{"format", "manifests/00000000000000000003.json"} {
		all := files(t, mem)
		name := "cluster-a/" + file
		all[name] = rewritten(all[name], `/1","cluster":"cluster-a"`, `/2","cluster":["cluster-a"]`)
		if _, err := archive.Open(t.Context(), memStore(t, all), archive.Options{}); !errors.Is(err, archive.ErrFormat) || !strings.Contains(err.Error(), file) {
			t.Errorf("a newer %s: %v, want ErrFormat", file, err)
		}
	}
}

// The file "format" of another archive is whole; that it is the wrong one is told by its own name.
func TestExchangedFormatIsNamed(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	m.fill(t)
	all := files(t, mem)
	all["cluster-a/format"] = rewritten(all["cluster-a/format"], `"created":"2026`, `"created":"2025`)
	a, err := archive.Open(t.Context(), memStore(t, all), archive.Options{})
	ok(t, err)
	if d := a.Damage(); len(d) != 1 || d[0].File != "format" {
		t.Errorf("damage: %v, want format", d)
	}
}

// The manifest of a take-over is damaged after the new daemon wrote it: the old one, which comes back and
// cannot read it, and the new one do not both go on.
func TestDamagedTakeOverLeavesOneWriter(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	_, err := m.s.Connect(t.Context())
	ok(t, err)
	m.record(t, 10)
	ok(t, m.s.Seal(t.Context()))
	dir := t.TempDir()
	free := func() (uint64, error) { return 1 << 40, nil }
	_, err = compactor.Recover(t.Context(), mem, archive.Options{Identities: []age.Identity{m.identity}}, dir, journal.Options{Free: free}, 0)
	ok(t, err)
	j, err := journal.Open(dir, journal.Options{Free: free})
	ok(t, err)
	defer j.Close()
	next, err := compactor.NewShipper(compactor.Options{
		Journal: j, Clock: m.clock.Now, Open: func(context.Context) (archive.Store, error) { return mem, nil }, Archive: archive.Options{Recipients: []age.Recipient{m.identity.Recipient()}},
	})
	ok(t, err)
	_, err = next.Connect(t.Context())
	ok(t, err)
	takeOver := fmt.Sprintf("cluster-a/manifests/%020d.json", m.s.Archive().State().Seq+1)
	damaged := flipped(t, mem, m.s.Archive().State().Seq+1, 1)[takeOver]
	ok(t, mem.Remove(t.Context(), takeOver))
	ok(t, mem.Create(t.Context(), takeOver, bytes.NewReader(damaged), int64(len(damaged)), archive.CreateOptions{}))
	m.record(t, 3)
	old := m.s.Seal(t.Context())
	ok(t, j.SetMark(t.Context(), "new", j.Newest()))
	if err := next.Seal(t.Context()); (err == nil) == (old == nil) || !errors.Is(errors.Join(old, err), archive.ErrFenced) {
		t.Errorf("the old daemon: %v; the new one: %v; want one ErrFenced", old, err)
	}
}

// A hold follows what it holds: through a rotation, and among snapshots that share a file.
func TestHoldsFollowTheFile(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	_, err := m.s.Connect(t.Context())
	ok(t, err)
	m.record(t, 10)
	one, err := m.s.Snapshot(t.Context(), compactor.SnapshotRequest{Name: "one"})
	ok(t, err)
	two, err := m.s.Snapshot(t.Context(), compactor.SnapshotRequest{Name: "two"})
	ok(t, err)
	if one.Name != two.Name {
		t.Fatal("the snapshots do not share a file")
	}
	a, err := archive.Open(t.Context(), mem, archive.Options{Identities: []age.Identity{m.identity}, Recipients: []age.Recipient{m.identity.Recipient()}, Clock: m.clock.Now})
	ok(t, err)
	held := func(name string) bool {
		err := mem.Remove(t.Context(), "cluster-a/"+name)
		if err != nil && !errors.Is(err, archive.ErrHeld) {
			t.Fatal(err)
		}
		return err != nil
	}
	for _, name := range []string{"one", "two"} {
		_, err = compactor.Hold(t.Context(), a, name, true)
		ok(t, err)
	}
	_, err = compactor.Hold(t.Context(), a, "one", false)
	ok(t, err)
	if !held(one.Name) {
		t.Fatal("the file of a held snapshot can be removed since another one that shares it was released")
	}
	_, _, err = compactor.Rotate(t.Context(), a)
	ok(t, err)
	renewed := a.State().Snapshot("two").Name
	if renewed == one.Name || !held(renewed) {
		t.Fatalf("after the rotation, %s can be removed", renewed)
	}
	if held(one.Name) {
		t.Error("the old file is held for ever")
	}
	_, err = compactor.Hold(t.Context(), a, "two", false)
	ok(t, err)
	if held(renewed) {
		t.Error("a released file is still held")
	}
}

// Without an identity, segments that can be read neither from copies nor from the journal stay apart,
// and do not keep later ones from being merged.
func TestWhatCannotBeReadDoesNotStopMerging(t *testing.T) {
	mem := archive.NewMemStore()
	const window = 16 * time.Minute
	m := newSmall(t, mem, func(o *journal.Options) { o.Window = window })
	blind := func() *compactor.Shipper {
		s, err := compactor.NewShipper(compactor.Options{
			Journal: m.j, Clock: m.clock.Now, Open: func(context.Context) (archive.Store, error) { return mem, nil }, Grace: time.Minute,
			Archive: archive.Options{Recipients: []age.Recipient{m.identity.Recipient()}},
		})
		ok(t, err)
		_, err = s.Connect(t.Context())
		ok(t, err)
		return s
	}
	s := blind()
	for range 6 {
		m.record(t, 5)
		m.clock.add(10 * time.Second)
		ok(t, s.Seal(t.Context()))
	}
	m.j.KeepAfter(s.Keep())
	for range 12 { // the journal forgets what it has archived
		m.clock.add(window / 8)
		_, err := m.j.Trim(t.Context())
		ok(t, err)
	}
	if h := m.j.Horizon(); !h.Time.After(s.Archive().State().Segments[0].To.Time) {
		t.Fatalf("the journal still begins at %s", h)
	}
	for range 6 {
		m.record(t, 5)
		m.clock.add(10 * time.Second)
		ok(t, s.Seal(t.Context()))
	}
	m.clock.add(time.Hour)
	m.record(t, 1)
	s = blind() // the copies of another process are gone
	ok(t, s.Seal(t.Context()))
	ok(t, s.Merge(t.Context()))
	segments := s.Archive().State().Segments
	merged := slices.ContainsFunc(segments, func(g archive.Segment) bool { return g.Level > 0 })
	if first := segments[0]; first.Level > 0 || !merged {
		t.Errorf("the oldest segment has level %d (it cannot be read), merged later ones: %v", first.Level, merged)
	}
	m.judge(t, mem, "merged in part")
}
