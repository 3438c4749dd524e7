package compactor_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"pgregory.net/rapid"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

var (
	configMaps = journal.ResourceInfo{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true}
	secrets    = journal.ResourceInfo{Version: "v1", Resource: "secrets", Kind: "Secret", Namespaced: true}
	nodes      = journal.ResourceInfo{Version: "v1", Resource: "nodes", Kind: "Node"}
	metrics    = journal.ResourceInfo{Group: "example.com", Version: "v1", Resource: "widgets", Kind: "Widget", Namespaced: true}
)

// clock is a wall clock that tests set. Each look at it takes a millisecond.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(time.Millisecond)
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// The model: a plain list of everything that the journal was told, and folds by their definition.
type model struct {
	t        *rapid.T
	fs       *vfs.MemFS
	clock    *clock
	store    archive.Store
	identity *age.X25519Identity
	spool    string
	j        *journal.Journal
	s        *compactor.Shipper
	readable bool // the daemon has the identity

	rv        map[string]uint64 // counters: "main", "own"
	epoch     uint32
	resources []*modelResource
	events    []modelEvent
	seen      time.Time // up to where events has the journal's
	cuts      []journal.Cut
}

type modelResource struct {
	info journal.ResourceInfo
	own  bool
	live map[string]journal.Event
}

type modelEvent struct {
	key      string
	gr       schema.GroupResource
	op       journal.Op
	revision journal.Revision
	observed time.Time
	body     string
	own      bool
}

func TestArchiveEqualsTheModel(t *testing.T) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	spool := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		m := &model{
			t: t, fs: vfs.NewMem(), clock: &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}, store: archive.NewMemStore(),
			identity: identity, spool: spool, rv: map[string]uint64{"main": 10, "own": 5}, epoch: 1,
			readable: rapid.Bool().Draw(t, "identity"),
		}
		for _, info := range []journal.ResourceInfo{configMaps, secrets, nodes, metrics} {
			m.resources = append(m.resources, &modelResource{info: info, own: info.Group != "", live: map[string]journal.Event{}})
		}
		m.open()
		defer func() { _ = m.j.Close() }()
		for _, r := range m.resources {
			m.list(r, "")
		}
		m.ok(m.j.SetBegan(context.Background()))
		t.Repeat(map[string]func(*rapid.T){
			"watch": m.watch, "watch2": m.watch, "watch3": m.watch, "watch4": m.watch,
			"relist": m.relist, "mark": m.mark,
			"seal": m.seal, "seal2": m.seal, "merge": m.merge, "merge2": m.merge,
			"snapshot": m.snapshot, "trim": m.trim, "retain": m.retain,
			"wait": m.wait, "wait2": m.wait,
			"restart": func(*rapid.T) { m.ok(m.j.Close()); m.open() },
			"join":    m.join, "crash": m.crash,
			"": m.check,
		})
		m.ok(m.s.Seal(context.Background()))
		m.compare(m.cuts)
	})
}

func (m *model) ok(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) open() {
	var err error
	m.j, err = journal.Open("/data", journal.Options{
		FS: m.fs, Key: []byte("0123456789abcdef0123456789abcdef"), Free: func() (uint64, error) { return 1 << 40, nil },
		Clock: m.clock.Now, Window: 8 * time.Hour, BatchEvents: 3,
	})
	m.ok(err)
	m.ok(m.j.Bind(context.Background(), "cluster-a"))
	m.j.KeepAfter(time.Time{})
	o := archive.Options{Recipients: []age.Recipient{m.identity.Recipient()}}
	if m.readable {
		o.Identities = []age.Identity{m.identity}
	}
	m.s, err = compactor.NewShipper(compactor.Options{
		Journal: m.j, Open: func(context.Context) (archive.Store, error) { return m.store, nil }, Archive: o, Dir: m.spool,
		Clock: m.clock.Now, Retention: retention.Policy{Window: 48 * time.Hour},
	})
	m.ok(err)
	_, err = m.s.Connect(context.Background())
	m.ok(err)
	m.keep()
}

// keep lets the journal trim what is archived.
func (m *model) keep() { m.j.KeepAfter(m.s.Keep()) }

func (m *model) pick(t *rapid.T) *modelResource {
	return rapid.SampledFrom(m.resources).Draw(t, "resource")
}

func (m *model) counter(r *modelResource) string {
	if r.own {
		return "own"
	}
	return "main"
}

func (m *model) change(t *rapid.T, r *modelResource) journal.Event {
	ns := ""
	if r.info.Namespaced {
		ns = rapid.SampledFrom([]string{"a", "a-b", "ab"}).Draw(t, "namespace")
	}
	name := rapid.SampledFrom([]string{"a", "a-b", "a.b", "ab"}).Draw(t, "name")
	m.rv[m.counter(r)] += uint64(rapid.IntRange(1, 3).Draw(t, "step"))
	op, key := journal.Added, ns+"\x00"+name
	old, there := r.live[key]
	if there {
		op = rapid.SampledFrom([]journal.Op{journal.Modified, journal.Modified, journal.Deleted}).Draw(t, "op")
	}
	e := journal.Event{
		Resource: r.info.GroupResource(), Namespace: ns, Name: name, UID: "u", Op: op, Revision: journal.Revision{RV: m.rv[m.counter(r)]},
		Object: fmt.Appendf(nil, `{"metadata":{"name":%q,"resourceVersion":"%d"},"x":%q}`, name, m.rv[m.counter(r)], rapid.StringMatching("[a-z]{0,8}").Draw(t, "body")),
	}
	if op == journal.Deleted {
		e.Object = old.Object
		delete(r.live, key)
	} else {
		r.live[key] = e
	}
	return e
}

// watch records changes. Those of a slow watch arrive after newer ones of another.
func (m *model) watch(t *rapid.T) {
	var all []journal.Event
	for range rapid.IntRange(1, 6).Draw(t, "events") {
		all = append(all, m.change(t, m.pick(t)))
	}
	if rapid.Bool().Draw(t, "slow") { // by resource, not by revision
		slices.SortStableFunc(all, func(a, b journal.Event) int { return strings.Compare(a.Resource.String(), b.Resource.String()) })
	}
	split := rapid.IntRange(0, len(all)).Draw(t, "split")
	for i, e := range all {
		if i == split && rapid.Bool().Draw(t, "seal between") {
			m.ok(m.j.Flush(context.Background()))
			m.ok(m.s.Seal(context.Background()))
			m.note() // a moment that later events of lower revisions belong to
		}
		m.ok(m.j.Append(context.Background(), e))
	}
	m.ok(m.j.Flush(context.Background()))
	m.note()
}

// note reads what the journal made of what it was told.
func (m *model) note() {
	tail, err := m.j.Tail(m.seen, m.j.Newest().Time)
	m.ok(err)
	for tail.Next() {
		e, found, err := tail.Event()
		m.ok(err)
		if !found {
			m.t.Fatal("an event without its version")
		}
		m.events = append(m.events, modelEvent{
			key: e.ID(), gr: e.Resource, op: e.Op, revision: e.Revision, observed: e.Observed, body: string(e.Object), own: e.Resource == metrics.GroupResource(),
		})
	}
	m.ok(tail.Close())
	m.seen = m.j.Newest().Time
	m.cuts = append(m.cuts, m.j.Newest())
}

func (m *model) list(r *modelResource, cause string) {
	ctx := context.Background()
	c, err := m.j.Compare(ctx, journal.Recording{ResourceInfo: r.info, OwnCounter: r.own}, m.rv[m.counter(r)], cause)
	m.ok(err)
	for _, k := range slices.Sorted(maps.Keys(r.live)) {
		m.ok(c.Add(ctx, r.live[k]))
	}
	_, err = c.Commit(ctx, m.rv[m.counter(r)])
	m.ok(err)
	m.note()
}

// relist lists after changes that no watch saw.
func (m *model) relist(t *rapid.T) {
	r := m.pick(t)
	for range rapid.IntRange(0, 3).Draw(t, "unseen") {
		m.change(t, r)
	}
	m.list(r, "410")
}

func (m *model) mark(t *rapid.T) {
	name := rapid.SampledFrom([]string{"one", "two"}).Draw(t, "mark")
	m.ok(m.j.SetMark(context.Background(), name, m.j.Newest()))
}

func (m *model) seal(*rapid.T) { m.ok(m.s.Seal(context.Background())); m.keep() }

func (m *model) merge(*rapid.T) { m.ok(m.s.Merge(context.Background())) }

func (m *model) snapshot(*rapid.T) {
	_, err := m.s.Snapshot(context.Background(), compactor.SnapshotRequest{})
	m.ok(err)
	m.keep()
}

func (m *model) trim(*rapid.T) {
	_, err := m.j.Trim(context.Background())
	m.ok(err)
}

func (m *model) retain(*rapid.T) {
	_, err := m.s.Retain(context.Background(), false)
	m.ok(err)
}

func (m *model) wait(t *rapid.T) {
	m.clock.add(time.Duration(rapid.IntRange(1, 400).Draw(t, "minutes")) * time.Minute)
	m.s.Archive().Age()
	m.trim(t)
}

// crash loses what was not synced, and the process with it.
func (m *model) crash(*rapid.T) {
	m.ok(m.j.Close())
	m.open()
}

// join begins an archive of a journal that has a past.
func (m *model) join(*rapid.T) {
	m.store = archive.NewMemStore()
	m.ok(m.j.Close())
	m.open()
}

// fold is the definition: of each object, the newest version at or before the cut, unless it is a deletion.
func (m *model) fold(cut journal.Cut) map[string]string {
	newest := map[string]modelEvent{}
	for _, e := range m.events {
		if e.own && e.observed.After(cut.Time) || !e.own && e.revision.Compare(cut.Revision) > 0 {
			continue
		}
		if old, there := newest[e.key]; !there || e.revision.Compare(old.revision) >= 0 {
			newest[e.key] = e
		}
	}
	out := map[string]string{}
	for k, e := range newest {
		if e.op != journal.Deleted {
			out[k] = e.revision.String() + " " + e.body
		}
	}
	return out
}

func foldOf(src replay.Source, cut journal.Cut) (map[string]string, error) {
	out := map[string]string{}
	for e, err := range src.Fold(context.Background(), cut, replay.Scope{}) {
		if err != nil {
			return nil, err
		}
		out[e.ID()] = e.Revision.String() + " " + string(e.Object)
	}
	return out, nil
}

// check compares some moments after each step.
func (m *model) check(t *rapid.T) {
	m.t = t
	if len(m.cuts) == 0 || rapid.IntRange(0, 3).Draw(t, "look") > 0 {
		return
	}
	m.compare([]journal.Cut{rapid.SampledFrom(m.cuts).Draw(t, "cut")})
}

// compare asks a reader that knows only the store.
func (m *model) compare(cuts []journal.Cut) {
	a, err := archive.Open(context.Background(), m.store, archive.Options{Identities: []age.Identity{m.identity}})
	m.ok(err)
	if d := a.Damage(); len(d) > 0 {
		m.t.Fatalf("damage: %v", d)
	}
	src := replay.NewArchived(a.History())
	state := a.State()
	ranges := state.Ranges()
	if len(ranges) != 1 && len(state.Segments)+len(state.Snapshots) > 0 {
		m.t.Fatalf("the archive has %d ranges", len(ranges))
	}
	local := replay.NewLocal(m.j)
	for _, cut := range cuts {
		if cut.Time.After(state.Known.Position.Time) || len(ranges) == 0 || cut.Time.Before(ranges[0].From.Time) || cut.Revision.Compare(ranges[0].From.Revision) < 0 {
			continue
		}
		want := m.fold(cut)
		if m.late(state, cut) {
			continue
		}
		got, err := foldOf(src, cut)
		m.ok(err)
		if d := cmp.Diff(want, got); d != "" {
			m.t.Fatalf("fold at %s from the archive (-want +got):\n%s", cut, d)
		}
		if h := m.j.Horizon(); cut.Time.Before(h.Time) || cut.Revision.Compare(h.Revision) < 0 {
			continue
		}
		if got, err = foldOf(local, cut); err != nil {
			m.t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			m.t.Fatalf("fold at %s from the journal (-want +got):\n%s", cut, d)
		}
	}
	m.compareChanges(src, ranges, state)
}

// late reports whether an event that belongs to the cut came after the end of the archive.
func (m *model) late(state *archive.State, cut journal.Cut) bool {
	return slices.ContainsFunc(m.events, func(e modelEvent) bool {
		return e.observed.After(state.Known.Position.Time) && !e.own && e.revision.Compare(cut.Revision) <= 0
	})
}

func (m *model) compareChanges(src replay.Source, ranges []archive.Range, state *archive.State) {
	if len(ranges) == 0 {
		return
	}
	from := ranges[0].From.Time
	var want, got []string
	for _, e := range m.events {
		if e.observed.After(from) && !e.observed.After(state.Known.Position.Time) {
			want = append(want, fmt.Sprint(e.observed, e.op, e.key, e.revision, e.body))
		}
	}
	for c, err := range src.Changes(context.Background(), replay.ChangeQuery{From: from}) {
		m.ok(err)
		got = append(got, fmt.Sprint(c.Observed, c.Op, c.ID(), c.Revision, string(c.Object)))
	}
	if d := cmp.Diff(want, got); d != "" {
		m.t.Fatalf("changes from the archive (-want +got):\n%s", d)
	}
}
