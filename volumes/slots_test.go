package volumes

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tidemark-backup/tidemark/volumes/kube"
	"github.com/tidemark-backup/tidemark/volumes/mover"
	"github.com/tidemark-backup/tidemark/volumes/policy"
)

// TestSlots wants more movers than there are places: three at once, and one of those on a node.
func TestSlots(t *testing.T) {
	s := newSlots(&Cluster{Concurrency: 3, PerNode: 1})
	full := func(nodes ...string) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		release, err := s.movers(ctx, nodes...)
		if err == nil {
			release()
		}
		return err != nil
	}
	one, err := s.movers(t.Context(), "n")
	ok(t, err)
	if !full("n") || !full("m", "n") || full("m") || full("") {
		t.Error("the node has another place, or the others have none")
	}
	_, err = s.movers(t.Context(), "", "")
	ok(t, err)
	if !full("") {
		t.Error("there is a fourth place")
	}
	time.AfterFunc(10*time.Millisecond, one)
	_, err = s.movers(t.Context(), "n")
	ok(t, err)
}

// TestShare divides claims among the places that they can get, so that nobody waits for a place that there will never be.
func TestShare(t *testing.T) {
	on := func(node string) *task {
		return &task{Volume: policy.Volume{Pods: []*corev1.Pod{{Spec: corev1.PodSpec{NodeName: node}}}}}
	}
	for _, c := range []struct {
		nodes, places string
		lots          string // how many take turns
	}{
		{"", "[]", "[]"},
		{"a", "[a]", "[1]"},
		{"a a a a a", "[a a]", "[3 2]"},
		{"a b a a c d e", "[a b a]", "[2 2 3]"},
	} {
		var tasks []*task
		for n := range strings.FieldsSeq(c.nodes) {
			tasks = append(tasks, on(n))
		}
		s := newSlots(&Cluster{Concurrency: 3, PerNode: 2})
		lots, nodes := s.share(tasks)
		sizes, sum := []int{}, 0
		for _, l := range lots {
			sizes, sum = append(sizes, len(l)), sum+len(l)
		}
		if fmt.Sprint(nodes) != c.places || fmt.Sprint(sizes) != c.lots || sum != len(tasks) || !s.room(nodes) {
			t.Errorf("%s: places %v for %v", c.nodes, nodes, sizes)
		}
	}
}

// crowd counts the movers that are there at once. Each waits until there were as many as there may be, and a little longer.
type crowd struct {
	mu              sync.Mutex
	want, now, most int
}

func (c *crowd) move(context.Context, mover.Place) error {
	c.mu.Lock()
	c.now++
	c.most = max(c.most, c.now)
	c.mu.Unlock()
	for range 100 {
		time.Sleep(50 * time.Millisecond)
		c.mu.Lock()
		met := c.most >= c.want
		c.mu.Unlock()
		if met {
			break
		}
	}
	c.mu.Lock()
	c.now--
	c.mu.Unlock()
	return nil
}

// TestMoversAreCounted and not units: however claims belong together, there are no more movers than may be.
func TestMoversAreCounted(t *testing.T) {
	var claims []runtime.Object
	var names []string
	for i := range 4 {
		names = append(names, fmt.Sprintf("data-%d", i))
		claims = append(claims, claim("shop", names[i], map[string]string{GroupLabels[0]: "all"})...)
	}
	for what, q := range map[string]struct {
		action  policy.Action
		limits  Cluster
		objects []runtime.Object
		most    int
	}{
		"a group":             {policy.Move, Cluster{Concurrency: 2, PerNode: 1}, nil, 2}, // on no node that is known
		"as they are":         {policy.Kopia, Cluster{Concurrency: 4, PerNode: 1}, []runtime.Object{user("shop", "db", nil, names...)}, 1},
		"a Pod that is held":  {policy.Kopia, Cluster{Concurrency: 4, PerNode: 2}, []runtime.Object{user("shop", "db", map[string]string{preHook + "command": "/hold", postHook + "command": "/go"}, names...)}, 2},
		"a Pod, of snapshots": {policy.Move, Cluster{Concurrency: 1}, []runtime.Object{user("shop", "db", map[string]string{preHook + "command": "/hold"}, names...)}, 1},
	} {
		t.Run(what, func(t *testing.T) {
			c, n := newCluster(t, q.limits, append(slices.Clone(claims), q.objects...)...), &crowd{want: q.most}
			c.mover = n.move
			_, err := c.back(ClaimsRequest{Action: q.action})
			ok(t, err)
			if n.most != q.most {
				t.Errorf("%d movers at once, want %d", n.most, q.most)
			}
		})
	}
}

// TestNobodyIsHeldForTheMoversOfOthers lets all places be taken: only when there is one, the application is held.
func TestNobodyIsHeldForTheMoversOfOthers(t *testing.T) {
	c := newCluster(t, Cluster{Concurrency: 1}, append(claim("shop", "data", nil), user("shop", "db", map[string]string{preHook + "command": "/hold", postHook + "command": "/go"}, "data"))...)
	release, err := c.k.slots.movers(t.Context(), "")
	ok(t, err)
	var free atomic.Bool
	c.exec = func(string, string) (kube.Executed, error) {
		if !free.Load() {
			t.Error("a hook is run before there is a place")
		}
		return kube.Executed{}, nil
	}
	time.AfterFunc(50*time.Millisecond, func() { free.Store(true); release() })
	_, err = c.back(ClaimsRequest{Action: policy.Kopia})
	ok(t, err)
}

// TestFillsAreCounted with the movers of backups.
func TestFillsAreCounted(t *testing.T) {
	c := newCluster(t, Cluster{Concurrency: 2}, slices.Concat(claim("shop", "data", nil), claim("shop", "new", nil))...)
	by, err := c.back(ClaimsRequest{Claims: []string{"data"}, Namespaces: []string{"shop"}, Action: policy.Kopia})
	ok(t, err)
	n := &crowd{want: 2}
	c.mover = n.move
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			_, err := c.k.Fill(t.Context(), FillRequest{Backup: by["data"].Metadata.Name, Namespace: "shop", Claim: "new"}, nil)
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n.most != 2 {
		t.Errorf("%d movers at once", n.most)
	}
}
