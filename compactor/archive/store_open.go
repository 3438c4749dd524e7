package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"sync"
	"sync/atomic"
)

// StoreOptions are what a URL does not tell. The zero StoreOptions are usable.
type StoreOptions struct {
	// CredentialsFile is a shared credentials file as the AWS tools read it, and Profile the
	// profile in it. Default: the environment, the user's file, or the machine's role.
	CredentialsFile, Profile string
	// CAFile holds certificates (PEM) to trust besides the system's.
	CAFile string
}

// OpenStore opens the store of a URL:
//
//	s3://BUCKET/PREFIX[?endpoint=https://HOST:PORT&region=REGION&path-style=true]
//	dir:///PATH
//
// Nothing is asked of the store yet.
func OpenStore(rawURL string, o StoreOptions) (Store, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("%q is not the URL of an archive: want s3://BUCKET/PREFIX or dir:///PATH", rawURL)
	}
	switch u.Scheme {
	case "dir":
		if u.Host != "" || u.RawQuery != "" {
			return nil, fmt.Errorf("%q: want dir:///PATH, with the whole path and nothing after it", rawURL)
		}
		return NewDirStore(u.Path)
	case "s3":
		return newS3Store(u, o)
	}
	return nil, fmt.Errorf("%q is not the URL of an archive: want s3://BUCKET/PREFIX or dir:///PATH", rawURL)
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
	if !bytes.Equal(b, first) {
		return refuse()
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
