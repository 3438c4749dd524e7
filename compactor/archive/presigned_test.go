package archive_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// lender is a store that lends its rights, and a client without any.
type lender struct {
	*testing.T
	archive.Store
	archive.Presigner
	client *http.Client
}

func newLender(t *testing.T, url string, o archive.StoreOptions) *lender {
	t.Helper()
	s := openStore(t, url, o)
	p, ok := s.(archive.Presigner)
	if !ok {
		t.Fatal("the store lends nothing")
	}
	c, err := archive.PresignedClient(p.Trusted())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return &lender{t, s, p, c}
}

func (l *lender) toRead(name string, life time.Duration) *archive.Presigned {
	l.Helper()
	p, err := l.PresignRead(l.Context(), name, life)
	if err != nil {
		l.Fatal(err)
	}
	return p
}

func (l *lender) toCreate(name, text string, o archive.CreateOptions) *archive.Presigned {
	l.Helper()
	sum, err := archive.Checksum(l.Context(), strings.NewReader(text), int64(len(text)))
	if err != nil {
		l.Fatal(err)
	}
	p, err := l.PresignCreate(l.Context(), name, int64(len(text)), sum, o, time.Minute)
	if err != nil {
		l.Fatal(err)
	}
	return p
}

func (l *lender) create(p *archive.Presigned, text string) error {
	return p.Create(l.Context(), l.client, strings.NewReader(text), int64(len(text)))
}

// content is what the store holds under a name.
func (l *lender) content(name string) string {
	l.Helper()
	info, err := l.Stat(l.Context(), name)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	b := make([]byte, info.Size)
	if err == nil {
		err = l.ReadAt(l.Context(), name, b, 0)
	}
	if err != nil {
		l.Error(err)
	}
	return string(b)
}

func TestPresigned(t *testing.T) {
	s := startS3(t)
	makeBucket(t, s, "lend", false)
	l := newLender(t, s.URL("lend", "p"), archive.StoreOptions{CredentialsFile: s.CredentialsFile()})
	const text = "what a mover sends"
	p := l.toCreate("c/p1", text, archive.CreateOptions{})
	if err := l.create(p, text); err != nil {
		t.Fatal(err)
	}
	if err := l.create(p, text); !errors.Is(err, fs.ErrExist) {
		t.Errorf("created again: %v", err)
	}
	info, err := s.Client().StatObject(t.Context(), "lend", "p/c/p1", minio.StatObjectOptions{Checksum: true})
	if err != nil || info.ChecksumCRC32C != p.Header.Get("X-Amz-Checksum-Crc32c") {
		t.Errorf("the server keeps the checksum %q, %v", info.ChecksumCRC32C, err)
	}
	read := l.toRead("c/p1", time.Minute)
	for _, c := range []struct {
		off int64
		n   int
		err error
	}{{0, len(text), nil}, {0, 4, nil}, {7, 5, nil}, {10, len(text), io.ErrUnexpectedEOF}, {100, 1, io.ErrUnexpectedEOF}} {
		b := make([]byte, c.n)
		err := read.Read(t.Context(), l.client, b, c.off)
		if !errors.Is(err, c.err) || err == nil && string(b) != text[c.off:int(c.off)+c.n] {
			t.Errorf("%d bytes from %d on: %q, %v", c.n, c.off, b, err)
		}
	}
	if err := l.toRead("c/nothing", time.Minute).Read(t.Context(), l.client, make([]byte, 1), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	large := int64(65 << 20)
	if _, err := l.PresignCreate(t.Context(), "c/p2", large, "AAAAAA==", archive.CreateOptions{}, time.Minute); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a file that is sent in parts: %v", err)
	}
	if _, err := l.PresignCreate(t.Context(), "c/p2", 1, "AAAAAA==", archive.CreateOptions{Replace: true}, time.Minute); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a file that may be replaced: %v", err)
	}
}

// TestPresignedIsGoodForNothingElse does with the right to create one file whatever else could be tried with it.
func TestPresignedIsGoodForNothingElse(t *testing.T) {
	s := startS3(t)
	makeBucket(t, s, "lend", true)
	l := newLender(t, s.URL("lend", "p"), archive.StoreOptions{CredentialsFile: s.CredentialsFile()})
	const text, other = "content", "CONTENT"
	if err := l.Create(t.Context(), "c/old", strings.NewReader(text), int64(len(text)), archive.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(time.Hour)
	for what, change := range map[string]func(p *archive.Presigned) string{
		"replace a file":          func(p *archive.Presigned) string { p.Header.Del("If-None-Match"); return text },
		"write other content":     func(*archive.Presigned) string { return other },
		"write more":              func(*archive.Presigned) string { return text + text },
		"leave the checksum out":  func(p *archive.Presigned) string { p.Header.Del("X-Amz-Checksum-Crc32c"); return other },
		"leave the lock out":      func(p *archive.Presigned) string { p.Header.Del("X-Amz-Object-Lock-Mode"); return text },
		"write under other names": func(p *archive.Presigned) string { p.URL = strings.Replace(p.URL, "/c/new", "/c/more", 1); return text },
		"write it later": func(p *archive.Presigned) string {
			p.URL = strings.Replace(p.URL, "Expires=60", "Expires=600", 1)
			return text
		},
	} {
		name := "c/new"
		if what == "replace a file" {
			name = "c/old"
		}
		p := l.toCreate(name, text, archive.CreateOptions{Lock: until})
		if err := l.create(p, change(p)); err == nil || errors.Is(err, fs.ErrExist) {
			t.Errorf("who may create a file may also %s: %v", what, err)
		} else if strings.Contains(err.Error(), "Signature") || strings.Contains(err.Error(), s.Endpoint()) {
			t.Errorf("the error tells the URL: %v", err)
		}
	}
	if got := l.content("c/old"); got != text {
		t.Errorf("the file that was there is now %q", got)
	}
	if got := l.content("c/new") + l.content("c/more"); got != "" {
		t.Errorf("there is a new file: %q", got)
	}
	p := l.toCreate("c/locked", text, archive.CreateOptions{Lock: until})
	if err := l.create(p, text); err != nil {
		t.Fatal(err)
	}
	if err := l.Remove(t.Context(), "c/locked"); !errors.Is(err, archive.ErrHeld) {
		t.Errorf("a locked file is removed: %v", err)
	}
}

func TestPresignedExpires(t *testing.T) {
	s := startS3(t)
	makeBucket(t, s, "lend", false)
	l := newLender(t, s.URL("lend", ""), archive.StoreOptions{CredentialsFile: s.CredentialsFile()})
	if err := l.Create(t.Context(), "f", strings.NewReader("text"), 4, archive.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p := l.toRead("f", 2*time.Second)
	b := make([]byte, 4)
	if err := p.Read(t.Context(), l.client, b, 0); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		err := p.Read(t.Context(), l.client, b, 0)
		if err != nil {
			if !strings.Contains(err.Error(), "Forbidden") {
				t.Errorf("expired: %v", err)
			}
			return
		}
		if time.Now().After(end) {
			t.Fatal("it is good for ever")
		}
	}
}

// TestPresignedStaysSecret has all go wrong that can, and looks for the URL in what is told.
func TestPresignedStaysSecret(t *testing.T) {
	away := httptest.NewServer(nil)
	away.Close()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("a redirect was followed to %s", r.URL) }))
	defer elsewhere.Close()
	answers := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, elsewhere.URL+"/?"+r.URL.RawQuery, http.StatusTemporaryRedirect)
		case "/forbidden":
			http.Error(w, r.URL.String(), http.StatusForbidden)
		case "/short":
			w.Header().Set("Content-Length", "10")
			w.Header().Set("Content-Range", "bytes 0-9/100")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write([]byte("x"))
		case "/start":
			w.Header().Set("Content-Range", "bytes 7-16/100")
			w.WriteHeader(http.StatusPartialContent)
		}
	}))
	defer answers.Close()
	c, err := archive.PresignedClient(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseIdleConnections()
	for _, url := range []string{away.URL, answers.URL + "/redirect", answers.URL + "/forbidden", answers.URL + "/short", answers.URL + "/start", "http://[::1", "https" + strings.TrimPrefix(answers.URL, "http")} {
		p := archive.Presigned{URL: url + "?X-Amz-Signature=secret"}
		err := p.Read(t.Context(), c, make([]byte, 10), 0)
		if err == nil || strings.Contains(err.Error(), "secret") || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			t.Errorf("read %s: %v", url, err)
		}
		if strings.HasSuffix(url, "/short") || strings.HasSuffix(url, "/start") {
			continue
		}
		if err := p.Create(t.Context(), c, bytes.NewReader([]byte("text")), 4); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("create %s: %v", url, err)
		}
		if text := fmt.Sprintf("%v %+v %s", p, &p, p); strings.Contains(text, "secret") {
			t.Errorf("printed: %s", text)
		}
	}
}

// TestPresignedTrustsTheStoresAuthority talks to a store whose certificate only the CA file vouches for.
func TestPresignedTrustsTheStoresAuthority(t *testing.T) {
	s := startS3(t)
	makeBucket(t, s, "lend", false)
	p, url := startProxy(t, s, "lend", true)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	l := newLender(t, url, archive.StoreOptions{CredentialsFile: s.CredentialsFile(), CAFile: ca})
	if err := l.create(l.toCreate("f", "text", archive.CreateOptions{}), "text"); err != nil {
		t.Error(err)
	}
	stranger, err := archive.PresignedClient(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.toRead("f", time.Minute).Read(t.Context(), stranger, make([]byte, 4), 0); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the authority's certificate: %v", err)
	}
}
