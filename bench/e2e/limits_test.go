package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
	"github.com/tidemark-backup/tidemark/volumes"
)

// moversAtOnce counts movers until the function that it returns is called, which gives the most there were at one time.
func (w *world) moversAtOnce() func() int {
	w.Helper()
	seen, err := w.Client.CoreV1().Pods("").Watch(w.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=mover"})
	w.ok(err)
	var most atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		at := map[string]bool{}
		for e := range seen.ResultChan() {
			p, ok := e.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			if at[p.Name] = e.Type != "DELETED" && p.Status.Phase == corev1.PodRunning; !at[p.Name] {
				delete(at, p.Name)
			}
			most.Store(max(most.Load(), int64(len(at))))
		}
	}()
	return func() int {
		seen.Stop()
		<-ended
		return int(most.Load())
	}
}

// TestConcurrency backs three claims up at once, one after another because one at a time is allowed, and two at a time on the node.
func TestConcurrency(t *testing.T) {
	w := newNode(t)
	w.namespace("crowd")
	var names []string
	for i := range 3 {
		names = append(names, fmt.Sprintf("data-%d", i))
		w.claim("crowd", names[i], localnode.StorageClass)
	}
	w.shell("crowd", "app", "for i in 0 1 2; do dd if=/dev/urandom of=/data/data-$i/f bs=1M count=6 2>/dev/null; done", names...)
	for i, c := range []struct {
		limits string
		most   int
	}{{"concurrency: 1", 1}, {"concurrency: 3\n  perNode: 2", 2}} {
		w.config = "image: " + moverImage + "\n  " + c.limits + "\n" + slow
		w.startDaemon()
		most := w.moversAtOnce()
		for _, b := range w.back("-n", "crowd", "--action", "kopia") {
			if b.Status.Phase != volumes.Done {
				t.Errorf("%+v", b.Status)
			}
		}
		if n := most(); n != c.most {
			t.Errorf("with %q, %d movers ran at once", c.limits, n)
		}
		w.stopDaemon(syscall.SIGTERM)
		for _, n := range names { // else nothing is left to read
			w.exec("crowd", "app", fmt.Sprintf("dd if=/dev/urandom of=/data/%s/more-%d bs=1M count=6 2>/dev/null", n, i))
		}
	}
	w.nothingLeft()
}

// TestNeverReady has the driver take snapshots that cannot be used, for ever: the backup fails when its time is over, and nothing is left.
func TestNeverReady(t *testing.T) {
	w := newWorld(t, "  readyTimeout: 3s\n")
	w.namespace("never")
	w.claim("never", "data", localnode.StorageClass)
	w.shell("never", "app", "echo x > /data/data/f", "data")
	w.ok(w.Trouble("never-ready", "yes"))
	w.Cleanup(func() { _ = w.Trouble("never-ready", "") })
	for _, action := range []string{"snapshot", "snapshot-then-kopia"} {
		_, trouble, err := w.try("volumes", "backup", "-n", "never", "--action", action)
		if out := w.run("volumes", "describe", w.newest()); err == nil || !strings.Contains(out, "the snapshot was not ready to use within 3s") {
			t.Errorf("%v %s\n%s", err, trouble, out)
		}
		w.nothingLeft()
		w.snapshotsAre()
	}
	w.ok(w.Trouble("never-ready", ""))
	b := w.back("-n", "never")
	if b[0].Status.Phase != volumes.Done {
		t.Errorf("after the trouble: %+v", b[0].Status)
	}
	w.forget(b...)
}

// TestNoPlaceForMovers wants a node for movers that the cluster does not have: backups and restores say so while they wait, and fail for that reason when their time
// is over.
func TestNoPlaceForMovers(t *testing.T) {
	w := newWorld(t, "")
	w.namespace("place")
	w.claim("place", "data", localnode.StorageClass)
	w.shell("place", "app", "echo x > /data/data/f", "data")
	b := w.back("-n", "place", "--action", "kopia")[0]
	w.moment()
	w.stopDaemon(syscall.SIGTERM)
	w.config = "image: " + moverImage + "\n  startTimeout: 4s\n  pod: {spec: {nodeSelector: {disk: nowhere}, containers: [{name: mover, imagePullPolicy: Never}]}}\n"
	w.startDaemon()
	for _, args := range [][]string{
		{"volumes", "backup", "-n", "place", "--action", "kopia"},
		{"volumes", "backup", "-n", "place", "--action", "snapshot-then-kopia"},
		{"restore", "pvc", "-n", "place", "--at", "now", "--volumes", b.Metadata.Name, "--namespace-mappings", "place:place-copy", "--yes"},
	} {
		began := time.Now()
		out, trouble, err := w.try(args...)
		const why = "didn't match Pod's node affinity/selector"
		if err == nil || time.Since(began) > time.Minute || !strings.Contains(out, why) || !strings.Contains(out, "did not begin within 4s (volumes.startTimeout)") {
			t.Errorf("%v: after %s: %v\n%s", args, time.Since(began), err, out)
		}
		if !strings.Contains(trouble, "waiting for ") || !strings.Contains(trouble, "Pod place") || !strings.Contains(trouble, why) {
			t.Errorf("%v: while it waits, it says:\n%s", args, trouble)
		}
	}
	w.Cleanup(func() {
		_ = w.Client.CoreV1().Namespaces().Delete(context.Background(), "place-copy", metav1.DeleteOptions{})
	})
	w.nothingLeft()
	w.snapshotsAre()
}

// TestOddFiles moves what is more than bytes through movers, with their few rights, into a larger claim of a Pod with an fsGroup; and restores a claim without
// its content.
func TestOddFiles(t *testing.T) {
	w := newWorld(t, "")
	w.namespace("odd")
	w.claim("odd", "data", localnode.StorageClass)
	spec := w.podSpec("", "data")
	group := int64(1234)
	spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group}
	_, err := w.Client.CoreV1().Pods("odd").Create(w.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app", Labels: map[string]string{"app": "app"}}, Spec: spec}, metav1.CreateOptions{})
	w.ok(err)
	w.await("the Pod", func() bool { return w.ready("odd", "app=app") })
	dir := w.path("odd", "data")
	file := filepath.Join(dir, "file")
	w.ok(os.WriteFile(file, []byte("text"), 0o640))
	w.ok(os.Chown(file, 4321, 1234))
	w.ok(os.Link(file, filepath.Join(dir, "same")))
	w.ok(os.Symlink("/etc/shadow", filepath.Join(dir, "outside")))
	attributes := unix.Setxattr(file, "user.colour", []byte("blue"), 0) == nil
	if !attributes {
		t.Log("the file system of this machine has no extended attributes of users")
	}
	hole, err := os.Create(filepath.Join(dir, "hole"))
	w.ok(err)
	_, err = hole.WriteAt([]byte("end"), 8<<20)
	w.ok(err)
	w.ok(hole.Close())
	w.back("-n", "odd", "--action", "snapshot-then-kopia")
	w.nothingLeft()

	const larger = `resource == "persistentvolumeclaims" ? {"spec": {"resources": {"requests": {"storage": "32Mi"}}}} : {}`
	out := w.run("restore", "pvc,pod", "-n", "odd", "--at", "now", "--namespace-mappings", "odd:odd-copy", "--transform", larger, "--yes")
	w.Cleanup(func() {
		_ = w.Client.CoreV1().Namespaces().Delete(w.Context(), "odd-copy", metav1.DeleteOptions{})
	})
	if !strings.Contains(out, "fsGroupChangePolicy: OnRootMismatch") {
		t.Errorf("nothing is said of the fsGroup:\n%s", out)
	}
	w.await("the Pod", func() bool { return w.ready("odd-copy", "app=app") })
	c, err := w.Client.CoreV1().PersistentVolumeClaims("odd-copy").Get(t.Context(), "data", metav1.GetOptions{})
	w.ok(err)
	if size := c.Status.Capacity[corev1.ResourceStorage]; size.Cmp(resource.MustParse("32Mi")) != 0 {
		t.Errorf("the claim has %s", size.String())
	}
	w.sameFile(filepath.Join(w.path("odd-copy", "data"), "file"), attributes)
	var hollow syscall.Stat_t
	w.ok(syscall.Stat(filepath.Join(w.path("odd-copy", "data"), "hole"), &hollow))
	if hollow.Size != 8<<20+3 || hollow.Blocks*512 > 1<<20 {
		t.Errorf("the hole has %d bytes in %d blocks", hollow.Size, hollow.Blocks)
	}
	if target, err := os.Readlink(filepath.Join(w.path("odd-copy", "data"), "outside")); err != nil || target != "/etc/shadow" {
		t.Errorf("the link leads to %q, %v", target, err)
	}

	out = w.run("restore", "pvc", "-n", "odd", "--at", "now", "--namespace-mappings", "odd:odd-empty", "--volumes", "none", "--yes")
	w.Cleanup(func() {
		_ = w.Client.CoreV1().Namespaces().Delete(w.Context(), "odd-empty", metav1.DeleteOptions{})
	})
	if strings.Contains(out, "filled") {
		t.Errorf("a claim is filled although none was to be:\n%s", out)
	}
	w.await("the empty claim", func() bool {
		c, err := w.Client.CoreV1().PersistentVolumeClaims("odd-empty").Get(t.Context(), "data", metav1.GetOptions{})
		return err == nil && c.Status.Phase == corev1.ClaimBound
	})
	if all, err := os.ReadDir(w.path("odd-empty", "data")); err != nil || len(all) > 0 {
		t.Errorf("the empty claim holds %v, %v", all, err)
	}
	w.nothingLeft()
}

// sameFile compares a file that was restored with what TestOddFiles wrote.
func (w *world) sameFile(path string, attributes bool) {
	w.Helper()
	var file, same syscall.Stat_t
	w.ok(syscall.Stat(path, &file))
	w.ok(syscall.Stat(filepath.Join(filepath.Dir(path), "same"), &same))
	// The kubelet gives the group its rights, as the warning says.
	if file.Uid != 4321 || file.Gid != 1234 || file.Mode&0o740 != 0o640 || file.Ino != same.Ino || file.Nlink != 2 {
		w.Errorf("the file is %d:%d, %o, with %d links", file.Uid, file.Gid, file.Mode, file.Nlink)
	}
	if !attributes {
		return
	}
	value := make([]byte, 10)
	n, err := unix.Getxattr(path, "user.colour", value)
	if err != nil || string(value[:n]) != "blue" {
		w.Errorf("the attribute is %q, %v", value[:max(n, 0)], err)
	}
}
