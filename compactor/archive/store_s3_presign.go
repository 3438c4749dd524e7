package archive

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Trusted implements Presigner.
func (s *S3Store) Trusted() []byte { return s.trusted }

// PresignRead implements Presigner. Ranges are not signed: any may be asked for.
func (s *S3Store) PresignRead(ctx context.Context, name string, life time.Duration) (*Presigned, error) {
	return s.presign(ctx, http.MethodGet, name, http.Header{}, life)
}

// PresignCreate implements Presigner. All headers of Create are signed, and the length. So a server refuses the request
// without If-None-Match, with another lock, or with other content.
func (s *S3Store) PresignCreate(ctx context.Context, name string, size int64, sum string, o CreateOptions, life time.Duration) (*Presigned, error) {
	if size <= 0 || size > s.partAt || o.Replace {
		return nil, fmt.Errorf("lend the right to create %s: %w", name, errors.ErrUnsupported)
	}
	opts, err := s.createOptions(ctx, name, o)
	if err != nil {
		return nil, err
	}
	contentSum{crc32c: sum}.addTo(opts.UserMetadata)
	header := opts.Header()
	header.Set("Content-Length", strconv.FormatInt(size, 10))
	return s.presign(ctx, http.MethodPut, name, header, life)
}

func (s *S3Store) presign(ctx context.Context, method, name string, header http.Header, life time.Duration) (*Presigned, error) {
	if err := checkFileName(name); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patienceFor(0)) // the keys may have to be fetched, or the bucket's region
	defer cancel()
	u, err := s.core.PresignHeader(ctx, method, s.bucket, s.key(name), life, nil, header)
	if err != nil {
		_, err = s.trouble("lend the right to", name, err)
		return nil, err
	}
	return &Presigned{URL: u.String(), Header: header, Life: life.Truncate(time.Second)}, nil
}
