package compactor_test

import (
	"cmp"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
)

// paused is the store of a process that is stopped (SIGSTOP) when it is about to write its next manifest.
type paused struct {
	archive.Store
	reached chan struct{} // closed when it is about to
	resume  chan struct{} // closed to let it go on
	armed   bool
	what    string // the directory of the file; default: "manifests/"
}

func (p *paused) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	if p.armed && strings.Contains(name, cmp.Or(p.what, "manifests/")) {
		p.armed = false
		close(p.reached)
		<-p.resume
	}
	return p.Store.Create(ctx, name, body, size, o)
}

// One daemon is stopped in the middle of a commit; another takes over; the first goes on, and loses.
func TestPausedDaemonLosesToTheOneThatTookOver(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	store := &paused{Store: mem, reached: make(chan struct{}), resume: make(chan struct{})}
	s := m.shipper(t, store)
	_, err := s.Connect(t.Context())
	ok(t, err)
	m.record(t, 10)
	ok(t, s.Seal(t.Context()))
	m.record(t, 10)
	store.armed = true
	ended := make(chan error, 1)
	go func() { ended <- s.Seal(t.Context()) }()
	<-store.reached
	dir := t.TempDir()
	free := func() (uint64, error) { return 1 << 40, nil }
	_, err = compactor.Recover(t.Context(), mem, archive.Options{Identities: []age.Identity{m.identity}}, dir, journal.Options{Free: free}, 0)
	ok(t, err)
	j, err := journal.Open(dir, journal.Options{Free: free})
	ok(t, err)
	defer j.Close()
	next, err := compactor.NewShipper(compactor.Options{
		Journal: j, Open: func(context.Context) (archive.Store, error) { return mem, nil }, Archive: archive.Options{Recipients: []age.Recipient{m.identity.Recipient()}},
	})
	ok(t, err)
	_, err = next.Connect(t.Context())
	ok(t, err)
	ok(t, j.SetMark(t.Context(), "new", j.Newest()))
	ok(t, next.Seal(t.Context()))
	close(store.resume)
	if err := <-ended; !errors.Is(err, archive.ErrFenced) {
		t.Fatalf("the daemon that was paused: %v, want ErrFenced", err)
	}
	// It says so, and stays away.
	m.record(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ok(t, s.Run(ctx))
	if st := s.Status(); !st.Stopped || !strings.Contains(st.Error, "another daemon writes this archive now") || !strings.Contains(st.Error, "stop this daemon if that one is to go on") || ctx.Err() != nil {
		t.Errorf("its status: %+v", st)
	}
	if _, err := m.shipper(t, mem).Connect(t.Context()); !errors.Is(err, compactor.ErrForeign) {
		t.Errorf("started anew: %v, want ErrForeign", err)
	}
	if r, err := verified(t, mem, m.identity); err != nil || r.Damaged() {
		t.Errorf("the chain: %+v, %v", r, err)
	}
	a, err := archive.Open(t.Context(), mem, archive.Options{})
	ok(t, err)
	if k := a.State().Known; len(k.Marks) != 1 || k.Position.Count != 10 {
		t.Errorf("the archive ends at event %d with %d marks", k.Position.Count, len(k.Marks))
	}
}

// Two daemons with journals of their own begin an archive at the same time: one has it.
func TestOneOfTwoBeginsTheArchive(t *testing.T) {
	mem := archive.NewMemStore()
	first, second := newSmall(t, mem), newSmall(t, mem)
	store := &paused{Store: mem, reached: make(chan struct{}), resume: make(chan struct{}), armed: true}
	slow := second.shipper(t, store)
	ended := make(chan error, 1)
	go func() {
		_, err := slow.Connect(t.Context())
		ended <- err
	}()
	<-store.reached
	_, err := first.s.Connect(t.Context())
	ok(t, err)
	close(store.resume)
	if err := <-ended; !errors.Is(err, compactor.ErrForeign) {
		t.Errorf("the slower one: %v, want ErrForeign", err)
	}
	first.record(t, 3)
	ok(t, first.s.Seal(t.Context()))
}

func TestOtherClustersDaemonIsRefused(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	_, err := m.s.Connect(t.Context())
	ok(t, err)
	other, err := journal.Open("/data", journal.Options{FS: vfs.NewMem(), Key: []byte("0123456789abcdef0123456789abcdef"), Free: func() (uint64, error) { return 1 << 40, nil }})
	ok(t, err)
	defer other.Close()
	ok(t, other.Bind(t.Context(), "cluster-b"))
	try := func(shared bool) error {
		s, err := compactor.NewShipper(compactor.Options{
			Journal: other, Open: func(context.Context) (archive.Store, error) { return mem, nil },
			Archive: archive.Options{Recipients: []age.Recipient{m.identity.Recipient()}, Shared: shared},
		})
		ok(t, err)
		_, err = s.Connect(t.Context())
		return err
	}
	before := len(files(t, mem))
	if err := try(false); !errors.Is(err, archive.ErrOtherCluster) || !strings.Contains(err.Error(), "cluster-a") {
		t.Errorf("another cluster's daemon: %v, want ErrOtherCluster", err)
	}
	if n := len(files(t, mem)); n != before {
		t.Errorf("it wrote %d files", n-before)
	}
	ok(t, try(true))
	if _, err := archive.Open(t.Context(), mem, archive.Options{}); err == nil || !strings.Contains(err.Error(), "--cluster") {
		t.Errorf("two clusters under one URL: %v", err)
	}
	a, err := archive.Open(t.Context(), mem, archive.Options{Cluster: "cluster-a"})
	ok(t, err)
	if a.State().Cluster != "cluster-a" {
		t.Errorf("opened %s", a.State().Cluster)
	}
}

// Who names no archive, or a wrong one, is told what there is.
func TestWrongPlaceIsToldWhatIsThere(t *testing.T) {
	deep, volumes := archive.NewMemStore(), archive.NewMemStore()
	for _, name := range []string{"format", "manifests/1", "segments/0/1"} {
		ok(t, deep.Create(t.Context(), name, strings.NewReader("x"), 1, archive.CreateOptions{}))
	}
	for _, name := range []string{"volumes/c1/keys/1", "volumes/c1/kopia/a", "volumes/c2/kopia/a"} {
		ok(t, volumes.Create(t.Context(), name, strings.NewReader("x"), 1, archive.CreateOptions{}))
	}
	for _, c := range []struct {
		store         archive.Store
		cluster, want string
	}{
		{archive.NewMemStore(), "", "'tidemark run --archive"},
		{deep, "", "leave its name off the end"},
		{volumes, "", "only volumes, of c1, c2"},
		{volumes, "c3", "of cluster c3 in"},
	} {
		if _, err := archive.Open(t.Context(), c.store, archive.Options{Cluster: c.cluster}); !errors.Is(err, archive.ErrNoArchive) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.cluster, err, c.want)
		}
	}
}

// A data directory that was put back from a copy must not go on: it would number its events anew.
func TestJournalFromAnOldCopyIsRefused(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	fs := vfs.NewMem()
	open := func(fs vfs.FS) *journal.Journal {
		j, err := journal.Open("/data", journal.Options{FS: fs, Key: []byte("0123456789abcdef0123456789abcdef"), Free: func() (uint64, error) { return 1 << 40, nil }, Clock: m.clock.Now})
		ok(t, err)
		return j
	}
	m.j = open(fs)
	ok(t, m.j.Bind(t.Context(), "cluster-a"))
	for _, info := range []journal.ResourceInfo{configMaps, secrets, nodes} {
		c, err := m.j.Compare(t.Context(), journal.Recording{ResourceInfo: info}, m.rv, "")
		ok(t, err)
		_, err = c.Commit(t.Context(), m.rv)
		ok(t, err)
	}
	m.record(t, 5)
	ok(t, m.j.Close())
	copied := vfs.NewMem()
	if _, err := vfs.Clone(fs, copied, "/data", "/data", vfs.CloneSync); err != nil {
		t.Fatal(err)
	}
	m.j = open(fs)
	s := m.shipper(t, mem)
	_, err := s.Connect(t.Context())
	ok(t, err)
	m.record(t, 5)
	ok(t, s.Seal(t.Context()))
	ok(t, m.j.Close())
	m.j = open(copied)
	defer m.j.Close()
	for range 2 { // behind the archive, and after it has recorded other events
		if _, err := m.shipper(t, mem).Connect(t.Context()); !errors.Is(err, compactor.ErrRolledBack) {
			t.Errorf("a journal from an old copy: %v, want ErrRolledBack", err)
		}
		m.clock.add(time.Minute)
		m.record(t, 20)
	}
}

// People may pin and delete snapshots while a daemon archives: neither stops the other.
func TestEditsByHandFenceNobody(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	_, err := m.s.Connect(t.Context())
	ok(t, err)
	m.record(t, 5)
	p, err := m.s.Snapshot(t.Context(), compactor.SnapshotRequest{Name: "one"})
	ok(t, err)
	hand, err := archive.Open(t.Context(), mem, archive.Options{})
	ok(t, err)
	for i := range 5 {
		m.record(t, 2)
		ok(t, m.s.Seal(t.Context()))
		_, err := compactor.Edit(t.Context(), hand, "one", func(p *archive.Snapshot) error { p.Pinned = i%2 == 0; return nil })
		ok(t, err)
	}
	m.record(t, 2)
	ok(t, m.s.Seal(t.Context()))
	a, err := archive.Open(t.Context(), mem, archive.Options{})
	ok(t, err)
	if s := a.State(); s.Known.Position.Count != 17 || !s.Snapshot(p.ID).Pinned || s.Journal != m.j.ID() {
		t.Errorf("the archive has %d events, pinned: %v", s.Known.Position.Count, s.Snapshot(p.ID).Pinned)
	}
	if _, err := compactor.Delete(t.Context(), a, "one"); err == nil {
		t.Error("a pinned snapshot was deleted")
	}
}

// Two daemons run on copies of one data directory: their journals are the same as far as the archive can
// tell, and the one that is behind must not seal over what the other has.
func TestCopiesOfADataDirectoryDoNotBothSeal(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	one, two := m.shipper(t, mem), m.shipper(t, mem)
	for _, s := range []*compactor.Shipper{one, two} {
		_, err := s.Connect(t.Context())
		ok(t, err)
	}
	m.record(t, 5)
	ok(t, one.Seal(t.Context()))
	m.record(t, 5)
	if err := two.Seal(t.Context()); err == nil || !strings.Contains(err.Error(), "copy of this data directory") {
		t.Errorf("the second one: %v", err)
	}
	ok(t, one.Seal(t.Context()))
	m.judge(t, mem, "two writers")
}

// Who cannot read an archive must not take it over: the daemon that writes it would stop for nothing.
func TestRecoverWithAWrongKeyTakesNothingOver(t *testing.T) {
	mem := archive.NewMemStore()
	m := newSmall(t, mem)
	_, err := m.s.Connect(t.Context())
	ok(t, err)
	m.record(t, 5)
	ok(t, m.s.Seal(t.Context()))
	wrong, err := age.GenerateX25519Identity()
	ok(t, err)
	_, err = compactor.Recover(t.Context(), mem, archive.Options{Identities: []age.Identity{wrong}}, t.TempDir(), journal.Options{}, 0)
	if !errors.Is(err, archive.ErrNoIdentity) {
		t.Errorf("recover: %v, want ErrNoIdentity", err)
	}
	m.record(t, 5)
	ok(t, m.s.Seal(t.Context()))
}
