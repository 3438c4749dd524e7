package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
	"github.com/tidemark-backup/tidemark/volumes"
)

// TestClaims backs the claims of a namespace up in every way, and writes one back.
func TestClaims(t *testing.T) {
	w := newWorld(t, "")
	w.namespace("claims")
	w.claim("claims", "one", localnode.StorageClass)
	w.claim("claims", "two", localnode.Late)
	w.claim("claims", "unused", localnode.Late)
	w.shell("claims", "app", "echo first > /data/one/f; echo second > /data/two/f; mkdir /data/two/d; ln -s /etc/passwd /data/two/d/l; chown 123:456 /data/two/f", "one", "two")

	snapshots := w.back("-n", "claims")
	if len(snapshots) != 2 {
		t.Fatalf("%d backups", len(snapshots))
	}
	for _, b := range snapshots {
		s := b.Status
		if s.Phase != volumes.Done || s.Snapshot == nil || s.Content != nil || s.Consistency != volumes.Crash || s.Before.RV == 0 || s.After.RV < s.Before.RV || s.Taken.IsZero() {
			t.Errorf("%+v", s)
		}
	}
	w.nothingLeft()
	w.snapshotsAre(snapshots[0].Status.Snapshot.ID, snapshots[1].Status.Snapshot.ID)
	if out := w.run("volumes", "list", "-n", "claims"); strings.Count(out, "snapshot") != 2 {
		t.Error(out)
	}

	live := w.back("two", "-n", "claims", "--action", "kopia")[0]
	if live.Status.Consistency != volumes.Live || live.Status.Content == nil || live.Status.Content.Files != 1 {
		t.Errorf("live: %+v", live.Status)
	}
	moved := w.back("two", "-n", "claims", "--action", "snapshot-then-kopia")[0]
	if moved.Status.Consistency != volumes.Crash || moved.Status.Content == nil || moved.Status.Snapshot != nil || moved.Status.Content.Unchanged < 1 {
		t.Errorf("moved: %+v, %+v", moved.Status, moved.Status.Content)
	}
	w.nothingLeft()
	w.snapshotsAre(snapshots[0].Status.Snapshot.ID, snapshots[1].Status.Snapshot.ID)
	if out := w.run("volumes", "files", moved.Metadata.Name, "-R"); !strings.Contains(out, "123:456") || !strings.Contains(out, "/etc/passwd") {
		t.Error(out)
	}
	if out := w.run("volumes", "get", moved.Metadata.Name, "f"); out != "second\n" {
		t.Error(out)
	}

	// Written into a claim that is there.
	if _, trouble, err := w.try("volumes", "restore", moved.Metadata.Name, "-n", "claims", "--claim", "two"); err == nil || !strings.Contains(trouble, "Pod app uses") {
		t.Errorf("a claim that is used is written to: %v %s", err, trouble)
	}
	w.claim("claims", "copy", localnode.Late)
	w.run("volumes", "restore", moved.Metadata.Name, "-n", "claims", "--claim", "copy")
	if got := read(t, filepath.Join(w.path("claims", "copy"), "f")); got != "second\n" {
		t.Errorf("the copy has %q", got)
	}
	if target, err := os.Readlink(filepath.Join(w.path("claims", "copy"), "d/l")); err != nil || target != "/etc/passwd" {
		t.Errorf("the link leads to %q, %v", target, err)
	}
	w.nothingLeft()

	w.run("volumes", "restore-file", moved.Metadata.Name, "f", "-n", "claims", "--claim", "copy")

	// Into another storage class, from a snapshot and from files, whichever backup is nearest.
	for i, which := range []string{snapshots[0].Spec.Run, "nearest"} {
		ns := fmt.Sprintf("claims-%d", i)
		w.run("restore", "pvc,pod", "-n", "claims", "--at", "now", "--volumes", which, "--namespace-mappings", "claims:"+ns, "--storage-class-mappings", "local:local-late", "--yes")
		w.Cleanup(func() { _ = w.Client.CoreV1().Namespaces().Delete(context.Background(), ns, metav1.DeleteOptions{}) })
		w.await("the Pod", func() bool { return w.ready(ns, "app=app") })
		for claim, want := range map[string]string{"one": "first\n", "two": "second\n"} {
			if got := read(t, filepath.Join(w.path(ns, claim), "f")); got != want {
				t.Errorf("%s/%s holds %q", ns, claim, got)
			}
		}
		c, err := w.Client.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "one", metav1.GetOptions{})
		w.ok(err)
		if *c.Spec.StorageClassName != localnode.Late {
			t.Errorf("the class is %s", *c.Spec.StorageClassName)
		}
	}

	w.forget(append(snapshots, live, moved)...)
	w.snapshotsAre()
	w.nothingLeft()
}

// TestClaimGoes deletes a claim when its backup was begun, before the snapshot of it is, or the mover that was to read it; or has another one in its place by then. The
// backup fails, and says so, and the next one works.
func TestClaimGoes(t *testing.T) {
	w := newNode(t)
	w.namespace("goes")
	var before atomic.Pointer[string] // the path at which an object is made that the claim goes before
	var anew atomic.Bool
	w.server = w.through(func(_ http.ResponseWriter, r *http.Request) bool {
		if at := before.Load(); at != nil && r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, *at) && before.CompareAndSwap(at, nil) {
			w.deleteClaim("goes", "data")
			if anew.Load() {
				w.boundClaim("goes", "data")
			}
		}
		return false
	})
	w.config = "image: " + moverImage + "\n  address: " + w.Address + "\n"
	w.startDaemon()
	for _, c := range []struct {
		action, before string
		anew           bool
		want           string
	}{
		{"snapshot", "/namespaces/goes/volumesnapshots", false, "claim goes/data was deleted before its snapshot was taken"},
		{"snapshot", "/namespaces/goes/volumesnapshots", true, "claim goes/data was deleted and made anew before it was taken"},
		{"kopia", "/namespaces/goes/pods", false, "claim goes/data was deleted"},
	} {
		w.boundClaim("goes", "data")
		before.Store(&c.before)
		anew.Store(c.anew)
		began := time.Now()
		out, _, err := w.try("volumes", "backup", "-n", "goes", "--action", c.action)
		if took := time.Since(began); err == nil || !strings.Contains(out, c.want) || took > time.Minute {
			t.Errorf("%+v: after %s: %v\n%s", c, took, err, out)
		}
		w.nothingLeft()
		w.snapshotsAre()
	}
	w.boundClaim("goes", "data")
	if b := w.back("-n", "goes", "--action", "snapshot-then-kopia"); len(b) != 1 || b[0].Status.Phase != volumes.Done {
		t.Errorf("the next backup: %+v", b)
	}
	w.nothingLeft()
	w.snapshotsAre()
}

// boundClaim makes a claim, unless it is there, and waits until it has its volume.
func (w *world) boundClaim(namespace, name string) {
	w.Helper()
	claims := w.Client.CoreV1().PersistentVolumeClaims(namespace)
	if _, err := claims.Get(w.Context(), name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		w.claim(namespace, name, localnode.StorageClass)
	}
	w.await("the claim to have its volume", func() bool {
		c, err := claims.Get(w.Context(), name, metav1.GetOptions{})
		return err == nil && c.Status.Phase == corev1.ClaimBound
	})
}

// deleteClaim deletes a claim, and waits until it is gone.
func (w *world) deleteClaim(namespace, name string) {
	w.Helper()
	claims := w.Client.CoreV1().PersistentVolumeClaims(namespace)
	w.ok(claims.Delete(w.Context(), name, metav1.DeleteOptions{}))
	w.await("the claim to be gone", func() bool {
		_, err := claims.Get(w.Context(), name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}
