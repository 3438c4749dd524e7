package archive_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/deploy/locals3"
)

func openStore(t *testing.T, url string, o archive.StoreOptions) archive.Store {
	t.Helper()
	s, err := archive.OpenStore(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// startS3 starts an S3 server that ends with the test.
func startS3(t *testing.T) *locals3.Server {
	t.Helper()
	s, err := locals3.Start(t.Context(), locals3.Options{Output: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func makeBucket(t *testing.T, s *locals3.Server, name string, objectLock bool) {
	t.Helper()
	if err := s.MakeBucket(t.Context(), name, objectLock); err != nil {
		t.Fatal(err)
	}
}

// proxy stands between a store and its server. meddle answers a request, or returns false to have
// it passed on.
type proxy struct {
	*httptest.Server
	meddle atomic.Pointer[func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool]
	count  atomic.Int64
}

// startProxy returns it with the URL of the bucket seen through it.
func startProxy(t *testing.T, s *locals3.Server, bucket string, secure bool) (*proxy, string) {
	t.Helper()
	target, err := url.Parse(s.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	pass := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // it is signed
	}}
	p := &proxy{}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.count.Add(1)
		if f := p.meddle.Load(); f == nil || !(*f)(w, r, pass) {
			pass.ServeHTTP(w, r)
		}
	})
	if secure {
		p.Server = httptest.NewTLSServer(handler)
	} else {
		p.Server = httptest.NewServer(handler)
	}
	t.Cleanup(p.Close)
	return p, strings.Replace(s.URL(bucket, "p"), url.QueryEscape(s.Endpoint()), url.QueryEscape(p.URL), 1)
}

func (p *proxy) with(f func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool) {
	p.meddle.Store(&f)
}

// loseNext has the next n requests of a method done, and their answers lost.
func (p *proxy) loseNext(method string, n int64) {
	var left atomic.Int64
	left.Store(n)
	p.with(func(_ http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		if r.Method != method || left.Add(-1) < 0 {
			return false
		}
		pass.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	})
}

// failNext answers the next n requests with an error.
func (p *proxy) failNext(n int64, status int, code string) {
	var left atomic.Int64
	left.Store(n)
	p.with(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		if left.Add(-1) < 0 {
			return false
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "<Error><Code>"+code+"</Code><Message>made by a test</Message></Error>")
		return true
	})
}

func TestS3LostAnswerIsNoStrangersFile(t *testing.T) {
	server := startS3(t)
	makeBucket(t, server, "bucket", false)
	p, at := startProxy(t, server, "bucket", false)
	s := openStore(t, at, archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
	archive.SetPartSize(s, 5<<20)
	for name, size := range map[string]int{"small": 100, "large": 6 << 20} {
		b := bytes.Repeat([]byte("x"), size)
		method := http.MethodPut
		if size > 5<<20 {
			method = http.MethodPost // of which the second completes the upload
		}
		p.loseNext(method, 2)
		if err := s.Create(t.Context(), name, bytes.NewReader(b), int64(size), archive.CreateOptions{}); err != nil {
			t.Errorf("Create of the %s file whose answer was lost: %v", name, err)
		}
		p.loseNext(method, 1)
		if err := s.Create(t.Context(), name, bytes.NewReader(b), int64(size), archive.CreateOptions{}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("second Create of the %s file: %v, want fs.ErrExist", name, err)
		}
		p.loseNext(http.MethodDelete, 1)
		if err := s.Remove(t.Context(), name); err != nil {
			t.Errorf("Remove whose answer was lost: %v", err)
		}
	}
}

func TestS3BusyServerIsAskedAgain(t *testing.T) {
	server := startS3(t)
	makeBucket(t, server, "bucket", false)
	p, at := startProxy(t, server, "bucket", false)
	s := openStore(t, at, archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
	list := func() (err error) {
		for _, err = range s.List(t.Context(), "", "") {
			return err
		}
		return nil
	}
	if err := s.Create(t.Context(), "there", strings.NewReader("abc"), 3, archive.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"Create": func() error {
			return s.Create(t.Context(), "new", strings.NewReader("abc"), 3, archive.CreateOptions{})
		},
		"ReadAt": func() error { return s.ReadAt(t.Context(), "there", make([]byte, 3), 0) },
		"Stat": func() error {
			_, err := s.Stat(t.Context(), "there")
			return err
		},
		"List":   list,
		"Remove": func() error { return s.Remove(t.Context(), "nothing") },
	} {
		p.failNext(2, 503, "SlowDown")
		if err := call(); err != nil {
			t.Errorf("%s when the server is busy twice: %v", name, err)
		}
	}
	for code, status := range map[string]int{
		"InternalError": 500, "TooManyRequests": 429, "ConditionalRequestConflict": 409, "RequestTimeout": 400, "BadGateway": 502,
	} {
		p.failNext(1, status, code)
		if err := s.Create(t.Context(), code, strings.NewReader("abc"), 3, archive.CreateOptions{}); err != nil {
			t.Errorf("Create when the server answers %d %s once: %v", status, code, err)
		}
	}
	archive.SetPatience(s, 500*time.Millisecond)
	p.failNext(1<<40, 503, "SlowDown")
	begin := time.Now()
	err := s.Remove(t.Context(), "x")
	if err == nil || !strings.Contains(err.Error(), "SlowDown") || !strings.Contains(err.Error(), "can be reached") {
		t.Errorf("a server that stays busy: %v, want its error and a hint", err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("gave up after %v", d)
	}
	archive.SetPatience(s, time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begin = time.Now()
	if err := s.Remove(ctx, "x"); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 2*time.Second {
		t.Errorf("Remove with a deadline: %v after %v", err, time.Since(begin))
	}
}

func TestS3CallsSurviveARestartOfTheServer(t *testing.T) {
	server := startS3(t)
	makeBucket(t, server, "bucket", false)
	s := openStore(t, server.URL("bucket", ""), archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
	server.Kill()
	done := make(chan error)
	go func() { done <- s.Create(t.Context(), "a", strings.NewReader("abc"), 3, archive.CreateOptions{}) }()
	select {
	case err := <-done:
		t.Fatalf("Create ended without a server: %v", err)
	case <-time.After(300 * time.Millisecond): // time to fail once
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestS3ReadsAreWholeOrErrors(t *testing.T) {
	server := startS3(t)
	makeBucket(t, server, "bucket", false)
	p, at := startProxy(t, server, "bucket", false)
	s := openStore(t, at, archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
	if err := s.Create(t.Context(), "a", strings.NewReader("0123456789"), 10, archive.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	before := p.count.Load()
	if err := s.ReadAt(t.Context(), "a", b, 3); err != nil || string(b) != "3456" {
		t.Errorf("ReadAt = %q, %v", b, err)
	}
	if n := p.count.Load() - before; n != 1 {
		t.Errorf("ReadAt made %d requests, want one", n)
	}
	var broken atomic.Int64
	p.with(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		if r.Method != http.MethodGet || broken.Add(1) > 1 {
			return false
		}
		rec := httptest.NewRecorder()
		pass.ServeHTTP(rec, r)
		maps.Copy(w.Header(), rec.Header())
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes()[:2])
		if err := http.NewResponseController(w).Flush(); err != nil { // else nothing at all is sent
			t.Error(err)
		}
		panic(http.ErrAbortHandler)
	})
	clear(b)
	if err := s.ReadAt(t.Context(), "a", b, 3); err != nil || string(b) != "3456" {
		t.Errorf("ReadAt over a connection that breaks once = %q, %v", b, err)
	}
	p.with(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		_, _ = io.WriteString(w, "0123456789")
		return true
	})
	if err := s.ReadAt(t.Context(), "a", b, 0); err != nil || string(b) != "0123" {
		t.Errorf("ReadAt of the beginning from a server without ranges = %q, %v", b, err)
	}
	if err := s.ReadAt(t.Context(), "a", b, 3); err == nil {
		t.Errorf("ReadAt from a server without ranges = %q, want an error", b)
	}
}

func TestS3WhatIsWrongIsSaid(t *testing.T) {
	server := startS3(t)
	makeBucket(t, server, "bucket", false)
	access, secret := server.Credentials()
	bad := filepath.Join(t.TempDir(), "bad")
	write := func(path, access, secret string) {
		t.Helper()
		text := "[default]\naws_access_key_id=" + access + "\naws_secret_access_key=" + secret + "\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(bad, access, "wrong"+secret)
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, []byte("[default\n"+secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, url, file string
		is              error
		says            string
	}{
		{"no bucket", server.URL("none", ""), server.CredentialsFile(), nil, "there is no bucket none"},
		{"wrong secret", server.URL("bucket", ""), bad, archive.ErrDenied, "credentials are right"},
		{"no credentials file", server.URL("bucket", ""), "/does/not/exist", archive.ErrDenied, "/does/not/exist"},
		{"broken credentials file", server.URL("bucket", ""), junk, archive.ErrDenied, "aws_access_key_id"},
		{"not TLS", strings.Replace(server.URL("bucket", ""), "http%3A", "https%3A", 1), server.CredentialsFile(), nil, "write http://"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t, c.url, archive.StoreOptions{CredentialsFile: c.file})
			_, statErr := s.Stat(t.Context(), "a")
			errs := map[string]error{
				"Create": s.Create(t.Context(), "a", strings.NewReader("x"), 1, archive.CreateOptions{}),
				"ReadAt": s.ReadAt(t.Context(), "a", make([]byte, 1), 0),
				"Stat":   statErr,
				"Remove": s.Remove(t.Context(), "a"),
			}
			for _, err := range s.List(t.Context(), "", "") {
				errs["List"] = err
			}
			for call, err := range errs {
				if err == nil || errors.Is(err, fs.ErrNotExist) && c.name != "no credentials file" || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%s: %v, want an error that says %q", call, err, c.says)
				}
				if err != nil && strings.Contains(err.Error(), secret) {
					t.Errorf("%s shows the secret: %v", call, err)
				}
			}
		})
	}
	t.Run("credentials are read again when their file was changed", func(t *testing.T) {
		s := openStore(t, server.URL("bucket", ""), archive.StoreOptions{CredentialsFile: bad})
		if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, archive.ErrDenied) {
			t.Errorf("Stat with wrong credentials: %v", err)
		}
		write(bad, access, secret)
		if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat when the file was corrected: %v", err)
		}
	})
	t.Run("credentials are read again when the server refuses them", func(t *testing.T) {
		p, at := startProxy(t, server, "bucket", false)
		s := openStore(t, at, archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
		p.failNext(1, 403, "ExpiredToken")
		if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat when they have expired once: %v", err)
		}
	})
}

func TestWaitingForAnotherTryEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if err := archive.Sleep(ctx, 20*time.Second); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 10*time.Second {
		t.Errorf("waited %v, %v", time.Since(begin), err)
	}
}

func TestS3NoLockNoFile(t *testing.T) {
	server := startS3(t)
	makeBucket(t, server, "bucket", false)
	s := openStore(t, server.URL("bucket", ""), archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
	err := s.Create(t.Context(), "a", strings.NewReader("x"), 1, archive.CreateOptions{Lock: time.Now().Add(time.Hour)})
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "make one with object lock") {
		t.Errorf("Create with a lock: %v, want ErrUnsupported and a hint", err)
	}
}

func TestS3RefusedConditionIsNotExclusive(t *testing.T) {
	server := startS3(t)
	makeBucket(t, server, "bucket", false)
	p, at := startProxy(t, server, "bucket", false)
	s := openStore(t, at, archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
	p.failNext(1<<40, 501, "NotImplemented")
	if err := archive.Probe(t.Context(), s, ""); !errors.Is(err, archive.ErrNotExclusive) {
		t.Errorf("Probe of a server that cannot: %v", err)
	}
	p.with(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		r.Header.Del("If-None-Match")
		return false
	})
	// The header is signed, so that this server would notice.
	if err := archive.Probe(t.Context(), s, ""); err == nil {
		t.Error("Probe without the condition: no error")
	}
}

func TestS3LockedFileIsFoundWithoutWords(t *testing.T) {
	server := startS3(t)
	makeBucket(t, server, "locked", true)
	p, at := startProxy(t, server, "locked", false)
	s := openStore(t, at, archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
	if err := s.Create(t.Context(), "held", strings.NewReader("x"), 1, archive.CreateOptions{Hold: true}); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(t.Context(), "locked", strings.NewReader("x"), 1, archive.CreateOptions{Lock: time.Now().Add(2 * time.Second)}); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(t.Context(), "free", strings.NewReader("x"), 1, archive.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p.with(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Method != http.MethodDelete {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
		return true
	})
	for name, want := range map[string]error{"held": archive.ErrHeld, "locked": archive.ErrHeld, "free": archive.ErrDenied} {
		if err := s.Remove(t.Context(), name); !errors.Is(err, want) {
			t.Errorf("Remove of the file %s: %v, want %v", name, err, want)
		}
	}
	p.with(func(http.ResponseWriter, *http.Request, http.Handler) bool { return false })
	if err := s.Hold(t.Context(), "held", false); err != nil {
		t.Error(err)
	}
}

func TestS3RemoveTakesHiddenVersionsToo(t *testing.T) {
	server := startS3(t)
	makeBucket(t, server, "locked", true)
	s := openStore(t, server.URL("locked", ""), archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
	c := server.Client()
	for _, name := range []string{"a", "ab"} {
		if err := s.Create(t.Context(), name, strings.NewReader("x"), 1, archive.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// Somebody deletes the file as browsers of buckets do, and writes another one.
	if err := c.RemoveObject(t.Context(), "locked", "a", minio.RemoveObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of a hidden file: %v, want fs.ErrNotExist", err)
	}
	if _, err := c.PutObject(t.Context(), "locked", "a", strings.NewReader("y"), 1, minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	versions := func() (n int) {
		for o := range c.ListObjectsIter(t.Context(), "locked", minio.ListObjectsOptions{WithVersions: true, Recursive: true}) {
			if o.Err != nil {
				t.Fatal(o.Err)
			}
			n++
		}
		return n
	}
	if n := versions(); n != 4 { // two of a, the marker, and ab
		t.Errorf("%d versions before Remove, want 4", n)
	}
	if err := s.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if n := versions(); n != 1 {
		t.Errorf("%d versions after Remove, want that of the other file", n)
	}
}

func TestS3SweepAbortsOldUploads(t *testing.T) {
	server := startS3(t)
	makeBucket(t, server, "bucket", false)
	core := minio.Core{Client: server.Client()}
	for _, key := range []string{"p/a", "other/b"} {
		if _, err := core.NewMultipartUpload(t.Context(), "bucket", key, minio.PutObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	uploads := func() (keys string) {
		for u := range core.ListIncompleteUploads(t.Context(), "bucket", "", true) {
			if u.Err != nil {
				t.Fatal(u.Err)
			}
			keys += u.Key + " "
		}
		return keys
	}
	s := openStore(t, server.URL("bucket", "p"), archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
	for _, c := range []struct {
		life time.Duration
		want string
	}{{time.Hour, "other/b p/a "}, {-time.Hour, "other/b "}} {
		archive.SetUploadLife(s, c.life)
		if err := s.(archive.Sweeper).Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := uploads(); got != c.want {
			t.Errorf("uploads after Sweep of those older than %v: %q, want %q", c.life, got, c.want)
		}
	}
}

// pattern is content of any size that needs no memory.
type pattern struct{ seed byte }

func (p pattern) ReadAt(b []byte, off int64) (int, error) {
	for i := range b {
		b[i] = byte((off+int64(i))>>12) ^ p.seed
	}
	return len(b), nil
}

func TestS3LargeFileIsCreatedOnce(t *testing.T) {
	server := startS3(t)
	makeBucket(t, server, "bucket", false)
	s := openStore(t, server.URL("bucket", ""), archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
	const size = 64<<20 + 1
	var wins atomic.Int32
	var winner atomic.Int32
	var all sync.WaitGroup
	for i := range 3 { // at once, so that none finds the name taken before it sends
		all.Go(func() {
			switch err := s.Create(t.Context(), "large", pattern{byte(i)}, size, archive.CreateOptions{}); {
			case err == nil:
				wins.Add(1)
				winner.Store(int32(i))
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := wins.Load(); n != 1 {
		t.Fatalf("%d winners, want one", n)
	}
	if err := s.Create(t.Context(), "large", pattern{9}, size, archive.CreateOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Create: %v, want fs.ErrExist", err)
	}
	for _, off := range []int64{0, 16<<20 - 2, 64<<20 - 5, size - 6} {
		got, want := make([]byte, 6), make([]byte, 6)
		_, _ = pattern{byte(winner.Load())}.ReadAt(want, off)
		if err := s.ReadAt(t.Context(), "large", got, off); err != nil || !bytes.Equal(got, want) {
			t.Errorf("at %d: %x, %v; want %x", off, got, err, want)
		}
	}
	for u := range server.Client().ListIncompleteUploads(t.Context(), "bucket", "", true) {
		t.Errorf("a loser left its upload %s, %v", u.UploadID, u.Err)
	}
}

func TestS3CAFileIsTrusted(t *testing.T) {
	server := startS3(t)
	makeBucket(t, server, "bucket", false)
	p, at := startProxy(t, server, "bucket", true)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, at, archive.StoreOptions{CredentialsFile: server.CredentialsFile(), CAFile: ca})
	b := make([]byte, 1<<20)
	_, _ = rand.Read(b)
	if err := s.Create(t.Context(), "a", bytes.NewReader(b), int64(len(b)), archive.CreateOptions{}); err != nil {
		t.Error(err)
	}
	s = openStore(t, at, archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
	if _, err := s.Stat(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "CA file") {
		t.Errorf("Stat without the CA file: %v, want a hint", err)
	}
}

func TestS3DamagedUploadIsRefused(t *testing.T) {
	server := startS3(t)
	makeBucket(t, server, "bucket", false)
	p, at := startProxy(t, server, "bucket", false)
	s := openStore(t, at, archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
	var damaged atomic.Int64
	p.with(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Method == http.MethodPut && damaged.Add(1) == 1 {
			b, err := io.ReadAll(r.Body)
			if err != nil || len(b) == 0 {
				t.Errorf("body: %d bytes, %v", len(b), err)
				return false
			}
			b[0] ^= 1
			r.Body = io.NopCloser(bytes.NewReader(b))
		}
		return false
	})
	if err := s.Create(t.Context(), "a", strings.NewReader("abc"), 3, archive.CreateOptions{}); err != nil {
		t.Errorf("Create whose content is damaged once: %v", err)
	}
	b := make([]byte, 3)
	if err := s.ReadAt(t.Context(), "a", b, 0); err != nil || string(b) != "abc" || damaged.Load() < 2 {
		t.Errorf("ReadAt = %q, %v after %d PUTs; want abc after two", b, err, damaged.Load())
	}
}
