package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
	"github.com/tidemark-backup/tidemark/deploy/locals3"
	"github.com/tidemark-backup/tidemark/volumes"
)

// traffic is how many bytes of packs, which are what holds content, go through a proxy.
type traffic struct{ daemon, pods atomic.Int64 }

// counted counts what is read of a body.
type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// between stands between an S3 server and all who talk to it, at the address where Pods reach this machine. It speaks TLS, with a certificate that
// only the file ca vouches for.
func (w *world) between(s *locals3.Server) (endpoint, ca string, seen *traffic) {
	w.Helper()
	target, err := url.Parse(s.Endpoint())
	w.ok(err)
	seen = &traffic{}
	whose := func(r *http.Request) *atomic.Int64 {
		if !strings.Contains(r.URL.Path, "/kopia/p") {
			return new(atomic.Int64)
		}
		if host, _, _ := net.SplitHostPort(r.RemoteAddr); host == w.Address {
			return &seen.daemon
		}
		return &seen.pods
	}
	proxy := &httputil.ReverseProxy{
		ErrorHandler: func(rw http.ResponseWriter, _ *http.Request, _ error) { rw.WriteHeader(http.StatusBadGateway) },
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		ModifyResponse: func(r *http.Response) error {
			if n, ok := r.Request.Context().Value(seen).(*atomic.Int64); ok {
				r.Body = counted{r.Body, n}
			}
			return nil
		},
	}
	l, err := net.Listen("tcp4", net.JoinHostPort(w.Address, "0"))
	w.ok(err)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		n := whose(r)
		if n == &seen.pods && (r.Header.Get("Authorization") != "" || r.URL.Query().Get("X-Amz-Signature") == "") {
			w.Errorf("a Pod's %s has credentials of its own, or none that was lent", r.Method)
		}
		r.Body = counted{r.Body, n}
		proxy.ServeHTTP(rw, r.WithContext(context.WithValue(r.Context(), seen, n)))
	}))
	w.ok(server.Listener.Close())
	server.Listener = l
	server.TLS, ca = w.certificate()
	server.StartTLS()
	w.Cleanup(server.Close)
	return server.URL, ca, seen
}

// certificate makes one for the address where Pods reach this machine, and the file of its authority.
func (w *world) certificate() (c *tls.Config, ca string) {
	w.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.ok(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "store"}, IPAddresses: []net.IP{net.ParseIP(w.Address)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	w.ok(err)
	ca = filepath.Join(w.dir, "store-ca.pem")
	w.ok(os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}, ca
}

// bucket starts an S3 server, which Pods do not reach, and gives it with the daemon's configuration for an endpoint.
func (w *world) bucket() (s *locals3.Server, config func(endpoint string) string) {
	w.Helper()
	s, err := locals3.Start(w.Context(), locals3.Options{Output: os.Stderr})
	w.ok(err)
	w.Cleanup(func() { _ = s.Stop() })
	w.ok(s.MakeBucket(w.Context(), "movers", false))
	return s, func(endpoint string) string {
		place := strings.Replace(s.URL("movers", "p"), url.QueryEscape(s.Endpoint()), url.QueryEscape(endpoint), 1)
		return "archives:\n- url: " + place + "\n  credentials: " + s.CredentialsFile() + "\n"
	}
}

// backAndRestore backs a claim with 20 MiB up, restores it into another namespace, and compares.
func (w *world) backAndRestore(namespace string) {
	w.Helper()
	w.namespace(namespace)
	w.claim(namespace, "data", localnode.StorageClass)
	w.shell(namespace, "app", "dd if=/dev/urandom of=/data/data/f bs=1M count=20 2>/dev/null", "data")
	b := w.back("-n", namespace, "--action", "kopia")[0]
	if b.Status.Phase != volumes.Done || b.Status.Content.Sent < 20<<20 {
		w.Fatalf("%+v, %+v", b.Status, b.Status.Content)
	}
	w.run("restore", "pvc", "-n", namespace, "--at", "now", "--namespace-mappings", namespace+":"+namespace+"-copy", "--yes")
	w.Cleanup(func() {
		_ = w.Client.CoreV1().Namespaces().Delete(context.Background(), namespace+"-copy", metav1.DeleteOptions{})
	})
	was, err := os.ReadFile(filepath.Join(w.path(namespace, "data"), "f"))
	w.ok(err)
	is, err := os.ReadFile(filepath.Join(w.path(namespace+"-copy", "data"), "f"))
	w.ok(err)
	if len(was) != 20<<20 || !bytes.Equal(was, is) {
		w.Errorf("%d bytes were backed up, and %d others came back", len(was), len(is))
	}
	w.nothingLeft()
}

// TestMoversGoToTheStore looks at who sends the content of a claim to the store, and gets it from there.
func TestMoversGoToTheStore(t *testing.T) {
	w := newNode(t)
	s, config := w.bucket()
	endpoint, ca, seen := w.between(s)
	w.config = "image: " + moverImage + "\n" + config(endpoint) + "  ca: " + ca + "\n"
	w.startDaemon()
	w.backAndRestore("direct")
	if pods, daemon := seen.pods.Load(), seen.daemon.Load(); pods < 40<<20 || daemon > 0 {
		t.Errorf("of the content, %d bytes went between Pods and the store, and %d through the daemon", pods, daemon)
	}
}

// TestPodsDoNotReachTheStore has the store on an address that in a Pod is the Pod's own: the daemon passes the content on, and says so.
func TestPodsDoNotReachTheStore(t *testing.T) {
	w := newNode(t)
	s, config := w.bucket()
	w.config = "image: " + moverImage + "\n" + config(s.Endpoint())
	w.startDaemon()
	w.backAndRestore("apart")
	w.logged("a mover does not reach the archive's store")
	if log := read(t, filepath.Join(w.dir, "daemon.log")); strings.Count(log, "does not reach") != 2 || strings.Contains(log, "X-Amz") {
		t.Errorf("a backup and a restore log:\n%s", log)
	}
}
