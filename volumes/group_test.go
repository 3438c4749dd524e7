package volumes

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/volumes/csi"
	"github.com/tidemark-backup/tidemark/volumes/policy"
)

// TestGroupByPods makes groups of what Pods share, over several Pods too, and of nothing else.
func TestGroupByPods(t *testing.T) {
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: name}}
	}
	a, b, c := pod("a"), pod("b"), pod("c")
	driver := func(name string) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: name}}}}
	}
	of := func(group policy.Group, action policy.Action, driverName string, pods ...*corev1.Pod) *task {
		return &task{Volume: policy.Volume{PV: driver(driverName), Pods: pods}, choice: policy.Choice{Action: action, Group: group}}
	}
	first, second, third := of(policy.GroupPod, policy.Snapshot, "d", a), of(policy.GroupPod, policy.Move, "d", a, b), of(policy.GroupPod, policy.Snapshot, "d", b)
	alone := []*task{
		of(policy.GroupPod, policy.Snapshot, "e", a), // of another driver
		of(policy.GroupPod, policy.Kopia, "d", a),
		of("", policy.Snapshot, "d", a), // not asked for
		of(policy.GroupPod, policy.Snapshot, "d", c),
		of(policy.GroupPod, policy.Snapshot, "d"),
	}
	labelled := of(policy.GroupPod, policy.Snapshot, "d", a)
	labelled.group = "l=v"
	groupByPods(append(alone, first, labelled, second, third))
	if first.group == "" || first.group != second.group || second.group != third.group || labelled.group != "l=v" {
		t.Errorf("%q, %q, %q, %q", first.group, second.group, third.group, labelled.group)
	}
	for i, a := range alone {
		if a.group != "" {
			t.Errorf("%d is in group %q", i, a.group)
		}
	}
}

// TestWithoutWhatIsGone goes on with those of a group that are left, and fails each of the others by its own name.
func TestWithoutWhatIsGone(t *testing.T) {
	of := func(name string) *task {
		return &task{Volume: policy.Volume{Claim: &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: name}}}}
	}
	a, b, c := of("a"), of("b"), of("c")
	rest := without([]*task{a, b, c}, &csi.GoneError{Namespace: "n", Claims: []string{"c", "a"}})
	if len(rest) != 1 || rest[0] != b || b.err != nil {
		t.Errorf("%v are left", rest)
	}
	if a.err == nil || a.err.Error() != "claim n/a was deleted before its snapshot was taken" || c.err == nil {
		t.Errorf("%v, %v", a.err, c.err)
	}
}
