package replay

import (
	"context"
	"sync"
	"time"
)

const (
	firstParallel = 16
	mostParallel  = 64 // beyond, nothing gets faster; by default an API server lets 200 writes run at once
	fastAnswer    = 250 * time.Millisecond
)

// limiter bounds how many requests run at once: more while the API server answers fast, twice as many with each round until it asks for
// patience, then half as many, and one more with each round. More at once take less of the API server's time each: what it writes to etcd and
// to its clients goes together (1,000 objects on two cores: 1.59 s with 64, 1.70 with 32, 1.92 with 12).
type limiter struct {
	most int

	mu      sync.Mutex // guards what follows
	free    *sync.Cond
	limit   int
	running int
	careful bool  // it has asked for patience
	fast    int   // fast answers since the limit last changed
	seen    int64 // the target's count of 429 answers that the limit accounts for
}

func newLimiter(parallel int, throttled int64) *limiter {
	l := &limiter{most: mostParallel, limit: firstParallel, seen: throttled}
	if parallel > 0 {
		l.most, l.limit = parallel, min(parallel, firstParallel)
	}
	l.free = sync.NewCond(&l.mu)
	return l
}

// acquire waits for a turn; it reports false when the context ended first.
func (l *limiter) acquire(ctx context.Context) bool {
	stop := context.AfterFunc(ctx, l.free.Broadcast)
	defer stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.running >= l.limit && ctx.Err() == nil {
		l.free.Wait()
	}
	if ctx.Err() != nil {
		return false
	}
	l.running++
	return true
}

// release ends a turn that took so long; throttled is the target's count of 429 answers.
func (l *limiter) release(took time.Duration, throttled int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	switch {
	case throttled > l.seen:
		l.seen, l.limit, l.fast, l.careful = throttled, max(1, l.limit/2), 0, true
	case took <= fastAnswer && l.limit < l.most:
		if l.fast++; !l.careful || l.fast >= l.limit {
			l.limit, l.fast = l.limit+1, 0
		}
	}
	l.free.Broadcast()
}
