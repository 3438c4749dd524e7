package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
)

// StoreOptions are what a URL does not tell. The zero StoreOptions are usable.
type StoreOptions struct {
	// CredentialsFile is a shared credentials file as the AWS tools read it, and Profile the
	// profile in it. Default: the environment, the user's file, or the machine's role.
	CredentialsFile, Profile string
	// CAFile holds certificates (PEM) to trust besides the system's.
	CAFile string
	// Logger hears of requests that are made again, at the level debug. Default: none.
	Logger *zap.Logger
}

// Sweeper is a Store in which a process that dies leaves something behind that nobody sees but
// that takes space.
type Sweeper interface {
	// Sweep removes what was left more than a day ago.
	Sweep(ctx context.Context) error
}

// OpenStore opens the store of a URL:
//
//	s3://BUCKET/PREFIX[?endpoint=https://HOST:PORT&region=REGION&path-style=true]
//	dir:///PATH
//
// Endpoint and region default to AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and AWS_REGION.
// Nothing is asked of the server yet.
func OpenStore(ctx context.Context, rawURL string, o StoreOptions) (Store, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	u, err := url.Parse(rawURL)
	if err != nil || u.Opaque != "" || u.Fragment != "" { // the text may hold a secret in the wrong place
		return nil, errors.New("what should be the URL of an archive is none: write s3://BUCKET/PREFIX or dir:///PATH")
	}
	switch u.Scheme {
	case "dir":
		if u.Host != "" || u.User != nil || u.RawQuery != "" || !path.IsAbs(u.Path) || path.Clean(u.Path) == "/" {
			return nil, fmt.Errorf("%q is not the URL of a directory: write dir:///PATH, with the whole path and nothing after it", u.Redacted())
		}
		return NewDirStore(filepath.FromSlash(u.Path))
	case "s3":
		return newS3Store(u, o)
	}
	return nil, fmt.Errorf("archives are not kept at %q: write s3://BUCKET/PREFIX or dir:///PATH", u.Redacted())
}

// Probe finds out whether the store keeps a file from being replaced, which is what keeps two
// writers apart. It leaves nothing behind. A store that does not is ErrNotExclusive.
func Probe(ctx context.Context, s Store, prefix string) error {
	name := prefix + "probe/" + randomHex(12)
	first, second := []byte("one"), []byte("two")
	if err := s.Create(ctx, name, bytes.NewReader(first), int64(len(first)), CreateOptions{}); err != nil {
		return fmt.Errorf("try %s: %w", s, err)
	}
	defer func() { _ = s.Remove(context.WithoutCancel(ctx), name) }()
	refuse := func() error {
		return fmt.Errorf("%w: %s ignores If-None-Match, without which two daemons could overwrite each other's history: use a store that supports conditional writes (AWS S3, MinIO, Ceph, versitygw do)", ErrNotExclusive, s)
	}
	err := s.Create(ctx, name, bytes.NewReader(second), int64(len(second)), CreateOptions{})
	if err == nil {
		return refuse()
	}
	if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("try %s: %w", s, err)
	}
	b := make([]byte, len(first))
	if err := s.ReadAt(ctx, name, b, 0); err != nil {
		return fmt.Errorf("try %s: %w", s, err)
	}
	switch {
	case bytes.Equal(b, second):
		return refuse()
	case !bytes.Equal(b, first): // damaged on its way, which says nothing of the store
		return fmt.Errorf("try %s: what was written is not what is read", s)
	}
	return race(ctx, s, name+"-race", refuse)
}

// race lets several writers create one file at once.
func race(ctx context.Context, s Store, name string, refuse func() error) error {
	var won atomic.Int32
	var all sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for range 8 {
		all.Go(func() {
			err := s.Create(ctx, name, bytes.NewReader([]byte("x")), 1, CreateOptions{})
			switch {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, fs.ErrExist):
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
	}
	all.Wait()
	_ = s.Remove(context.WithoutCancel(ctx), name)
	if failed != nil {
		return fmt.Errorf("try %s: %w", s, failed)
	}
	if won.Load() > 1 {
		return refuse()
	}
	return nil
}
