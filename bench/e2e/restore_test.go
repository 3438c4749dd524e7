package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
)

// application is a Deployment with a claim, and a StatefulSet with claims of its own, which late makes when Pods want them.
func (w *world) application(namespace string) {
	w.Helper()
	w.namespace(namespace)
	w.claim(namespace, "files", localnode.StorageClass)
	replicas, late := int32(1), localnode.Late
	labels := map[string]string{"app": "web"}
	_, err := w.Client.AppsV1().Deployments(namespace).Create(w.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: w.podSpec("[ -e /data/files/f ] || echo version 1 > /data/files/f", "files"),
		}},
	}, metav1.CreateOptions{})
	w.ok(err)
	labels = map[string]string{"app": "db"}
	spec := w.podSpec("[ -e /data/rows/f ] || echo rows 1 > /data/rows/f")
	spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "rows", MountPath: "/data/rows"}}
	_, err = w.Client.AppsV1().StatefulSets(namespace).Create(w.Context(), &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "rows"}, Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: &late,
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("16Mi")}},
			}}},
		},
	}, metav1.CreateOptions{})
	w.ok(err)
	w.await("the application", func() bool { return w.ready(namespace, "app=web") && w.ready(namespace, "app=db") })
}

// TestRestoreOfANamespace deletes a namespace and restores it to two moments: with the snapshots that belong to them, and from files under
// another name.
func TestRestoreOfANamespace(t *testing.T) {
	w := newWorld(t, "")
	w.application("shop")
	first := w.back("-n", "shop", "--name", "first")
	between := w.moment()
	for claim, text := range map[string]string{"files": "version 2\n", "rows-db-0": "rows 2\n"} {
		w.ok(os.WriteFile(filepath.Join(w.path("shop", claim), "f"), []byte(text), 0o644))
	}
	second := w.back("-n", "shop", "--action", "snapshot-then-kopia")
	end := w.moment()
	w.deleteNamespace("shop")

	plan := w.run("restore", "-n", "shop", "--at", between, "--dry-run", "-v")
	if !strings.Contains(plan, "with the content of files-") || !strings.Contains(plan, "before the moment") || strings.Contains(plan, "without its data") {
		t.Errorf("the plan:\n%s", plan)
	}
	began := time.Now()
	restored := w.run("restore", "-n", "shop", "--at", between, "--yes")
	w.await("the application to be back", func() bool { return w.ready("shop", "app=web") && w.ready("shop", "app=db") })
	t.Logf("ready %s after the restore began", time.Since(began))
	w.contents("shop", "version 1\n", "rows 1\n")
	w.nothingLeft()

	copied := w.run("restore", "-n", "shop", "--at", end, "--namespace-mappings", "shop:copy", "--yes", "-v")
	w.Cleanup(func() {
		_ = w.Client.CoreV1().Namespaces().Delete(context.Background(), "copy", metav1.DeleteOptions{})
	})
	w.await("the copy", func() bool { return w.ready("copy", "app=web") && w.ready("copy", "app=db") })
	w.contents("copy", "version 2\n", "rows 2\n")
	if !strings.Contains(copied, "2 filled") {
		t.Errorf("the report:\n%s", copied)
	}
	w.contents("shop", "version 1\n", "rows 1\n")
	w.nothingLeft()

	// In place: refused without a word about it, and done with one.
	w.run("restore", "-n", "shop", "--at", end, "--existing", "update", "--yes")
	w.contents("shop", "version 1\n", "rows 1\n")
	w.run("restore", "-n", "shop", "--at", end, "--existing", "update", "--volumes-in-place", "--yes")
	w.contents("shop", "version 2\n", "rows 2\n")
	// Both are undone: what they made is deleted, claims with their volumes as well.
	w.run("undo", undoOf(copied), "--yes")
	w.run("undo", undoOf(restored), "--yes")
	w.await("the claims to be gone", func() bool {
		for _, ns := range []string{"shop", "copy"} {
			l, err := w.Client.CoreV1().PersistentVolumeClaims(ns).List(w.Context(), metav1.ListOptions{})
			if err != nil || len(l.Items) > 0 {
				return false
			}
		}
		return true
	})
	w.forget(append(first, second...)...)
}

// undoOf is the ID that a restore's report names for its undo.
func undoOf(report string) string {
	_, rest, _ := strings.Cut(report, "to undo: tidemark undo ")
	id, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	id, _, _ = strings.Cut(id, " ")
	return id
}

// contents compares the files of the application with what they should hold.
func (w *world) contents(namespace, files, rows string) {
	w.Helper()
	for claim, want := range map[string]string{"files": files, "rows-db-0": rows} {
		if got := read(w.T, filepath.Join(w.path(namespace, claim), "f")); got != want {
			w.Errorf("claim %s/%s holds %q, want %q", namespace, claim, got, want)
		}
	}
}

// TestFillFails restores while movers cannot run: the workloads are not made, because they would begin with empty volumes. Once movers can run, the restore is
// gone on with.
func TestFillFails(t *testing.T) {
	w := newWorld(t, "")
	w.application("empty")
	all := w.back("-n", "empty", "--action", "snapshot-then-kopia")
	at := w.moment()
	w.deleteNamespace("empty")
	good := w.config
	w.stopDaemon(syscall.SIGTERM)
	w.config = strings.Replace(good, moverImage, "docker.io/library/nothing:none", 1)
	w.startDaemon()
	out, trouble, err := w.try("restore", "-n", "empty", "--at", at, "--yes")
	if err == nil || !strings.Contains(out+trouble, "ErrImageNeverPull") || !strings.Contains(out+trouble, "it would begin with an empty one") {
		t.Errorf("%v\n%s%s", err, out, trouble)
	}
	for _, kind := range []string{"deploy", "sts"} {
		if listed, _, _ := w.try("get", kind, "-n", "empty", "--at", "now"); strings.Contains(listed, "web") || strings.Contains(listed, "db ") {
			t.Errorf("a workload was made on an empty claim: %s", listed)
		}
	}
	w.nothingLeft()
	w.stopDaemon(syscall.SIGTERM)
	w.config = good
	w.startDaemon()
	w.run("restores", "resume", undoOf(out), "--yes")
	w.await("the application", func() bool { return w.ready("empty", "app=web") && w.ready("empty", "app=db") })
	w.contents("empty", "version 1\n", "rows 1\n")
	w.forget(all...)
}
