package e2e

import (
	"context"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
	"github.com/tidemark-backup/tidemark/volumes"
)

// kept makes a namespace with claims of a class whose volumes stay when they are deleted, and which a Pod uses; and snapshots, and those of groups, are
// until the end of the test by default of the class that keeps them, and wants a secret to delete them.
func (w *world) kept(namespace string, claims ...string) {
	w.Helper()
	w.keepSnapshots()
	w.namespace(namespace)
	_, err := w.Client.CoreV1().Secrets(namespace).Create(w.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: localnode.SnapshotKey}, StringData: map[string]string{"key": localnode.SnapshotKey},
	}, metav1.CreateOptions{})
	w.ok(err)
	script := ""
	for _, c := range claims {
		w.claim(namespace, c, localnode.Kept)
		script += "dd if=/dev/urandom of=/data/" + c + "/f bs=1M count=40 2>/dev/null\n"
	}
	w.shell(namespace, "app", script, claims...)
	w.Cleanup(func() { // what the test itself has made goes with its namespace
		all, err := w.Client.CoreV1().PersistentVolumes().List(context.Background(), metav1.ListOptions{})
		w.ok(err)
		for _, v := range all.Items {
			_, err := w.Client.CoreV1().PersistentVolumes().Patch(context.Background(), v.Name, types.MergePatchType, []byte(`{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`), metav1.PatchOptions{})
			w.ok(err)
		}
	})
}

// keepSnapshots makes the class that keeps snapshots the default one, until the end of the test.
func (w *world) keepSnapshots() {
	w.Helper()
	set := func(kept, other string) {
		for _, group := range []string{"snapshot", "groupsnapshot"} {
			classes := w.Dynamic.Resource(schema.GroupVersionResource{
				Group: group + ".storage.k8s.io", Version: "v1", Resource: map[string]string{"snapshot": "volumesnapshotclasses", "groupsnapshot": "volumegroupsnapshotclasses"}[group],
			})
			for name, is := range map[string]string{localnode.Kept: kept, localnode.SnapshotClass: other} {
				_, err := classes.Patch(context.Background(), name, types.MergePatchType, []byte(`{"metadata":{"annotations":{"`+group+`.storage.kubernetes.io/is-default-class":"`+is+`"}}}`), metav1.PatchOptions{})
				w.ok(err)
			}
		}
	}
	set("true", "false")
	w.Cleanup(func() { set("false", "true") })
}

// cutOff kills the daemon at a moment of a backup, and starts the next one.
func (w *world) cutOff(moment func(), args ...string) {
	w.Helper()
	end := w.begin(args...)
	moment()
	w.stopDaemon(syscall.SIGKILL)
	if out, err := end(); err == nil {
		w.Errorf("a backup without its daemon is done: %s", out)
	}
	for _, what := range []string{"never-ready", "fail-snapshots"} {
		w.ok(w.Trouble(what, ""))
	}
	w.startDaemon()
	w.await("the record to end", func() bool { return !strings.Contains(w.run("volumes", "list"), "Running") })
}

// gone fails unless neither the cluster nor the driver has anything of a backup.
func (w *world) gone(of string) {
	w.Helper()
	w.Log(of)
	w.nothingLeft()
	w.snapshotsAre()
}

// TestKeptVolumes backs up where neither volumes nor snapshots go by themselves, and snapshots are deleted with a secret only: nothing is left, whether a
// backup is done, fails, or is cut off.
func TestKeptVolumes(t *testing.T) {
	w := newWorld(t, slow+"  readyTimeout: 15s\n")
	w.kept("kept", "data")
	b := w.back("-n", "kept")[0]
	if b.Status.Phase != volumes.Done || b.Status.Snapshot == nil {
		t.Fatalf("%+v", b.Status)
	}
	w.nothingLeft()
	w.snapshotsAre(b.Status.Snapshot.ID)
	w.withoutKey("kept", func() {
		began := time.Now()
		_, trouble, err := w.try("volumes", "delete", "--yes", b.Metadata.Name)
		if took := time.Since(began); err == nil || !strings.Contains(trouble, "Secret kept/"+localnode.SnapshotKey+" is not there") || took > time.Minute {
			t.Errorf("deleted without the secret that the driver wants, after %s: %v: %s", took, err, trouble)
		}
		w.snapshotsAre(b.Status.Snapshot.ID)
	})
	w.forget(b)
	w.gone("a snapshot that was deleted")
	if b := w.back("-n", "kept", "--action", "snapshot-then-kopia")[0]; b.Status.Phase != volumes.Done || b.Status.Snapshot != nil || b.Status.Content == nil {
		t.Errorf("%+v", b.Status)
	}
	w.gone("a backup that is done")
	w.exec("kept", "app", "dd if=/dev/urandom of=/data/data/more bs=1M count=20 2>/dev/null")
	end := w.begin("-n", "kept", "--action", "snapshot-then-kopia")
	w.mover("kept")
	w.withoutKey("kept", func() {
		if out, err := end(); err != nil || !strings.Contains(out, "its snapshot could not be removed") || !strings.Contains(out, "Secret kept/"+localnode.SnapshotKey+" is not there") {
			t.Errorf("a snapshot that cannot be deleted when it was read: %v: %s", err, out)
		}
	}) // and it goes with the next one
	for _, trouble := range []string{"fail-snapshots", "never-ready"} {
		w.ok(w.Trouble(trouble, "not now"))
		w.Cleanup(func() { _ = w.Trouble(trouble, "") })
		if out, _, err := w.try("volumes", "backup", "-n", "kept"); err == nil {
			t.Errorf("%s: done: %s", trouble, out)
		}
		w.ok(w.Trouble(trouble, ""))
		w.gone("a backup that failed: " + trouble)
	}
	w.ok(w.Trouble("never-ready", "not now"))
	w.cutOff(func() {
		w.await("the driver to have taken it", func() bool { return len(w.Snapshots()) == 1 })
	}, "-n", "kept")
	w.gone("a backup that was cut off while it was taken")
	w.exec("kept", "app", "dd if=/dev/urandom of=/data/data/new bs=1M count=40 2>/dev/null")
	w.cutOff(func() { w.mover("kept"); w.sent() }, "-n", "kept", "--action", "snapshot-then-kopia")
	w.gone("a backup that was cut off while it was read")
}

// withoutKey does something while a namespace does not have the Secret with which its snapshots are deleted.
func (w *world) withoutKey(namespace string, do func()) {
	w.Helper()
	secrets := w.Client.CoreV1().Secrets(namespace)
	key, err := secrets.Get(w.Context(), localnode.SnapshotKey, metav1.GetOptions{})
	w.ok(err)
	w.ok(secrets.Delete(w.Context(), localnode.SnapshotKey, metav1.DeleteOptions{}))
	do()
	key.ResourceVersion = ""
	_, err = secrets.Create(w.Context(), key, metav1.CreateOptions{})
	w.ok(err)
}

// TestKeptGroup does the same with a group.
func TestKeptGroup(t *testing.T) {
	w := newWorld(t, "  readyTimeout: 15s\n")
	w.kept("kept-group", "left", "right")
	for _, action := range []string{"snapshot", "snapshot-then-kopia"} {
		all := w.back("-n", "kept-group", "--group", "pod", "--action", action)
		for _, b := range all {
			if b.Status.Phase != volumes.Done || b.Status.Consistency != volumes.CrashGroup || len(b.Status.Notes) > 0 {
				t.Errorf("%s: %+v", action, b.Status)
			}
		}
		w.nothingLeft()
		back := "kept-" + strings.TrimPrefix(action, "snapshot-")
		w.run("restore", "pvc", "-n", "kept-group", "--at", "now", "--volumes", all[0].Spec.Run, "--namespace-mappings", "kept-group:"+back, "--storage-class-mappings", localnode.Kept+":"+localnode.StorageClass, "--yes")
		for _, claim := range []string{"left", "right"} {
			if a, b := read(t, filepath.Join(w.path("kept-group", claim), "f")), read(t, filepath.Join(w.path(back, claim), "f")); a != b {
				t.Errorf("%s: what comes back of %s is not what was there", action, claim)
			}
		}
		w.deleteNamespace(back)
		w.forget(all...)
		w.gone("a group: " + action)
	}
	w.ok(w.Trouble("never-ready", "not now"))
	w.Cleanup(func() { _ = w.Trouble("never-ready", "") })
	if out, _, err := w.try("volumes", "backup", "-n", "kept-group", "--group", "pod"); err == nil {
		t.Errorf("done: %s", out)
	}
	w.gone("a group that failed")
	w.cutOff(func() {
		w.await("the driver to have taken it", func() bool { return len(w.Snapshots()) == 2 })
	}, "-n", "kept-group", "--group", "pod")
	w.gone("a group that was cut off")
}

// TestCheckIsCutOff kills the daemon in the middle of a check: the next one removes what it made.
func TestCheckIsCutOff(t *testing.T) {
	w := newWorld(t, "")
	w.keepSnapshots()
	for what, moment := range map[string]func() bool{
		"while a volume is filled":   func() bool { return w.claims("check-") == 1 },
		"while a snapshot is taken":  func() bool { return len(w.Snapshots()) == 1 },
		"while the snapshot is read": func() bool { return w.claims("check-") == 2 },
	} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _, _ = w.try("volumes", "check", "-n", "default", localnode.Kept)
		}()
		w.await(what, moment)
		w.stopDaemon(syscall.SIGKILL)
		<-done
		w.startDaemon()
		w.gone(what)
	}
}

// claims counts the claims in the default namespace whose name begins with a text.
func (w *world) claims(prefix string) (n int) {
	w.Helper()
	l, err := w.Client.CoreV1().PersistentVolumeClaims("default").List(w.Context(), metav1.ListOptions{})
	w.ok(err)
	for _, c := range l.Items {
		if strings.HasPrefix(c.Name, prefix) {
			n++
		}
	}
	return n
}

// TestDeleteIsCutOff kills the daemon while it has a snapshot deleted: the next one finishes that.
func TestDeleteIsCutOff(t *testing.T) {
	w := newWorld(t, "")
	w.kept("delete", "data")
	b := w.back("-n", "delete")[0]
	w.ok(w.Kill("csi-snapshotter"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, _ = w.try("volumes", "delete", "--yes", b.Metadata.Name)
	}()
	w.await("the object", func() bool {
		l, err := w.Dynamic.Resource(contentObjects).List(w.Context(), metav1.ListOptions{})
		return err == nil && len(l.Items) == 1
	})
	w.stopDaemon(syscall.SIGKILL)
	<-done
	w.ok(w.Launch("csi-snapshotter"))
	w.startDaemon()
	w.await("the deletion to be finished", func() bool { return !strings.Contains(w.run("volumes", "list"), b.Metadata.Name) })
	w.gone("a delete that was cut off")
}
