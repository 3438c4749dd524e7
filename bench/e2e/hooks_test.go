package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
	"github.com/tidemark-backup/tidemark/volumes"
)

// annotate sets the annotations of a Pod.
func (w *world) annotate(namespace, pod string, annotations map[string]string) {
	w.Helper()
	p, err := w.Client.CoreV1().Pods(namespace).Get(w.Context(), pod, metav1.GetOptions{})
	w.ok(err)
	p.Annotations = annotations
	_, err = w.Client.CoreV1().Pods(namespace).Update(w.Context(), p, metav1.UpdateOptions{})
	w.ok(err)
}

// TestHooks runs Velero's annotations: the post hook is run after a failed backup, and by the next daemon after one that was killed; a pre hook that fails
// fails its volumes.
func TestHooks(t *testing.T) {
	w := newWorld(t, slow)
	w.big("hooks")
	annotate := func(pre, post string) {
		p, err := w.Client.CoreV1().Pods("hooks").Get(w.Context(), "app", metav1.GetOptions{})
		w.ok(err)
		p.Annotations = map[string]string{
			"pre.hook.backup.velero.io/command": `["sh", "-c", "` + pre + `"]`, "post.hook.backup.velero.io/command": `["sh", "-c", "` + post + `"]`,
		}
		_, err = w.Client.CoreV1().Pods("hooks").Update(w.Context(), p, metav1.UpdateOptions{})
		w.ok(err)
	}
	calls := func() string { return w.exec("hooks", "app", "cat /tmp/calls 2>/dev/null; true") }
	annotate("echo pre >> /tmp/calls; echo spoken", "echo post >> /tmp/calls")
	b := w.back("-n", "hooks")[0]
	if b.Status.Consistency != volumes.Application || calls() != "pre\npost" || b.Status.Hooks[0].Output != "spoken\n" {
		t.Errorf("%+v; calls %q", b.Status, calls())
	}
	w.forget(b)

	annotate("echo pre >> /tmp/calls; exit 7", "echo post >> /tmp/calls")
	if _, trouble, err := w.try("volumes", "backup", "-n", "hooks"); err == nil {
		t.Errorf("a failed hook fails nothing: %s", trouble)
	}
	if out := w.run("volumes", "describe", w.newest()); !strings.Contains(out, "exit status 7") || calls() != "pre\npost\npre\npost" {
		t.Errorf("%s; calls %q", out, calls())
	}

	annotate("echo pre >> /tmp/calls", "echo paid >> /tmp/calls")
	end := w.begin("-n", "hooks", "--action", "kopia")
	w.mover("hooks")
	w.daemon.Stop(9, time.Second)
	w.daemon = nil
	_, _ = end()
	if strings.HasSuffix(calls(), "paid") {
		t.Fatal("the post hook was run by a dead daemon")
	}
	w.startDaemon()
	w.await("the post hook that is owed", func() bool { return strings.HasSuffix(calls(), "pre\npaid") })
	w.nothingLeft()
	w.snapshotsAre()
}

// TestHookTrouble has a pre hook fail that may, and one that takes longer than it may: the first costs the backup its consistency, the second the backup. The
// post hook is run after both, and the program that took too long is not waited for. A post hook that fails costs the consistency as well.
func TestHookTrouble(t *testing.T) {
	w := newWorld(t, "")
	w.namespace("unruly")
	w.claim("unruly", "data", localnode.StorageClass)
	w.shell("unruly", "app", "echo x > /data/data/f", "data")
	const post = `["sh", "-c", "echo post >> /tmp/calls"]`
	w.annotate("unruly", "app", map[string]string{
		"pre.hook.backup.velero.io/command": `["sh", "-c", "exit 3"]`, "pre.hook.backup.velero.io/on-error": "Continue", "post.hook.backup.velero.io/command": post,
	})
	b := w.back("-n", "unruly")[0]
	if h := b.Status.Hooks; b.Status.Phase != volumes.Done || b.Status.Consistency != volumes.Crash || h[0].State != volumes.HookFailed || h[0].Exit != 3 || h[1].State != volumes.HookDone {
		t.Errorf("after a hook that may fail: %+v", b.Status)
	}
	w.forget(b)

	w.annotate("unruly", "app", map[string]string{
		"pre.hook.backup.velero.io/command": `["sh", "-c", "sleep 600"]`, "pre.hook.backup.velero.io/timeout": "1s", "post.hook.backup.velero.io/command": post,
	})
	if _, _, err := w.try("volumes", "backup", "-n", "unruly"); err == nil {
		t.Error("a hook that takes too long fails nothing")
	}
	if out := w.run("volumes", "describe", w.newest()); !strings.Contains(out, "it took longer than 1s") {
		t.Error(out)
	}
	if calls := w.exec("unruly", "app", "cat /tmp/calls"); calls != "post\npost" {
		t.Errorf("post hooks: %q", calls)
	}

	w.annotate("unruly", "app", map[string]string{
		"pre.hook.backup.velero.io/command": `["true"]`, "pre.hook.backup.velero.io/timeout": "20s", "post.hook.backup.velero.io/command": `["false"]`,
	})
	b = w.back("-n", "unruly")[0]
	if s := b.Status; s.Phase != volumes.Done || s.Consistency != volumes.Crash || s.Hooks[1].State != volumes.HookFailed || len(s.Notes) != 2 {
		t.Errorf("after a post hook that failed: %+v", s)
	}
	w.forget(b)
	w.nothingLeft()
	w.snapshotsAre()
}

// TestRestoreInitHook restores a Pod whose annotations want a container to be run before its own, which sees the volume that came back.
func TestRestoreInitHook(t *testing.T) {
	w := newWorld(t, "")
	w.namespace("begin")
	w.claim("begin", "data", localnode.StorageClass)
	spec := w.podSpec("[ -e /data/data/f ] || echo first > /data/data/f; cat /data/data/f > /data/data/seen", "data")
	_, err := w.Client.CoreV1().Pods("begin").Create(w.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: "app", Labels: map[string]string{"app": "app"}, Annotations: map[string]string{
			"init.hook.restore.velero.io/container-image": localnode.Busybox, "init.hook.restore.velero.io/container-name": "prepare",
			"init.hook.restore.velero.io/command": `["sh", "-c", "echo prepared >> /data/data/f"]`,
		},
	}, Spec: spec}, metav1.CreateOptions{})
	w.ok(err)
	w.await("the Pod", func() bool { return w.ready("begin", "app=app") })
	all := w.back("-n", "begin")
	at := w.moment()
	w.deleteNamespace("begin")
	w.run("restore", "-n", "begin", "--at", at, "--yes")
	w.await("the Pod to be back", func() bool { return w.ready("begin", "app=app") })
	if got := read(t, filepath.Join(w.path("begin", "data"), "seen")); got != "first\nprepared\n" {
		t.Errorf("the container saw %q", got)
	}
	w.forget(all...)
}
