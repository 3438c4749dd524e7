package replay

import (
	"context"
	"sync"
	"time"
)

const (
	firstParallel = 16
	mostParallel  = 32
	fastAnswer    = 250 * time.Millisecond
)

// limiter bounds how many requests run at once: more while the API server answers fast,
// half as many each time it asks for patience.
type limiter struct {
	most int

	mu      sync.Mutex // guards what follows
	free    *sync.Cond
	limit   int
	running int
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
		l.seen, l.limit, l.fast = throttled, max(1, l.limit/2), 0
	case took <= fastAnswer:
		if l.fast++; l.fast >= l.limit && l.limit < l.most {
			l.limit, l.fast = l.limit+1, 0
		}
	}
	l.free.Broadcast()
}
