package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7"
)

// ReadAt implements Store.
func (s *S3Store) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if off < 0 {
		return fmt.Errorf("read %s: offset %d: %w", name, off, fs.ErrInvalid)
	}
	if len(p) == 0 { // there is no empty range
		info, err := s.Stat(ctx, name)
		if err == nil && off > info.Size {
			err = fmt.Errorf("read %s: %w", name, io.ErrUnexpectedEOF)
		}
		return err
	}
	if err := checkFileName(name); err != nil {
		return err
	}
	return s.try(ctx, "read", name, int64(len(p)), func(ctx context.Context) error {
		return s.get(ctx, s.key(name), p, off)
	})
}

// get makes one request for one range.
func (s *S3Store) get(ctx context.Context, key string, p []byte, off int64) error {
	var opts minio.GetObjectOptions
	if err := opts.SetRange(off, off+int64(len(p))-1); err != nil {
		return final{err}
	}
	body, _, header, err := s.core.GetObject(ctx, s.bucket, key, opts)
	if answer(err).StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return final{io.ErrUnexpectedEOF}
	}
	if err != nil {
		return err
	}
	defer body.Close()
	size, err := sizeOf(header, off)
	if err != nil {
		return err
	}
	n, err := io.ReadFull(body, p)
	switch {
	case err == nil:
		return nil
	case size >= 0 && size < off+int64(len(p)):
		return final{io.ErrUnexpectedEOF}
	}
	return fmt.Errorf("the connection broke after %d of %d bytes: %w", n, len(p), noEnd(err))
}

// noEnd keeps a broken connection from looking like the end of a file.
func noEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return io.ErrClosedPipe
	}
	return err
}

// sizeOf is the size of the whole file, -1 when the server does not tell. A server that does not
// heed ranges would give the wrong bytes.
func sizeOf(header http.Header, off int64) (int64, error) {
	r, size, _ := strings.Cut(strings.TrimPrefix(header.Get("Content-Range"), "bytes "), "/")
	if r == "" && off == 0 {
		n, err := strconv.ParseInt(header.Get("Content-Length"), 10, 64)
		if err != nil {
			n = -1
		}
		return n, nil
	}
	if first, _, _ := strings.Cut(r, "-"); first != strconv.FormatInt(off, 10) {
		return 0, final{fmt.Errorf("the server answers with the range %q when asked for one from %d on: use another S3 server", r, off)}
	}
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		n = -1
	}
	return n, nil
}

// Stat implements Store.
func (s *S3Store) Stat(ctx context.Context, name string) (FileInfo, error) {
	if err := checkFileName(name); err != nil {
		return FileInfo{}, err
	}
	var info FileInfo
	err := s.try(ctx, "stat", name, 0, func(ctx context.Context) error {
		o, err := s.core.StatObject(ctx, s.bucket, s.key(name), minio.StatObjectOptions{})
		info = FileInfo{Name: name, Size: o.Size, Time: o.LastModified}
		if answer(err).StatusCode == http.StatusNotFound { // the answer to a HEAD does not tell what is missing
			if err := s.needBucket(ctx); err != nil {
				return err
			}
		}
		return err
	})
	if err != nil {
		return FileInfo{}, err
	}
	return info, nil
}

// listPage is how many names a server lists at once.
const listPage = 1000

// List implements Store. Every page is a request of its own, so it can take as long as the caller
// likes.
func (s *S3Store) List(ctx context.Context, prefix, after string) iter.Seq2[FileInfo, error] {
	return func(yield func(FileInfo, error) bool) {
		for more := true; more; {
			var page []FileInfo
			err := s.try(ctx, "list", s.key(prefix), listPage<<10, func(ctx context.Context) (err error) {
				page, more, err = s.page(ctx, prefix, after)
				return err
			})
			if err != nil {
				yield(FileInfo{}, err)
				return
			}
			for _, info := range page {
				if !yield(info, nil) {
					return
				}
				after = info.Name
			}
			more = more && len(page) > 0
		}
	}
}

// page lists the next names after a name.
func (s *S3Store) page(ctx context.Context, prefix, after string) (page []FileInfo, more bool, err error) {
	no := false
	o := minio.ListObjectsOptions{Prefix: s.key(prefix), Recursive: true, MaxKeys: listPage, FetchOwner: &no}
	if after > prefix {
		o.StartAfter = s.key(after)
	}
	for f := range s.core.ListObjectsIter(ctx, s.bucket, o) {
		if f.Err != nil {
			return nil, false, f.Err
		}
		name := strings.TrimPrefix(f.Key, s.prefix)
		// A server that does not begin after a name would give the first page for ever.
		if name <= after {
			continue
		}
		if len(page) > 0 && name <= page[len(page)-1].Name {
			return nil, false, final{fmt.Errorf("the server lists %q after %q, and not in order: use another S3 server", name, page[len(page)-1].Name)}
		}
		if checkFileName(name) != nil { // "folders" of web consoles
			continue
		}
		page = append(page, FileInfo{Name: name, Size: f.Size, Time: f.LastModified})
		if len(page) == listPage {
			return page, true, nil
		}
	}
	return page, false, context.Cause(ctx) // the library ends silently
}
