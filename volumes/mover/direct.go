package mover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// direct is a mover's way to the store itself, with rights that the broker lends it. It is a short cut and no more: what
// does not go this way goes through the broker, which also says what is wrong. When a request fails this way again and again, there
// is no such way for the rest of the job.
type direct struct {
	broker *remote
	client *http.Client
	closed atomic.Bool
	moved  atomic.Int64 // bytes

	mu    sync.Mutex
	reads map[string]held // what may be read, by name
}

// held is a right that was lent.
type held struct {
	*archive.Presigned
	until time.Time
}

const (
	directTries = 3
	directWait  = 200 * time.Millisecond // after the first try; after the next, twice that
	// heldMost bounds the rights that are kept.
	heldMost = 1000
)

// errNotLent means that this one goes through the broker.
var errNotLent = errors.New("no right is lent")

// goDirect opens the way to the store, if the job has one.
func (s *remote) goDirect(d *Direct) error {
	if d == nil {
		return nil
	}
	c, err := archive.PresignedClient(d.Trusted)
	if err != nil {
		return err
	}
	s.direct = &direct{broker: s, client: c, reads: map[string]held{}}
	c.Transport = moving{c.Transport, &s.direct.moved}
	return nil
}

// create creates a file. It reports false if it did not, or does not know.
func (d *direct) create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) bool {
	if d == nil || d.closed.Load() {
		return false
	}
	sum, err := archive.Checksum(ctx, body, size)
	if err != nil {
		return false
	}
	return d.try(ctx, func() error {
		p, err := askWith[archive.Presigned](ctx, d.broker, lendPath(name), wanted{Size: size, Sum: sum, Lock: o.Lock, Compliance: o.Compliance})
		if err != nil || p.URL == "" {
			return errNotLent
		}
		return p.Create(ctx, d.client, body, size)
	})
}

// readAt reads from a file. It reports false if it did not.
func (d *direct) readAt(ctx context.Context, name string, b []byte, off int64) bool {
	if d == nil || len(b) == 0 {
		return false
	}
	return d.try(ctx, func() error {
		p, err := d.right(ctx, name)
		if err != nil {
			return err
		}
		if err = p.Read(ctx, d.client, b, off); err != nil {
			d.mu.Lock()
			delete(d.reads, name)
			d.mu.Unlock()
		}
		return err
	})
}

// right is the right to read a file, which is asked for once for many reads.
func (d *direct) right(ctx context.Context, name string) (*archive.Presigned, error) {
	d.mu.Lock()
	h, ok := d.reads[name]
	d.mu.Unlock()
	if ok && time.Now().Before(h.until) {
		return h.Presigned, nil
	}
	now := time.Now()
	p, err := ask[archive.Presigned](ctx, d.broker, lendPath(name))
	if err != nil || p.URL == "" {
		return nil, errNotLent
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.reads) >= heldMost {
		clear(d.reads)
	}
	d.reads[name] = held{&p, now.Add(p.Life / 3)} // well before its end: a read takes its time
	return &p, nil
}

func lendPath(name string) string { return "/lend" + filePath(name)[len("/file"):] }

// try makes a request, and again. What the store says of the file itself, the broker is to say.
func (d *direct) try(ctx context.Context, request func() error) bool {
	var err error
	for n := range directTries {
		if n > 0 {
			select {
			case <-time.After(directWait << (n - 1)):
			case <-ctx.Done():
				return false
			}
		}
		if d.closed.Load() {
			return false
		}
		err = request()
		switch {
		case err == nil:
			return true
		case ctx.Err() != nil, errors.Is(err, errNotLent), errors.Is(err, fs.ErrExist), errors.Is(err, fs.ErrNotExist), errors.Is(err, io.ErrUnexpectedEOF):
			return false
		}
		if errors.Is(err, context.DeadlineExceeded) { // nothing answers, and each try would take its time
			break
		}
	}
	d.close(ctx, err)
	return false
}

// close ends the short cut, and tells the broker why.
func (d *direct) close(ctx context.Context, why error) {
	if d.closed.Swap(true) {
		return
	}
	_ = tell(ctx, d.broker, "/through", fmt.Sprint(why)) // a broker that is away is told of by what comes next
}

// aliveEvery is how often a mover says that it lives.
const aliveEvery = 20 * time.Second

// tellMoves says at each tick that the mover lives, if content has moved since the last one: the broker would hear little of it. When the job is
// over, it ends it.
func (d *direct) tellMoves(ctx context.Context, tick <-chan time.Time, end context.CancelCauseFunc) {
	if d == nil {
		return
	}
	for last := int64(0); ; {
		select {
		case <-tick:
		case <-ctx.Done():
			return
		}
		moved := d.moved.Load()
		if moved == last {
			continue
		}
		last = moved
		if err := tell(ctx, d.broker, "/alive", nil); errors.Is(err, errOver) {
			end(err)
			return
		}
	}
}

// moving counts the bytes of the content of requests and answers.
type moving struct {
	http.RoundTripper
	moved *atomic.Int64
}

// RoundTrip implements http.RoundTripper.
func (m moving) RoundTrip(q *http.Request) (*http.Response, error) {
	if q.Body != nil {
		q = q.Clone(q.Context())
		q.Body = movingBody{q.Body, m.moved}
	}
	r, err := m.RoundTripper.RoundTrip(q)
	if err == nil {
		r.Body = movingBody{r.Body, m.moved}
	}
	return r, err
}

type movingBody struct {
	io.ReadCloser
	moved *atomic.Int64
}

// Read implements io.Reader.
func (b movingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.moved.Add(int64(n))
	return n, err
}
