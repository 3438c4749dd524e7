package mover

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// remote is the broker, as a mover sees it. It is an archive.Store that reaches the files of one repository.
type remote struct {
	url, token string
	client     *http.Client
	// patience is how long a broker may be away before a request fails, from the first try on that tells that it is.
	patience time.Duration
	// direct is the way to the store itself. Nil: there is none.
	direct *direct
}

var _ archive.Store = (*remote)(nil)

func newRemote(url, token string, ca []byte) (*remote, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("the broker's certificate cannot be read")
	}
	// An answer may take as long as it wants: the broker makes movers wait for their turn under a limit, however low. That it, or its node, is no
	// more, the keep-alives of the connection tell.
	dialer := &net.Dialer{Timeout: 30 * time.Second, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 9}}
	return &remote{url: url, token: token, patience: 2 * time.Minute, client: &http.Client{Transport: &http.Transport{
		DialContext:         dialer.DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: pool, ServerName: serverName, MinVersion: tls.VersionTLS13},
		MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute,
	}}}, nil
}

// answerError is an answer of the broker that is no success.
func answerError(r *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(r.Body, 4<<10))
	text := strings.TrimSpace(string(b))
	var kind error
	switch r.StatusCode {
	case http.StatusNotFound:
		kind = fs.ErrNotExist
	case http.StatusConflict:
		kind = fs.ErrExist
	case http.StatusRequestedRangeNotSatisfiable:
		kind = io.ErrUnexpectedEOF
	case http.StatusForbidden:
		kind = archive.ErrDenied
	case http.StatusLocked:
		kind = archive.ErrHeld
	case http.StatusGone:
		kind = errOver
	default:
		return fmt.Errorf("the broker answers %s: %s", r.Status, text)
	}
	return fmt.Errorf("%w (%s)", kind, text)
}

// do makes a request, again while the broker or its store is away, and gives the answer to use, which fails with what may pass.
func (s *remote) do(ctx context.Context, method, path string, v url.Values, body func() io.Reader, size int64, header http.Header, use func(*http.Response) error) error {
	u := s.url + path
	if len(v) > 0 {
		u += "?" + v.Encode()
	}
	var last error
	var end time.Time
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		var in io.Reader
		if body != nil {
			in = body()
		}
		q, err := http.NewRequestWithContext(ctx, method, u, in)
		if err != nil {
			return err
		}
		maps.Copy(q.Header, header)
		q.Header.Set("Authorization", "Bearer "+s.token)
		if body != nil {
			q.ContentLength = size
		}
		r, err := s.client.Do(q)
		if err == nil {
			switch {
			case r.StatusCode < 300:
				err = use(r)
				if err == nil {
					r.Body.Close()
					return nil
				}
			case r.StatusCode < 500 && r.StatusCode != http.StatusTooManyRequests:
				err = answerError(r)
				r.Body.Close()
				return err
			default:
				err = answerError(r)
			}
			r.Body.Close()
		}
		last = err
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if end.IsZero() {
			end = time.Now().Add(s.patience) // until now it may have been at work
		}
		if time.Now().After(end) {
			return fmt.Errorf("there was no way to the store for %s: %w", s.patience, last)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func nothing(*http.Response) error { return nil }

func filePath(name string) string { return "/file/" + (&url.URL{Path: name}).EscapedPath() }

// Create implements archive.Store. What may be replaced is for the broker to say.
func (s *remote) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	if s.direct.create(ctx, name, body, size, o) {
		return nil
	}
	h := http.Header{}
	if !o.Lock.IsZero() {
		text, err := o.Lock.MarshalText()
		if err != nil {
			return err
		}
		h.Set("Lock-Until", string(text))
		h.Set("Lock-Compliance", strconv.FormatBool(o.Compliance))
	}
	return s.do(ctx, http.MethodPut, filePath(name), nil, func() io.Reader { return io.NewSectionReader(body, 0, size) }, size, h, nothing)
}

// ReadAt implements archive.Store.
func (s *remote) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if s.direct.readAt(ctx, name, p, off) {
		return nil
	}
	v := url.Values{"offset": {strconv.FormatInt(off, 10)}, "length": {strconv.Itoa(len(p))}}
	return s.do(ctx, http.MethodGet, filePath(name), v, nil, 0, nil, func(r *http.Response) error {
		_, err := io.ReadFull(r.Body, p)
		return err
	})
}

// Stat implements archive.Store.
func (s *remote) Stat(ctx context.Context, name string) (info archive.FileInfo, err error) {
	return info, s.do(ctx, http.MethodHead, filePath(name), nil, nil, 0, nil, func(r *http.Response) error {
		nanos, err := strconv.ParseInt(r.Header.Get("Last-Modified-Nanos"), 10, 64)
		info = archive.FileInfo{Name: name, Size: r.ContentLength, Time: time.Unix(0, nanos)}
		return err
	})
}

// List implements archive.Store.
func (s *remote) List(ctx context.Context, prefix, after string) iter.Seq2[archive.FileInfo, error] {
	return func(yield func(archive.FileInfo, error) bool) {
		var all []archive.FileInfo
		err := s.do(ctx, http.MethodGet, "/list", url.Values{"prefix": {prefix}, "after": {after}}, nil, 0, nil, func(r *http.Response) error {
			all = all[:0]
			for dec := json.NewDecoder(r.Body); ; {
				var f archive.FileInfo
				if err := dec.Decode(&f); err != nil {
					return fmt.Errorf("the list was cut off: %w", err)
				}
				if f.Name == "" {
					return nil
				}
				all = append(all, f)
			}
		})
		if err != nil {
			yield(archive.FileInfo{}, err)
			return
		}
		for _, f := range all {
			if !yield(f, nil) {
				return
			}
		}
	}
}

// Remove implements archive.Store.
func (s *remote) Remove(ctx context.Context, name string) error {
	return s.do(ctx, http.MethodDelete, filePath(name), nil, nil, 0, nil, nothing)
}

// Hold implements archive.Store.
func (s *remote) Hold(context.Context, string, bool) error { return errors.ErrUnsupported }

// String implements archive.Store.
func (s *remote) String() string { return s.url }

// ask gets a message of the broker.
func ask[T any](ctx context.Context, s *remote, path string) (v T, err error) {
	return v, s.do(ctx, http.MethodGet, path, nil, nil, 0, nil, func(r *http.Response) error { return json.NewDecoder(r.Body).Decode(&v) })
}

// askWith is ask, with a message.
func askWith[T any](ctx context.Context, s *remote, path string, message any) (v T, err error) {
	b, err := json.Marshal(message)
	if err != nil {
		return v, err
	}
	return v, s.do(ctx, http.MethodPost, path, nil, func() io.Reader { return bytes.NewReader(b) }, int64(len(b)), nil, func(r *http.Response) error { return json.NewDecoder(r.Body).Decode(&v) })
}

// tell sends the broker a message.
func tell(ctx context.Context, s *remote, path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.do(ctx, http.MethodPost, path, nil, func() io.Reader { return bytes.NewReader(b) }, int64(len(b)), nil, nothing)
}
