package e2e

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
	"github.com/tidemark-backup/tidemark/volumes"
)

const mib = 1 << 20

// rawDevice makes a block claim of 256 MiB, and a Pod that has it as /dev/raw and runs a script with it.
func (w *world) rawDevice(namespace, script string) {
	w.Helper()
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		w.Skip("this machine has no loop devices")
	}
	w.namespace(namespace)
	raw := corev1.PersistentVolumeBlock
	w.claim(namespace, "raw", localnode.StorageClass, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeMode = &raw
		c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("256Mi")
	})
	w.rawPod(namespace, "first", script)
}

// rawPod runs a script with the device, in a Pod that lives on.
func (w *world) rawPod(namespace, name, script string) {
	w.Helper()
	spec := w.podSpec(script)
	spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "raw", DevicePath: "/dev/raw"}}
	spec.Volumes = []corev1.Volume{{Name: "raw", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "raw"}}}}
	_, err := w.Client.CoreV1().Pods(namespace).Create(w.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}, Spec: spec}, metav1.CreateOptions{})
	w.ok(err)
	w.await("Pod "+name, func() bool { return w.ready(namespace, "app="+name) })
}

// askForBlocks offers the driver's lists of changed blocks, and gives the daemon a ServiceAccount that may ask for them.
func (w *world) askForBlocks() {
	w.Helper()
	ctx := context.WithoutCancel(w.Context())
	_, err := w.Client.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "asker"}}, metav1.CreateOptions{})
	w.ok(err)
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "asker"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{"snapshot.storage.k8s.io"}, Resources: []string{"volumesnapshots"}, Verbs: []string{"get"}}}}
	_, err = w.Client.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{})
	w.ok(err)
	_, err = w.Client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "asker"}, RoleRef: rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: "asker"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: "asker"}},
	}, metav1.CreateOptions{})
	w.ok(err)
	w.ok(w.OfferBlocks(ctx))
	w.Cleanup(func() {
		w.ok(w.WithdrawBlocks(ctx))
		w.ok(w.Client.RbacV1().ClusterRoleBindings().Delete(ctx, "asker", metav1.DeleteOptions{}))
		w.ok(w.Client.RbacV1().ClusterRoles().Delete(ctx, "asker", metav1.DeleteOptions{}))
		w.ok(w.Client.CoreV1().ServiceAccounts("default").Delete(ctx, "asker", metav1.DeleteOptions{}))
	})
}

const asker = "  changedBlocks: {serviceAccount: default/asker, auditEvery: 3}\n"

// backRaw backs the device up, and gives the backup with what the device held.
func (w *world) backRaw(namespace string, more ...string) (*volumes.Backup, []byte) {
	w.Helper()
	b := w.back(append([]string{"raw", "-n", namespace, "--action", "snapshot-then-kopia"}, more...)...)[0]
	if b.Status.Phase != volumes.Done || b.Status.Content == nil || b.Status.Content.Bytes != 256*mib {
		w.Fatalf("%+v, %+v", b.Status, b.Status.Content)
	}
	held, err := os.ReadFile(w.path(namespace, "raw")) // nobody writes to it now
	w.ok(err)
	w.Logf("%s: read %d MiB, sent %d MiB, %s; %q", b.Metadata.Name, b.Status.Content.Read/mib, b.Status.Content.Sent/mib, b.Duration(), b.Status.Notes)
	w.nothingLeft()
	return b, held
}

// holds restores a backup into a claim of its own and compares it.
func (w *world) holdsRaw(b *volumes.Backup, want []byte) {
	w.Helper()
	raw, name := corev1.PersistentVolumeBlock, b.Metadata.Name
	w.claim(b.Metadata.Namespace, name, localnode.StorageClass, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeMode = &raw
		c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("256Mi")
	})
	w.await("the claim to be bound", func() bool {
		c, err := w.Client.CoreV1().PersistentVolumeClaims(b.Metadata.Namespace).Get(w.Context(), name, metav1.GetOptions{})
		return err == nil && c.Status.Phase == corev1.ClaimBound
	})
	w.run("volumes", "restore", name, "-n", b.Metadata.Namespace, "--claim", name)
	have, err := os.ReadFile(w.path(b.Metadata.Namespace, name))
	w.ok(err)
	if !bytes.Equal(have, want) {
		w.Errorf("backup %s does not hold what the device did", name)
	}
	w.ok(w.Client.CoreV1().PersistentVolumeClaims(b.Metadata.Namespace).Delete(w.Context(), name, metav1.DeleteOptions{}))
}

func noted(b *volumes.Backup, text string) bool {
	return strings.Contains(strings.Join(b.Status.Notes, "\n"), text)
}

// TestChangedBlocks backs a device up with the lists of the driver: at first what holds data, then what has changed. Without its lists, all is read.
func TestChangedBlocks(t *testing.T) {
	w := newNode(t)
	w.config = "image: " + moverImage + "\n  pod: {spec: {containers: [{name: mover, imagePullPolicy: Never}]}}\n" + asker
	w.askForBlocks()
	w.startDaemon()
	w.rawDevice("raw", "dd if=/dev/urandom of=/dev/raw bs=1M count=20 seek=30 conv=notrunc && dd if=/dev/urandom of=/dev/raw bs=4k count=1 seek=51200 conv=notrunc && sync")

	first, held1 := w.backRaw("raw")
	if r := first.Status.Content.Read; r < 21*mib || r > 24*mib || len(first.Status.Notes) > 0 || first.Status.Base == nil || first.Status.Snapshot != nil {
		t.Errorf("the first read %d bytes, with %q and base %v", r, first.Status.Notes, first.Status.Base)
	}
	w.snapshotsAre(first.Status.Base.ID)
	w.rawPod("raw", "second", "for at in 7 128 255; do dd if=/dev/urandom of=/dev/raw bs=4k count=1 seek=$((at * 256 + 3)) conv=notrunc; done && sync")
	second, held2 := w.backRaw("raw")
	if r := second.Status.Content.Read; r != 3*mib || second.Status.Content.Listed != 2 || len(second.Status.Notes) > 0 || bytes.Equal(held1, held2) {
		t.Errorf("the second read %d bytes of three pieces, with %q: %+v", r, second.Status.Notes, second.Status.Content)
	}
	w.snapshotsAre(second.Status.Base.ID)
	w.holdsRaw(first, held1)
	w.holdsRaw(second, held2)
	third, _ := w.backRaw("raw")
	if third.Status.Content.Read != 0 {
		t.Errorf("nothing has changed, and %d bytes were read", third.Status.Content.Read)
	}
	fourth, _ := w.backRaw("raw") // auditEvery is 3
	if !noted(fourth, "found right") || fourth.Status.Content.Read != 256*mib || fourth.Status.Content.Listed != 0 {
		t.Errorf("the fourth: %+v, %q", fourth.Status.Content, fourth.Status.Notes)
	}

	// A list that leaves a block out is found by who reads all.
	w.ok(w.Trouble("forget-blocks", "yes"))
	w.Cleanup(func() { _ = w.Trouble("forget-blocks", "") })
	w.rawPod("raw", "third", "for at in 9 99; do dd if=/dev/urandom of=/dev/raw bs=4k count=1 seek=$((at * 256)) conv=notrunc; done && sync")
	lied, held5 := w.backRaw("raw", "--read-all")
	if !noted(lied, "WAS WRONG") || lied.Status.Content.Wrong != mib {
		t.Errorf("a list that is wrong: %+v, %q", lied.Status.Content, lied.Status.Notes)
	}
	w.ok(w.Trouble("forget-blocks", ""))
	again, _ := w.backRaw("raw")
	if !noted(again, "found right") {
		t.Errorf("after a list that was wrong: %q", again.Status.Notes)
	}

	// The sidecar dies, and so the driver tells nothing.
	w.ok(w.Kill("csi-snapshot-metadata"))
	whole, held7 := w.backRaw("raw")
	if !noted(whole, "the whole device was read") || !noted(whole, "what has changed since "+again.Metadata.Name) || whole.Status.Content.Read != 256*mib {
		t.Errorf("without the sidecar: %+v, %q", whole.Status.Content, whole.Status.Notes)
	}
	w.ok(w.Launch("csi-snapshot-metadata"))
	w.ok(w.AwaitBlocks(t.Context()))
	w.snapshotsAre(whole.Status.Base.ID)

	// The snapshot to compare with is gone: what holds data is read.
	w.ok(os.Remove(filepath.Join(w.Dir(), "csi", "snapshots", whole.Status.Base.ID+".json")))
	gone, _ := w.backRaw("raw")
	if !noted(gone, "what has changed since") || noted(gone, "whole") || gone.Status.Content.Read < 21*mib || gone.Status.Content.Read > 32*mib {
		t.Errorf("without its base: %+v, %q", gone.Status.Content, gone.Status.Notes)
	}
	w.holdsRaw(lied, held5)
	w.holdsRaw(gone, held7)
	w.run("volumes", "verify", "--read", "100")
	if out := w.run("volumes", "describe", gone.Metadata.Name); !strings.Contains(out, "kept until the next backup") {
		t.Error(out)
	}
	var all []*volumes.Backup
	for _, name := range strings.Split(strings.TrimSpace(w.run("volumes", "list", "-n", "raw")), "\n")[1:] {
		name, _, _ = strings.Cut(name, " ")
		all = append(all, &volumes.Backup{Metadata: volumes.Meta{Name: name}})
	}
	w.forget(all...)
	w.snapshotsAre()
}

// TestChangedBlocksAfterADeath kills the daemon in the middle of a backup: the snapshot to compare with is still the right one.
func TestChangedBlocksAfterADeath(t *testing.T) {
	w := newNode(t)
	w.config = "image: " + moverImage + "\n  pod: {spec: {containers: [{name: mover, imagePullPolicy: Never}]}}\n" + asker + slow
	w.askForBlocks()
	w.startDaemon()
	w.rawDevice("killing", "dd if=/dev/urandom of=/dev/raw bs=1M count=4 conv=notrunc && sync")
	first, _ := w.backRaw("killing")
	w.rawPod("killing", "second", "dd if=/dev/urandom of=/dev/raw bs=1M count=60 seek=90 conv=notrunc && sync")
	end := w.begin("raw", "-n", "killing", "--action", "snapshot-then-kopia")
	w.mover("killing")
	time.Sleep(time.Second)
	w.stopDaemon(syscall.SIGKILL)
	if out, err := end(); err == nil {
		t.Errorf("a backup without its daemon is done: %s", out)
	}
	w.startDaemon()
	w.await("the record to end", func() bool {
		out := w.run("volumes", "list")
		return strings.Contains(out, "Failed") && !strings.Contains(out, "Running")
	})
	w.nothingLeft()
	w.snapshotsAre(first.Status.Base.ID)
	second, held := w.backRaw("killing")
	if r := second.Status.Content.Read; r != 60*mib || second.Status.Content.Listed != 2 {
		t.Errorf("the backup after: %+v, %q", second.Status.Content, second.Status.Notes)
	}
	w.snapshotsAre(second.Status.Base.ID)
	w.holdsRaw(second, held)
	w.forget(first, second)
	w.snapshotsAre()
}

// TestBlockVolume backs a raw device up as a stream, and restores it.
func TestBlockVolume(t *testing.T) {
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("this machine has no loop devices")
	}
	w := newWorld(t, "")
	w.namespace("block")
	raw := corev1.PersistentVolumeBlock
	w.claim("block", "raw", localnode.StorageClass, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = &raw })
	spec := w.podSpec("dd if=/dev/urandom of=/dev/raw bs=1M count=4; sync")
	spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "raw", DevicePath: "/dev/raw"}}
	spec.Volumes = []corev1.Volume{{Name: "raw", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "raw"}}}}
	_, err := w.Client.CoreV1().Pods("block").Create(w.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app", Labels: map[string]string{"app": "app"}}, Spec: spec}, metav1.CreateOptions{})
	w.ok(err)
	w.await("the Pod", func() bool { return w.ready("block", "app=app") })
	b := w.back("-n", "block", "--action", "snapshot-then-kopia")[0]
	if b.Status.Phase != volumes.Done || b.Status.Content.Bytes != 16<<20 || len(b.Status.Notes) == 0 || b.Status.Base != nil {
		t.Errorf("%+v, %+v", b.Status, b.Status.Content)
	}
	w.run("restore", "pvc", "-n", "block", "--at", "now", "--namespace-mappings", "block:block-copy", "--yes")
	w.Cleanup(func() {
		_ = w.Client.CoreV1().Namespaces().Delete(context.Background(), "block-copy", metav1.DeleteOptions{})
	})
	if read(t, w.path("block", "raw")) != read(t, w.path("block-copy", "raw")) {
		t.Error("the devices differ")
	}
	w.nothingLeft()
}
