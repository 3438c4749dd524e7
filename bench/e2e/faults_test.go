package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
	"github.com/tidemark-backup/tidemark/volumes"
)

// begin starts a backup that a test will disturb; the function gives what became of it.
func (w *world) begin(args ...string) (end func() (out string, err error)) {
	w.Helper()
	type ended struct {
		out string
		err error
	}
	done := make(chan ended, 1)
	go func() {
		out, trouble, err := w.try(append([]string{"volumes", "backup"}, args...)...)
		done <- ended{out + trouble, err}
	}()
	return func() (string, error) {
		select {
		case e := <-done:
			return e.out, e.err
		case <-time.After(8 * time.Minute):
			w.Fatal("the backup does not end")
			return "", nil
		}
	}
}

// mover waits for a mover's Pod that runs.
func (w *world) mover(namespace string) *corev1.Pod {
	w.Helper()
	var found *corev1.Pod
	w.await("a mover", func() bool {
		l, err := w.Client.CoreV1().Pods(namespace).List(w.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=mover"})
		if err != nil || len(l.Items) == 0 || l.Items[0].Status.Phase != corev1.PodRunning {
			return false
		}
		found = &l.Items[0]
		return true
	})
	return found
}

// moverProcess is the process of a mover, on this machine.
func (w *world) moverProcess() string {
	w.Helper()
	pid := ""
	w.await("the mover's process", func() bool {
		out, _ := exec.Command("pgrep", "-f", "^tidemark mover ").Output()
		pid, _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
		return pid != ""
	})
	return pid
}

// big fills a claim so that reading it takes some seconds under the limit that slow sets.
func (w *world) big(namespace string) {
	w.Helper()
	w.namespace(namespace)
	w.claim(namespace, "data", localnode.StorageClass)
	w.shell(namespace, "app", "dd if=/dev/urandom of=/data/data/f bs=1M count=40 2>/dev/null; for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/data/data/g$i bs=1M count=2 2>/dev/null; done", "data")
}

const slow = "  upload: 6Mi\n"

// checkpointed waits until a mover has written one more index of what it sent: from then on it is not sent again.
func (w *world) checkpointed() {
	w.Helper()
	indexes := func() int {
		names, _ := filepath.Glob(filepath.Join(w.dir, "data", "archive", "volumes", "*", "kopia", "x*"))
		return len(names)
	}
	before := indexes()
	w.await("a checkpoint", func() bool { return indexes() > before })
}

// TestMoverIsKilled kills the process of a mover, and then its Pod, in the middle: another one goes on.
func TestMoverIsKilled(t *testing.T) {
	w := newWorld(t, "  upload: 3Mi\n  checkpoint: 1s\n") // so that the second one has some seconds to go as well
	w.big("killed")
	end := w.begin("-n", "killed", "--action", "kopia", "-o", "json")
	first := w.mover("killed")
	w.checkpointed()
	w.ok(exec.Command("kill", "-9", w.moverProcess()).Run())
	var second *corev1.Pod
	w.await("another mover", func() bool { second = w.mover("killed"); return second.Name != first.Name })
	w.ok(w.Client.CoreV1().Pods("killed").Delete(w.Context(), second.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}))
	out, err := end()
	var m volumes.Made
	if err != nil || json.NewDecoder(strings.NewReader(out)).Decode(&m) != nil {
		t.Fatalf("the backup: %v\n%s", err, out)
	}
	if c := m.Backups[0].Status.Content; c.Unchanged == 0 || c.Sent > 50<<20 {
		t.Errorf("what the movers before it had sent is sent again: %+v", c)
	}
	w.nothingLeft()
	w.run("volumes", "verify", "--read", "100")
}

// TestDaemonIsKilled kills the daemon while a mover runs and while a snapshot is taken: what is left is taken away by the next one, and
// the next backup works.
func TestDaemonIsKilled(t *testing.T) {
	w := newWorld(t, slow)
	w.big("orphans")
	end := w.begin("-n", "orphans", "--action", "snapshot-then-kopia")
	w.mover("orphans")
	w.sent()
	w.stopDaemon(syscall.SIGKILL)
	if out, err := end(); err == nil {
		t.Errorf("a backup without its daemon is done: %s", out)
	}
	w.startDaemon()
	w.nothingLeft()
	w.snapshotsAre()
	w.await("the record to end", func() bool {
		out := w.run("volumes", "list")
		return strings.Contains(out, "Failed") && !strings.Contains(out, "Running")
	})
	w.config = strings.Replace(w.config, slow, "", 1)
	w.stopDaemon(syscall.SIGTERM)
	w.startDaemon()
	if b := w.back("-n", "orphans", "--action", "snapshot-then-kopia")[0]; b.Status.Phase != volumes.Done {
		t.Errorf("%+v, %+v", b.Status, b.Status.Content)
	}
	w.nothingLeft()
	w.snapshotsAre()
}

// TestCancel ends a backup with Ctrl-C.
func TestCancel(t *testing.T) {
	w := newWorld(t, slow)
	w.big("cancelled")
	cmd := exec.Command(w.bin, "volumes", "backup", "-n", "cancelled", "--action", "snapshot-then-kopia")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+w.Kubeconfig(), "TIDEMARK_DATA_DIR="+filepath.Join(w.dir, "data"))
	w.ok(cmd.Start())
	w.mover("cancelled")
	w.sent()
	w.ok(cmd.Process.Signal(os.Interrupt))
	if err := cmd.Wait(); err == nil {
		t.Error("a cancelled backup ends well")
	}
	w.await("the record", func() bool { return strings.Contains(w.run("volumes", "list"), "Failed") })
	w.nothingLeft()
	w.snapshotsAre()
}

// TestSnapshotTrouble has the driver fail: the error is the driver's, and nothing is left.
func TestSnapshotTrouble(t *testing.T) {
	w := newWorld(t, "")
	w.namespace("trouble")
	w.claim("trouble", "data", localnode.StorageClass)
	w.shell("trouble", "app", "echo x > /data/data/f", "data")
	w.ok(w.Trouble("fail-snapshots", "the disk array is on fire"))
	w.Cleanup(func() { _ = w.Trouble("fail-snapshots", "") })
	_, trouble, err := w.try("volumes", "backup", "-n", "trouble")
	out := w.run("volumes", "describe", w.newest())
	if err == nil || !strings.Contains(out, "the disk array is on fire") {
		t.Errorf("%v %s\n%s", err, trouble, out)
	}
	w.nothingLeft()
	w.snapshotsAre()
	w.ok(w.Trouble("fail-snapshots", ""))
	if b := w.back("-n", "trouble"); b[0].Status.Phase != volumes.Done {
		t.Errorf("after the trouble: %+v", b[0].Status)
	} else {
		w.forget(b...)
	}
	w.nothingLeft()
}

// newest is the name of the newest backup.
func (w *world) newest() string {
	w.Helper()
	lines := strings.Split(strings.TrimSpace(w.run("volumes", "list")), "\n")
	name, _, _ := strings.Cut(lines[len(lines)-1], " ")
	return name
}

// TestNodeTrouble kills the kubelet, and then reboots the node, while a mover runs.
func TestNodeTrouble(t *testing.T) {
	w := newWorld(t, slow)
	w.big("node")
	end := w.begin("-n", "node", "--action", "kopia")
	w.mover("node")
	w.ok(w.Kill("kubelet"))
	w.sent()
	w.ok(w.Launch("kubelet"))
	if out, err := end(); err != nil {
		t.Errorf("with a kubelet that was killed: %v\n%s", err, out)
	}
	w.nothingLeft()

	w.shell("node", "more", "dd if=/dev/urandom of=/data/data/h bs=1M count=40 2>/dev/null", "data")
	end = w.begin("-n", "node", "--action", "kopia")
	w.mover("node")
	w.sent()
	w.Crash()
	w.ok(w.Boot(context.Background()))
	if out, err := end(); err != nil { // the Pod has failed with the node, and another one goes on
		t.Errorf("with a node that was rebooted: %v\n%s", err, out)
	}
	w.nothingLeft()
}

// TestCacheIsFull gives movers a cache of 64 KiB, as on a node whose disk is full: a backup fails with the reason, and the next one works.
func TestCacheIsFull(t *testing.T) {
	w := newNode(t)
	w.config = "image: " + moverImage + "\n  pod: {spec: {volumes: [{name: cache, emptyDir: {medium: Memory, sizeLimit: 64Ki}}]}}\n"
	w.startDaemon()
	w.big("full")
	out, trouble, err := w.try("volumes", "backup", "-n", "full", "--action", "kopia")
	if err == nil || !strings.Contains(out, "no space left on device") {
		t.Errorf("with a cache that is full: %v: %s%s", err, out, trouble)
	}
	w.nothingLeft()
	w.stopDaemon(syscall.SIGTERM)
	w.config = "image: " + moverImage + "\n"
	w.startDaemon()
	if b := w.back("-n", "full", "--action", "kopia")[0]; b.Status.Phase != volumes.Done {
		t.Errorf("%+v", b.Status)
	}
	w.run("volumes", "verify", "--read", "100")
	w.nothingLeft()
}
