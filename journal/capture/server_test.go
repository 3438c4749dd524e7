package capture

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/tidemark-backup/tidemark/journal"
)

// fakeServer answers what a capture asks of an API server: discovery, lists and watches, from
// a history that tests write.
type fakeServer struct {
	*httptest.Server
	t *testing.T

	mu          sync.Mutex
	changed     chan struct{} // closed and replaced at each change
	rv          uint64
	collections map[string]*collection // by path
	broken      map[string]bool        // groups whose discovery fails
	requests    []string
}

// collection is one resource of a fakeServer.
type collection struct {
	gv       schema.GroupVersion
	resource metav1.APIResource
	events   []fakeEvent
	own      uint64   // its own counter, when not zero
	oldest   uint64   // watches from before get 410 Gone
	inStream bool     // ... as a frame of the stream, not as HTTP status
	forbid   bool     // everything is refused
	frames   []string // raw frames to send in every watch, before anything else
	breaks   int      // goes up: running watches end, after what is there was sent
	cut      bool     // running watches end at once
}

type fakeEvent struct {
	kind     string
	ns, name string
	rv       uint64
	data     string
}

func (e fakeEvent) object(typed string) string {
	return fmt.Sprintf(`{%s"metadata":{"name":%q,"namespace":%q,"uid":"uid-%s-%s","resourceVersion":"%d","labels":{"l":"x"}},"data":%q}`, typed, e.name, e.ns, e.ns, e.name, e.rv, e.data)
}

func newFakeServer(t *testing.T) *fakeServer {
	t.Helper()
	s := &fakeServer{t: t, rv: 100, collections: map[string]*collection{}, broken: map[string]bool{}, changed: make(chan struct{})}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	s.add("", "v1", "namespaces", "Namespace", "")
	return s
}

func (s *fakeServer) add(group, version, name, kind, hash string) *collection {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &collection{
		gv:       schema.GroupVersion{Group: group, Version: version},
		resource: metav1.APIResource{Name: name, Kind: kind, SingularName: strings.ToLower(kind), Namespaced: name != "namespaces", Verbs: []string{"get", "list", "watch"}, StorageVersionHash: hash},
	}
	s.collections[pathOf(group, version)+"/"+name] = c
	return c
}

func pathOf(group, version string) string {
	if group == "" {
		return "/api/" + version
	}
	return "/apis/" + group + "/" + version
}

// change appends an event of the collection.
func (s *fakeServer) change(c *collection, kind, ns, name, data string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	counter := &s.rv
	if c.own > 0 {
		counter = &c.own
	}
	*counter++
	c.events = append(c.events, fakeEvent{kind, ns, name, *counter, data})
	s.wake()
	return *counter
}

// update changes the server under its lock.
func (s *fakeServer) update(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.wake()
}

func (s *fakeServer) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// asked counts the requests that contain all the parts.
func (s *fakeServer) asked(parts ...string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(r, p) }) {
			n++
		}
	}
	return n
}

// lists counts the real lists of a resource: not watches, and not the one-item probes.
func (s *fakeServer) lists(path string) (n int) {
	return s.asked("GET "+path+"?", "limit=500")
}

func (s *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
	c := s.collections[r.URL.Path]
	s.mu.Unlock()
	switch {
	case r.URL.Path == "/api/v1/namespaces/kube-system":
		fmt.Fprint(w, `{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"kube-system","uid":"cluster-1","resourceVersion":"1"}}`)
	case c != nil && r.URL.Query().Get("watch") != "":
		s.watch(w, r, c)
	case c != nil:
		s.list(w, r, c)
	default:
		s.discover(w, r)
	}
}

func fail(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprint(w, status(code, reason, message))
}

func status(code int, reason metav1.StatusReason, message string) string {
	b, _ := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason, Message: message,
	})
	return string(b)
}

func (s *fakeServer) discover(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var answer any
	switch r.URL.Path {
	case "/api":
		answer = metav1.APIVersions{Versions: []string{"v1"}}
	case "/apis":
		groups := map[string]metav1.APIGroup{}
		for _, c := range s.collections {
			if c.gv.Group != "" {
				v := metav1.GroupVersionForDiscovery{GroupVersion: c.gv.String(), Version: c.gv.Version}
				groups[c.gv.Group] = metav1.APIGroup{Name: c.gv.Group, Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v}
			}
		}
		var list metav1.APIGroupList
		for _, g := range groups {
			list.Groups = append(list.Groups, g)
		}
		answer = list
	default:
		list := metav1.APIResourceList{}
		for path, c := range s.collections {
			if strings.HasPrefix(path, r.URL.Path+"/") {
				list.GroupVersion = c.gv.String()
				list.APIResources = append(list.APIResources, c.resource)
			}
		}
		if list.GroupVersion == "" {
			fail(w, 404, metav1.StatusReasonNotFound, "not found")
			return
		}
		if g, _ := schema.ParseGroupVersion(list.GroupVersion); s.broken[g.Group] {
			fail(w, 503, metav1.StatusReasonServiceUnavailable, "the aggregated API is down")
			return
		}
		answer = list
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *fakeServer) list(w http.ResponseWriter, _ *http.Request, c *collection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.forbid {
		fail(w, 403, metav1.StatusReasonForbidden, "no list for you")
		return
	}
	live := map[string]fakeEvent{}
	for _, e := range c.events {
		if live[e.ns+"/"+e.name] = e; e.kind == "DELETED" {
			delete(live, e.ns+"/"+e.name)
		}
	}
	rv := s.rv
	if c.own > 0 {
		rv = c.own
	}
	var items []string
	for _, e := range live {
		items = append(items, e.object(""))
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"kind":"%sList","apiVersion":%q,"metadata":{"resourceVersion":"%d"},"items":[%s]}`, c.resource.Kind, c.gv, rv, strings.Join(items, ","))
}

func (s *fakeServer) watch(w http.ResponseWriter, r *http.Request, c *collection) {
	from, _ := strconv.ParseUint(r.URL.Query().Get("resourceVersion"), 10, 64)
	s.mu.Lock()
	gone, inStream, forbid, breaks, frames := from < c.oldest, c.inStream, c.forbid, c.breaks, c.frames
	s.mu.Unlock()
	if forbid {
		fail(w, 403, metav1.StatusReasonForbidden, "no watch for you")
		return
	}
	if gone && !inStream {
		fail(w, 410, metav1.StatusReasonExpired, "too old resource version")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if gone {
		fmt.Fprintf(w, `{"type":"ERROR","object":%s}`+"\n", status(410, metav1.StatusReasonExpired, "too old resource version"))
		return
	}
	for _, f := range frames {
		fmt.Fprint(w, f)
	}
	typed := fmt.Sprintf(`"kind":%q,"apiVersion":%q,`, c.resource.Kind, c.gv)
	sent := 0
	for {
		s.mu.Lock()
		events, changed, broken := slices.Clone(c.events[sent:]), s.changed, c.breaks != breaks || c.forbid
		if c.cut && sent > 0 {
			c.cut = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		for _, e := range events {
			if sent++; e.rv > from {
				fmt.Fprintf(w, `{"type":%q,"object":%s}`+"\n", e.kind, e.object(typed))
			}
		}
		w.(http.Flusher).Flush()
		if broken {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// running is a capture at work on a fakeServer.
type running struct {
	t       *testing.T
	journal *journal.Journal
	capture *Capture
	stop    func()
}

func openJournal(t *testing.T, fs vfs.FS) *journal.Journal {
	t.Helper()
	j, err := journal.Open("/data", journal.Options{FS: fs, Key: make([]byte, 32), Free: func() (uint64, error) { return 1 << 40, nil }})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func start(t *testing.T, s *fakeServer, fs vfs.FS, change ...func(*Options)) *running {
	t.Helper()
	j := openJournal(t, fs)
	o := Options{Config: &rest.Config{Host: s.URL}, Journal: j, Rediscover: 50 * time.Millisecond}
	for _, f := range change {
		f(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	r := &running{t: t, journal: j, capture: c}
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("capture: %v", err)
			}
			if err := j.Close(); err != nil {
				t.Errorf("close journal: %v", err)
			}
		})
	}
	t.Cleanup(r.stop)
	return r
}

func (r *running) eventually(what string, f func() bool) {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("%s: never; status %+v, ledgers %+v", what, r.capture.Status(), r.journal.Ledgers())
		}
	}
}

// await waits until the journal is complete up to rv.
func (r *running) await(gr schema.GroupResource, rv uint64) *journal.Ledger {
	r.t.Helper()
	var l *journal.Ledger
	r.eventually(fmt.Sprint(gr, " up to ", rv), func() bool {
		l = r.journal.Ledger(gr)
		return l != nil && l.Comparing == "" && l.Watermark.RV >= rv
	})
	return l
}

func (r *running) history(gr schema.GroupResource) (all []journal.Event) {
	r.t.Helper()
	tail, err := r.journal.Tail(time.Time{}, r.journal.Newest().Time)
	if err != nil {
		r.t.Fatal(err)
	}
	for tail.Next() {
		e, ok, err := tail.Event()
		if err != nil || !ok {
			r.t.Fatalf("event %+v: %v %v", tail.Meta(), ok, err)
		}
		if e.Resource == gr {
			all = append(all, e)
		}
	}
	if err := tail.Close(); err != nil {
		r.t.Fatal(err)
	}
	return all
}

func (r *running) state(gr schema.GroupResource) ResourceStatus {
	for _, s := range r.capture.Status().Resources {
		if s.Resource == gr {
			return s
		}
	}
	return ResourceStatus{}
}
