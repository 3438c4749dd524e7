package bench

import (
	"bufio"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/tidemark-backup/tidemark/deploy/localdisk"
	"github.com/tidemark-backup/tidemark/journal"
)

// envServer makes the test binary a server instead; it holds the serverOptions as JSON.
const envServer = "TIDEMARK_BENCH_SERVER"

func TestMain(m *testing.M) {
	if text := os.Getenv(envServer); text != "" {
		if err := serve(text, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if again, code := localdisk.Isolate(); again {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// serverOptions say what the server holds: made-up Pods and Deployments, and the watch events
// that it sends after it was told to play, so many a second of each kind (zero: as fast as they
// are read).
type serverOptions struct{ Objects, Namespaces, Events, Rate int }

// server speaks as much of the Kubernetes API as a recorder needs: discovery, paged lists and
// watches, over HTTP/2 and TLS. It runs in a process of its own, so that its work is not
// counted, and shows every client the same bytes.
type server struct {
	began     uint64 // revision of the lists
	rate      int
	resources map[string]*served

	mu       sync.Mutex
	playing  chan struct{} // closed by play, replaced by rewind
	watching int
}

// served is one resource: its list, and the watch frames that come after it.
type served struct {
	info   journal.ResourceInfo
	items  [][]byte
	frames [][]byte
}

func newServer(o serverOptions) *server {
	h := podsAndDeployments(1, o.Objects, o.Namespaces)
	s := &server{began: h.rv, rate: o.Rate, resources: map[string]*served{}, playing: make(chan struct{})}
	for _, info := range []journal.ResourceInfo{podInfo, deploymentInfo} {
		s.resources[path(info)] = &served{info: info}
	}
	slices.SortFunc(h.objects, func(a, b *madeUp) int { return strings.Compare(a.namespace+"/"+a.name, b.namespace+"/"+b.name) })
	for _, o := range h.objects {
		r := s.resources[path(o.kind.info)]
		text := string(o.render(nil))
		_, rest, _ := strings.Cut(text, `"metadata":`) // built-in kinds come without kind and apiVersion in lists
		r.items = append(r.items, []byte(`{"metadata":`+rest))
	}
	for range o.Events {
		o := h.objects[h.random.IntN(len(h.objects))]
		e := h.change(o)
		r := s.resources[path(o.kind.info)]
		r.frames = append(r.frames, fmt.Appendf(nil, "{\"type\":%q,\"object\":%s}\n", e.Op, e.Object))
	}
	return s
}

func path(info journal.ResourceInfo) string {
	if info.Group == "" {
		return "/api/" + info.Version + "/" + info.Resource
	}
	return "/apis/" + info.Group + "/" + info.Version + "/" + info.Resource
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/play":
		s.mu.Lock()
		close(s.playing)
		s.mu.Unlock()
	case "/rewind":
		s.mu.Lock()
		s.playing = make(chan struct{})
		s.mu.Unlock()
	case "/watching":
		s.mu.Lock()
		fmt.Fprint(w, s.watching)
		s.mu.Unlock()
	case "/api/v1/namespaces/kube-system":
		answer(w, map[string]any{"kind": "Namespace", "apiVersion": "v1", "metadata": map[string]any{"name": "kube-system", "uid": "made-up", "resourceVersion": "1"}})
	case "/api/v1/namespaces":
		s.list(w, r, &served{info: journal.ResourceInfo{Version: "v1", Kind: "Namespace"}})
	case "/api":
		answer(w, metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}})
	case "/apis":
		v := metav1.GroupVersionForDiscovery{GroupVersion: "apps/v1", Version: "v1"}
		answer(w, metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{
			{Name: "apps", Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v},
		}})
	case "/api/v1":
		s.discovery(w, podInfo)
	case "/apis/apps/v1":
		s.discovery(w, deploymentInfo)
	default:
		res := s.resources[r.URL.Path]
		switch q := r.URL.Query(); {
		case res == nil:
			refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		case q.Get("sendInitialEvents") == "true": // as servers without it say; clients list then
			refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
		case q.Get("watch") != "":
			s.watch(w, r, res)
		default:
			s.list(w, r, res)
		}
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that has gone
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason})
}

func (s *server) discovery(w http.ResponseWriter, info journal.ResourceInfo) {
	answer(w, metav1.APIResourceList{
		TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: strings.TrimPrefix(info.Group+"/"+info.Version, "/"),
		APIResources: []metav1.APIResource{{Name: info.Resource, SingularName: info.Singular, Kind: info.Kind, Namespaced: true, Verbs: metav1.Verbs{"get", "list", "watch"}}},
	})
}

func (s *server) list(w http.ResponseWriter, r *http.Request, res *served) {
	from, _ := strconv.Atoi(r.URL.Query().Get("continue"))
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	if r.URL.Query().Get("labelSelector") != "" { // the daemon looks for Pods of its own, and would delete all of these
		res = &served{info: res.info}
	}
	to, next := len(res.items), ""
	if limit > 0 && from+limit < to {
		to = from + limit
		next = strconv.Itoa(to)
	}
	w.Header().Set("Content-Type", "application/json")
	out := bufio.NewWriterSize(w, 64<<10)
	version := strings.TrimPrefix(res.info.Group+"/"+res.info.Version, "/")
	fmt.Fprintf(out, `{"kind":"%sList","apiVersion":%q,"metadata":{"resourceVersion":"%d","continue":%q},"items":[`, res.info.Kind, version, s.began, next)
	for i, item := range res.items[from:to] {
		if i > 0 {
			_ = out.WriteByte(',')
		}
		_, _ = out.Write(item)
	}
	_, _ = out.WriteString("]}\n")
	_ = out.Flush() // a client that has gone
}

// watch sends the frames once they are to be played. As the real server does, it flushes when
// nothing more is waiting.
func (s *server) watch(w http.ResponseWriter, r *http.Request, res *served) {
	w.Header().Set("Content-Type", "application/json")
	flusher := w.(http.Flusher)
	flusher.Flush()
	s.mu.Lock()
	s.watching++
	playing := s.playing
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.watching--
		s.mu.Unlock()
	}()
	select {
	case <-playing:
	case <-r.Context().Done():
		return
	}
	start := time.Now()
	for i, f := range res.frames {
		if s.rate > 0 {
			if early := time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(s.rate))); early > 0 {
				flusher.Flush()
				time.Sleep(early)
			}
		}
		if _, err := w.Write(f); err != nil {
			return
		}
	}
	flusher.Flush()
	<-r.Context().Done()
}

// hello is what the server's process says when it is ready.
type hello struct {
	URL, CA string
	Newest  uint64 // revision after everything was played
}

// serve runs the server until in ends.
func serve(options string, in io.Reader, out io.Writer) error {
	var o serverOptions
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		return err
	}
	s := newServer(o)
	h := httptest.NewUnstartedServer(s)
	h.EnableHTTP2 = true
	h.StartTLS()
	defer h.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})
	if err := json.NewEncoder(out).Encode(hello{URL: h.URL, CA: string(ca), Newest: s.began + uint64(o.Events)}); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, in)
	h.CloseClientConnections()
	return err
}

// remote is a server in a process of its own.
type remote struct {
	b      *testing.B
	config *rest.Config
	newest uint64
}

// startServer starts a server; it ends with the benchmark.
func startServer(b *testing.B, o serverOptions) *remote {
	b.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		b.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), envServer+"="+string(text))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close() // tells it to end
		if err := cmd.Wait(); err != nil {
			b.Errorf("server: %v", err)
		}
	})
	var h hello
	if err := json.NewDecoder(out).Decode(&h); err != nil {
		b.Fatal(err)
	}
	return &remote{b: b, newest: h.Newest, config: remoteConfig(h.URL, h.CA)}
}

// remoteConfig is a configuration without client-side limits.
func remoteConfig(url, ca string) *rest.Config {
	return &rest.Config{Host: url, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAData: []byte(ca)}}
}

// say sends a command and returns the answer.
func (r *remote) say(command string) string {
	r.b.Helper()
	client, err := rest.HTTPClientFor(r.config)
	if err != nil {
		r.b.Fatal(err)
	}
	resp, err := client.Get(r.config.Host + "/" + command)
	if err != nil {
		r.b.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		r.b.Fatalf("%s: %s %v", command, resp.Status, err)
	}
	return string(text)
}

// awaitWatches waits until n watches are open, so that all lists are done.
func (r *remote) awaitWatches(n int) {
	r.b.Helper()
	eventually(r.b, 5*time.Minute, "watches", func() (bool, string) {
		text := r.say("watching")
		return text == strconv.Itoa(n), text
	})
}

// kubeconfig writes a kubeconfig for the server.
func (r *remote) kubeconfig() string {
	r.b.Helper()
	c := api.NewConfig()
	c.Clusters["made-up"] = &api.Cluster{Server: r.config.Host, CertificateAuthorityData: r.config.CAData}
	c.Contexts["made-up"] = &api.Context{Cluster: "made-up"}
	c.CurrentContext = "made-up"
	name := filepath.Join(r.b.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*c, name); err != nil {
		r.b.Fatal(err)
	}
	return name
}
