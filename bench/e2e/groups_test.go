package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
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
		if n := w.together("pair"); n > 0 {
			t.Errorf("%d claims still have the label", n)
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

// TestGroupIsCutOff kills the daemon while the claims of a Pod have the label by which their group is chosen, and while the snapshots of a group are not ready
// to use: the next daemon takes away the label, the objects and the snapshots, also such as the driver makes while there is no daemon.
func TestGroupIsCutOff(t *testing.T) {
	w := newWorld(t, "")
	w.namespace("cut")
	w.claim("cut", "left", localnode.StorageClass)
	w.claim("cut", "right", localnode.StorageClass)
	w.shell("cut", "both", "", "left", "right")
	for _, c := range []struct {
		trouble  string
		labelled int // claims that have the label when the daemon is killed
	}{{"fail-snapshots", 2}, {"never-ready", 0}} {
		w.ok(w.Trouble(c.trouble, "not now"))
		w.Cleanup(func() { _ = w.Trouble(c.trouble, "") })
		end := w.begin("-n", "cut", "--group", "pod")
		w.await("the group to be asked for", func() bool {
			l, err := w.Dynamic.Resource(groupObjects).Namespace("cut").List(w.Context(), metav1.ListOptions{})
			return err == nil && len(l.Items) == 1 && w.together("cut") == c.labelled
		})
		w.stopDaemon(syscall.SIGKILL)
		if out, err := end(); err == nil {
			t.Errorf("a backup without its daemon is done: %s", out)
		}
		w.ok(w.Trouble(c.trouble, ""))
		w.await("the driver to have made the snapshots all the same", func() bool { return len(w.Snapshots()) == 2 })
		if n := w.together("cut"); n != c.labelled {
			t.Fatalf("%s: %d claims have the label that a dead daemon gave them; want %d", c.trouble, n, c.labelled)
		}
		w.startDaemon()
		var all []*volumes.Backup
		w.await("the records to end", func() bool {
			all = nil
			w.ok(json.Unmarshal([]byte(w.run("volumes", "list", "-o", "json")), &all))
			return !slices.ContainsFunc(all, func(b *volumes.Backup) bool { return b.Status.Phase == volumes.Running })
		})
		if len(all) != 2 {
			t.Fatalf("%s: there are %d records", c.trouble, len(all))
		}
		for _, b := range all {
			if s := b.Status; s.Phase != volumes.Failed || !strings.Contains(s.Error, "tidemark ended while it was being made") || s.Snapshot != nil || len(s.Notes) > 0 {
				t.Errorf("%s: %s: %+v", c.trouble, b.Spec.Claim, s)
			}
		}
		if n := w.together("cut"); n > 0 { // before the records end
			t.Errorf("%s: %d claims still have the label", c.trouble, n)
		}
		w.nothingLeft()
		w.snapshotsAre()
		w.forget(all...)
	}
	all := w.back("-n", "cut", "--group", "pod")
	for _, b := range all {
		if b.Status.Consistency != volumes.CrashGroup {
			t.Errorf("the next backup: %+v", b.Status)
		}
	}
	w.forget(all...)
	w.nothingLeft()
	w.snapshotsAre()
}

// together counts the claims that have the label of a group that is being taken.
func (w *world) together(namespace string) int {
	w.Helper()
	l, err := w.Client.CoreV1().PersistentVolumeClaims(namespace).List(w.Context(), metav1.ListOptions{LabelSelector: kube.Together})
	w.ok(err)
	return len(l.Items)
}

// olderServer is the kubeconfig of an API server without v1 of group snapshots. made counts the group snapshots that are made in v1beta2.
func (w *world) olderServer(made *atomic.Int64) string {
	w.Helper()
	return w.through(func(rw http.ResponseWriter, r *http.Request) (answered bool) {
		if strings.HasPrefix(r.URL.Path, "/apis/groupsnapshot.storage.k8s.io/v1/") {
			http.NotFound(rw, r)
			return true
		}
		if r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/apis/groupsnapshot.storage.k8s.io/v1beta2/") {
			made.Add(1)
		}
		return false
	})
}

// through is the kubeconfig of a proxy in front of the cluster's API server, which passes on what is not answered before.
func (w *world) through(before func(http.ResponseWriter, *http.Request) (answered bool)) string {
	w.Helper()
	cfg := w.Cluster.Config()
	to, err := url.Parse(cfg.Host)
	w.ok(err)
	transport, err := rest.TransportFor(cfg)
	w.ok(err)
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.Transport, proxy.FlushInterval = transport, -1
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !before(rw, r) {
			proxy.ServeHTTP(rw, r)
		}
	}))
	w.Cleanup(func() {
		w.stopDaemon(syscall.SIGTERM) // whose requests it would wait for
		s.Close()
	})
	path := filepath.Join(w.dir, "proxy.kubeconfig")
	text := `{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: "` + s.URL + `"}}], contexts: [{name: c, context: {cluster: c}}]}`
	w.ok(os.WriteFile(path, []byte(text), 0o600))
	return path
}

// TestGroup takes two claims with the same label at one instant, and restores them.
func TestGroup(t *testing.T) {
	w := newWorld(t, "")
	w.namespace("group")
	labelled := func(c *corev1.PersistentVolumeClaim) { c.Labels = map[string]string{"velero.io/volume-group": "both"} }
	w.claim("group", "left", localnode.StorageClass, labelled)
	w.claim("group", "right", localnode.StorageClass, labelled)
	// The same number is written to one and then to the other, as fast as it goes.
	w.shell("group", "app", "(i=0; while :; do i=$((i+1)); echo $i > /data/left/n; echo $i > /data/right/n; done) &\nsleep 1", "left", "right")
	classes := w.without(groupClasses)
	single := w.back("-n", "group")
	for _, b := range single {
		if b.Status.Consistency != volumes.Crash || b.Status.Snapshot == nil || b.Status.Snapshot.Group != "" {
			t.Errorf("without a class of groups: %+v", b.Status)
		}
		if out := w.run("volumes", "describe", b.Metadata.Name); !strings.Contains(out, "there is no VolumeGroupSnapshotClass of driver "+localnode.Driver+": its group was taken one by one") {
			t.Errorf("without a class of groups:\n%s", out)
		}
	}
	w.forget(single...)
	classes()
	all := w.back("-n", "group")
	for _, b := range all {
		if b.Status.Consistency != volumes.CrashGroup || b.Status.Snapshot == nil || b.Status.Snapshot.Group == "" || b.Status.Snapshot.Group != all[0].Status.Snapshot.Group || len(b.Status.Notes) > 0 {
			t.Errorf("%+v", b.Status)
		}
	}
	w.nothingLeft()
	moved := w.back("-n", "group", "--action", "snapshot-then-kopia")
	w.nothingLeft()
	for name, b := range map[string]*volumes.Backup{"from-snapshots": all[0], "from-files": moved[0]} {
		w.run("restore", "pvc", "-n", "group", "--at", "now", "--volumes", b.Spec.Run, "--namespace-mappings", "group:"+name, "--yes")
		w.Cleanup(func() { _ = w.Client.CoreV1().Namespaces().Delete(context.Background(), name, metav1.DeleteOptions{}) })
		n := map[string]int{}
		for _, claim := range []string{"left", "right"} {
			w.await("claim "+claim, func() bool {
				c, err := w.Client.CoreV1().PersistentVolumeClaims(name).Get(w.Context(), claim, metav1.GetOptions{})
				return err == nil && c.Status.Phase == corev1.ClaimBound
			})
			n[claim], _ = strconv.Atoi(strings.TrimSpace(read(t, filepath.Join(w.path(name, claim), "n"))))
		}
		// A file that was opened and not written yet is empty; else they are of one instant.
		if l, r := n["left"], n["right"]; l != 0 && r != 0 && l != r && l != r+1 {
			t.Errorf("%s: left has %d, right %d", name, l, r)
		}
	}
	w.forget(append(all, moved...)...)
	w.snapshotsAre()
}
