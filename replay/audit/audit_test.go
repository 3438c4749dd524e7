package audit_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/journal/capture"
	"github.com/tidemark-backup/tidemark/replay/audit"
)

var (
	info       = journal.ResourceInfo{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true}
	configMaps = schema.GroupResource{Resource: "configmaps"}
	start      = time.Date(2025, 1, 2, 10, 0, 0, 0, time.UTC)
)

// cluster is an API server that holds one state of one resource.
type cluster struct {
	objects map[[2]string]journal.Event
	version string
	asked   []capture.Exact
	// fail, when not nil, may refuse a request.
	fail func(q capture.Exact) error
	// shuffled has lists come in another order.
	shuffled bool
}

func (c *cluster) ServerVersion(context.Context) (string, error) { return c.version, nil }

func (c *cluster) ListExact(_ context.Context, q capture.Exact, item func(journal.Event) error) (p capture.ExactPage, err error) {
	c.asked = append(c.asked, q)
	if c.fail != nil {
		if err := c.fail(q); err != nil {
			return p, err
		}
	}
	var keys [][2]string
	for k := range c.objects {
		if c.objects[k].Resource == q.Resource && (q.Name == "" || k == [2]string{q.Namespace, q.Name}) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b [2]string) int { return strings.Compare(a[0]+"/"+a[1], b[0]+"/"+b[1]) })
	if c.shuffled {
		slices.Reverse(keys)
	}
	from, _ := strconv.Atoi(q.Continue)
	to := len(keys)
	if q.Limit > 0 && from+int(q.Limit) < to {
		to = from + int(q.Limit)
		p.Next = strconv.Itoa(to)
	}
	for _, k := range keys[from:to] {
		e := c.objects[k]
		p.Bytes += int64(len(e.Object))
		if err := item(e); err != nil {
			return p, err
		}
	}
	return p, nil
}

func object(ns, name string, rv uint64, value string) journal.Event {
	return journal.Event{
		Resource: configMaps, Namespace: ns, Name: name, UID: "u-" + name, Op: journal.Added, Revision: journal.Revision{RV: rv},
		Object: fmt.Appendf(nil, `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":%q,"namespace":%q,"uid":%q,"resourceVersion":"%d"},"data":{"v":%q}}`, name, ns, "u-"+name, rv, value),
	}
}

// world is a journal, a cluster that it recorded, and an auditor between the two.
type world struct {
	t       *testing.T
	journal *journal.Journal
	cluster *cluster
	now     time.Time
	o       audit.Options
	*audit.Auditor
}

func newWorld(t *testing.T, objects ...journal.Event) *world {
	t.Helper()
	w := &world{t: t, cluster: &cluster{objects: map[[2]string]journal.Event{}, version: "v1"}, now: start}
	clock := func() time.Time {
		w.now = w.now.Add(1)
		return w.now
	}
	var err error
	w.journal, err = journal.Open("d", journal.Options{FS: vfs.NewMem(), Key: make([]byte, 32), Clock: clock, Free: func() (uint64, error) { return 1 << 40, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.journal.Close(); err != nil {
			t.Error(err)
		}
	})
	w.list(info)
	w.o = audit.Options{Journal: w.journal, Cluster: w.cluster, Every: time.Hour, Page: 3, Rate: 1 << 30, Clock: clock}
	w.Auditor = audit.New(w.o)
	for _, e := range objects {
		w.record(e)
		w.cluster.objects[[2]string{e.Namespace, e.Name}] = e
	}
	return w
}

// list begins the recording of a resource, of which there is nothing yet.
func (w *world) list(info journal.ResourceInfo) {
	w.t.Helper()
	c, err := w.journal.Compare(w.t.Context(), journal.Recording{ResourceInfo: info}, 1, "")
	if err == nil {
		_, err = c.Commit(w.t.Context(), 1)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) record(e journal.Event) {
	w.t.Helper()
	if err := w.journal.Append(w.t.Context(), e); err != nil {
		w.t.Fatal(err)
	}
	if err := w.journal.Flush(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// cycle lets everything become due, and audits it.
func (w *world) cycle() audit.Record {
	w.t.Helper()
	w.now = w.now.Add(w.o.Every)
	if _, err := w.Round(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return w.only()
}

func (w *world) only() audit.Record {
	w.t.Helper()
	r := w.Report()
	if len(r.Resources) != 1 {
		w.t.Fatalf("%d resources", len(r.Resources))
	}
	return r.Resources[0]
}

func (w *world) wants(s audit.State) {
	w.t.Helper()
	if r := w.Report(); r.State != s {
		w.t.Errorf("the state is %s, want %s: %+v", r.State, s, r.Resources)
	}
}

// spaces are names whose order in etcd is not that of the journal's keys.
var spaces = []string{"shop", "shop-eu", "shop-eu-1", "a", "shops"}

// TestEveryDifferenceIsFound sets random states against each other, with pages of every size: what is told is what differs.
func TestEveryDifferenceIsFound(t *testing.T) {
	random := rand.New(rand.NewPCG(6, 3))
	kinds := map[audit.Kind]int{}
	for round := range 200 {
		w := newWorld(t)
		w.o.Page = int64(1 + random.IntN(7))
		w.Auditor = audit.New(w.o)
		want, listed, recorded := map[[2]string]audit.Kind{}, 0, uint64(1)
		for _, ns := range spaces {
			for i := range random.IntN(5) {
				k := [2]string{ns, fmt.Sprintf("o%d", i)}
				recorded++
				e := object(ns, k[1], recorded, "x")
				switch n := random.IntN(20); {
				case n == 0:
					want[k] = audit.Missing
					w.cluster.objects[k] = e
				case n == 1:
					want[k] = audit.Extra
					w.record(e)
				case n == 2:
					want[k] = audit.Differs
					w.record(e)
					w.cluster.objects[k] = object(ns, k[1], recorded, "y")
				case n == 3: // deleted in both
					w.record(e)
					recorded++
					e.Op, e.Revision.RV = journal.Deleted, recorded
					w.record(e)
				default:
					w.record(e)
					w.cluster.objects[k] = e
				}
			}
		}
		listed = len(w.cluster.objects)
		rec := w.cycle()
		got := map[[2]string]audit.Kind{}
		for _, d := range rec.Differences {
			got[[2]string{d.Namespace, d.Name}] = d.Kind
			kinds[d.Kind]++
		}
		if d := cmp.Diff(want, got); d != "" || rec.Different != len(want) || rec.Trouble != "" {
			t.Fatalf("round %d, pages of %d: %d differences, trouble %q: %s", round, w.o.Page, rec.Different, rec.Trouble, d)
		}
		if len(want) == 0 {
			w.wants(audit.Equal)
			if rec.Proof == nil || rec.Proof.Objects != listed {
				t.Fatalf("round %d: the proof is %+v, %d objects were listed", round, rec.Proof, listed)
			}
			if most := max(1, (listed+int(w.o.Page)-1)/int(w.o.Page)); len(w.cluster.asked) != most {
				t.Fatalf("%d requests for %d objects in pages of %d", len(w.cluster.asked), listed, w.o.Page)
			}
		} else {
			w.wants(audit.Different)
		}
	}
	if kinds[audit.Missing] == 0 || kinds[audit.Extra] == 0 || kinds[audit.Differs] == 0 {
		t.Errorf("only %v came up", kinds)
	}
}

// A difference stays until an audit has proven that it is gone; the count of all stays for good.
func TestDifferencesClearWithAProof(t *testing.T) {
	w := newWorld(t, object("shop", "a", 2, "x"), object("shop", "b", 3, "x"))
	hidden := [2]string{"shop", "b"}
	b := w.cluster.objects[hidden]
	delete(w.cluster.objects, hidden)
	w.cycle()
	w.wants(audit.Different)
	w.cluster.fail = func(capture.Exact) error { return errors.New("away") }
	rec := w.cycle()
	w.wants(audit.Different)
	if rec.Trouble == "" || rec.Different != 1 {
		t.Errorf("a try that told nothing left %+v", rec)
	}
	w.Auditor = audit.New(w.o) // a daemon that starts again
	w.cluster.fail, w.cluster.objects[hidden] = nil, b
	if rec = w.cycle(); rec.Different != 0 || rec.Found != 1 || rec.Proof == nil {
		t.Errorf("after a proof: %+v", rec)
	}
	w.wants(audit.Equal)
}

// What differs once and not when it is asked for again, at the same revision, is no difference.
func TestDifferencesAreAskedForAgain(t *testing.T) {
	w := newWorld(t, object("shop", "a", 2, "x"), object("shop", "b", 3, "x"))
	hidden := [2]string{"shop", "b"}
	b := w.cluster.objects[hidden]
	delete(w.cluster.objects, hidden)
	w.cluster.fail = func(q capture.Exact) error {
		if q.Name != "" {
			w.cluster.objects[hidden] = b
		}
		return nil
	}
	rec := w.cycle()
	w.wants(audit.Equal)
	if last := w.cluster.asked[len(w.cluster.asked)-1]; last.Name != "b" || last.Revision != 3 || rec.Found != 0 {
		t.Errorf("asked for %+v, record %+v", last, rec)
	}
}

// No answer is neither good nor bad news; without any, the proof before grows too old.
func TestProofsGrowOld(t *testing.T) {
	w := newWorld(t, object("shop", "a", 2, "x"))
	w.wants(audit.Unproven)
	w.cycle()
	w.wants(audit.Equal)
	w.cluster.fail = func(capture.Exact) error { return errors.New("the server is away") }
	for range 3 {
		if rec := w.cycle(); rec.Different != 0 || rec.Trouble != "the server is away" {
			t.Errorf("no answer became %+v", rec)
		}
	}
	w.now = w.now.Add(-time.Second)
	w.wants(audit.Equal) // nearly as old as it may be
	w.now = w.now.Add(2 * time.Second)
	w.wants(audit.Unproven)
	w.Auditor = audit.New(w.o)
	w.cycle()
	w.wants(audit.Unproven) // also after a restart
	if age := w.Report().Resources[0].Age(w.now); age.Round(time.Second) != 4*time.Hour+time.Second {
		t.Errorf("the proof's age is %v", age)
	}
	w.cluster.fail = nil
	w.cycle()
	w.wants(audit.Equal)
	w.now = w.now.Add(-2 * time.Hour) // the clock was wrong: that proof is from a time yet to come
	w.Auditor = audit.New(w.o)        // for one that did not see it being made
	w.cluster.fail = func(capture.Exact) error { return errors.New("away") }
	w.cycle()
	w.wants(audit.Unproven)
}

// A clock that is set back makes no proof younger.
func TestSettingTheClockBackProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, object("shop", "a", 2, "x"))
		w.cycle()
		time.Sleep(2 * time.Hour)
		w.now = w.now.Add(2*time.Hour - 90*time.Minute)
		w.wants(audit.Equal)
		if rec := w.only(); rec.Age(w.now).Round(time.Second) != 2*time.Hour {
			t.Errorf("the proof's age is %v", rec.Age(w.now))
		}
		time.Sleep(61 * time.Minute)
		w.now = w.now.Add(61 * time.Minute)
		w.wants(audit.Unproven)
		w.cycle()
		w.wants(audit.Equal)
	})
}

// A revision that is compacted away under a list is begun again at a newer one, once.
func TestExpiredListsBeginAgain(t *testing.T) {
	objects := make([]journal.Event, 0, 9)
	for i := range 9 {
		objects = append(objects, object("shop", fmt.Sprint("o", i), uint64(2+i), "x"))
	}
	w := newWorld(t, objects...)
	w.cluster.fail = func(q capture.Exact) error {
		if q.Continue == "6" && q.Revision == 10 {
			w.record(object("shop", "new", 11, "x"))
			w.cluster.objects[[2]string{"shop", "new"}] = object("shop", "new", 11, "x")
			return capture.ErrExpired
		}
		return nil
	}
	if rec := w.cycle(); rec.Proof == nil || rec.Proof.At.RV != 11 || rec.Proof.Objects != 10 || rec.Trouble != "" {
		t.Errorf("%+v", rec)
	}
	w.cluster.fail = func(capture.Exact) error { return capture.ErrExpired }
	asked := len(w.cluster.asked)
	if rec := w.cycle(); rec.Trouble == "" || rec.Different != 0 || len(w.cluster.asked) != asked+1 {
		t.Errorf("%d requests, %+v", len(w.cluster.asked)-asked, rec)
	}
}

// An order that is not etcd's cannot be compared page by page, and is not taken for a difference.
func TestAnotherOrderProvesNothing(t *testing.T) {
	w := newWorld(t, object("shop", "a", 2, "x"), object("shop", "b", 3, "x"))
	w.cluster.shuffled = true
	if rec := w.cycle(); !strings.Contains(rec.Trouble, "order") || rec.Different != 0 || rec.Proof != nil {
		t.Errorf("%+v", rec)
	}
	w.wants(audit.Unproven)
}

// The same revision in another shape is a difference, unless the server or the API version is another one now.
func TestAnUpgradeIsNoDifference(t *testing.T) {
	old := object("shop", "a", 2, "x")
	w := newWorld(t, old)
	w.cycle()
	more := old
	more.Object = []byte(strings.Replace(string(old.Object), `"data":`, `"immutable":false,"data":`, 1))
	w.cluster.objects[[2]string{"shop", "a"}] = more
	w.cycle()
	w.wants(audit.Different)
	w.cluster.version = "v2"
	if rec := w.cycle(); rec.Proof == nil || rec.Proof.Reshaped != 1 || rec.Different != 0 {
		t.Errorf("after an upgrade: %+v", rec)
	}
	late := object("shop", "a", 3, "y") // one of several API servers may be the old one for a while
	w.record(late)
	late.Object = []byte(strings.Replace(string(late.Object), `"data":`, `"immutable":false,"data":`, 1))
	w.cluster.objects[[2]string{"shop", "a"}] = late
	if rec := w.cycle(); rec.Proof == nil || rec.Proof.Reshaped != 1 || rec.Different != 0 {
		t.Errorf("while the servers are upgraded one by one: %+v", rec)
	}
	other := object("shop", "a", 4, "y") // another revision is a difference, upgrade or not
	w.cluster.objects[[2]string{"shop", "a"}] = other
	w.cycle()
	w.wants(audit.Different)
	fresh := object("shop", "a", 5, "z") // and so is what was recorded after it
	w.record(fresh)
	fresh.Object = []byte(strings.Replace(string(fresh.Object), `"data":`, `"immutable":false,"data":`, 1))
	w.cluster.objects[[2]string{"shop", "a"}] = fresh
	w.cycle()
	w.wants(audit.Different)
	w.cluster.objects[[2]string{"shop", "a"}] = object("shop", "a", 5, "z")
	w.cycle()
	w.wants(audit.Equal)
	beta := object("shop", "a", 5, "z")
	beta.Object = []byte(strings.Replace(string(beta.Object), `"apiVersion":"v1"`, `"apiVersion":"v2"`, 1))
	w.cluster.objects[[2]string{"shop", "a"}] = beta
	if rec := w.cycle(); rec.Proof == nil || rec.Proof.Reshaped != 1 || rec.Different != 0 {
		t.Errorf("in another API version: %+v", rec)
	}
}

// What was recorded before the clock was set back is older than an upgrade after it, although its time is later.
func TestAnUpgradeAfterTheClockWasSetBackIsNoDifference(t *testing.T) {
	w := newWorld(t)
	w.now = w.now.Add(9 * time.Hour)
	e := object("shop", "a", 2, "x")
	w.record(e)
	w.cluster.objects[[2]string{"shop", "a"}] = e
	w.now = w.now.Add(-8 * time.Hour)
	w.cycle()
	e.Object = []byte(strings.Replace(string(e.Object), `"data":`, `"immutable":false,"data":`, 1))
	w.cluster.objects[[2]string{"shop", "a"}], w.cluster.version = e, "v2"
	if rec := w.cycle(); rec.Proof == nil || rec.Proof.Reshaped != 1 || rec.Different != 0 {
		t.Errorf("after an upgrade: %+v", rec)
	}
}

// An upgrade that the audit did not know of when it began is no difference either: the next one knows.
func TestAnUpgradeUnderAnAuditProvesNothing(t *testing.T) {
	e := object("shop", "a", 2, "x")
	w := newWorld(t, e)
	w.cycle()
	w.cluster.fail = func(capture.Exact) error {
		e.Object = []byte(strings.Replace(string(object("shop", "a", 2, "x").Object), `"data":`, `"immutable":false,"data":`, 1))
		w.cluster.objects[[2]string{"shop", "a"}], w.cluster.version = e, "v2"
		return nil
	}
	if rec := w.cycle(); rec.Different != 0 || !strings.Contains(rec.Trouble, "upgraded") {
		t.Errorf("while it was upgraded: %+v", rec)
	}
	if rec := w.cycle(); rec.Different != 0 || rec.Trouble != "" || rec.Proof.Reshaped != 1 {
		t.Errorf("after it was upgraded: %+v", rec)
	}
}

// The same JSON is the same object, and its order of keys is none of our business.
func TestOrderOfKeysIsNoDifference(t *testing.T) {
	e := object("shop", "a", 2, "x")
	w := newWorld(t, e)
	var v map[string]any
	if err := json.Unmarshal(e.Object, &v); err != nil {
		t.Fatal(err)
	}
	e.Object, _ = json.MarshalIndent(v, "", " ")
	w.cluster.objects[[2]string{"shop", "a"}] = e
	w.cycle()
	w.wants(audit.Equal)
	e.Object = append(e.Object, " {}"...) // but two values are not one
	w.cluster.objects[[2]string{"shop", "a"}] = e
	w.cycle()
	w.wants(audit.Different)
}

// What is told holds names and revisions, however much differs, and nothing of the objects.
func TestReportsAreBoundedAndTellNoContent(t *testing.T) {
	w := newWorld(t)
	for i := range 100 {
		w.record(object("shop", fmt.Sprint("o", i), uint64(2+i), "canary"))
	}
	rec := w.cycle()
	if rec.Different != 100 || len(rec.Differences) != 20 {
		t.Errorf("%d differences, %d by name", rec.Different, len(rec.Differences))
	}
	b, err := json.Marshal(w.Report())
	if err != nil || strings.Contains(string(b), "canary") {
		t.Errorf("%s %v", b, err)
	}
	if note, err := w.journal.Note("audit/configmaps"); err != nil || len(note) == 0 || strings.Contains(string(note), "canary") {
		t.Errorf("%s %v", note, err)
	}
}

// Resources that cannot be audited are told with the reason, and are no reason to be anything but good.
func TestWhatCannotBeAuditedIsTold(t *testing.T) {
	w := newWorld(t, object("shop", "a", 2, "x"))
	c, err := w.journal.Compare(t.Context(), journal.Recording{ResourceInfo: journal.ResourceInfo{Group: "x.example", Version: "v1", Resource: "others"}, OwnCounter: true}, 7, "")
	if err == nil {
		_, err = c.Commit(t.Context(), 7)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.now = w.now.Add(time.Hour)
	if _, err := w.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := w.Report()
	if len(r.Resources) != 2 || r.Resources[1].NotAudited == "" || r.State != audit.Equal {
		t.Errorf("%+v", r)
	}
	w.cluster.fail = func(capture.Exact) error { return capture.ErrNotWatched }
	w.now = w.now.Add(time.Hour)
	if _, err := w.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := w.Report(); !strings.Contains(r.Resources[0].Trouble, "not being watched") {
		t.Errorf("%+v", r.Resources[0])
	}
}
