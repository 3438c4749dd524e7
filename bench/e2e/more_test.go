package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
	"github.com/tidemark-backup/tidemark/volumes"
)

// TestCheck tries what works with all storage classes, and with a driver that takes no snapshots.
func TestCheck(t *testing.T) {
	w := newWorld(t, "")
	out := w.run("volumes", "check", "-n", "default")
	if strings.Count(out, "works") != 3 || strings.Count(out, "ok, ") != 12 {
		t.Error(out)
	}
	w.nothingLeft()
	w.snapshotsAre()
	if out := w.run("volumes", "list"); strings.Contains(out, "check") {
		t.Errorf("a check is recorded: %s", out)
	}
}

// TestCheckFails tries classes that nobody makes volumes of, a driver that takes no snapshots now, and one without a class of snapshots.
func TestCheckFails(t *testing.T) {
	w := newWorld(t, "")
	for name, provisioner := range map[string]string{"nobody": "nobody.example", "by-hand": "kubernetes.io/no-provisioner"} {
		_, err := w.Client.StorageV1().StorageClasses().Create(w.Context(), &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner}, metav1.CreateOptions{})
		w.ok(err)
		w.Cleanup(func() {
			w.ok(w.Client.StorageV1().StorageClasses().Delete(context.Background(), name, metav1.DeleteOptions{}))
		})
	}
	w.ok(w.Trouble("fail-snapshots", "the disk array is on fire"))
	w.Cleanup(func() { _ = w.Trouble("fail-snapshots", "") })
	var out string
	for limit, classes := range map[string][]string{"2s": {"nobody", "by-hand"}, "20s": {localnode.StorageClass}} {
		began := time.Now()
		said, trouble, err := w.try(append([]string{"volumes", "check", "-n", "default", "--timeout", limit}, classes...)...)
		var code *exec.ExitError
		if took := time.Since(began); !errors.As(err, &code) || code.ExitCode() != 3 || took > 2*time.Minute {
			t.Errorf("%v: after %s: %v: %s", classes, took, err, trouble)
		}
		out += said
	}
	for _, want := range []string{
		"nobody (nobody.example): DOES NOT WORK", "took longer than 2s", "nobody.example has made no volume", "by-hand (kubernetes.io/no-provisioner): not tried", "made by hand",
		localnode.StorageClass + " (" + localnode.Driver + "): DOES NOT WORK", "take a snapshot: FAILED", "the disk array is on fire",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not said", want)
		}
	}
	w.ok(w.Trouble("fail-snapshots", ""))
	w.without(snapshotClasses)
	out += w.run("volumes", "check", "-n", "default", localnode.StorageClass)
	if !strings.Contains(out, "take a snapshot: left out: no VolumeSnapshotClass of driver "+localnode.Driver) || !strings.Contains(out, "read the volume into the repository: ok") {
		t.Error("that there is no class of snapshots is not said")
	}
	if t.Failed() {
		t.Log(out)
	}
	w.nothingLeft()
	w.snapshotsAre()
}

// TestRestoreHooks restores a Deployment whose Pods want a program to be run when they are back.
func TestRestoreHooks(t *testing.T) {
	w := newWorld(t, "")
	w.application("after")
	d, err := w.Client.AppsV1().Deployments("after").Get(w.Context(), "web", metav1.GetOptions{})
	w.ok(err)
	d.Spec.Template.Annotations = map[string]string{
		"post.hook.restore.velero.io/command": `["sh", "-c", "[ -e /data/files/go ] && echo done >> /data/files/restored"]`, "post.hook.restore.velero.io/wait-for-ready": "true",
	}
	_, err = w.Client.AppsV1().Deployments("after").Update(w.Context(), d, metav1.UpdateOptions{})
	w.ok(err)
	w.await("the rollout", func() bool {
		d, err := w.Client.AppsV1().Deployments("after").Get(w.Context(), "web", metav1.GetOptions{})
		return err == nil && d.Status.ObservedGeneration == d.Generation && d.Status.UpdatedReplicas == 1 && d.Status.Replicas == 1 && d.Status.AvailableReplicas == 1
	})
	all := w.back("-n", "after")
	at := w.moment()
	w.deleteNamespace("after")
	if plan := w.run("restore", "-n", "after", "--at", at, "--dry-run"); !strings.Contains(plan, "a program is run in its Pods") {
		t.Errorf("the plan does not tell of the hook:\n%s", plan)
	}
	out, trouble, err := w.try("restore", "-n", "after", "--at", at, "--yes")
	if err == nil || !strings.Contains(trouble, "the hooks of 1 object failed") {
		t.Errorf("a hook that fails: %v\n%s", err, trouble)
	}
	if text := w.run("restores", "describe", undoOf(out)); !strings.Contains(text, "failed: the hook of Deployment after/web: in Pod ") {
		t.Errorf("the record:\n%s", text)
	}
	w.ok(os.WriteFile(filepath.Join(w.path("after", "files"), "go"), nil, 0o644))
	w.run("restores", "resume", undoOf(out), "--yes")
	if text := w.run("restores", "describe", undoOf(out)); !strings.Contains(text, "done: the hook of Deployment after/web") {
		t.Errorf("the record:\n%s", text)
	}
	if _, text, _ := w.try("restores", "resume", undoOf(out), "--yes"); !strings.Contains(text, "Nothing to do") {
		t.Errorf("once more: %s", text)
	}
	if got := read(t, filepath.Join(w.path("after", "files"), "restored")); got != "done\n" {
		t.Errorf("the hook left %q", got)
	}
	w.forget(all...)
}

// TestSchedule has the daemon back claims up by a policy, and delete what its retention does not keep.
func TestSchedule(t *testing.T) {
	w := newNode(t)
	w.config = "image: " + moverImage + "\n  policies:\n  - name: data\n    namespaces: [planned]\n    selector: app=db\n    action: snapshot-then-kopia\n    keepSnapshots: true\n    cron: \"* * * * *\"\n    retention: {hourly: 1}\n  - name: snap\n    namespaces: [planned]\n    selector: app=log\n    action: snapshot\n    cron: \"* * * * *\"\n    retention: {hourly: 1}\n  - name: rest\n    action: skip\n"
	w.namespace("planned")
	w.claim("planned", "data", localnode.StorageClass, func(c *corev1.PersistentVolumeClaim) { c.Labels = map[string]string{"app": "db"} })
	w.claim("planned", "log", localnode.StorageClass, func(c *corev1.PersistentVolumeClaim) { c.Labels = map[string]string{"app": "log"} })
	w.claim("planned", "other", localnode.StorageClass)
	w.shell("planned", "app", "echo x > /data/data/f", "data", "log", "other")
	w.startDaemon()
	done := func() (all []*volumes.Backup) {
		w.Helper()
		w.ok(json.Unmarshal([]byte(w.run("volumes", "list", "-o", "json")), &all))
		return slices.DeleteFunc(all, func(b *volumes.Backup) bool { return b.Status.Phase != volumes.Done })
	}
	of := func(all []*volumes.Backup, claim string) *volumes.Backup {
		i := slices.IndexFunc(all, func(b *volumes.Backup) bool { return b.Spec.Claim == claim })
		if i < 0 {
			return nil
		}
		return all[i]
	}
	w.await("the schedules", func() bool { return len(done()) == 2 })
	began := done()
	if of(began, "data") == nil || of(began, "log") == nil {
		t.Fatal(w.run("volumes", "list"))
	}
	var st struct {
		Volumes []struct {
			volumes.Figures
			Limit time.Duration
		}
	}
	w.ok(json.Unmarshal([]byte(w.run("status", "-o", "json")), &st))
	for i, policy := range []string{"data", "snap"} {
		if len(st.Volumes) != 2 || st.Volumes[i].Policy != policy || st.Volumes[i].Driver != localnode.Driver || st.Volumes[i].Claims != 1 || st.Volumes[i].Done == 0 || st.Volumes[i].Limit < time.Minute {
			t.Fatalf("the status tells of volumes: %+v", st.Volumes)
		}
	}
	first := of(began, "data").Metadata.Name
	if of(began, "data").Status.Snapshot == nil || of(began, "data").Status.Content == nil {
		t.Fatalf("its snapshot is to be kept, and its files moved: %+v", of(began, "data").Status)
	}
	w.snapshotsAre(of(began, "log").Status.Snapshot.ID, of(began, "data").Status.Snapshot.ID)
	if out := w.run("volumes", "describe", first); !strings.Contains(out, "schedule/data") || !strings.Contains(out, "policy data") {
		t.Error(out)
	}
	if out := w.run("volumes", "backup", "other", "-n", "planned"); !strings.Contains(out, "planned/other: left out") {
		t.Error(out)
	}
	// The next run takes the place of the first, whose snapshot the driver deletes, and whose manifest the repository forgets.
	w.awaitLong("the next runs", func() bool {
		all := done()
		return len(all) == 2 && of(all, "data").Metadata.Name != first && of(all, "log").Metadata.Name != of(began, "log").Metadata.Name
	})
	w.snapshotsAre(of(done(), "log").Status.Snapshot.ID, of(done(), "data").Status.Snapshot.ID)
	w.nothingLeft()
	w.await("the first to be deleted", func() bool { return !strings.Contains(w.run("volumes", "list"), first) })
	held := w.run("volumes", "list", "--archive", "dir://"+filepath.Join(w.dir, "data", "archive"), "--identity", filepath.Join(w.dir, "data", "archive.key"))
	if strings.Contains(held, first) || !strings.Contains(held, of(done(), "data").Metadata.Name) {
		t.Errorf("the repository has:\n%s", held)
	}
	w.stopDaemon(syscall.SIGTERM) // before its next run
	w.config = strings.ReplaceAll(w.config, "cron:", "suspend: true\n    cron:")
	w.startDaemon()
	w.forget(done()...)
	w.snapshotsAre()
}

// TestStoreTrouble has the directory of the store taken away in the middle of a backup, and given back: the mover waits.
func TestStoreTrouble(t *testing.T) {
	w := newWorld(t, slow)
	w.big("store")
	archive := filepath.Join(w.dir, "data", "archive")
	end := w.begin("-n", "store", "--action", "kopia")
	w.mover("store")
	w.sent()
	w.ok(os.Rename(archive, archive+".away"))
	w.ok(os.WriteFile(archive, nil, 0o600)) // nothing can be made in its place
	w.logged("a mover's request failed")
	w.ok(os.Remove(archive))
	w.ok(os.Rename(archive+".away", archive))
	if out, err := end(); err != nil {
		t.Errorf("a store that was away for a while: %v\n%s", err, out)
	}
	w.nothingLeft()
	w.run("volumes", "verify", "--read", "100")
}

// TestStoreStaysAway kills the store in the middle of a backup: the backup fails with the reason, nothing of it stays in the cluster, and when the store is
// back the next backup works.
func TestStoreStaysAway(t *testing.T) {
	w := newNode(t)
	s, config := w.bucket()
	endpoint, ca, seen := w.between(s)
	w.config = fmt.Sprintf("image: %s\n%s%s  ca: %s\n", moverImage, slow, config(endpoint), ca)
	w.startDaemon()
	w.big("away")
	end := w.begin("-n", "away", "--action", "kopia")
	w.mover("away")
	w.await("content in the store", func() bool { return seen.pods.Load()+seen.daemon.Load() > 4<<20 })
	s.Kill()
	began := time.Now()
	out, err := end()
	t.Logf("it ends %s after the store: %v\n%s", time.Since(began).Round(time.Second), err, out)
	if err == nil || !strings.Contains(out, "store") {
		t.Errorf("without a store the backup ends with %v:\n%s", err, out)
	}
	w.nothingLeft()
	w.ok(s.Restart(t.Context()))
	if b := w.back("-n", "away", "--action", "kopia")[0]; b.Status.Phase != volumes.Done {
		t.Errorf("with the store back: %+v", b.Status)
	}
	w.run("volumes", "verify", "--read", "100")
	w.nothingLeft()
}

// TestAnotherCluster restores a namespace from the bucket alone, into a cluster that knows nothing of the first.
func TestAnotherCluster(t *testing.T) {
	w := newWorld(t, "")
	w.application("moving")
	all := w.back("-n", "moving", "--action", "snapshot-then-kopia", "--keep-snapshots") // which are of no use elsewhere
	w.archived()
	w.stopDaemon(syscall.SIGTERM)
	other, err := localnode.Start(t.Context(), localnode.Options{Number: 92, Output: t.Output(), Images: []localnode.Image{{Ref: moverImage, Files: map[string]string{"/usr/local/bin/tidemark": w.bin}}}})
	w.ok(err)
	defer other.Stop()
	out := w.run("restore", "-n", "moving", "--at", "now", "--archive", "dir://"+filepath.Join(w.dir, "data", "archive"), "--identity", filepath.Join(w.dir, "data", "archive.key"),
		"--kubeconfig", other.Kubeconfig(), "--mover-image", moverImage, "--yes", "-v")
	there := &world{T: t, Node: other, bin: w.bin, dir: w.dir}
	if !strings.Contains(out, "2 filled") {
		t.Errorf("the report:\n%s", out)
	}
	there.await("the application", func() bool { return there.ready("moving", "app=web") && there.ready("moving", "app=db") })
	there.contents("moving", "version 1\n", "rows 1\n")
	there.nothingLeft()
	w.startDaemon()
	w.forget(all...)
	w.snapshotsAre()
}
