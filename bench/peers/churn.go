package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// flood is how many changes come as fast as the API server takes them.
const flood = 5000

// lagTime is how long the time from a change to its durability is looked at, apart from what CPU is measured
// in: to look is work for the daemon.
const lagTime = 20 * time.Second

// write is one change that the API server has answered.
type write struct {
	resource schema.GroupVersionResource
	revision uint64
	at       time.Time
}

// churn makes changes at a steady rate, spread over objects of all kinds, and tells of each.
func (l *lab) churn(ctx context.Context, rate int, length time.Duration, tell func(write)) error {
	const hands = 4
	began := time.Now()
	total := int(length.Seconds() * float64(rate))
	l.changes++
	round := l.changes << 20
	errs := make(chan error, hands)
	var wg sync.WaitGroup
	for hand := range hands {
		wg.Go(func() {
			for n := hand; n < total; n += hands {
				select {
				case <-ctx.Done():
					errs <- ctx.Err()
					return
				case <-time.After(time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(rate)))):
				}
				i := n * 97 % len(l.objects) // 97: neighbours in time are of different kinds
				text, err := l.change(ctx, i, round+n)
				if err != nil {
					errs <- err
					return
				}
				revision, err := strconv.ParseUint(text, 10, 64)
				if err != nil {
					errs <- err
					return
				}
				if tell != nil {
					tell(write{l.kinds[i], revision, time.Now()})
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return fmt.Errorf("churn: %w", err)
	default:
		return nil
	}
}

// floodNow makes changes as fast as they are taken.
func (l *lab) floodNow(ctx context.Context) error {
	l.changes++
	round := l.changes << 20
	return l.inParallel(ctx, flood, func(ctx context.Context, i int) error {
		_, err := l.change(ctx, i*97%len(l.objects), round+i)
		return err
	})
}

// writes collects changes from several goroutines.
type writes struct {
	mu  sync.Mutex
	all []write
}

func (w *writes) add(one write) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, one)
}

// take returns those for which done says yes, and forgets them.
func (w *writes) take(done func(write) bool) (taken []write) {
	w.mu.Lock()
	defer w.mu.Unlock()
	rest := w.all[:0]
	for _, one := range w.all {
		if done(one) {
			taken = append(taken, one)
		} else {
			rest = append(rest, one)
		}
	}
	w.all = rest
	return taken
}

func (w *writes) copy() []write {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]write(nil), w.all...)
}
