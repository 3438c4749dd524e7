package volumes

import (
	"context"
	"sync"

	"github.com/tidemark-backup/tidemark/volumes/policy"
)

// slots keep the number of claims that are worked on at once small.
type slots struct {
	mu      sync.Mutex
	all     int
	perNode int
	used    int
	nodes   map[string]int
	changed chan struct{}
}

func newSlots(c *Cluster) *slots {
	s := &slots{all: DefaultConcurrency, perNode: DefaultPerNode, nodes: map[string]int{}, changed: make(chan struct{})}
	if c != nil && c.Concurrency > 0 {
		s.all = c.Concurrency
	}
	if c != nil && c.PerNode > 0 {
		s.perNode = c.PerNode
	}
	return s
}

// take waits for a place for a unit, which counts as one whatever it holds: its claims must not wait for each other.
func (s *slots) take(ctx context.Context, u *unit) (release func(), err error) {
	node := ""
	for _, t := range u.tasks {
		if n := t.node(); n != "" && t.choice.Action == policy.Kopia {
			node = n
		}
	}
	for {
		s.mu.Lock()
		if s.used < s.all && (node == "" || s.nodes[node] < s.perNode) {
			s.used++
			s.nodes[node]++
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.used--
				s.nodes[node]--
				close(s.changed)
				s.changed = make(chan struct{})
			}, nil
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
