package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// ClientOptions say where the daemon is.
type ClientOptions struct {
	// Server is "unix:///path/of/tidemark.sock" or "https://host:port".
	Server string
	// Token is sent to an https server.
	Token string
	// CAFile holds PEM certificates to trust besides the system's.
	CAFile string
}

// Client asks a daemon. It is a replay.Source; Close it when done.
type Client struct {
	http   *http.Client
	server string // as the user gave it, for messages
	base   string
	token  string
}

var _ replay.Source = (*Client)(nil)

// UnreachableError is returned when no daemon answers.
type UnreachableError struct {
	Server string
	Err    error
}

// Error says where it looked and what to type.
func (e *UnreachableError) Error() string {
	return fmt.Sprintf("no Tidemark daemon answers at %s: %v; start one with 'tidemark run --kubeconfig FILE --data-dir DIR', "+
		"or say where it is with '--server unix:///DIR/tidemark.sock' or TIDEMARK_SERVER", e.Server, e.Err)
}

// Unwrap gives the cause.
func (e *UnreachableError) Unwrap() error { return e.Err }

// NewClient makes a client. It does not connect yet.
func NewClient(o ClientOptions) (*Client, error) {
	c := &Client{server: o.Server, token: o.Token}
	transport := &http.Transport{IdleConnTimeout: time.Minute, DisableCompression: true}
	c.http = &http.Client{Transport: transport}
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	socket, isSocket := socketPath(o.Server)
	u, err := url.Parse(o.Server)
	if err != nil {
		u = &url.URL{}
	}
	switch {
	case isSocket:
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		}
		c.base = "http://tidemark"
	case u.Scheme == "https" && u.Host != "":
		transport.DialContext = dialer.DialContext
		transport.ForceAttemptHTTP2 = true
		transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: 30 * time.Second} // a follower notices a dead server
		transport.TLSHandshakeTimeout = 10 * time.Second
		transport.Proxy = http.ProxyFromEnvironment
		if transport.TLSClientConfig, err = tlsConfig(o.CAFile); err != nil {
			return nil, err
		}
		c.base = strings.TrimSuffix(o.Server, "/")
	default:
		return nil, fmt.Errorf("server %q: want unix:///DIR/tidemark.sock or https://HOST:PORT", o.Server)
	}
	return c, nil
}

func tlsConfig(caFile string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read the server's CA: %w", err)
	}
	if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
		cfg.RootCAs = x509.NewCertPool()
	}
	if !cfg.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the server's CA: no PEM certificate in %s", caFile)
	}
	return cfg, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks for the daemon's status.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var s Status
	return &s, c.get(ctx, "/v1/status", nil, &s)
}

// Ledgers implements replay.Source.
func (c *Client) Ledgers(ctx context.Context) (*replay.Catalog, error) {
	var cat replay.Catalog
	return &cat, c.get(ctx, "/v1/catalog", nil, &cat)
}

// Resolve implements replay.Source.
func (c *Client) Resolve(ctx context.Context, at replay.At) (cut journal.Cut, err error) {
	return cut, c.get(ctx, "/v1/resolve", url.Values{"at": {at.String()}}, &cut)
}

// Fold implements replay.Source.
func (c *Client) Fold(ctx context.Context, cut journal.Cut, scope replay.Scope) iter.Seq2[journal.Event, error] {
	return func(yield func(journal.Event, error) bool) {
		if selectsNothing(&scope) {
			return
		}
		v := url.Values{}
		putCut(v, cut)
		putScope(v, &scope)
		for change, err := range c.stream(ctx, "/v1/fold", v) {
			if !yield(change.Event, err) {
				return
			}
		}
	}
}

// Changes implements replay.Source.
func (c *Client) Changes(ctx context.Context, q replay.ChangeQuery) iter.Seq2[replay.Change, error] {
	return func(yield func(replay.Change, error) bool) {
		if selectsNothing(&q.Scope) {
			return
		}
		v := url.Values{}
		putChanges(v, &q)
		c.stream(ctx, "/v1/changes", v)(yield)
	}
}

// Mark implements replay.Source.
func (c *Client) Mark(ctx context.Context, name string, cut journal.Cut) (marked journal.Cut, err error) {
	return marked, c.post(ctx, "/v1/marks", nil, markRequest{Name: name, Cut: cut}, &marked)
}

func (c *Client) get(ctx context.Context, path string, v url.Values, into any) error {
	resp, err := c.do(ctx, http.MethodGet, path, v, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return decode(resp.Body, into)
}

func decode(r io.Reader, into any) error {
	if err := json.NewDecoder(r).Decode(into); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", cutOff(err))
	}
	return nil
}

// stream yields the records of a streamed answer.
func (c *Client) stream(ctx context.Context, path string, v url.Values) iter.Seq2[replay.Change, error] {
	return func(yield func(replay.Change, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // ends the daemon's side too when the reader stops early
		resp, err := c.do(ctx, http.MethodGet, path, v, nil)
		if err != nil {
			yield(replay.Change{}, err)
			return
		}
		defer resp.Body.Close()
		r := newRecordReader(resp.Body)
		for {
			change, err := r.next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil && ctx.Err() != nil {
				err = ctx.Err() // what the torn connection says is only the consequence
			}
			if !yield(change, err) || err != nil {
				return
			}
		}
	}
}

// do sends a request and returns a good answer, whose body the caller closes.
func (c *Client) do(ctx context.Context, method, path string, v url.Values, body []byte) (*http.Response, error) {
	target := c.base + path
	if len(v) > 0 {
		target += "?" + v.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // the URL in it is ours, and for a socket it is made up
		}
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
			err = op.Err // it repeats the address
		}
		if untrusted, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			return nil, fmt.Errorf("the certificate of %s is not trusted: %w; give the CA that signed it, or the certificate itself, with --server-ca FILE", c.server, untrusted.Err)
		}
		return nil, &UnreachableError{Server: c.server, Err: err}
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var w wireError
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxLine)).Decode(&w); err != nil || w.Message == "" {
		return nil, fmt.Errorf("%s answered %s to %s %s: is it a Tidemark daemon of this version? See 'tidemark version'", c.server, resp.Status, method, path)
	}
	return nil, fromWire(&w)
}
