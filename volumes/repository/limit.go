package repository

import (
	"context"
	"io"

	"golang.org/x/time/rate"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// Limited is a store through which no more goes than that many bytes per second, of all who use it together. Zero: no limit.
func Limited(store archive.Store, up, down int64) archive.Store {
	if up <= 0 && down <= 0 {
		return store
	}
	return &limited{store, limiter(up), limiter(down)}
}

type limited struct {
	archive.Store
	up, down *rate.Limiter // nil: no limit
}

// burst is how much goes out at once under a limit, in bytes.
const burst = 64 << 10

func limiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), burst)
}

// pace waits until n bytes more are within the limit.
func pace(ctx context.Context, l *rate.Limiter, n int64) error {
	for l != nil && n > 0 {
		part := min(n, burst)
		if err := l.WaitN(ctx, int(part)); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// Create implements archive.Store.
func (l *limited) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	if err := pace(ctx, l.up, size); err != nil {
		return err
	}
	return l.Store.Create(ctx, name, body, size, o)
}

// Stage implements archive.Stager. The limit is of what goes out, not of what a disk still does with it.
func (l *limited) Stage(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) (func() error, error) {
	if err := pace(ctx, l.up, size); err != nil {
		return nil, err
	}
	return archive.Stage(ctx, l.Store, name, body, size, o)
}

// ReadAt implements archive.Store.
func (l *limited) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := pace(ctx, l.down, int64(len(p))); err != nil {
		return err
	}
	return l.Store.ReadAt(ctx, name, p, off)
}
