package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/journal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kubeconfig writes one that points at the address.
func kubeconfig(t *testing.T, address string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"c","cluster":{"server":%q,"insecure-skip-tls-verify":true}}],
"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],"users":[{"name":"u","user":{"token":"t"}}]}`, address)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// nobody is an address that refuses connections.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "https://" + l.Addr().String()
}

// start runs a daemon until the test ends. Its end is checked to be clean unless stop was called.
func start(t *testing.T, o Options) (*api.Client, func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, o) }()
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("the daemon did not stop cleanly: %v", err)
		}
	})
	c, err := api.NewClient(api.ClientOptions{Server: "unix://" + filepath.Join(o.DataDir, SocketName)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	deadline := time.Now().Add(30 * time.Second)
	for {
		if _, err := c.Ledgers(ctx); err == nil {
			return c, stop
		} else if time.Now().After(deadline) {
			t.Fatalf("the daemon does not answer: %v", err)
		}
		select {
		case err := <-ended:
			stopped = true
			t.Fatalf("the daemon ended: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// status polls the status until it is as wanted.
func status(t *testing.T, c *api.Client, wanted func(*api.Status) bool) *api.Status {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		st, err := c.Status(t.Context())
		if err == nil && wanted(st) {
			return st
		}
		if time.Now().After(deadline) {
			t.Fatalf("the status did not become as wanted: %+v, %v", st, err)
		}
	}
}

func TestUnreachableAPIServerIsTriedAgainAndToldInTheStatus(t *testing.T) {
	address := nobody(t)
	c, stop := start(t, Options{Kubeconfig: kubeconfig(t, address), DataDir: t.TempDir(), Version: "v0"})
	st := status(t, c, func(s *api.Status) bool { return s.Capture.Error != "" })
	if st.Capture.Connected || !strings.Contains(st.Capture.Error, "refused") || st.Capture.Server != address || st.Version != "v0" {
		t.Errorf("status: %+v", st)
	}
	if err := stop(); err != nil {
		t.Errorf("stop: %v, want a clean one", err)
	}
}

func TestRefusalIsToldWithTheServersWords(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,
"message":"namespaces \"kube-system\" is forbidden: User \"nobody\" cannot get resource \"namespaces\""}`)
	}))
	t.Cleanup(s.Close)
	c, _ := start(t, Options{Kubeconfig: kubeconfig(t, s.URL), DataDir: t.TempDir()})
	st := status(t, c, func(s *api.Status) bool { return s.Capture.Error != "" })
	if got := st.Capture.Error; !strings.Contains(got, `User "nobody" cannot get`) || !strings.Contains(got, "tidemark needs") {
		t.Errorf("it says: %s", got)
	}
}

// A server that is away has one line in the log, and not many of what cannot be done without it.
func TestUnreachableAPIServerIsLoggedOnce(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	start(t, Options{Kubeconfig: kubeconfig(t, nobody(t)), DataDir: t.TempDir(), Logger: zap.New(core), Archives: []Archive{{URL: "dir://" + t.TempDir()}}})
	var cannot []observer.LoggedEntry
	for deadline := time.Now().Add(30 * time.Second); len(cannot) < 2; time.Sleep(5 * time.Millisecond) {
		if cannot = logs.FilterMessageSnippet("volume backups that were cut off").All(); time.Now().After(deadline) {
			t.Fatal("it does not look after volume backups")
		}
	}
	for _, e := range cannot {
		if e.Level > zap.DebugLevel {
			t.Errorf("it logs %v %s", e.Level, e.Message)
		}
	}
	if n := logs.FilterMessageSnippet("cannot go on yet").Len(); n != 1 {
		t.Errorf("%d lines of the server that is away, want 1", n)
	}
}

func TestSecondDaemonOnTheSameDataDirIsRefused(t *testing.T) {
	o := Options{Kubeconfig: kubeconfig(t, nobody(t)), DataDir: t.TempDir()}
	c, _ := start(t, o)
	err := Run(t.Context(), o)
	if !errors.Is(err, journal.ErrLocked) || !strings.Contains(err.Error(), "tidemark status --server unix://") {
		t.Errorf("the second daemon: %v", err)
	}
	if _, err := c.Ledgers(t.Context()); err != nil {
		t.Errorf("the first daemon suffered: %v", err)
	}
}

func TestFullDiskPausesRecordingAndIsTold(t *testing.T) {
	c, _ := start(t, Options{Kubeconfig: kubeconfig(t, fakeCluster(t, "cluster")), DataDir: t.TempDir(), MinFree: 1 << 60})
	st := status(t, c, func(s *api.Status) bool { return s.Condition != "" })
	if !strings.Contains(st.Condition, "disk") {
		t.Errorf("condition %q", st.Condition)
	}
}

func TestBrokenKubeconfigIsAnErrorAtOnce(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBECONFIG", "")
	write := func(text string) string {
		p := filepath.Join(t.TempDir(), "k")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	good := kubeconfig(t, "https://127.0.0.1:1")
	for name, c := range map[string]struct{ file, context, want string }{
		"missing file":      {file: "/nowhere/kubeconfig", want: "--kubeconfig"},
		"not YAML":          {file: write("{{{"), want: "config view"},
		"empty":             {file: write(""), want: "names no cluster"},
		"unknown context":   {file: good, context: "prod", want: "get-contexts"},
		"no current":        {file: write(`{"apiVersion":"v1","kind":"Config","clusters":[{"name":"c","cluster":{"server":"https://x"}}]}`), want: "--context"},
		"missing CA file":   {file: write(strings.Replace(read(t, good), `"insecure-skip-tls-verify":true`, `"certificate-authority":"/nowhere/ca.crt"`, 1)), want: "/nowhere/ca.crt"},
		"none at all":       {want: "--kubeconfig FILE"},
		"context, no files": {context: "prod", want: "--kubeconfig"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			err := Run(t.Context(), Options{Kubeconfig: c.file, Context: c.context, DataDir: dir})
			if !errors.Is(err, ErrKubeconfig) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want a hint with %q", err, c.want)
			}
			if _, err := os.Stat(dir); err == nil {
				t.Error("a data directory was made although nothing can be recorded")
			}
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// fakeCluster says which cluster it is and has one resource with one object.
func fakeCluster(t *testing.T, uid string) string {
	t.Helper()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/api/v1/namespaces/kube-system":
			_, _ = fmt.Fprintf(w, `{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"kube-system","uid":%q,"resourceVersion":"5"}}`, uid)
		case "/api":
			_, _ = io.WriteString(w, `{"kind":"APIVersions","versions":["v1"]}`)
		case "/apis":
			_, _ = io.WriteString(w, `{"kind":"APIGroupList","apiVersion":"v1","groups":[]}`)
		case "/api/v1":
			_, _ = io.WriteString(w, `{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"configmaps","singularName":"configmap","namespaced":true,"kind":"ConfigMap","verbs":["list","watch"]}]}`)
		case "/api/v1/configmaps":
			if r.URL.Query().Get("watch") == "" {
				_, _ = io.WriteString(w, `{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":"10"},"items":[{"metadata":{"name":"a","namespace":"shop","uid":"1","resourceVersion":"7"}}]}`)
				return
			}
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestJournalOfAnotherClusterIsRefused(t *testing.T) {
	dir := t.TempDir()
	j, err := journal.Open(dir, journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.Bind(context.Background(), "the-first-cluster"), j.Close()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err = Run(ctx, Options{Kubeconfig: kubeconfig(t, fakeCluster(t, "another-cluster")), DataDir: dir})
	if !errors.Is(err, journal.ErrOtherCluster) {
		t.Errorf("got %v, want it refused", err)
	}
	j, err = journal.Open(dir, journal.Options{})
	if err != nil {
		t.Fatalf("the journal was not closed properly: %v", err)
	}
	if id := j.ClusterID(); id != "the-first-cluster" {
		t.Errorf("the journal is now that of %q", id)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedJournalIsRefusedByFile(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 8000) // enough for a table
	tables, err := filepath.Glob(filepath.Join(dir, "journal", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("no table to damage: %v, %v", tables, err)
	}
	b := []byte(read(t, tables[0]))
	b[len(b)/2] ^= 1
	if err := os.WriteFile(tables[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	err = Run(t.Context(), Options{Kubeconfig: kubeconfig(t, nobody(t)), DataDir: dir})
	var damaged *journal.CorruptionError
	if !errors.As(err, &damaged) || !strings.Contains(err.Error(), filepath.Base(tables[0])) {
		t.Errorf("got %v, want the damaged file %s named", err, filepath.Base(tables[0]))
	}
}

// fill records n changes of config maps, and closes the journal.
func fill(t *testing.T, dir string, n int) {
	t.Helper()
	j, err := journal.Open(dir, journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	info := journal.ResourceInfo{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true}
	c, err := j.Compare(ctx, journal.Recording{ResourceInfo: info}, 1, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(ctx, 1); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		err := j.Append(ctx, journal.Event{
			Resource: schema.GroupResource{Resource: "configmaps"}, Namespace: "shop", Name: fmt.Sprint("c", i), UID: "u", Op: journal.Added,
			Revision: journal.Revision{RV: uint64(i + 2)},
			Object:   fmt.Appendf(nil, `{"kind":"ConfigMap","metadata":{"name":"c%d","namespace":"shop","resourceVersion":"%d"},"data":{"x":%q}}`, i, i+2, strings.Repeat("x", 4000)),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(j.SetBegan(ctx), j.Flush(ctx), j.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestHistoryIsServedWhileTheClusterIsAway(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 3)
	c, stop := start(t, Options{Kubeconfig: kubeconfig(t, nobody(t)), DataDir: dir})
	cat, err := c.Ledgers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if cat.To.RV != 4 {
		t.Errorf("newest revision %d, want 4", cat.To.RV)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, SocketName)); err == nil {
		t.Error("the socket is still there after a clean stop")
	}
}

func TestHTTPSListenerNeedsCertificateAndToken(t *testing.T) {
	srv := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	srv.Close()
	dir := t.TempDir()
	crt, key, token, short := filepath.Join(dir, "crt"), filepath.Join(dir, "key"), filepath.Join(dir, "token"), filepath.Join(dir, "short")
	writeKeyPair(t, srv.TLS.Certificates[0], crt, key)
	for path, text := range map[string]string{token: "0123456789abcdef\n", short: "short"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open := filepath.Join(dir, "open")
	if err := os.WriteFile(open, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	base := Options{Kubeconfig: kubeconfig(t, nobody(t)), Listen: []string{"https://127.0.0.1:0"}, TLSCert: crt, TLSKey: key, TokenFile: token}
	for name, change := range map[string]func(*Options){
		"no token":    func(o *Options) { o.TokenFile = "" },
		"no key":      func(o *Options) { o.TLSKey = "" },
		"short token": func(o *Options) { o.TokenFile = short },
		"open token":  func(o *Options) { o.TokenFile = open },
		"wrong key":   func(o *Options) { o.TLSKey = crt },
		"plain http":  func(o *Options) { o.Listen = []string{"http://127.0.0.1:0"} },
		"open metrics": func(o *Options) {
			o.MetricsListen = "0.0.0.0:0"
		},
	} {
		o := base
		o.DataDir = t.TempDir()
		change(&o)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if err := Run(ctx, o); err == nil {
			t.Errorf("%s: it ran", name)
		}
		cancel()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "https://" + l.Addr().String()
	_ = l.Close()
	o := base
	o.DataDir, o.Listen = t.TempDir(), []string{address}
	start(t, o)
	c, err := api.NewClient(api.ClientOptions{Server: address, Token: "0123456789abcdef", CAFile: crt})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("over https: %v", err)
	}
}

func writeKeyPair(t *testing.T, pair tls.Certificate, crt, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{crt: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A pattern with a typing error would record nothing, and look well.
func TestIncludeThatMatchesNothingIsTold(t *testing.T) {
	o := Options{Kubeconfig: kubeconfig(t, fakeCluster(t, "c")), DataDir: t.TempDir(), Include: []string{"configmaps", "config*", "widgetz"}}
	c, _ := start(t, o)
	st := status(t, c, func(s *api.Status) bool { return len(s.Capture.Resources) > 0 })
	if got := st.Capture.Unmatched; len(got) != 1 || got[0] != "widgetz" {
		t.Errorf("unmatched: %q", got)
	}
	o.DataDir, o.Include = t.TempDir(), []string{"widgetz"}
	c, _ = start(t, o)
	status(t, c, func(s *api.Status) bool { return len(s.Capture.Unmatched) == 1 })
}

func TestOpenDataDirIsWarnedAbout(t *testing.T) {
	for mode, want := range map[fs.FileMode]int{0o755: 1, 0o700: 0} {
		dir := t.TempDir()
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		core, logs := observer.New(zap.WarnLevel)
		_, stop := start(t, Options{Kubeconfig: kubeconfig(t, nobody(t)), DataDir: dir, Logger: zap.New(core)})
		if err := stop(); err != nil {
			t.Error(err)
		}
		if got := logs.FilterField(zap.String("fix", "chmod 700 "+dir)).Len(); got != want {
			t.Errorf("mode %v: %d warnings, want %d", mode, got, want)
		}
	}
}
