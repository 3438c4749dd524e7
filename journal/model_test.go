package journal_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/tidemark-backup/tidemark/journal"
)

// The model: what a journal must hold, in the plainest form. Its server is what a cluster has;
// its history is what was told to the journal.
type model struct {
	t     *rapid.T
	fs    *vfs.MemFS
	clock *clock
	j     *journal.Journal

	epoch, rv uint64 // of the server's counter
	resources []*modelResource
	history   []modelEvent
}

type modelResource struct {
	info      journal.ResourceInfo
	live      map[string]journal.Event // on the server, by namespace 0 name
	known     map[string]modelEvent    // newest event of each object in the journal
	watermark journal.Revision
	first     bool // the first list is done
	comparing bool // a comparison was cut off
	initial   int
	gaps      []modelGap
}

type modelEvent struct {
	ID   string
	Op   journal.Op
	At   journal.Revision
	How  journal.Flags
	Body string
}

type modelGap struct {
	From, To journal.Revision
	Cause    string
	Inferred int
}

const modelWindow = 8 * time.Hour

func TestJournalEqualsTheModel(t *testing.T) {
	noLeaks(t)
	rapid.Check(t, func(t *rapid.T) {
		m := &model{t: t, fs: vfs.NewMem(), clock: newClock(), epoch: 1, rv: 10}
		for _, info := range []journal.ResourceInfo{configMaps, secrets, nodes} {
			m.resources = append(m.resources, &modelResource{info: info, live: map[string]journal.Event{}, known: map[string]modelEvent{}})
		}
		m.open()
		defer func() { _ = m.j.Close() }() // after a failure
		t.Repeat(map[string]func(*rapid.T){
			"watch":    m.watch,
			"watch2":   m.watch,
			"watch3":   m.watch,
			"bookmark": m.bookmark,
			"repeat":   m.repeat,
			"relist":   m.relist,
			"cutoff":   m.cutOff,
			"restore":  m.restoreServer,
			"reopen":   func(*rapid.T) { closeJournal(m.t, m.j); m.open() },
			"trim":     m.trim,
			"trim2":    m.trim,
			"":         m.check,
		})
		closeJournal(t, m.j)
	})
}

func (m *model) open() {
	m.j = openMem(m.t, m.fs, func(o *journal.Options) {
		o.Clock, o.Window, o.BatchEvents = m.clock.Now, modelWindow, 3
	})
}

func (m *model) pick(t *rapid.T) *modelResource {
	return rapid.SampledFrom(m.resources).Draw(t, "resource")
}

// pickWatched is a resource whose watch could be running.
func (m *model) pickWatched(t *rapid.T) *modelResource {
	r := m.pick(t)
	if !r.first || r.comparing || r.watermark.Epoch != uint32(m.epoch) {
		t.Skip("not watched")
	}
	return r
}

// change makes one random change on the server.
func (m *model) change(t *rapid.T, r *modelResource) journal.Event {
	ns := ""
	if r.info.Namespaced {
		ns = rapid.SampledFrom([]string{"a", "a-b", "ab"}).Draw(t, "namespace")
	}
	name := rapid.SampledFrom([]string{"a", "a-b", "a.b", "ab"}).Draw(t, "name")
	m.rv += uint64(rapid.IntRange(1, 3).Draw(t, "step"))
	op := journal.Added
	old, there := r.live[ns+"\x00"+name]
	if there {
		op = rapid.SampledFrom([]journal.Op{journal.Modified, journal.Modified, journal.Deleted}).Draw(t, "op")
	}
	e := event(op, r.info.GroupResource(), ns, name, m.rv, rapid.StringMatching("[a-z]{0,8}").Draw(t, "body"))
	if op == journal.Deleted {
		e.Object = old.Object
		delete(r.live, ns+"\x00"+name)
	} else {
		r.live[ns+"\x00"+name] = e
	}
	return e
}

func (m *model) note(r *modelResource, e journal.Event, at journal.Revision, how journal.Flags) {
	n := modelEvent{id(e.Resource, e.Namespace, e.Name), e.Op, at, how, string(e.Object)}
	m.history = append(m.history, n)
	r.known[e.Namespace+"\x00"+e.Name] = n
}

func (m *model) watch(t *rapid.T) {
	r := m.pickWatched(t)
	for range rapid.IntRange(1, 6).Draw(t, "events") {
		e := m.change(t, r)
		if err := m.j.Append(context.Background(), e); err != nil {
			t.Fatal(err)
		}
		r.watermark.RV = m.rv
		m.note(r, e, r.watermark, 0)
	}
}

func (m *model) bookmark(t *rapid.T) {
	r := m.pickWatched(t)
	m.rv += uint64(rapid.IntRange(0, 2).Draw(t, "step"))
	m.clock.add(time.Duration(rapid.IntRange(0, 3).Draw(t, "seconds")) * time.Second)
	if err := m.j.Advance(context.Background(), r.info.GroupResource(), m.rv); err != nil {
		t.Fatal(err)
	}
	r.watermark.RV = m.rv
}

// repeat sends what is known already: it must change nothing.
func (m *model) repeat(t *rapid.T) {
	r := m.pickWatched(t)
	for _, key := range sortedKeys(r.live) {
		e := r.live[key]
		if err := m.j.Append(context.Background(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.j.Advance(context.Background(), r.info.GroupResource(), r.watermark.RV/2); err != nil {
		t.Fatal(err)
	}
}

// restoreServer puts the server back: its counter and an older, other content. The journal is
// told, or has to see by itself that a list is older than the watermark.
func (m *model) restoreServer(t *rapid.T) {
	var behind *modelResource
	for _, r := range m.resources {
		if !r.first || r.watermark.Epoch != uint32(m.epoch) {
			t.Skip("one restore at a time")
		}
		if r.watermark.RV > 30 {
			behind = r
		}
	}
	m.rv = uint64(rapid.IntRange(5, int(5+m.rv/2)).Draw(t, "restored"))
	if behind != nil && rapid.Bool().Draw(t, "untold") {
		m.rv = 10
	} else {
		behind = nil
	}
	for _, r := range m.resources {
		for _, key := range sortedKeys(r.live) {
			if rapid.Bool().Draw(t, "lost") {
				delete(r.live, key)
			} else if e := r.live[key]; e.Revision.RV > m.rv {
				e.Revision.RV = m.rv - uint64(rapid.IntRange(0, 3).Draw(t, "older"))
				r.live[key] = e
			}
		}
	}
	m.epoch++
	if behind != nil {
		m.relistOf(t, behind)
	} else if err := m.j.NewEpoch(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// list starts a comparison of what the server has now, adds the first n of it (in the server's
// order), and returns it with the number of events that this must have made.
func (m *model) list(t *rapid.T, r *modelResource, n int) (c *journal.Comparison, inferred int) {
	c, err := m.j.Compare(context.Background(), journal.Recording{ResourceInfo: r.info}, m.rv, "cause")
	if err != nil {
		t.Fatal(err)
	}
	if c.Epoch() != uint32(m.epoch) {
		t.Fatalf("epoch %d, want %d", c.Epoch(), m.epoch)
	}
	how := journal.Inferred
	if !r.first {
		how = journal.Initial
	}
	for i, key := range sortedKeys(r.live) {
		if i == n {
			break
		}
		e := r.live[key]
		e.Op = 0
		if err := c.Add(context.Background(), e); err != nil {
			t.Fatal(err)
		}
		at := journal.Revision{Epoch: uint32(m.epoch), RV: e.Revision.RV}
		was, known := r.known[key]
		switch {
		case !known || was.Op == journal.Deleted:
			e.Op = journal.Added
		case was.At.RV == at.RV && was.Body == string(e.Object) || was.At == at:
			continue
		default:
			e.Op = journal.Modified
		}
		m.note(r, e, at, how)
		inferred++
	}
	return c, inferred
}

func (m *model) cutOff(t *rapid.T) {
	r := m.pick(t)
	for range rapid.IntRange(0, 3).Draw(t, "missed") {
		m.change(t, r)
	}
	c, _ := m.list(t, r, rapid.IntRange(0, 4).Draw(t, "added"))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	r.comparing = true
}

func (m *model) relist(t *rapid.T) { m.relistOf(t, m.pick(t)) }

func (m *model) relistOf(t *rapid.T, r *modelResource) {
	for range rapid.IntRange(0, 5).Draw(t, "missed") {
		m.change(t, r)
	}
	c, inferred := m.list(t, r, 1<<30)
	end := journal.Revision{Epoch: uint32(m.epoch), RV: m.rv}
	for _, key := range sortedKeys(r.known) {
		if was := r.known[key]; was.Op != journal.Deleted && r.live[key].Name == "" {
			ns, name, _ := strings.Cut(key, "\x00")
			how := journal.Inferred
			if !r.first {
				how = journal.Initial
			}
			m.note(r, journal.Event{Resource: r.info.GroupResource(), Namespace: ns, Name: name, Op: journal.Deleted, Object: []byte(was.Body)}, end, how)
			inferred++
		}
	}
	got, err := c.Commit(context.Background(), m.rv)
	if err != nil {
		t.Fatal(err)
	}
	if got != inferred {
		t.Fatalf("%d events were inferred, want %d", got, inferred)
	}
	if r.first && (r.watermark != end || inferred > 0) {
		r.gaps = append(r.gaps, modelGap{r.watermark, end, "cause", inferred})
	}
	if !r.first {
		r.initial = len(r.live)
	}
	r.first, r.comparing, r.watermark = true, false, end
}

func (m *model) trim(t *rapid.T) {
	before := m.j.Horizon()
	age(t, m.j, m.clock, time.Duration(rapid.IntRange(1, 5).Draw(t, "hours"))*time.Hour)
	if h := m.j.Horizon(); h.Time.Before(before.Time) || h.Revision.Compare(before.Revision) < 0 || m.clock.Now().Sub(h.Time) < modelWindow {
		t.Fatalf("the horizon went from %s to %s at %s with a window of %s", before, h, m.clock.Now(), modelWindow)
	}
}

func sortedKeys[V any](all map[string]V) []string {
	keys := make([]string, 0, len(all))
	for k := range all {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// check sets the journal against the model.
func (m *model) check(t *rapid.T) {
	flush(t, m.j)
	m.checkLedgers(t)
	m.checkHistory(t)
	cuts := []journal.Revision{m.j.Newest().Revision, m.j.Horizon().Revision}
	for range 3 {
		if len(m.history) > 0 {
			r := rapid.SampledFrom(m.history).Draw(t, "cut").At
			r.RV -= uint64(rapid.IntRange(0, 1).Draw(t, "before"))
			cuts = append(cuts, r)
		}
	}
	for _, r := range cuts {
		if r.Compare(m.j.Horizon().Revision) >= 0 {
			if diff := cmp.Diff(m.fold(r), fold(t, m.j, r)); diff != "" {
				t.Fatalf("fold at %s (-model +journal):\n%s", r, diff)
			}
			m.checkCut(t, r)
		}
	}
}

func (m *model) fold(r journal.Revision) map[string]string {
	newest, all := map[string]modelEvent{}, map[string]string{}
	for _, e := range m.history {
		if e.At.Compare(r) <= 0 && e.At.Compare(newest[e.ID].At) >= 0 {
			newest[e.ID] = e
		}
	}
	for id, e := range newest {
		if e.Op != journal.Deleted {
			all[id] = e.Body
		}
	}
	return all
}

func (m *model) checkLedgers(t *rapid.T) {
	newest := m.j.Newest()
	for _, r := range m.resources {
		l := m.j.Ledger(r.info.GroupResource())
		if l == nil {
			if r.first || r.comparing {
				t.Fatalf("%s has no ledger", r.info.Resource)
			}
			continue
		}
		if l.Watermark.Revision != r.watermark {
			t.Fatalf("%s: watermark %s, want %s", r.info.Resource, l.Watermark, r.watermark)
		}
		rv, ok := m.j.Resume(r.info.GroupResource())
		want := r.first && !r.comparing && r.watermark.Epoch == newest.Epoch
		if ok != want || ok && rv != r.watermark.RV {
			t.Fatalf("%s: Resume %d, %v; want %d, %v", r.info.Resource, rv, ok, r.watermark.RV, want)
		}
		if r.first && l.Initial != r.initial {
			t.Fatalf("%s: %d initial objects, want %d", r.info.Resource, l.Initial, r.initial)
		}
		var gaps []modelGap
		for _, g := range l.Gaps {
			gaps = append(gaps, modelGap{g.From.Revision, g.To.Revision, g.Cause, g.Inferred})
		}
		var reach []modelGap // the journal may forget those that ended before the horizon, and no others
		for _, g := range r.gaps {
			if g.To.Compare(m.j.Horizon().Revision) > 0 {
				reach = append(reach, g)
			}
		}
		kept := r.gaps[max(0, len(r.gaps)-len(gaps)):]
		if diff := cmp.Diff(kept, gaps, cmpopts.EquateEmpty()); len(gaps) < len(reach) || diff != "" {
			t.Fatalf("%s: gaps after %s (-model +journal):\n%s", r.info.Resource, m.j.Horizon(), diff)
		}
	}
}

func (m *model) checkHistory(t *rapid.T) {
	horizon := m.j.Horizon()
	from := time.Time{}
	if !horizon.Time.IsZero() {
		from = horizon.Time.Add(-1)
	}
	tail, err := m.j.Tail(from, m.j.Newest().Time)
	if err != nil {
		t.Fatal(err)
	}
	var got []modelEvent
	var last time.Time
	for tail.Next() {
		e, ok, err := tail.Event()
		if err != nil || !ok {
			t.Fatalf("event %+v: %v, %v", tail.Meta(), ok, err)
		}
		if !e.Observed.After(last) {
			t.Fatalf("%s was observed at %s, the event before at %s", e.ID(), e.Observed, last)
		}
		last = e.Observed
		got = append(got, modelEvent{id(e.Resource, e.Namespace, e.Name), e.Op, e.Revision, e.Flags, string(e.Object)})
	}
	if err := tail.Close(); err != nil {
		t.Fatal(err)
	}
	if horizon.Time.IsZero() && len(got) != len(m.history) || len(got) > len(m.history) {
		t.Fatalf("%d events, want %d", len(got), len(m.history))
	}
	if diff := cmp.Diff(m.history[len(m.history)-len(got):], got); len(got) > 0 && diff != "" {
		t.Fatalf("history (-model +journal):\n%s", diff)
	}
	if totals, err := m.j.Totals(); err != nil || totals.Events != uint64(len(got)) {
		t.Fatalf("totals %+v, %v; want %d events", totals, err, len(got))
	}
}

// checkCut sets CutOf and CutAt against each other.
func (m *model) checkCut(t *rapid.T, r journal.Revision) {
	if r.IsZero() {
		return
	}
	of, err := m.j.CutOf(r)
	if err != nil || of.Revision != r {
		t.Fatalf("CutOf(%s) = %s, %v", r, of, err)
	}
	if of.Time.IsZero() {
		t.Fatalf("CutOf(%s) has no time", r)
	}
	at, err := m.j.CutAt(of.Time)
	if err != nil || at.Revision.Compare(r) < 0 {
		t.Fatalf("CutAt(CutOf(%s).Time) = %s, %v", r, at, err)
	}
	before, err := m.j.CutAt(of.Time.Add(-1))
	if err != nil || before.Revision.Compare(r) >= 0 && of.Time.After(m.j.Horizon().Time) {
		t.Fatalf("CutOf(%s) is %s, but a nanosecond before it was %s already (%v)", r, of, before, err)
	}
	back, err := m.j.CutOf(at.Revision)
	if err != nil || back.Time.After(of.Time) && at.Revision.Compare(m.j.Horizon().Revision) > 0 {
		t.Fatalf("CutOf(CutAt(%s).Revision) = %s, %v", of.Time, back, err)
	}
}
