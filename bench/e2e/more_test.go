package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
)

// TestCheck tries what works with both storage classes, and with a driver that takes no snapshots.
func TestCheck(t *testing.T) {
	w := newWorld(t, "")
	out := w.run("volumes", "check", "-n", "default")
	if strings.Count(out, "works") != 2 || strings.Count(out, "ok, ") != 8 {
		t.Error(out)
	}
	w.nothingLeft()
	w.snapshotsAre()
	if out := w.run("volumes", "list"); strings.Contains(out, "check") {
		t.Errorf("a check is recorded: %s", out)
	}
}

// TestRestoreHooks restores a Deployment whose Pods want a program to be run when they are back.
func TestRestoreHooks(t *testing.T) {
	w := newWorld(t, "")
	w.application("after")
	d, err := w.Client.AppsV1().Deployments("after").Get(w.Context(), "web", metav1.GetOptions{})
	w.ok(err)
	d.Spec.Template.Annotations = map[string]string{
		"post.hook.restore.velero.io/command": `["sh", "-c", "echo done >> /data/files/restored"]`, "post.hook.restore.velero.io/wait-for-ready": "true",
	}
	_, err = w.Client.AppsV1().Deployments("after").Update(w.Context(), d, metav1.UpdateOptions{})
	w.ok(err)
	w.await("the rollout", func() bool {
		d, err := w.Client.AppsV1().Deployments("after").Get(w.Context(), "web", metav1.GetOptions{})
		return err == nil && d.Status.ObservedGeneration == d.Generation && d.Status.UpdatedReplicas == 1 && d.Status.Replicas == 1 && d.Status.AvailableReplicas == 1
	})
	all := w.back("-n", "after")
	time.Sleep(time.Second)
	at := time.Now().UTC().Format(time.RFC3339Nano)
	w.deleteNamespace("after")
	if plan := w.run("restore", "-n", "after", "--at", at, "--dry-run"); !strings.Contains(plan, "a program is run in its Pods") {
		t.Errorf("the plan does not tell of the hook:\n%s", plan)
	}
	w.run("restore", "-n", "after", "--at", at, "--yes")
	if got := read(t, filepath.Join(w.path("after", "files"), "restored")); got != "done\n" {
		t.Errorf("the hook left %q", got)
	}
	w.forget(all...)
}

// TestSchedule has the daemon back claims up by a policy, and delete what its retention does not keep.
func TestSchedule(t *testing.T) {
	w := newNode(t)
	w.config = "image: " + moverImage + "\n  policies:\n  - name: data\n    namespaces: [planned]\n    selector: app=db\n    action: snapshot-then-kopia\n    cron: \"* * * * *\"\n    retention: {hourly: 1}\n  - name: rest\n    action: skip\n"
	w.namespace("planned")
	w.claim("planned", "data", localnode.StorageClass, func(c *corev1.PersistentVolumeClaim) { c.Labels = map[string]string{"app": "db"} })
	w.claim("planned", "other", localnode.StorageClass)
	w.shell("planned", "app", "echo x > /data/data/f", "data", "other")
	w.startDaemon()
	w.await("the schedule", func() bool { return strings.Count(w.run("volumes", "list"), "Done") == 1 })
	if out := w.run("volumes", "list"); !strings.Contains(out, "planned/data") || strings.Contains(out, "other") {
		t.Error(out)
	}
	first := w.newest()
	if out := w.run("volumes", "describe", first); !strings.Contains(out, "schedule/data") || !strings.Contains(out, "policy data") {
		t.Error(out)
	}
	if out := w.run("volumes", "backup", "-n", "planned"); !strings.Contains(out, "planned/other: left out") {
		t.Error(out)
	}
	w.await("the next run", func() bool { return strings.Count(w.run("volumes", "list"), "Done") == 3 })
	w.nothingLeft()
	w.snapshotsAre()
}

// TestStoreTrouble has the directory of the store taken away in the middle of a backup, and given back: the mover waits. A store that stays away fails
// the backup, and the next one works.
func TestStoreTrouble(t *testing.T) {
	w := newWorld(t, slow)
	w.big("store")
	archive := filepath.Join(w.dir, "data", "archive")
	end := w.begin("-n", "store", "--action", "kopia")
	w.mover("store")
	time.Sleep(time.Second)
	w.ok(os.Rename(archive, archive+".away"))
	w.ok(os.WriteFile(archive, nil, 0o600)) // nothing can be made in its place
	time.Sleep(5 * time.Second)
	w.ok(os.Remove(archive))
	w.ok(os.Rename(archive+".away", archive))
	if out, err := end(); err != nil {
		t.Errorf("a store that was away for five seconds: %v\n%s", err, out)
	}
	w.nothingLeft()
	w.run("volumes", "verify", "--read", "100")
}

// TestAnotherCluster restores a namespace from the bucket alone, into a cluster that knows nothing of the first.
func TestAnotherCluster(t *testing.T) {
	w := newWorld(t, "")
	w.application("moving")
	w.back("-n", "moving", "--action", "snapshot-then-kopia")
	time.Sleep(6 * time.Second) // until it is archived
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
}
