package volumes

import (
	"context"
	"sync"
)

// slots keep small what goes on at once: the units of runs, and movers. Who holds the slot of a unit may wait for those of movers, and never the other way
// round; who holds slots of movers waits for no other. So units cannot wait for each other.
type slots struct {
	units   chan struct{}
	all     int // movers
	perNode int

	mu      sync.Mutex // guards what follows
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
	s.units = make(chan struct{}, s.all)
	return s
}

// unit waits for a place for a unit, which counts as one whatever it holds: its claims must not wait for each other.
func (s *slots) unit(ctx context.Context) (release func(), err error) {
	select {
	case s.units <- struct{}{}:
		return func() { <-s.units }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// movers waits for places for movers on these nodes, all at once: there must not be more of them than there are places. No name: the node is not known.
func (s *slots) movers(ctx context.Context, nodes ...string) (release func(), err error) {
	for {
		s.mu.Lock()
		if s.room(nodes) {
			s.count(nodes, 1)
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.count(nodes, -1)
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

func (s *slots) room(nodes []string) bool {
	wanted := map[string]int{}
	for _, n := range nodes {
		if wanted[n]++; n != "" && s.nodes[n]+wanted[n] > s.perNode {
			return false
		}
	}
	return s.used+len(nodes) <= s.all
}

func (s *slots) count(nodes []string, by int) {
	s.used += by * len(nodes)
	for _, n := range nodes {
		s.nodes[n] += by
	}
}

// share divides tasks into lots, one for each place that they get: the tasks of a lot take turns. So all places can be taken before the application is
// held, which is not to wait for the movers of others.
func (s *slots) share(tasks []*task) (lots [][]*task, nodes []string) {
	lotsOf := map[string][]int{} // by node
	for i, t := range tasks {
		n := t.node()
		if own := lotsOf[n]; len(lots) < s.all && (n == "" || len(own) < s.perNode) {
			lotsOf[n] = append(own, len(lots))
			lots, nodes = append(lots, []*task{t}), append(nodes, n)
			continue
		}
		at := i % len(lots) // there are more nodes than places
		if own := lotsOf[n]; len(own) > 0 {
			at = own[i%len(own)]
		}
		lots[at] = append(lots[at], t)
	}
	return lots, nodes
}
