package localcluster

import (
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestServersCanBeKilledPausedAndStartedAgain(t *testing.T) {
	c, err := Start(t.Context(), Options{Scheduler: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, c) })
	admin := client(t, c.Config())
	if _, err := admin.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		if err := c.Signal(name, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if err := c.Kill(name); err != nil {
			t.Fatal(err)
		}
		if err := c.Signal(name, syscall.SIGCONT); err == nil || !strings.Contains(err.Error(), "does not run") {
			t.Errorf("signal to a killed %s: %v", name, err)
		}
		if err := c.StartAgain(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if err := c.StartAgain(t.Context(), name); err == nil {
			t.Errorf("%s runs twice", name)
		}
	}
	if err := c.Kill("kubelet"); err == nil {
		t.Error("a server that is none was killed")
	}
	if _, err := admin.CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{}); err != nil {
		t.Errorf("after all servers were killed: %v", err)
	}
	node, err := admin.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status.Allocatable = corev1.ResourceList{corev1.ResourcePods: resource.MustParse("10")} // else there is room for none
	if _, err := admin.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec:       corev1.PodSpec{Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, Containers: []corev1.Container{{Name: "c", Image: "example.com/c"}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		p, err := admin.CoreV1().Pods("default").Get(t.Context(), "p", metav1.GetOptions{})
		if err == nil && p.Spec.NodeName == "node" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the pod is not bound: %v", err)
		}
	}
}
