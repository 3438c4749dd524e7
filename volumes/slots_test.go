package volumes

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tidemark-backup/tidemark/volumes/policy"
)

// TestSlots has more units than places: three at once, and one of those on a node.
func TestSlots(t *testing.T) {
	s := newSlots(&Cluster{Concurrency: 3, PerNode: 1})
	live := &unit{tasks: []*task{{Volume: policy.Volume{Pods: []*corev1.Pod{{Spec: corev1.PodSpec{NodeName: "n"}}}}, choice: policy.Choice{Action: policy.Kopia}}}}
	taken := &unit{tasks: []*task{{choice: policy.Choice{Action: policy.Snapshot}}}}
	full := func(u *unit) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		release, err := s.take(ctx, u)
		if err == nil {
			release()
		}
		return err != nil
	}
	one, err := s.take(t.Context(), live)
	ok(t, err)
	if !full(live) || full(taken) {
		t.Error("the node has another place, or the others have none")
	}
	for range 2 {
		_, err := s.take(t.Context(), taken)
		ok(t, err)
	}
	if !full(taken) {
		t.Error("there is a fourth place")
	}
	time.AfterFunc(10*time.Millisecond, one)
	_, err = s.take(t.Context(), live)
	ok(t, err)
}
