package e2e

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/kube"
)

// TestGroupOfAPod takes the claims of one Pod, which have no label, at one instant: where the cluster serves v1 of group snapshots, and where it is
// older and has v1beta2 only.
func TestGroupOfAPod(t *testing.T) {
	w := newNode(t)
	w.namespace("pair")
	w.claim("pair", "left", localnode.StorageClass)
	w.claim("pair", "right", localnode.StorageClass)
	w.claim("pair", "alone", localnode.StorageClass)
	w.shell("pair", "both", "", "left", "right")
	w.shell("pair", "one", "", "alone")
	var old atomic.Int64
	for _, server := range []string{"", w.olderServer(&old)} {
		w.server, w.config = server, "image: "+moverImage+"\n"
		w.startDaemon()
		all := w.back("-n", "pair", "--group", "pod")
		groups := map[string]string{}
		for _, b := range all {
			if b.Status.Phase != volumes.Done || len(b.Status.Notes) > 0 {
				t.Fatalf("%+v", b.Status)
			}
			groups[b.Spec.Claim] = b.Status.Snapshot.Group
			if want := map[bool]volumes.Consistency{true: volumes.CrashGroup, false: volumes.Crash}[b.Spec.Claim != "alone"]; b.Status.Consistency != want {
				t.Errorf("%s is %s", b.Spec.Claim, b.Status.Consistency)
			}
		}
		if groups["left"] == "" || groups["left"] != groups["right"] || groups["alone"] != "" {
			t.Errorf("the groups: %v", groups)
		}
		claims, err := w.Client.CoreV1().PersistentVolumeClaims("pair").List(w.Context(), metav1.ListOptions{LabelSelector: kube.Together})
		w.ok(err)
		if len(claims.Items) > 0 {
			t.Errorf("%d claims still have the label", len(claims.Items))
		}
		w.nothingLeft()
		w.forget(all...)
		w.snapshotsAre()
		w.nothingLeft()
		w.stopDaemon(syscall.SIGTERM)
	}
	if old.Load() == 0 {
		t.Error("v1beta2 was not used")
	}
}

// olderServer is the kubeconfig of an API server without v1 of group snapshots: the cluster's, behind a proxy that does not know it. made counts the
// group snapshots that are made in v1beta2.
func (w *world) olderServer(made *atomic.Int64) string {
	w.Helper()
	cfg := w.Cluster.Config()
	to, err := url.Parse(cfg.Host)
	w.ok(err)
	transport, err := rest.TransportFor(cfg)
	w.ok(err)
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.Transport, proxy.FlushInterval = transport, -1
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/apis/groupsnapshot.storage.k8s.io/v1/") {
			http.NotFound(rw, r)
			return
		}
		if r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/apis/groupsnapshot.storage.k8s.io/v1beta2/") {
			made.Add(1)
		}
		proxy.ServeHTTP(rw, r)
	}))
	w.Cleanup(s.Close)
	path := filepath.Join(w.dir, "older.kubeconfig")
	text := `{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: "` + s.URL + `"}}], contexts: [{name: c, context: {cluster: c}}]}`
	w.ok(os.WriteFile(path, []byte(text), 0o600))
	return path
}
