package journal

import (
	"context"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// entry is what travels through the queue to the writer. Exactly one of event, advance, seen
// and exec is meant; with none of them it is a barrier.
type entry struct {
	event    *Event
	received time.Time
	quiet    bool // the event was found by a comparison: it moves no watermark

	advance *schema.GroupResource // a bookmark of this resource,
	rv      uint64                // at this revision

	seen []byte // key to note down for the running comparison

	// exec runs in the writer with a batch of its own, after all before it was applied.
	exec func(w *writer) error

	size int64      // what it holds of the queue's room
	done chan error // told once the entry is durable
}

// Append queues an event that a watch saw. It returns when the event is accepted, which is
// before it is durable (see Flush); it blocks while the queue is full. The event's Observed
// and Revision.Epoch are set by the journal. An event at or below the resource's watermark is
// known already and dropped.
func (j *Journal) Append(ctx context.Context, e Event) error {
	return j.enqueueEvent(ctx, e, false)
}

// Advance queues a bookmark: the watch has delivered all of the resource up to rv.
func (j *Journal) Advance(ctx context.Context, gr schema.GroupResource, rv uint64) error {
	return j.enqueue(ctx, entry{advance: &gr, rv: rv, received: j.opts.Clock()})
}

func (j *Journal) enqueueEvent(ctx context.Context, e Event, quiet bool) error {
	if err := checkName(&e); err != nil {
		return err
	}
	return j.enqueue(ctx, entry{event: &e, quiet: quiet, received: j.opts.Clock(), size: int64(len(e.Object)) + 256})
}

func (j *Journal) enqueue(ctx context.Context, n entry) error {
	if err := j.ended(); err != nil {
		return err
	}
	n.size = min(n.size, j.opts.QueueBytes)
	if n.size > 0 && !j.room.TryAcquire(n.size) {
		if err := j.awaitRoom(ctx, n.size); err != nil {
			return err
		}
	}
	select {
	case j.queue <- n:
		if n.done != nil || len(j.queue) >= j.opts.BatchEvents { // a full batch need not wait for more
			select {
			case j.urgent <- struct{}{}:
			default:
			}
		}
		return nil
	case <-ctx.Done():
		j.room.Release(n.size)
		return context.Cause(ctx)
	case <-j.failed:
		return j.Err()
	case <-j.stop:
		return ErrClosed
	}
}

// ended says why nothing can be queued any more; nil while it can.
func (j *Journal) ended() error {
	select {
	case <-j.failed:
		return j.Err()
	case <-j.stop:
		return ErrClosed
	default:
		return nil
	}
}

func (j *Journal) awaitRoom(ctx context.Context, size int64) error {
	waiting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-j.failed:
			cancel(j.Err())
		case <-j.stop:
			cancel(ErrClosed)
		case <-waiting.Done():
		}
	}()
	if j.room.Acquire(waiting, size) != nil {
		return context.Cause(waiting)
	}
	return nil
}

// do queues an entry and waits until it is durable.
func (j *Journal) do(ctx context.Context, n entry) error {
	n.done = make(chan error, 1)
	if err := j.enqueue(ctx, n); err != nil {
		return err
	}
	return j.await(ctx, n)
}

// tidy runs f in the writer as do does, but also while recording is paused because the disk is
// full: what it writes makes room. It may come before what is queued, so f must touch neither
// watermarks nor ledgers.
func (j *Journal) tidy(ctx context.Context, f func(w *writer) error) error {
	if err := j.ended(); err != nil {
		return err
	}
	n := entry{exec: f, done: make(chan error, 1)}
	select {
	case j.tidying <- n:
		return j.await(ctx, n)
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-j.failed:
		return j.Err()
	case <-j.stopped:
		return ErrClosed
	}
}

func (j *Journal) await(ctx context.Context, n entry) error {
	select {
	case err := <-n.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-j.failed:
		return j.Err()
	case <-j.stopped:
		return ErrClosed
	}
}

func checkName(e *Event) error {
	if e.Name == "" || e.Resource.Resource == "" || strings.ContainsRune(e.Name, 0) || strings.ContainsRune(e.Namespace, 0) ||
		strings.ContainsRune(e.Resource.Resource, 0) || strings.ContainsRune(e.Resource.Group, 0) {
		return fmt.Errorf("%w: resource %q, namespace %q, name %q", ErrBadName, e.Resource.String(), e.Namespace, e.Name)
	}
	return nil
}
