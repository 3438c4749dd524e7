package capture

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// handle puts f before the fake server; f returns true when it has answered.
func (s *fakeServer) handle(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !f(w, r) {
			s.ServeHTTP(w, r)
		}
	})
}

// An event that becomes durable while the main counter is asked for is newer than the answer,
// which must not be taken for a history that went backwards.
func TestTrafficDuringTheCounterProbeBeginsNoEpoch(t *testing.T) {
	s := newFakeServer(t)
	cms := s.add("", "v1", "configmaps", "ConfigMap", "")
	sec := s.add("", "v1", "secrets", "Secret", "")
	s.change(cms, "ADDED", "ns", "a", "1")
	s.change(sec, "ADDED", "ns", "b", "1")
	var armed, probed atomic.Bool
	var r *running
	s.handle(func(w http.ResponseWriter, req *http.Request) bool {
		if req.URL.Path != "/api/v1/namespaces" || !strings.Contains(req.URL.RawQuery, "limit=1") || !armed.CompareAndSwap(true, false) {
			return false
		}
		answer := httptest.NewRecorder()
		s.ServeHTTP(answer, req)
		rv := s.change(sec, "MODIFIED", "ns", "b", "2")
		for end := time.Now().Add(10 * time.Second); r.journal.Newest().RV < rv && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		probed.Store(true)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer.Body.Bytes())
		return true
	})
	r = start(t, s, vfs.NewMem())
	r.await(configMaps, 101)
	r.await(secrets, 102)
	r.eventually("both watched", func() bool {
		return r.state(configMaps).State == StateWatching && r.state(secrets).State == StateWatching
	})
	watches := s.asked("watch=true", configMapsPath)
	armed.Store(true)
	s.update(func() { cms.breaks++ })
	r.eventually("probe", probed.Load)
	r.eventually("watch again", func() bool { return s.asked("watch=true", configMapsPath) > watches })
	if e := r.journal.Newest().Epoch; e != 1 || len(r.journal.Ledger(secrets).Gaps) > 0 {
		t.Errorf("epoch %d, gaps %+v", e, r.journal.Ledger(secrets).Gaps)
	}
}

// With a label selector, an object that only left it arrives as deleted and lives on.
func TestAnObjectThatLeftTheSelectorIsNoWitness(t *testing.T) {
	s := newFakeServer(t)
	cms := s.add("", "v1", "configmaps", "ConfigMap", "")
	s.change(cms, "ADDED", "ns", "x", "1")
	s.handle(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/api/v1/namespaces/ns/configmaps/x" {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x","namespace":"ns","uid":"uid-ns-x","resourceVersion":"102"}}`))
		return true
	})
	fs := vfs.NewMem()
	selector := func(o *Options) { o.Selector = "l=x" }
	r := start(t, s, fs, selector)
	r.await(configMaps, 101)
	s.change(cms, "DELETED", "ns", "x", "1")
	r.await(configMaps, 102)
	r.stop()
	r = start(t, s, fs, selector)
	r.eventually("watched", func() bool { return r.state(configMaps).State == StateWatching })
	if e := r.journal.Newest().Epoch; e != 1 {
		t.Errorf("epoch %d after a plain restart", e)
	}
}

// One object that cannot be read (its conversion webhook is down) must not keep the rest from
// being recorded.
func TestABrokenWitnessStopsNothing(t *testing.T) {
	s := newFakeServer(t)
	cms := s.add("", "v1", "configmaps", "ConfigMap", "")
	widgets := s.add("x.example.com", "v1", "widgets", "Widget", "")
	s.change(cms, "ADDED", "ns", "x", "1")
	s.change(widgets, "ADDED", "ns", "w", "1")
	s.handle(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/apis/x.example.com/v1/namespaces/ns/widgets/w" {
			return false
		}
		fail(w, 500, "InternalError", "conversion webhook failed")
		return true
	})
	fs := vfs.NewMem()
	r := start(t, s, fs)
	r.await(configMaps, 101)
	r.eventually("began", func() bool { return !r.journal.Began().Time.IsZero() })
	rv := s.change(widgets, "MODIFIED", "ns", "w", "2")
	r.eventually("change of the widget", func() bool { return r.journal.Newest().RV >= rv })
	r.stop()
	rv = s.change(cms, "MODIFIED", "ns", "x", "2")
	r = start(t, s, fs)
	r.await(configMaps, rv)
}

// After a stop that the watches could span, the times of what changed in it are not known, and
// the journal says so.
func TestALongStopIsNotedAsAnOutage(t *testing.T) {
	s := newFakeServer(t)
	cms := s.add("", "v1", "configmaps", "ConfigMap", "")
	s.change(cms, "ADDED", "ns", "x", "1")
	fs := vfs.NewMem()
	ago := time.Now().Add(-time.Hour)
	j, err := journal.Open("/data", journal.Options{
		FS: fs, Key: make([]byte, 32), Free: func() (uint64, error) { return 1 << 40, nil }, Clock: func() time.Time { return ago },
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := j.Compare(t.Context(), journal.Recording{ResourceInfo: journal.ResourceInfo{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true}}, 100, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	r := start(t, s, fs)
	r.await(configMaps, 101)
	outages := r.journal.Outages()
	if len(outages) != 1 || outages[0].Resource != nil || outages[0].From.Sub(ago).Abs() > time.Minute || time.Since(outages[0].To) > time.Minute {
		t.Errorf("outages %+v, want one from %v until now", outages, ago)
	}
	r.stop()
	r = start(t, s, fs) // at once: no further outage, and the first is still known
	r.await(configMaps, 101)
	if again := r.journal.Outages(); len(again) != 1 {
		t.Errorf("outages after a short stop: %+v", again)
	}
}

// While the server is away the status says so, and discovery is tried ever more seldom.
func TestAServerThatIsAwayIsNotConnectedAndNotStormed(t *testing.T) {
	s := newFakeServer(t)
	s.add("", "v1", "configmaps", "ConfigMap", "")
	var away atomic.Bool
	var tries atomic.Int64
	s.handle(func(_ http.ResponseWriter, r *http.Request) bool {
		if !away.Load() {
			return false
		}
		if r.URL.Path == "/api" || r.URL.Path == "/apis" {
			tries.Add(1)
		}
		panic(http.ErrAbortHandler) // the connection breaks
	})
	r := start(t, s, vfs.NewMem(), func(o *Options) { o.Rediscover = 3 * time.Second })
	r.await(configMaps, 100)
	r.eventually("connected", func() bool { return r.capture.Status().Connected })
	away.Store(true)
	r.capture.poke()
	r.eventually("away", func() bool { st := r.capture.Status(); return !st.Connected && st.Error != "" })
	tries.Store(0)
	began := time.Now()
	r.eventually("a few tries", func() bool { return tries.Load() >= 8 })
	if took := time.Since(began); took < time.Second { // a round asks twice, and rounds are 0.3, 0.6, 1.2 ... s apart
		t.Errorf("eight tries in %v: no back-off", took)
	}
	away.Store(false)
	r.eventually("connected again", func() bool { return r.capture.Status().Connected })
}

// A server that dies while it still answers must be asked again when it is back: in between,
// its etcd may have been restored, and it would resume a watch from a revision it has not
// reached without a word.
func TestEveryRefusedWatchIsFollowedByAnotherCheck(t *testing.T) {
	s := newFakeServer(t)
	cms := s.add("", "v1", "configmaps", "ConfigMap", "")
	for range 9 {
		s.change(cms, "MODIFIED", "ns", "x", "1")
	}
	var refuse atomic.Int64 // so many watches
	s.handle(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.RawQuery, "watch=true") && refuse.Add(-1) >= 0 {
			s.update(func() { s.rv, cms.events = 90, nil }) // before anybody hears of the refusal
			panic(http.ErrAbortHandler)
		}
		return false
	})
	r := start(t, s, vfs.NewMem())
	r.await(configMaps, 109)
	r.eventually("watched", func() bool { return r.state(configMaps).State == StateWatching })
	refuse.Store(4)                   // the HTTP transport itself asks again once when a connection breaks
	s.update(func() { cms.breaks++ }) // the check after this one finds the same history, and then it is another
	r.eventually("a new epoch", func() bool { return r.journal.Newest().Epoch == 2 })
	r.eventually("the new state", func() bool { l := r.journal.Ledger(configMaps); return l.Watermark.Epoch == 2 && l.Watermark.RV == 90 })
}

// The main counter used to be read twice for each resource, and empty resources were listed after a probe that had told all.
func TestAStartAsksNothingTwice(t *testing.T) {
	s := newFakeServer(t)
	const resources = 20
	for i := range resources {
		c := s.add("", "v1", fmt.Sprintf("things%d", i), "Thing", "")
		if i%2 == 0 {
			s.change(c, "ADDED", "ns", "x", "1")
		}
	}
	r := start(t, s, vfs.NewMem())
	r.eventually("began", func() bool { return !r.journal.Began().Time.IsZero() })
	for i := range resources {
		gr := schema.GroupResource{Resource: fmt.Sprintf("things%d", i)}
		path := "/api/v1/" + gr.Resource
		l := r.journal.Ledger(gr)
		if l.OwnCounter || l.Watermark.RV != 100+resources/2 || l.Initial != 1-i%2 {
			t.Errorf("%s: %+v", gr, l)
		}
		if probes, lists := s.asked(path+"?limit=1"), s.lists(path); probes != 1 || lists != 1-i%2 {
			t.Errorf("%s: %d probes, %d lists", gr, probes, lists)
		}
	}
	if n := s.asked("/api/v1/namespaces?limit=1"); n > resources/4 {
		t.Errorf("the main counter was read %d times for %d resources", n, resources)
	}
}

// Who reads the API server's audit log can tell the comparison from the capture, whichever page of a list it is.
func TestEachPageOfAnExactListTellsThatItIsTheAudits(t *testing.T) {
	s := newFakeServer(t)
	cms := s.add("", "v1", "configmaps", "ConfigMap", "")
	rv := s.change(cms, "ADDED", "ns", "a", "1")
	var mu sync.Mutex
	agents := map[string]int{}
	s.handle(func(_ http.ResponseWriter, req *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		agents[req.UserAgent()]++
		return false
	})
	r := start(t, s, vfs.NewMem())
	r.await(configMaps, rv)
	r.eventually("watched", func() bool { return r.state(configMaps).State == StateWatching })
	mu.Lock()
	if agents[AuditAgent] != 0 || agents["tidemark-capture"] == 0 {
		t.Errorf("the capture asked as %v", agents)
	}
	mu.Unlock()
	for i, page := range []Exact{{Limit: 1}, {Limit: 1, Continue: "abc"}} {
		page.Resource, page.Revision = configMaps, rv
		if _, err := r.capture.ListExact(t.Context(), page, func(journal.Event) error { return nil }); err != nil {
			t.Fatalf("page %d: %v", i, err)
		}
		mu.Lock()
		if agents[AuditAgent] != i+1 {
			t.Errorf("after page %d: requests by user agent: %v", i, agents)
		}
		mu.Unlock()
	}
}
