package mover

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// BrokerOptions say where a Broker serves.
type BrokerOptions struct {
	// Listen is the address to listen at. Default: ":0", a free port of all addresses.
	Listen string
	// Host is where Pods reach it: a name or an address, without the port.
	Host string
	// Through has everything go through the Broker, also where movers could be lent the right to go to the store themselves.
	Through bool
	// Spool is the directory where what a mover sends waits for the store. Default: os.TempDir.
	Spool  string
	Logger *zap.Logger
}

// Broker serves movers. It listens from the first job on.
type Broker struct {
	o    BrokerOptions
	once sync.Once
	err  error // why it does not listen
	url  string
	ca   []byte // PEM
	srv  *http.Server

	mu   sync.Mutex
	jobs map[string]*Ticket // by token
}

// NewBroker makes a Broker.
func NewBroker(o BrokerOptions) *Broker {
	if o.Listen == "" {
		o.Listen = ":0"
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	return &Broker{o: o, jobs: map[string]*Ticket{}}
}

// start listens.
func (b *Broker) start() error {
	b.once.Do(func() {
		cert, ca, err := certificate()
		if err != nil {
			b.err = err
			return
		}
		l, err := net.Listen("tcp", b.o.Listen)
		if err != nil {
			b.err = fmt.Errorf("listen for movers: %w", err)
			return
		}
		port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
		b.url, b.ca = "https://"+net.JoinHostPort(b.o.Host, port), ca
		b.srv = &http.Server{
			Handler: b.handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute, ErrorLog: zap.NewStdLog(b.o.Logger),
			TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13},
		}
		b.o.Logger.Info("serving movers", zap.String("url", b.url))
		go func() {
			if err := b.srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
				b.o.Logger.Error("movers cannot be served any more", zap.Error(err))
			}
		}()
	})
	return b.err
}

// Close ends it, and with it the movers' access.
func (b *Broker) Close() error {
	b.once.Do(func() { b.err = http.ErrServerClosed })
	if b.srv == nil {
		return nil
	}
	return b.srv.Close()
}

// certificate makes the key and the certificate of one life of a Broker.
func certificate() (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: serverName}, DNSNames: []string{serverName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// Ticket is a job that a Broker serves.
type Ticket struct {
	job      Job
	store    archive.Store
	tags     func() (map[string]string, error)
	progress func(repository.Progress)
	token    string
	until    time.Time         // the job ends then at the latest; zero: nobody knows
	lender   archive.Presigner // nil: the store lends nothing
	beat     time.Duration     // how often a mover that waits for the store counts as heard of

	mu      sync.Mutex
	pending string    // what keeps the mover's Pod from beginning
	seen    time.Time // when the mover was heard of last
	offered bool      // the job may be asked for, once
	through bool      // the store is out of its reach
	outcome *Outcome
	done    chan struct{}
}

// add takes a job on; the ticket is good until remove.
func (b *Broker) add(ctx context.Context, job Job, store archive.Store, tags func() (map[string]string, error), progress func(repository.Progress)) (*Ticket, error) {
	if err := b.start(); err != nil {
		return nil, err
	}
	t := &Ticket{job: job, store: store, tags: tags, progress: progress, token: rand.Text() + rand.Text(), beat: aliveEvery, done: make(chan struct{})}
	t.until, _ = ctx.Deadline()
	if lender, ok := store.(archive.Presigner); ok && !b.o.Through {
		t.lender = lender
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.jobs[t.token] = t
	return t, nil
}

func (b *Broker) remove(t *Ticket) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.jobs, t.token)
}

func (t *Ticket) finish(o *Outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.outcome == nil {
		t.outcome = o
		close(t.done)
	}
}

func (t *Ticket) touch() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = time.Now()
}

// waits counts the mover as heard of until stop: it can say nothing, as it waits for the store, or for its turn under a limit.
func (t *Ticket) waits() (stop func()) {
	ended := make(chan struct{})
	go func() {
		tick := time.NewTicker(t.beat)
		defer tick.Stop()
		for {
			t.touch()
			select {
			case <-tick.C:
			case <-ended:
				return
			}
		}
	}()
	return func() { close(ended) }
}

// waitsFor tells what keeps the mover's Pod from beginning, once as long as it is the same; empty: nothing.
func (t *Ticket) waitsFor(what string) {
	t.mu.Lock()
	told := t.pending == what
	t.pending = what
	t.mu.Unlock()
	if !told && what != "" && t.progress != nil {
		t.progress(repository.Progress{Waiting: what})
	}
}

// explain adds to the end of a wait what the mover's Pod was waiting for.
func (t *Ticket) explain(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pending == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, t.pending)
}

// offer lets the job, which holds the repository's password, be asked for once: whoever reads the Secret of a Pod later than its mover asked
// does not get the job, and a mover that comes too late fails, so that it is seen.
func (t *Ticket) offer() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.offered = true
}

func (t *Ticket) take() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	had := t.offered
	t.offered = false
	return had
}

// heard is when the mover was heard of last; zero: never.
func (t *Ticket) heard() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen
}

// ticket finds the job of a request.
func (b *Broker) ticket(r *http.Request) *Ticket {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	b.mu.Lock()
	defer b.mu.Unlock()
	for known, t := range b.jobs {
		if subtle.ConstantTimeCompare([]byte(known), []byte(token)) == 1 {
			return t
		}
	}
	return nil
}

// handler serves the movers' requests.
func (b *Broker) handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h func(w http.ResponseWriter, r *http.Request, t *Ticket) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			t := b.ticket(r)
			if t == nil {
				http.Error(w, errOver.Error(), http.StatusGone)
				return
			}
			t.touch()
			if err := h(w, r, t); err != nil {
				status := statusOf(err)
				if status >= 500 {
					b.o.Logger.Warn("a mover's request failed", zap.String("method", r.Method), zap.Error(err))
				}
				http.Error(w, err.Error(), status)
			}
		})
	}
	handle("GET /job", func(w http.ResponseWriter, _ *http.Request, t *Ticket) error {
		if !t.take() {
			return fmt.Errorf("%w: the job was taken already", archive.ErrDenied)
		}
		return json.NewEncoder(w).Encode(t.toDo())
	})
	handle("POST /progress", func(_ http.ResponseWriter, r *http.Request, t *Ticket) error {
		var p repository.Progress
		if err := json.NewDecoder(io.LimitReader(r.Body, maxMessage)).Decode(&p); err != nil {
			return &badRequest{err}
		}
		if t.progress != nil {
			t.progress(p)
		}
		return nil
	})
	handle("GET /tags", func(w http.ResponseWriter, _ *http.Request, t *Ticket) error {
		var tags map[string]string
		if t.tags != nil {
			var err error
			if tags, err = t.tags(); err != nil {
				return err
			}
		}
		return json.NewEncoder(w).Encode(tags)
	})
	handle("POST /done", func(_ http.ResponseWriter, r *http.Request, t *Ticket) error {
		var o Outcome
		if err := json.NewDecoder(io.LimitReader(r.Body, maxMessage)).Decode(&o); err != nil {
			return &badRequest{err}
		}
		t.finish(&o)
		return nil
	})
	handle("POST /alive", func(http.ResponseWriter, *http.Request, *Ticket) error { return nil })
	handle("GET /lend/{name...}", serveLendRead)
	handle("POST /lend/{name...}", serveLendCreate)
	handle("POST /through", b.serveThrough)
	handle("GET /list", serveList)
	handle("HEAD /file/{name...}", serveStat)
	handle("GET /file/{name...}", serveRead)
	handle("PUT /file/{name...}", b.serveCreate)
	handle("DELETE /file/{name...}", serveRemove)
	return mux
}

// maxMessage bounds what a mover tells, in bytes.
const maxMessage = 1 << 20

type badRequest struct{ error }

func statusOf(err error) int {
	var bad *badRequest
	switch {
	case errors.As(err, &bad):
		return http.StatusBadRequest
	case errors.Is(err, fs.ErrNotExist):
		return http.StatusNotFound
	case errors.Is(err, fs.ErrExist):
		return http.StatusConflict
	case errors.Is(err, io.ErrUnexpectedEOF):
		return http.StatusRequestedRangeNotSatisfiable
	case errors.Is(err, archive.ErrDenied):
		return http.StatusForbidden
	case errors.Is(err, archive.ErrHeld):
		return http.StatusLocked
	}
	return http.StatusBadGateway
}

// file is the name that a request is about: within the repository of the job's cluster, and nowhere else.
func (t *Ticket) file(name string) (string, error) {
	prefix := repository.Files(t.job.Cluster)
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok || strings.ContainsAny(rest, "/\x00") || rest == "." || rest == ".." {
		return "", fmt.Errorf("%w: %q is not a file of the repository", archive.ErrDenied, name)
	}
	return name, nil
}

// newFile is the name of a file that the job may create.
func (t *Ticket) newFile(name string) (string, error) {
	if _, err := t.file(name); err != nil {
		return "", err
	}
	if t.job.Kind != Backup || strings.HasPrefix(name[strings.LastIndexByte(name, '/')+1:], "kopia.") {
		return "", fmt.Errorf("%w: this job may not write %s", archive.ErrDenied, name)
	}
	return name, nil
}

func serveList(w http.ResponseWriter, r *http.Request, t *Ticket) error {
	q := r.URL.Query()
	if _, err := t.file(q.Get("prefix")); err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	for f, err := range t.store.List(r.Context(), q.Get("prefix"), q.Get("after")) {
		if err != nil {
			return err
		}
		if err := enc.Encode(f); err != nil {
			return nil
		}
	}
	_, _ = io.WriteString(w, "{}\n") // a list without this end was cut off
	return nil
}

func serveStat(w http.ResponseWriter, r *http.Request, t *Ticket) error {
	name, err := t.file(r.PathValue("name"))
	if err != nil {
		return err
	}
	info, err := t.store.Stat(r.Context(), name)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Length", strconv.FormatInt(info.Size, 10))
	w.Header().Set("Last-Modified-Nanos", strconv.FormatInt(info.Time.UnixNano(), 10))
	return nil
}

// chunk is how much of a file is in memory at once.
const chunk = 4 << 20

func serveRead(w http.ResponseWriter, r *http.Request, t *Ticket) error {
	name, err := t.file(r.PathValue("name"))
	if err != nil {
		return err
	}
	off, err1 := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	left, err2 := strconv.ParseInt(r.URL.Query().Get("length"), 10, 64)
	if err := errors.Join(err1, err2); err != nil || off < 0 || left < 0 {
		return &badRequest{fmt.Errorf("offset and length: %w", err)}
	}
	buf := make([]byte, min(left, chunk))
	for first := true; left > 0; first = false {
		part := buf[:min(left, chunk)]
		stop := t.waits()
		err := t.store.ReadAt(r.Context(), name, part, off)
		stop()
		if err != nil {
			if first {
				return err
			}
			panic(http.ErrAbortHandler) // the mover sees that it is cut off
		}
		if first {
			w.Header().Set("Content-Length", strconv.FormatInt(left, 10))
		}
		if _, err := w.Write(part); err != nil {
			return nil
		}
		off, left = off+int64(len(part)), left-int64(len(part))
		t.touch()
	}
	return nil
}

// replaceable are the beginnings of names of files that Kopia writes again: its format files and its markers. All others
// are written once, so that a mover can change nothing that a backup is read from.
func replaceable(name string) bool {
	base := name[strings.LastIndexByte(name, '/')+1:]
	return !strings.HasPrefix(base, "p") && !strings.HasPrefix(base, "q") && !strings.HasPrefix(base, "x") && !strings.HasPrefix(base, "n") &&
		!strings.HasPrefix(base, "kopia.") && !strings.HasPrefix(base, "tidemark-")
}

func (b *Broker) serveCreate(_ http.ResponseWriter, r *http.Request, t *Ticket) error {
	name, err := t.newFile(r.PathValue("name"))
	if err != nil {
		return err
	}
	spool, err := os.CreateTemp(b.o.Spool, "tidemark-mover-")
	if err != nil {
		return fmt.Errorf("spool what a mover sends: %w", err)
	}
	defer spool.Close()
	if err := os.Remove(spool.Name()); err != nil {
		return err
	}
	size, err := io.Copy(spool, touching{r.Body, t})
	if err != nil {
		return fmt.Errorf("spool what a mover sends: %w", err)
	}
	if size != r.ContentLength {
		return &badRequest{fmt.Errorf("%d bytes came, and %d were announced", size, r.ContentLength)}
	}
	o := archive.CreateOptions{Replace: replaceable(name)}
	if lock := r.Header.Get("Lock-Until"); lock != "" {
		if err := o.Lock.UnmarshalText([]byte(lock)); err != nil {
			return &badRequest{err}
		}
		o.Compliance = r.Header.Get("Lock-Compliance") == "true"
	}
	defer t.waits()()
	err = t.store.Create(r.Context(), name, spool, size, o)
	if errors.Is(err, fs.ErrExist) { // by a try whose answer was lost: names of such files are never used twice
		if info, statErr := t.store.Stat(r.Context(), name); statErr == nil && info.Size == size {
			return nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) { // what is not there is the store itself, and it may come back
		return fmt.Errorf("the store is away: %v", err) //nolint:errorlint // it must not look like a file that is not there
	}
	return err
}

// touching tells that a mover is alive while it sends.
type touching struct {
	io.Reader
	t *Ticket
}

// Read implements io.Reader.
func (r touching) Read(p []byte) (int, error) {
	r.t.touch()
	return r.Reader.Read(p)
}

func serveRemove(_ http.ResponseWriter, r *http.Request, t *Ticket) error {
	name, err := t.file(r.PathValue("name"))
	if err != nil {
		return err
	}
	// Kopia marks its sessions with a file each, which goes when the session ends. Nothing else is a mover's to remove.
	if t.job.Kind != Backup || !strings.HasPrefix(name[strings.LastIndexByte(name, '/')+1:], "s") {
		return fmt.Errorf("%w: this job may not remove %s", archive.ErrDenied, name)
	}
	return t.store.Remove(r.Context(), name)
}

// wait waits until the mover has told what became of the job.
func (t *Ticket) wait(ctx context.Context) (*Outcome, error) {
	select {
	case <-t.done:
		return t.outcome, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
