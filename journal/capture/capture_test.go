package capture

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/tidemark-backup/tidemark/journal"
)

var (
	configMaps = schema.GroupResource{Resource: "configmaps"}
	secrets    = schema.GroupResource{Resource: "secrets"}
)

const configMapsPath = "/api/v1/configmaps"

func TestListedObjectsLookAsIfTheyWereWatched(t *testing.T) {
	s := newFakeServer(t)
	cms := s.add("", "v1", "configmaps", "ConfigMap", "")
	s.change(cms, "ADDED", "ns", "x", "1")
	r := start(t, s, vfs.NewMem())
	l := r.await(configMaps, 101)
	s.change(cms, "MODIFIED", "ns", "x", "2")
	r.await(configMaps, 102)
	all := r.history(configMaps)
	if len(all) != 2 || l.Initial != 1 || all[0].Flags != journal.Initial || all[1].Flags != 0 || all[1].Op != journal.Modified {
		t.Fatalf("history %+v, ledger %+v", all, l)
	}
	for i, want := range []string{
		`{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x","namespace":"ns","uid":"uid-ns-x","resourceVersion":"101","labels":{"l":"x"}},"data":"1"}`,
		`{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x","namespace":"ns","uid":"uid-ns-x","resourceVersion":"102","labels":{"l":"x"}},"data":"2"}`,
	} {
		if string(all[i].Object) != want || all[i].UID != "uid-ns-x" {
			t.Errorf("event %d: uid %s\n%s\nwant\n%s", i, all[i].UID, all[i].Object, want)
		}
	}
	if r.journal.ClusterID() != "cluster-1" {
		t.Errorf("bound to %q", r.journal.ClusterID())
	}
	r.eventually("began", func() bool { return !r.journal.Began().Time.IsZero() })
}

func TestARestartGoesOnWithoutAList(t *testing.T) {
	s := newFakeServer(t)
	cms := s.add("", "v1", "configmaps", "ConfigMap", "")
	s.change(cms, "ADDED", "ns", "other", "1") // or there would be nothing to list
	fs := vfs.NewMem()
	r := start(t, s, fs)
	r.await(configMaps, 101)
	s.change(cms, "ADDED", "ns", "x", "1")
	r.await(configMaps, 102)
	r.stop()
	before := s.lists(configMapsPath)
	s.change(cms, "MODIFIED", "ns", "x", "2")
	s.change(cms, "DELETED", "ns", "x", "2")
	r = start(t, s, fs)
	if l := r.await(configMaps, 104); len(l.Gaps) != 0 {
		t.Errorf("gaps %+v", l.Gaps)
	}
	if n := s.lists(configMapsPath); n != before || before != 1 {
		t.Errorf("%d lists before the restart, %d after", before, n-before)
	}
	if s.asked("watch=true", "resourceVersion=102", configMapsPath) == 0 {
		t.Error("the watch did not go on at 102")
	}
	if all := r.history(configMaps); len(all) != 4 || all[3].Op != journal.Deleted || all[2].Inferred() {
		t.Errorf("history %+v", all)
	}
}

func TestGoneLeadsToAListAndAGap(t *testing.T) {
	for _, inStream := range []bool{false, true} {
		t.Run(fmt.Sprint("inStream=", inStream), func(t *testing.T) {
			s := newFakeServer(t)
			cms := s.add("", "v1", "configmaps", "ConfigMap", "")
			s.change(cms, "ADDED", "ns", "lost", "1")
			s.change(cms, "ADDED", "ns", "kept", "1")
			r := start(t, s, vfs.NewMem())
			r.await(configMaps, 102)
			r.eventually("watching", func() bool { return r.state(configMaps).State == StateWatching })
			s.update(func() {
				s.rv += 1000
				cms.events = append(cms.events, fakeEvent{"DELETED", "ns", "lost", s.rv - 1, "1"}, fakeEvent{"ADDED", "ns", "new", s.rv, "1"})
				cms.oldest, cms.inStream = s.rv, inStream
				cms.cut = true // the watch that runs ends before it has sent them
			})
			l := r.await(configMaps, 1102)
			if len(l.Gaps) != 1 || l.Gaps[0].From.RV != 102 || l.Gaps[0].Inferred != 2 || !strings.Contains(l.Gaps[0].Cause, "410") {
				t.Errorf("gaps %+v", l.Gaps)
			}
			if n := s.lists(configMapsPath); n != 2 {
				t.Errorf("%d lists, want 2", n)
			}
			live := map[string]bool{}
			for _, e := range r.history(configMaps) {
				live[e.Name] = e.Op != journal.Deleted
			}
			if live["lost"] || !live["kept"] || !live["new"] {
				t.Errorf("live: %v", live)
			}
		})
	}
}

// lines collects log output.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) Sync() error { return nil }

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestSecretsAreInNoLogLine also makes the journal refuse (a name that it cannot file), the
// frame malformed, and the server name the object in an error of its own.
func TestSecretsAreInNoLogLine(t *testing.T) {
	const canary = "canary-0b5e"
	out := &lines{}
	klog.LogToStderr(false)
	klog.SetOutput(out)
	t.Cleanup(func() { klog.LogToStderr(true) })
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), out, zap.DebugLevel))

	s := newFakeServer(t)
	sec := s.add("", "v1", "secrets", "Secret", "")
	s.change(sec, "ADDED", "ns", "listed", canary)
	r := start(t, s, vfs.NewMem(), func(o *Options) { o.Logger = log })
	r.await(secrets, 101)
	s.change(sec, "MODIFIED", "ns", "listed", canary+"-watched")
	r.await(secrets, 102)
	for i, frame := range []string{
		`{"type":"ADDED","object":{"metadata":{"name":"bad` + "\\u0000" + `name","resourceVersion":"103"},"data":"` + canary + `"}}` + "\n",
		`{"type":"ADDED","object":{"metadata":{"name":"x","resourceVersion":"105"},"data":"` + canary + "\n",
	} {
		before := s.asked("watch=true", "/api/v1/secrets")
		s.update(func() { sec.frames, sec.breaks = []string{frame}, sec.breaks+1 })
		r.eventually(fmt.Sprint("watch after bad frame ", i), func() bool { return s.asked("watch=true", "/api/v1/secrets") > before })
		if i == 0 {
			r.eventually("a complaint", func() bool { return strings.Contains(out.String(), "not recorded") })
		}
	}
	s.update(func() { sec.frames, sec.breaks = nil, sec.breaks+1 })
	last := s.change(sec, "MODIFIED", "ns", "listed", canary+"-again")
	r.await(secrets, last) // and recording goes on
	r.stop()
	klog.Flush()
	if text := out.String(); strings.Contains(text, canary) || !strings.Contains(text, "listed") {
		i := max(strings.Index(text, canary), 0)
		t.Errorf("the log holds the Secret: ... %s", text[max(0, i-300):min(len(text), i+100)])
	}
}

func TestFiltersChooseWhatIsRecordedAndTheLedgerSaysSo(t *testing.T) {
	s := newFakeServer(t)
	cms := s.add("", "v1", "configmaps", "ConfigMap", "")
	s.add("", "v1", "secrets", "Secret", "")
	s.add("example.com", "v1", "buckets", "Bucket", "")
	s.change(cms, "ADDED", "in", "x", "1")
	s.change(cms, "ADDED", "out", "x", "1")
	fs := vfs.NewMem()
	r := start(t, s, fs, func(o *Options) {
		o.Namespaces, o.Include, o.Exclude, o.Selector = []string{"in"}, []string{"configmaps", "*.example.com"}, []string{"buckets.*"}, "l=x"
	})
	r.await(configMaps, 102)
	s.change(cms, "ADDED", "out", "y", "1")
	s.change(cms, "ADDED", "in", "y", "1")
	rv := s.change(cms, "MODIFIED", "out", "y", "2")
	l := r.await(configMaps, rv)
	for _, e := range r.history(configMaps) {
		if e.Namespace != "in" {
			t.Errorf("recorded %s", e.ID())
		}
	}
	if n := len(r.history(configMaps)); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
	if l.Filter != "only namespaces in; only labels l=x" {
		t.Errorf("filter %q", l.Filter)
	}
	if s.asked(configMapsPath, "labelSelector=l%3Dx", "watch=true") == 0 || s.asked(configMapsPath, "labelSelector=l%3Dx", "limit=500") == 0 {
		t.Error("the selector was not sent")
	}
	if len(r.journal.Ledgers()) != 1 {
		t.Errorf("ledgers %+v", r.journal.Ledgers())
	}
	why := map[string]string{}
	for _, o := range r.capture.Status().LeftOut {
		why[o.Resource.String()] = o.Why
	}
	if why["secrets"] != "not included" || why["buckets.example.com"] != "excluded" || why["namespaces"] != "not included" {
		t.Errorf("left out: %v", why)
	}
	r.stop()

	r = start(t, s, fs, func(o *Options) { o.Include = []string{"configmaps"} }) // wider: a list, and a gap with its cause
	r.eventually("the filter's change", func() bool { return r.journal.Ledger(configMaps).Filter == "" })
	l = r.await(configMaps, rv)
	if len(l.Gaps) != 2 || !strings.Contains(l.Gaps[1].Cause, "was changed") || l.Gaps[0].Inferred != 0 || l.Gaps[1].Inferred != 2 || l.Gaps[0].From != l.First || l.Gaps[0].To != l.Gaps[1].To || l.Gaps[1].From.Revision.Compare(l.First.Revision) <= 0 {
		t.Errorf("gaps %+v, want them from the first list on: what the filter left out is not known in all that time", l.Gaps)
	}
	whole := l.Watermark
	r.stop()

	// Narrower, and wider again: all that lies in between is a gap, up to the watermark as well.
	r = start(t, s, fs, func(o *Options) { o.Include, o.Namespaces = []string{"configmaps"}, []string{"in"} })
	r.eventually("the filter's change", func() bool { l := r.journal.Ledger(configMaps); return l.Filter != "" && l.Comparing == "" })
	narrowed := r.journal.Ledger(configMaps)
	rv = s.change(cms, "MODIFIED", "in", "y", "3")
	within := r.await(configMaps, rv).Watermark
	r.stop()
	r = start(t, s, fs, func(o *Options) { o.Include = []string{"configmaps"} })
	r.eventually("the filter's change", func() bool { l := r.journal.Ledger(configMaps); return l.Filter == "" && l.Comparing == "" })
	l = r.journal.Ledger(configMaps)
	if narrowed.FilterFrom == nil || l.FilterFrom != nil || l.GapFrom != nil || l.Gaps[len(l.Gaps)-2].From != *narrowed.FilterFrom {
		t.Errorf("narrowed from %v; then %+v", narrowed.FilterFrom, l)
	}
	if l.GapAt(within) == nil || l.GapAt(whole) != nil {
		t.Errorf("gaps at a moment with the filter: %v, and before: %v", l.GapAt(within), l.GapAt(whole))
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	for _, o := range []Options{{Include: []string{"["}}, {Exclude: []string{""}}, {Selector: "a in ("}} {
		o.Config = &rest.Config{Host: "http://127.0.0.1:1"}
		if _, err := New(o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

func TestAGroupThatDoesNotAnswerKeepsItsResources(t *testing.T) {
	s := newFakeServer(t)
	buckets := schema.GroupResource{Group: "example.com", Resource: "buckets"}
	c := s.add("example.com", "v1", "buckets", "Bucket", "")
	s.change(c, "ADDED", "ns", "x", "1")
	r := start(t, s, vfs.NewMem())
	r.await(buckets, 101)
	s.update(func() { s.broken["example.com"] = true })
	before := s.asked("GET /apis/example.com/v1")
	r.eventually("many discoveries", func() bool { return s.asked("GET /apis/example.com/v1") > before+8 })
	rv := s.change(c, "MODIFIED", "ns", "x", "2")
	if l := r.await(buckets, rv); l.Removed != nil {
		t.Errorf("removed: %+v", l)
	}
	if all := r.history(buckets); all[len(all)-1].Op != journal.Modified {
		t.Errorf("history %+v", all)
	}
}

func TestAResourceThatIsGoneIsRecordedAsGone(t *testing.T) {
	s := newFakeServer(t)
	buckets := schema.GroupResource{Group: "example.com", Resource: "buckets"}
	c := s.add("example.com", "v1", "buckets", "Bucket", "")
	s.add("example.com", "v1", "other", "Other", "")
	s.change(c, "ADDED", "ns", "x", "1")
	r := start(t, s, vfs.NewMem())
	r.await(buckets, 101)
	s.update(func() { delete(s.collections, "/apis/example.com/v1/buckets"); c.breaks++ })
	r.eventually("removed", func() bool { return r.journal.Ledger(buckets).Removed != nil })
	if all := r.history(buckets); all[len(all)-1].Op != journal.Deleted || !all[len(all)-1].Inferred() {
		t.Errorf("history %+v", all)
	}
}

func TestOneStorageIsRecordedOnce(t *testing.T) {
	s := newFakeServer(t)
	s.add("", "v1", "things", "Thing", "hash")
	s.add("new.example.com", "v1", "things", "Thing", "hash")
	s.add("", "v1", "configmaps", "ConfigMap", "")
	s.add("", "v1", "secrets", "Secret", "")
	r := start(t, s, vfs.NewMem())
	r.await(secrets, 100)
	r.await(configMaps, 100)
	recorded := 0
	for _, name := range []string{"things", "things.new.example.com"} {
		left := slices.ContainsFunc(r.capture.Status().LeftOut, func(l journal.LeftOut) bool {
			return l.Resource.String() == name && strings.HasPrefix(l.Why, "the same objects as")
		})
		if !left {
			recorded++
		}
	}
	if recorded != 1 {
		t.Errorf("recorded %d times: %+v", recorded, r.capture.Status().LeftOut)
	}
}

// The counter may lie above the main one, or below: also for the first resource ever listed.
func TestACounterOfItsOwnIsNoticed(t *testing.T) {
	for _, own := range []uint64{7, 1 << 40} {
		t.Run(fmt.Sprint(own), func(t *testing.T) {
			s := newFakeServer(t)
			metrics := schema.GroupResource{Group: "custom.example.com", Resource: "readings"}
			c := s.add("custom.example.com", "v1", "readings", "Reading", "")
			c.own = own
			s.change(c, "ADDED", "ns", "x", "1")
			r := start(t, s, vfs.NewMem(), func(o *Options) { o.Include = []string{metrics.String()} })
			if l := r.await(metrics, own+1); !l.OwnCounter {
				t.Fatalf("its counter stands at %d, the main one at 100: %+v", own+1, l)
			}
			rv := s.change(c, "MODIFIED", "ns", "x", "2")
			if l := r.await(metrics, rv); len(l.Gaps) > 0 {
				t.Errorf("gaps %+v", l.Gaps)
			}
			if newest := r.journal.Newest(); newest.RV > 200 {
				t.Errorf("the main counter is said to be at %s", newest)
			}
		})
	}
}

func TestStatusTellsWhatHappens(t *testing.T) {
	s := newFakeServer(t)
	cms := s.add("", "v1", "configmaps", "ConfigMap", "")
	s.update(func() { cms.forbid = true })
	r := start(t, s, vfs.NewMem())
	r.eventually("forbidden", func() bool {
		st := r.state(configMaps)
		return st.State == StateForbidden && strings.Contains(st.Error, "no list for you")
	})
	if !r.capture.Status().Connected {
		t.Error("not connected")
	}
	s.update(func() { cms.forbid = false })
	r.eventually("watching", func() bool {
		st := r.state(configMaps)
		return st.State == StateWatching && st.Error == "" && !st.Since.IsZero()
	})
	s.update(func() { cms.forbid = true })
	r.eventually("forbidden again", func() bool { return r.state(configMaps).State == StateForbidden })
	s.update(func() { cms.forbid = false })
	rv := s.change(cms, "ADDED", "ns", "x", "1")
	r.await(configMaps, rv)
}

func TestAnotherClusterEndsTheCapture(t *testing.T) {
	s := newFakeServer(t)
	j := openJournal(t, vfs.NewMem())
	defer j.Close()
	if err := j.Bind(t.Context(), "another"); err != nil {
		t.Fatal(err)
	}
	c, err := New(Options{Config: &rest.Config{Host: s.URL}, Journal: j})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); !errors.Is(err, journal.ErrOtherCluster) {
		t.Fatalf("Run: %v", err)
	}
}

func TestASlowJournalLosesNothing(t *testing.T) {
	s := newFakeServer(t)
	cms := s.add("", "v1", "configmaps", "ConfigMap", "")
	var mu sync.Mutex
	free := uint64(1 << 40)
	j, err := journal.Open("/data", journal.Options{FS: vfs.NewMem(), Key: make([]byte, 32), QueueBytes: 16 << 10, Free: func() (uint64, error) {
		mu.Lock()
		defer mu.Unlock()
		return free, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, s, vfs.NewMem(), func(o *Options) { o.Journal = j })
	t.Cleanup(func() { _ = j.Close() })
	slow := &running{t: t, journal: j, capture: r.capture}
	slow.await(configMaps, 100)
	mu.Lock()
	free = 0
	mu.Unlock()
	for i := range 500 {
		s.change(cms, "ADDED", "ns", fmt.Sprint("o", i), strings.Repeat("x", 300))
	}
	slow.eventually("paused", func() bool { return j.Condition() != "" })
	mu.Lock()
	free = 1 << 40
	mu.Unlock()
	if l := slow.await(configMaps, 600); len(l.Gaps) != 0 {
		t.Errorf("gaps %+v", l.Gaps)
	}
	if n := len(slow.history(configMaps)); n != 500 {
		t.Errorf("%d events, want 500", n)
	}
	r.stop()
}
