package archive

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Presigner is a Store that can lend its rights to one file for a while to somebody who has no credentials.
type Presigner interface {
	// PresignRead lends the right to read a file.
	PresignRead(ctx context.Context, name string, life time.Duration) (*Presigned, error)
	// PresignCreate lends the right to create a file of the size and the Checksum, where none is: whoever holds it can neither
	// replace a file nor write anything else. What would take more than one request is errors.ErrUnsupported.
	PresignCreate(ctx context.Context, name string, size int64, sum string, o CreateOptions, life time.Duration) (*Presigned, error)
	// Trusted are the certificates (PEM) by which the server is trusted, besides the system's.
	Trusted() []byte
}

// Presigned is the right to one request. It is a secret: its URL never goes into a log or an error.
type Presigned struct {
	URL string `json:"url"`
	// Header must be sent as it is: it is signed.
	Header http.Header `json:"header,omitempty"`
	// Life is how long it was good for when it was made.
	Life time.Duration `json:"life"`
}

// String keeps the URL out of logs.
func (Presigned) String() string { return "a presigned request" }

// Checksum is what PresignCreate wants to know of content.
func Checksum(ctx context.Context, body io.ReaderAt, size int64) (string, error) {
	crc := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	err := copyBody(ctx, crc, body, size)
	return base64.StdEncoding.EncodeToString(crc.Sum(nil)), err
}

// PresignedClient makes presigned requests. trusted are certificates, see Presigner.
func PresignedClient(trusted []byte) (*http.Client, error) {
	t, err := s3Transport(true, trusted)
	if err != nil {
		return nil, err
	}
	t.DialContext = (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext // there may be no way to it
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the right is not to be carried elsewhere
	}, nil
}

// Read fills b from offset off on, with one request that is not made again.
func (p *Presigned) Read(ctx context.Context, c *http.Client, b []byte, off int64) error {
	ctx, cancel := context.WithTimeout(ctx, patienceFor(int64(len(b))))
	defer cancel()
	q, err := p.request(ctx, http.MethodGet, nil)
	if err != nil {
		return err
	}
	q.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(b))-1))
	r, err := c.Do(q)
	if err != nil {
		return withoutURL(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK && r.StatusCode != http.StatusPartialContent {
		return answered(r)
	}
	size, err := sizeOf(r.Header, off)
	if err != nil {
		return err
	}
	if size >= 0 && size < off+int64(len(b)) {
		return io.ErrUnexpectedEOF
	}
	if n, err := io.ReadFull(r.Body, b); err != nil {
		return fmt.Errorf("the connection broke after %d of %d bytes: %w", n, len(b), noEnd(withoutURL(err)))
	}
	return nil
}

// Create sends a file's content, with one request that is not made again. fs.ErrExist may mean that an earlier one made the file.
func (p *Presigned) Create(ctx context.Context, c *http.Client, body io.ReaderAt, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, patienceFor(size))
	defer cancel()
	q, err := p.request(ctx, http.MethodPut, io.NewSectionReader(body, 0, size))
	if err != nil {
		return err
	}
	q.ContentLength = size
	r, err := c.Do(q)
	if err != nil {
		return withoutURL(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return answered(r)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(r.Body, 4<<10)) // so that the connection is used again
	return withoutURL(err)
}

func (p *Presigned) request(ctx context.Context, method string, body io.Reader) (*http.Request, error) {
	q, err := http.NewRequestWithContext(ctx, method, p.URL, body)
	if err != nil {
		return nil, withoutURL(err)
	}
	maps.Copy(q.Header, p.Header)
	return q, nil
}

// answered is an answer that is no success. Its text would quote the signature.
func answered(r *http.Response) error {
	err := fmt.Errorf("the store answers %s", http.StatusText(r.StatusCode))
	switch r.StatusCode {
	case http.StatusNotFound:
		return fmt.Errorf("%w (%w)", fs.ErrNotExist, err)
	case http.StatusPreconditionFailed:
		return fmt.Errorf("%w (%w)", fs.ErrExist, err)
	case http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%w (%w)", io.ErrUnexpectedEOF, err)
	}
	return err
}

// withoutURL takes the URL out of an error of net/http.
func withoutURL(err error) error {
	if u := new(url.Error); errors.As(err, &u) {
		return u.Err
	}
	return err
}
