package api_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

func serveUntil(t *testing.T, f *fakeSource, l net.Listener, address string) (*api.Client, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := api.NewServer(api.ServerOptions{Source: f, Status: f.status})
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: s.Handler(), BaseContext: func(net.Listener) context.Context { return ctx }}}
	srv.Start()
	t.Cleanup(func() { cancel(); srv.Close() })
	c, err := api.NewClient(api.ClientOptions{Server: address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, cancel
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come true in 20 s")
		}
	}
}

// An answer that is cut off at any byte is an error and never a shorter answer.
func TestConnectionCutAtAnyByteIsAnError(t *testing.T) {
	f := &fakeSource{changes: awkwardChanges()[:3]}
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := api.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	serveUntil(t, f, l, "unix://"+path)
	whole := rawAnswer(t, path)
	cut := filepath.Join(t.TempDir(), "cut.sock")
	n := 0
	cl, err := net.Listen("unix", cut)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := cl.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				_, _ = fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"+whole[:n])
			}
			_ = conn.Close()
		}
	}()
	defer func() { _ = cl.Close(); <-done }()
	c, err := api.NewClient(api.ClientOptions{Server: "unix://" + cut})
	if err != nil {
		t.Fatal(err)
	}
	for n = 0; n < len(whole); n++ {
		got, err := collect(c.Fold(t.Context(), cutAt(5), replay.Scope{}))
		if n == len(whole)-1 && err == nil && len(got) == 3 {
			continue // only the newline after {"end":true} is missing
		}
		if err == nil {
			t.Fatalf("cut after %d of %d bytes: %d objects and no error", n, len(whole), len(got))
		}
	}
	if got, err := collect(c.Fold(t.Context(), cutAt(5), replay.Scope{})); err != nil || len(got) != 3 {
		t.Errorf("whole: %d objects, %v", len(got), err)
	}
}

func rawAnswer(t *testing.T, socket string) string {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("http://x/v1/fold?epoch=1&revision=5")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	return string(b)
}

func TestNetworkListenersWantTheToken(t *testing.T) {
	const token = "0123456789abcdef"
	f := &fakeSource{changes: awkwardChanges()[:1]}
	s := api.NewServer(api.ServerOptions{Source: f, Status: f.status, Registry: api.NewRegistry(f.status)})
	srv := httptest.NewUnstartedServer(s.TokenHandler(token))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	client := func(o api.ClientOptions) *api.Client {
		o.Server = srv.URL
		c, err := api.NewClient(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	if _, err := client(api.ClientOptions{Token: token}).Ledgers(t.Context()); err == nil || !strings.Contains(err.Error(), "not trusted") || !strings.Contains(err.Error(), "--server-ca") {
		t.Errorf("a server with an unknown certificate: %v", err)
	}
	for _, wrong := range []string{"", "0123456789abcde", "0123456789abcdeF", token + "x"} {
		_, err := client(api.ClientOptions{Token: wrong, CAFile: ca}).Ledgers(t.Context())
		var refused *api.Error
		if !errors.As(err, &refused) || refused.Kind != "denied" || !strings.Contains(err.Error(), "--token-file") {
			t.Errorf("token %q: got %v, want to be refused", wrong, err)
		}
	}
	for sent, want := range map[string]string{"": "wants its token", "wrong": "is not the daemon's"} {
		if _, err := client(api.ClientOptions{Token: sent, CAFile: ca}).Ledgers(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("token %q: got %v, want %q", sent, err, want)
		}
	}
	good := client(api.ClientOptions{Token: token, CAFile: ca})
	if got, err := collect(good.Fold(t.Context(), cutAt(5), replay.Scope{})); err != nil || len(got) != 1 {
		t.Errorf("with the token: %d, %v", len(got), err)
	}
	plain := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer plain.CloseIdleConnections()
	for path, want := range map[string]int{
		"/healthz": 200, "/readyz": 200, "/metrics": 401, "/v1/status": 401, "/v1/catalog": 401, "/v1/resolve": 401, "/v1/fold": 401, "/v1/changes": 401,
	} {
		resp, err := plain.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s without a token: %d, want %d", path, resp.StatusCode, want)
		}
	}
	resp, err := plain.Post(srv.URL+"/v1/marks", "application/json", strings.NewReader(`{"name":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 401 || len(f.marks) != 0 {
		t.Error("a mark was set without a token")
	}
}

// A server that was given no token must not be open to those who send none.
func TestEmptyTokenOpensNothing(t *testing.T) {
	f := &fakeSource{}
	s := api.NewServer(api.ServerOptions{Source: f, Status: f.status})
	for _, header := range []string{"", "Bearer ", "Bearer"} {
		r := httptest.NewRequest(http.MethodGet, "/v1/catalog", nil)
		r.Header.Set("Authorization", header)
		w := httptest.NewRecorder()
		s.TokenHandler("").ServeHTTP(w, r)
		if w.Code != http.StatusUnauthorized {
			t.Errorf("Authorization %q: %d", header, w.Code)
		}
	}
}

func TestBadQuestionsAreRefused(t *testing.T) {
	f := &fakeSource{}
	s := api.NewServer(api.ServerOptions{Source: f, Status: f.status})
	for _, target := range []string{
		"/v1/fold", "/v1/fold?epoch=1&revision=x", "/v1/fold?epoch=1&revision=1&time=yesterday", "/v1/fold?epoch=1&revision=1&selector=a%3D%3D%3Db",
		"/v1/changes?from=x", "/v1/changes?to=x", "/v1/resolve?at=%20", "/v1/changes?selector=%3D",
	} {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
		if w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/marks", strings.NewReader("{")))
	if w.Code != http.StatusBadRequest {
		t.Errorf("half a mark: %d", w.Code)
	}
	w = httptest.NewRecorder()
	s.MachineHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/catalog", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("the machine handler tells of history: %d", w.Code)
	}
}

func TestReadinessFollowsTheStatus(t *testing.T) {
	ready := api.Status{Capture: api.CaptureStatus{Connected: true}, Catalog: replay.Catalog{From: cutAt(1)}}
	for name, c := range map[string]struct {
		change func(*api.Status)
		want   int
	}{
		"ready":          {func(*api.Status) {}, 200},
		"paused":         {func(s *api.Status) { s.Condition = "disk full: 3 bytes" }, 503},
		"not connected":  {func(s *api.Status) { s.Capture.Connected = false }, 503},
		"still in lists": {func(s *api.Status) { s.Catalog.From = journal.Cut{} }, 503},
	} {
		st := ready
		c.change(&st)
		s := api.NewServer(api.ServerOptions{Source: &fakeSource{}, Status: func(context.Context, bool) (*api.Status, error) { return &st, nil }})
		w := httptest.NewRecorder()
		s.MachineHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		if w.Code != c.want {
			t.Errorf("%s: %d %s, want %d", name, w.Code, w.Body, c.want)
		}
	}
}

func TestMetricsTellOfResourcesAndNotOfObjects(t *testing.T) {
	f := &fakeSource{changes: awkwardChanges()}
	s := api.NewServer(api.ServerOptions{Source: f, Status: f.status, Registry: api.NewRegistry(f.status)})
	w := httptest.NewRecorder()
	s.MachineHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	body := w.Body.String()
	for _, want := range []string{
		"tidemark_newest_durable_change_age_seconds 10\n",
		"tidemark_watermark_age_seconds{resource=\"deployments.apps\"} 10\n",
		"tidemark_gaps_count{resource=\"deployments.apps\"} 1\n",
		"tidemark_inferred_events_count{resource=\"deployments.apps\"} 3\n",
		"tidemark_apiserver_connected_bool 1\n", "tidemark_recording_paused_bool 0\n", "tidemark_restorable_range_seconds 200\n",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in:\n%s", want, body)
		}
	}
	if strings.Contains(body, "shop") {
		t.Error("a namespace is named in the metrics")
	}
}

// Each location has its own figures; an alert on them must not need a look into the daemon. The text of
// an error is not in them: it may name what it should not.
func TestMetricsTellOfArchives(t *testing.T) {
	f := &fakeSource{}
	status := func(ctx context.Context, totals bool) (*api.Status, error) {
		st, err := f.status(ctx, totals)
		if err != nil {
			return nil, err
		}
		st.Archives = []compactor.Status{
			{Name: "main", ArchivedTo: journal.Position{Cut: cutAt(300)}, Bytes: 4096, Segments: 3, Snapshots: 2},
			{Name: "far", ArchivedTo: journal.Position{Cut: cutAt(250)}, PendingEvents: 50, PendingBytes: 5000, Waiting: st.Now.Add(-time.Minute), Error: "canary"},
			{Name: "new"},
		}
		return st, nil
	}
	s := api.NewServer(api.ServerOptions{Source: f, Status: status, Registry: api.NewRegistry(status)})
	w := httptest.NewRecorder()
	s.MachineHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	body := w.Body.String()
	at := func(n uint64) string {
		return strconv.FormatFloat(float64(cutAt(n).Time.UnixMilli())/1000, 'g', -1, 64)
	}
	for _, want := range []string{
		`tidemark_archive_lag_seconds{archive="main"} 0`, `tidemark_archive_lag_seconds{archive="far"} 60`,
		`tidemark_archived_to_timestamp_seconds{archive="main"} ` + at(300), `tidemark_archived_to_timestamp_seconds{archive="far"} ` + at(250),
		`tidemark_archive_pending_events{archive="main"} 0`, `tidemark_archive_pending_events{archive="far"} 50`,
		`tidemark_archive_pending_bytes{archive="far"} 5000`,
		`tidemark_archive_failing_bool{archive="main"} 0`, `tidemark_archive_failing_bool{archive="far"} 1`,
		`tidemark_archive_size_bytes{archive="main"} 4096`, `tidemark_archive_segments_count{archive="main"} 3`, `tidemark_archive_snapshots_count{archive="main"} 2`,
		`tidemark_archive_pending_events{archive="new"} 0`,
		"# TYPE tidemark_archive_lag_seconds gauge", "# HELP tidemark_archive_lag_seconds ",
	} {
		if !strings.Contains(body, want+"\n") && !(strings.HasPrefix(want, "# HELP") && strings.Contains(body, want)) {
			t.Errorf("no %q in:\n%s", want, body)
		}
	}
	if strings.Contains(body, "canary") || strings.Contains(body, `archived_to_timestamp_seconds{archive="new"}`) {
		t.Error("the metrics tell an error's text, or a moment up to which nothing is archived")
	}
}

func TestSocketIsPrivateAndReplacesOnlyADeadOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := api.ListenUnix(path)
	if err != nil {
		t.Fatalf("the socket of a dead daemon is in the way: %v", err)
	}
	defer l.Close()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if _, err := api.ListenUnix(path); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("the socket of a living daemon was taken: %v", err)
	}
	file := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.ListenUnix(file); err == nil {
		t.Error("a file was replaced by a socket")
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		t.Error("a file that was in the way is gone")
	}
	if _, err := api.ListenUnix("/" + strings.Repeat("x", 200)); err == nil || !strings.Contains(err.Error(), "shorter --data-dir") {
		t.Errorf("too long a path: %v", err)
	}
}

func TestPlainHTTPIsRefused(t *testing.T) {
	for _, s := range []string{"http://127.0.0.1:8080", "http://0.0.0.0:80", "127.0.0.1:80", "https://host", "unix://relative", ""} {
		if a, err := api.ParseAddress(s); err == nil {
			t.Errorf("%q was taken as %+v", s, a)
		}
	}
	for s, want := range map[string]api.Address{
		"https://[::1]:8443": {TCP: "[::1]:8443"}, "https://:8443": {TCP: ":8443"}, "unix:///run/a b%20c.sock": {Unix: "/run/a b%20c.sock"},
	} {
		if a, err := api.ParseAddress(s); err != nil || a != want {
			t.Errorf("%q: %+v, %v", s, a, err)
		}
	}
	for _, s := range []string{"0.0.0.0:0", ":0", "192.0.2.1:0", "example.com:0", "127.0.0.1"} {
		if l, err := api.ListenLoopback(s); err == nil {
			_ = l.Close()
			t.Errorf("metrics over plain http on %q", s)
		}
	}
	l, err := api.ListenLoopback("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

// slowSource follows with a long silence between its changes.
type slowSource struct {
	*fakeSource
	next chan struct{} // the next change comes when it can be read from
}

func (s *slowSource) Changes(ctx context.Context, q replay.ChangeQuery) iter.Seq2[replay.Change, error] {
	return func(yield func(replay.Change, error) bool) {
		for _, c := range s.changes {
			select {
			case <-s.next:
			case <-ctx.Done():
				return
			}
			if !yield(c, nil) {
				return
			}
		}
		if q.Follow {
			<-ctx.Done()
		}
	}
}

// Nothing happens for longer than a client may take for one write: that is no reason to end a
// follower, nor an answer whose next part takes its time.
func TestSilenceIsNoSlowClient(t *testing.T) {
	const timeout = 50 * time.Millisecond
	for name, follow := range map[string]bool{"follower": true, "long answer": false} {
		f := &slowSource{&fakeSource{changes: awkwardChanges()[:3]}, make(chan struct{})}
		s := api.NewServer(api.ServerOptions{Source: f, Status: f.status, WriteTimeout: timeout})
		srv := httptest.NewUnstartedServer(s.Handler())
		srv.EnableHTTP2 = true
		srv.StartTLS()
		ca := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := api.NewClient(api.ClientOptions{Server: srv.URL, CAFile: ca})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for range f.changes {
				time.Sleep(4 * timeout) // the silence is what this is about
				select {
				case f.next <- struct{}{}:
				case <-ctx.Done():
				}
			}
		}()
		n := 0
		for _, err := range c.Changes(ctx, replay.ChangeQuery{Follow: follow}) {
			if err != nil {
				if n < len(f.changes) {
					t.Errorf("%s: after %d changes: %v", name, n, err)
				}
				break
			}
			if n++; n == len(f.changes) {
				break
			}
		}
		if n != len(f.changes) {
			t.Errorf("%s: %d changes of %d", name, n, len(f.changes))
		}
		cancel()
		c.Close()
		srv.Close()
	}
}

// The socket is never, not for an instant, open to others.
func TestSocketIsBornPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	stop, seen := make(chan struct{}), make(chan fs.FileMode, 1)
	go func() {
		var worst fs.FileMode
		for {
			if info, err := os.Lstat(path); err == nil {
				worst |= info.Mode().Perm()
			}
			select {
			case <-stop:
				seen <- worst
				return
			default:
			}
		}
	}()
	for range 2000 {
		l, err := api.ListenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if worst := <-seen; worst&0o077 != 0 {
		t.Errorf("it was seen with mode %v", worst)
	}
}
