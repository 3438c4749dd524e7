package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
	"github.com/tidemark-backup/tidemark/volumes"
)

// TestSnapshotAndFiles backs a claim up as both, grows it, and restores it: from the snapshot as long as the storage has it, and from the files when somebody
// deleted it there. What was a snapshot only is then told to be lost, and no workload begins without it.
func TestSnapshotAndFiles(t *testing.T) {
	w := newWorld(t, "")
	w.namespace("both")
	w.claim("both", "data", localnode.StorageClass)
	w.shell("both", "app", "[ -e /data/data/f ] || dd if=/dev/urandom of=/data/data/f bs=1M count=4 2>/dev/null", "data")
	want := read(t, filepath.Join(w.path("both", "data"), "f"))
	kept := w.back("-n", "both", "--action", "snapshot-then-kopia", "--keep-snapshots")[0]
	if kept.Status.Phase != volumes.Done || kept.Status.Snapshot == nil || kept.Status.Content == nil {
		t.Fatalf("%+v", kept.Status)
	}
	w.nothingLeft()
	w.snapshotsAre(kept.Status.Snapshot.ID)
	_, err := w.Client.CoreV1().PersistentVolumeClaims("both").Patch(w.Context(), "data", types.MergePatchType, []byte(`{"spec":{"resources":{"requests":{"storage":"48Mi"}}}}`), metav1.PatchOptions{})
	w.ok(err)
	w.moment()

	restored := w.restoreInto("both", "by-snapshot", kept.Metadata.Name)
	if strings.Contains(restored, "filled") {
		t.Errorf("a snapshot that is there is not used:\n%s", restored)
	}
	w.holds("by-snapshot", want, "48Mi")

	w.loseSnapshot(kept)
	restored = w.restoreInto("both", "by-files", kept.Metadata.Name)
	if !strings.Contains(restored, kept.Status.Snapshot.ID) || !strings.Contains(restored, "files") {
		t.Errorf("that the snapshot is gone is not said:\n%s", restored)
	}
	w.holds("by-files", want, "48Mi")

	only := w.back("-n", "both")[0]
	w.loseSnapshot(only)
	began := time.Now()
	out, trouble, err := w.try("restore", "pvc,pod", "-n", "both", "--at", "now", "--volumes", only.Metadata.Name, "--namespace-mappings", "both:lost", "--yes")
	w.Cleanup(func() {
		_ = w.Client.CoreV1().Namespaces().Delete(context.Background(), "lost", metav1.DeleteOptions{})
	})
	if err == nil || !strings.Contains(out, only.Status.Snapshot.ID) || !strings.Contains(out, "--volumes") || !strings.Contains(out, "it would begin with an empty one") || time.Since(began) > time.Minute {
		t.Errorf("a snapshot that is lost, after %s: %v\n%s%s", time.Since(began), err, out, trouble)
	}
	if l, err := w.Client.CoreV1().Pods("lost").List(w.Context(), metav1.ListOptions{}); err != nil || len(l.Items) > 0 {
		t.Errorf("a workload was made without its content: %v", err)
	}
	w.nothingLeft()
	w.forget(kept, only)
	w.nothingLeft()
	w.snapshotsAre()
}

// restoreInto restores claims and Pods of a namespace, with the content of a backup, under another name, and gives the report.
func (w *world) restoreInto(from, to, backup string) string {
	w.Helper()
	out := w.run("restore", "pvc,pod", "-n", from, "--at", "now", "--volumes", backup, "--namespace-mappings", from+":"+to, "--yes", "-v")
	w.Cleanup(func() { _ = w.Client.CoreV1().Namespaces().Delete(context.Background(), to, metav1.DeleteOptions{}) })
	w.await("the Pod in "+to, func() bool { return w.ready(to, "app=app") })
	w.nothingLeft()
	return out
}

// holds compares the file of the claim "data", and the claim's size.
func (w *world) holds(namespace, want, size string) {
	w.Helper()
	if got := read(w.T, filepath.Join(w.path(namespace, "data"), "f")); got != want {
		w.Errorf("%s: the file has %d bytes, and is not what it was", namespace, len(got))
	}
	c, err := w.Client.CoreV1().PersistentVolumeClaims(namespace).Get(w.Context(), "data", metav1.GetOptions{})
	w.ok(err)
	if has := c.Status.Capacity[corev1.ResourceStorage]; has.Cmp(resource.MustParse(size)) != 0 {
		w.Errorf("%s: the claim has %s, want %s", namespace, has.String(), size)
	}
}

// loseSnapshot deletes a snapshot in the driver's storage, behind everybody's back.
func (w *world) loseSnapshot(b *volumes.Backup) {
	w.Helper()
	path := filepath.Join(w.Dir(), "csi", "snapshots", b.Status.Snapshot.ID)
	w.ok(os.Remove(path + ".json"))
	w.ok(os.RemoveAll(path))
}
