package locals3

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

const (
	startAttempts = 4                // each with a new port
	readyLimit    = 60 * time.Second // on a busy machine
	stopLimit     = time.Second      // between SIGTERM and SIGKILL: clients' idle connections hold it back
	region        = "us-east-1"
)

var errStopped = errors.New("the S3 server was stopped: start a new one")

// Options of Start. The zero value is a server in a temporary directory.
type Options struct {
	// Dir holds the buckets, the old versions, the credentials and the log. It must be empty
	// or not exist. Default: a new directory in os.TempDir.
	Dir string
	// Keep leaves Dir on disk after Stop. Default: Stop removes it.
	Keep bool
	// Output gets a line when the server has to be built. Default: nothing is said.
	Output io.Writer
}

// Server is a running S3 server. Its methods may be called from several goroutines.
type Server struct {
	opts           Options
	dir, bin       string
	access, secret string
	addr           string
	health         string // only this server answers this path, and no bucket can have the name: another server at the port is not taken for it
	client         *minio.Client

	mu      sync.Mutex           // guards the fields below and orders start and stop
	proc    *localserver.Process // nil: it does not run
	stopped bool
	stopErr error
}

// Start builds the server when this machine has none yet, starts it with credentials made for
// it, and returns when it answers. It outlives ctx: end it with Stop.
//
// When it does not start, the error shows the last lines of its log, and the directory with the
// whole log stays.
func Start(ctx context.Context, o Options) (*Server, error) {
	out := o.Output
	if out == nil {
		out = io.Discard
	}
	bin, err := Binary(ctx, out)
	if err != nil {
		return nil, err
	}
	s := &Server{opts: o, bin: bin, access: "AK" + rand.Text()[:18], secret: rand.Text(), health: "/healthz-" + rand.Text()}
	if s.dir, err = prepareDir(o.Dir); err != nil {
		return nil, fmt.Errorf("start the S3 server: %w", err)
	}
	if err := s.writeCredentials(); err != nil {
		return nil, fmt.Errorf("start the S3 server: %w", err)
	}
	for attempt := 1; ; attempt++ {
		if s.addr, err = freeAddress(); err != nil {
			break
		}
		if err = s.run(ctx); !errors.Is(err, localserver.ErrPortTaken) || attempt == startAttempts || ctx.Err() != nil {
			break
		}
	}
	if err == nil {
		s.client, err = minio.New(s.addr, &minio.Options{Creds: credentials.NewStaticV4(s.access, s.secret, ""), Region: region})
	}
	if err != nil {
		s.Kill()
		return nil, fmt.Errorf("start the S3 server: %w", err)
	}
	return s, nil
}

// prepareDir makes the server's directory, or checks that the given one is empty.
func prepareDir(dir string) (string, error) {
	var err error
	if dir == "" {
		dir, err = os.MkdirTemp("", "tidemark-s3-")
	} else if dir, err = filepath.Abs(dir); err == nil { // versitygw wants it so
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	if len(entries) > 0 {
		return "", fmt.Errorf("directory %s is not empty; remove it or name another one", dir)
	}
	for _, sub := range []string{"data", "versions"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// writeCredentials writes the file that CredentialsFile names.
func (s *Server) writeCredentials() error {
	text := "[default]\naws_access_key_id = " + s.access + "\naws_secret_access_key = " + s.secret + "\n"
	return os.WriteFile(s.CredentialsFile(), []byte(text), 0o600)
}

// freeAddress is a loopback address that is free now. Nothing reserves it, so the server may
// find it taken, and then Start chooses another.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("choose a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// run starts the process at s.addr and waits until it answers.
func (s *Server) run(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return errStopped
	case s.proc != nil:
		return errors.New("the S3 server runs already")
	}
	args := []string{
		"--port", s.addr, "--region", region, "--health", s.health, "--quiet", "--keep-alive",
		"posix", "--versioning-dir", filepath.Join(s.dir, "versions"), filepath.Join(s.dir, "data"),
	}
	// Only what it needs: the caller's VGW_ variables are not meant for it. The credentials are
	// no arguments, which everybody on the machine could see.
	env := []string{"HOME=" + s.dir, "ROOT_ACCESS_KEY=" + s.access, "ROOT_SECRET_KEY=" + s.secret}
	p, err := localserver.Start(s.bin, args, env, filepath.Join(s.dir, "versitygw.log"))
	if err != nil {
		return err
	}
	if err := p.Await(ctx, readyLimit, s.healthy); err != nil {
		p.Stop(syscall.SIGKILL, stopLimit)
		return err
	}
	s.proc = p
	return nil
}

// healthy reports whether the server answers.
func (s *Server) healthy(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.addr+s.health, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", req.URL, resp.Status)
	}
	return nil
}

// Endpoint is the server's address as a URL.
func (s *Server) Endpoint() string { return "http://" + s.addr }

// URL names a place in a bucket in the way that an archive's URL does.
func (s *Server) URL(bucket, prefix string) string {
	q := url.Values{"endpoint": {s.Endpoint()}, "region": {region}, "path-style": {"true"}}
	return (&url.URL{Scheme: "s3", Host: bucket, Path: "/" + strings.TrimPrefix(prefix, "/"), RawQuery: q.Encode()}).String()
}

// Credentials are the access key and the secret key.
func (s *Server) Credentials() (access, secret string) { return s.access, s.secret }

// CredentialsFile is the path of a file that has them as the AWS tools read it.
func (s *Server) CredentialsFile() string { return filepath.Join(s.dir, "credentials") }

// Dir is the directory with the log, the credentials and, in data, the buckets.
func (s *Server) Dir() string { return s.dir }

// MakeBucket makes a bucket. With objectLock it keeps versions, and objects can be locked.
func (s *Server) MakeBucket(ctx context.Context, name string, objectLock bool) error {
	if err := s.client.MakeBucket(ctx, name, minio.MakeBucketOptions{Region: region, ObjectLocking: objectLock}); err != nil {
		return fmt.Errorf("make bucket %s: %w", name, err)
	}
	return nil
}

// Client is an administrator's client, for what a test must look at behind the back of what it tests.
func (s *Server) Client() *minio.Client { return s.client }

// Pid is the process's number, 0 when none runs.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc.Pid()
}

// Kill ends the server at once, as a crash does. Its data stays for Restart.
func (s *Server) Kill() { s.end(syscall.SIGKILL) }

// Restart starts the server again after Kill, or ends it first, at the same address with the
// same data and credentials, and returns when it answers.
func (s *Server) Restart(ctx context.Context) error {
	s.end(syscall.SIGTERM)
	if err := s.run(ctx); err != nil {
		return fmt.Errorf("start the S3 server again: %w", err)
	}
	return nil
}

// Stop ends the server and removes the directory unless Keep is set. A second Stop does nothing.
func (s *Server) Stop() error {
	s.end(syscall.SIGTERM)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return s.stopErr
	}
	s.stopped = true
	if !s.opts.Keep {
		s.stopErr = os.RemoveAll(s.dir)
	}
	return s.stopErr
}

func (s *Server) end(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		s.proc.Stop(sig, stopLimit)
		s.proc = nil
	}
}
