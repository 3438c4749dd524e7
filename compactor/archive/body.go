package archive

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// BodyWriter is what a body for Create may be besides: it writes all of itself, from its beginning and as often as it is
// asked. It spares a copy of bodies that are in memory in pieces. (An io.WriterTo would do so only once.)
type BodyWriter interface {
	WriteBody(w io.Writer) (int64, error)
}

var copyBuffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// copyBody writes all of a body to w, and fails with io.ErrUnexpectedEOF when it has another size.
func copyBody(ctx context.Context, w io.Writer, body io.ReaderAt, size int64) error {
	var n int64
	var err error
	// It also hides a file's ReadFrom, which copies in pieces of 32 KiB.
	to := &contextWriter{ctx, w}
	if b, ok := body.(BodyWriter); ok {
		n, err = b.WriteBody(to)
	} else {
		buf := copyBuffers.Get().(*[256 << 10]byte)
		defer copyBuffers.Put(buf)
		n, err = io.CopyBuffer(to, io.NewSectionReader(body, 0, size), buf[:])
	}
	if err == nil && n != size {
		err = fmt.Errorf("its content ends after %d of %d bytes: %w", n, size, io.ErrUnexpectedEOF)
	}
	return err
}

// contextWriter ends a copy with its context.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w *contextWriter) Write(p []byte) (int, error) {
	if err := context.Cause(w.ctx); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}
