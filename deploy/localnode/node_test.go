package localnode

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// startNode starts a node for a test, which `make e2e` asks for.
func startNode(t *testing.T, o Options) *Node {
	t.Helper()
	if os.Getenv("TIDEMARK_E2E") == "" {
		t.Skip("a real node is started by `make e2e`")
	}
	if why := Missing(); why != "" {
		t.Skip(why)
	}
	o.Output = t.Output()
	n, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	return n
}

func await(t *testing.T, what string, met func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !met(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// TestNode runs a Pod with a volume, takes a snapshot, crashes the node and finds everything again.
func TestNode(t *testing.T) {
	n := startNode(t, Options{Number: 90, SnapshotDelay: 500 * time.Millisecond})
	ctx := t.Context()
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "data"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Mi")}},
		},
	}
	if _, err := n.Client.CoreV1().PersistentVolumeClaims("default").Create(ctx, claim, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "writer"}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{
			Name: "c", Image: Busybox, ImagePullPolicy: corev1.PullNever, Command: []string{"sh", "-c", "echo hello > /data/greeting; sleep 1000000"},
			VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
		}},
		Volumes:                       []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}},
		TerminationGracePeriodSeconds: new(int64),
	}}
	if _, err := n.Client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ready := func() bool {
		p, err := n.Client.CoreV1().Pods("default").Get(ctx, "writer", metav1.GetOptions{})
		if err != nil {
			return false
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady {
				return c.Status == corev1.ConditionTrue
			}
		}
		return false
	}
	await(t, "the Pod to run", ready)
	bound, err := n.Client.CoreV1().PersistentVolumeClaims("default").Get(ctx, "data", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	volume, err := n.Client.CoreV1().PersistentVolumes().Get(ctx, bound.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(n.Volume(volume.Spec.CSI.VolumeHandle), "greeting")
	await(t, "the Pod to write", func() bool { b, err := os.ReadFile(file); return err == nil && string(b) == "hello\n" })

	snapshots := n.Dynamic.Resource(schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshots"}).Namespace("default")
	_, err = snapshots.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": map[string]any{"name": "s"},
		"spec": map[string]any{"source": map[string]any{"persistentVolumeClaimName": "data"}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the snapshot to be ready", func() bool {
		u, err := snapshots.Get(ctx, "s", metav1.GetOptions{})
		if err != nil {
			return false
		}
		is, _, _ := unstructured.NestedBool(u.Object, "status", "readyToUse")
		return is
	})
	if s := n.Snapshots(); len(s) != 1 || !strings.HasPrefix(s[0], "snapshot-") {
		t.Errorf("the driver has %v", s)
	}

	n.Crash()
	if err := n.Boot(ctx); err != nil {
		t.Fatal(err)
	}
	await(t, "the Pod to run again", ready)
}

// TestNoLoopDeviceStays makes what a crashed node leaves of a block volume: the driver's device, and the kubelet's of that one.
func TestNoLoopDeviceStays(t *testing.T) {
	n := &Node{o: Options{Number: 99}}
	dir := filepath.Join(t.TempDir(), n.dirPrefix()+"1")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "volume")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	device := func(of string) string {
		out, err := exec.Command("losetup", "--find", "--show", of).Output()
		if err != nil {
			t.Skipf("no loop device can be made here, which takes root: %v", err)
		}
		return strings.TrimSpace(string(out))
	}
	drivers := device(file)
	kubelets := device(drivers)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	n.freeLoops()
	out, err := exec.Command("losetup", "--list", "--noheadings", "--output", "NAME").Output()
	if err != nil {
		t.Fatal(err)
	}
	for d := range strings.FieldsSeq(string(out)) {
		if d == drivers || d == kubelets {
			t.Errorf("%s is still there", d)
		}
	}
}
