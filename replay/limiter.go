package replay

import (
	"context"
	"sync"
	"time"
)

const (
	firstParallel = 16
	mostParallel  = 64 // beyond, nothing gets faster
	fastAnswer    = 250 * time.Millisecond
	slowAnswer    = time.Second
	// noPace stands for an answer that says nothing about the API server's pace.
	noPace = fastAnswer + 1
)

// limiter bounds how many requests run at once. While answers are fast and more wait for their turn, it is twice as many with each round, and once
// the API server asked for patience one more. When it does they are half as many, and down to the first number when answers become slow. More at
// once take less of the API server's time each: what it writes to etcd and to its clients goes together (1,000 objects on two cores: 1.59 s with
// 64, 1.70 with 32, 1.92 with 12).
type limiter struct {
	most int

	mu       sync.Mutex // guards what follows
	free     *sync.Cond
	limit    int
	running  int
	waiting  int   // for a turn
	settling int   // turns that began before the limit was last lowered: what they tell is known
	careful  bool  // the limit was lowered
	fast     int   // fast answers since the limit last changed
	seen     int64 // the target's count of 429 answers that the limit accounts for
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
	l.waiting++
	for l.running >= l.limit && ctx.Err() == nil {
		l.free.Wait()
	}
	l.waiting--
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
	old := l.settling > 0
	if old {
		l.settling--
	}
	switch {
	case throttled > l.seen:
		l.seen = throttled
		if !old {
			l.lower(max(1, l.limit/2))
		}
	case took > slowAnswer:
		if !old {
			l.lower(min(l.limit, max(firstParallel, l.limit/2)))
		}
	case took <= fastAnswer && l.waiting > 0 && l.limit < l.most:
		if l.fast++; !l.careful || l.fast >= l.limit {
			l.limit, l.fast = l.limit+1, 0
		}
	}
	l.free.Broadcast()
}

func (l *limiter) lower(limit int) {
	l.limit, l.fast, l.careful, l.settling = limit, 0, true, l.running
}
