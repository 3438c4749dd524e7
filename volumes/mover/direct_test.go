package mover

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/deploy/locals3"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// watched is a store that counts what goes through the broker, and can be made to lend something else.
type watched struct {
	archive.Store
	archive.Presigner
	through atomic.Int64 // bytes
	change  func(*archive.Presigned)
}

func (w *watched) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	w.through.Add(size)
	return w.Store.Create(ctx, name, body, size, o)
}

func (w *watched) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	w.through.Add(int64(len(p)))
	return w.Store.ReadAt(ctx, name, p, off)
}

func (w *watched) changed(p *archive.Presigned, err error) (*archive.Presigned, error) {
	if err == nil && w.change != nil {
		w.change(p)
	}
	return p, err
}

func (w *watched) PresignRead(ctx context.Context, name string, life time.Duration) (*archive.Presigned, error) {
	return w.changed(w.Presigner.PresignRead(ctx, name, life))
}

func (w *watched) PresignCreate(ctx context.Context, name string, size int64, sum string, o archive.CreateOptions, life time.Duration) (*archive.Presigned, error) {
	return w.changed(w.Presigner.PresignCreate(ctx, name, size, sum, o, life))
}

// lending is a broker whose store is an S3 server, and what it logs.
type lending struct {
	*brokered
	server *locals3.Server
	store  *watched
	logs   *observer.ObservedLogs
}

func newLending(t *testing.T) *lending {
	s, err := locals3.Start(t.Context(), locals3.Options{Output: t.Output()})
	ok(t, err)
	t.Cleanup(func() { _ = s.Stop() })
	ok(t, s.MakeBucket(t.Context(), "movers", false))
	store, err := archive.OpenStore(t.Context(), s.URL("movers", "p"), archive.StoreOptions{CredentialsFile: s.CredentialsFile()})
	ok(t, err)
	lender, is := store.(archive.Presigner)
	if !is {
		t.Fatal("the store lends nothing")
	}
	w := &watched{Store: store, Presigner: lender}
	core, logs := observer.New(zap.DebugLevel)
	return &lending{newBrokeredAt(t, w, BrokerOptions{Logger: zap.New(core)}), s, w, logs}
}

// mover takes a job on, and gives a mover that has opened the way to the store.
func (l *lending) mover(job Job) (*Ticket, *remote) {
	l.Helper()
	t, s := l.brokered.mover(job, nil)
	job, err := ask[Job](l.Context(), s, "/job")
	ok(l.T, err)
	ok(l.T, s.goDirect(job.Direct))
	if s.direct == nil {
		l.Fatal("there is no way to the store")
	}
	return t, s
}

// warnings are what the broker logs as one, which never holds a signature.
func (l *lending) warnings() (n int) {
	l.Helper()
	for _, e := range l.logs.All() {
		if e.Level >= zap.WarnLevel {
			n++
		}
		if text := fmt.Sprint(e.Message, e.ContextMap()); strings.Contains(text, "X-Amz") {
			l.Errorf("the log tells a secret: %s", text)
		}
	}
	return n
}

// backAndRestore backs 8 MiB up and restores them.
func (l *lending) backAndRestore() {
	l.Helper()
	dir, to := l.TempDir(), l.TempDir()
	text := make([]byte, 8<<20)
	_, _ = rand.Read(text)
	ok(l.T, os.WriteFile(filepath.Join(dir, "f"), text, 0o640))
	ticket, s := l.brokered.mover(Job{Kind: Backup, Source: repository.Source{Namespace: "shop", Name: "data"}}, nil)
	ok(l.T, run(l.Context(), s, Backup, dir, l.TempDir()))
	o, err := ticket.wait(l.Context())
	ok(l.T, err)
	if o.Error != "" || o.Result.Sent < 8<<20 {
		l.Fatalf("%+v", o)
	}
	ticket, s = l.brokered.mover(Job{Kind: Restore, ID: o.Result.ID}, nil)
	ok(l.T, run(l.Context(), s, Restore, to, l.TempDir()))
	if o, err = ticket.wait(l.Context()); err != nil || o.Restored.Files != 1 {
		l.Fatalf("%+v, %v", o, err)
	}
	if got, err := os.ReadFile(filepath.Join(to, "f")); err != nil || !bytes.Equal(got, text) {
		l.Errorf("%d bytes are restored, and not what was backed up: %v", len(got), err)
	}
}

func TestContentGoesToTheStoreItself(t *testing.T) {
	l := newLending(t)
	l.store.through.Store(0)
	l.backAndRestore()
	if n := l.store.through.Load(); n > 64<<10 {
		t.Errorf("%d bytes went through the broker", n)
	}
	if l.warnings() != 0 {
		t.Errorf("%+v", l.logs.All())
	}
}

// TestTheStoreIsOutOfReach has movers that are lent rights that they cannot use: all goes through the broker, which says so once for each job.
func TestTheStoreIsOutOfReach(t *testing.T) {
	away := httptest.NewServer(nil)
	away.Close()
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the token was sent to the store")
		}
		http.Error(w, r.URL.String(), http.StatusForbidden)
	}))
	defer refuses.Close()
	unknown := httptest.NewUnstartedServer(nil)
	unknown.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	unknown.StartTLS()
	defer unknown.Close()
	l := newLending(t)
	for i, url := range []string{away.URL, refuses.URL, unknown.URL} {
		l.store.change = func(p *archive.Presigned) { p.URL = strings.Replace(p.URL, l.server.Endpoint(), url, 1) }
		l.store.through.Store(0)
		l.backAndRestore()
		if n := l.store.through.Load(); n < 16<<20 {
			t.Errorf("%s: %d bytes went through the broker", url, n)
		}
		if n := l.warnings(); n != 2*(i+1) {
			t.Errorf("%s: %d warnings", url, n)
		}
	}
	// Another Pod of the same job does not try again.
	ticket, s := l.mover(Job{Kind: Backup})
	ok(t, s.Create(t.Context(), repository.Files("c1")+"pnew", strings.NewReader("text"), 4, archive.CreateOptions{}))
	ticket.offer()
	if job, err := ask[Job](t.Context(), s, "/job"); err != nil || job.Direct != nil {
		t.Errorf("the next Pod is told to go to the store: %+v, %v", job.Direct, err)
	}
	if p, err := ask[archive.Presigned](t.Context(), s, lendPath(repository.Files("c1")+"pnew")); err != nil || p.URL != "" {
		t.Errorf("and is lent rights: %v", err)
	}
	before := l.warnings()
	if ok(t, tell(t.Context(), s, "/through", strings.Repeat("again ", 1000))); l.warnings() != before {
		t.Error("it is said again")
	}
}

// TestATroubledStoreIsTriedAgain has the store answer with errors twice, and lend a right that has ended.
func TestATroubledStoreIsTriedAgain(t *testing.T) {
	l := newLending(t)
	_, s := l.mover(Job{Kind: Backup})
	var fails atomic.Int64
	s.direct.client.Transport = failing{s.direct.client.Transport, &fails}
	name := repository.Files("c1") + "pnew"
	fails.Store(directTries - 1)
	ok(t, s.Create(t.Context(), name, strings.NewReader("text"), 4, archive.CreateOptions{}))
	b := make([]byte, 4)
	fails.Store(directTries - 1)
	ok(t, s.ReadAt(t.Context(), name, b, 0))
	if n := time.Until(s.direct.reads[name].until); n <= 0 || n > lent/3 {
		t.Errorf("a right is kept for %s", n)
	}
	s.direct.reads[name].URL = strings.Replace(s.direct.reads[name].URL, "X-Amz-Expires=", "X-Amz-Expires=1", 1) // refused, as one that ended
	ok(t, s.ReadAt(t.Context(), name, b, 0))
	if string(b) != "text" || s.direct.closed.Load() || l.warnings() != 0 {
		t.Errorf("%q, %v", b, l.logs.All())
	}
	fails.Store(directTries)
	ok(t, s.ReadAt(t.Context(), name, b, 0))
	if !s.direct.closed.Load() || l.warnings() != 1 {
		t.Error("it goes on for ever")
	}
}

// TestAStoreThatDoesNotAnswerIsTriedOnce has requests time out, which takes long enough once.
func TestAStoreThatDoesNotAnswerIsTriedOnce(t *testing.T) {
	l := newLending(t)
	_, s := l.mover(Job{Kind: Backup})
	var tries atomic.Int64
	s.direct.client.Transport = timingOut{&tries}
	ok(t, s.Create(t.Context(), repository.Files("c1")+"pnew", strings.NewReader("text"), 4, archive.CreateOptions{}))
	ok(t, s.Create(t.Context(), repository.Files("c1")+"pmore", strings.NewReader("text"), 4, archive.CreateOptions{}))
	if tries.Load() != 1 || l.warnings() != 1 {
		t.Errorf("it is tried %d times", tries.Load())
	}
}

type timingOut struct{ tries *atomic.Int64 }

func (o timingOut) RoundTrip(*http.Request) (*http.Response, error) {
	o.tries.Add(1)
	return nil, &net.OpError{Op: "dial", Err: context.DeadlineExceeded}
}

type failing struct {
	http.RoundTripper
	fails *atomic.Int64
}

func (f failing) RoundTrip(q *http.Request) (*http.Response, error) {
	if f.fails.Add(-1) < 0 {
		return f.RoundTripper.RoundTrip(q)
	}
	return &http.Response{StatusCode: http.StatusServiceUnavailable, Body: http.NoBody, Request: q}, nil
}

// TestAMoverReplacesNothingInTheStore creates files that are there, directly.
func TestAMoverReplacesNothingInTheStore(t *testing.T) {
	l := newLending(t)
	_, s := l.mover(Job{Kind: Backup})
	ctx, name := t.Context(), repository.Files("c1")+"pnew"
	create := func(text string) error {
		return s.Create(ctx, name, strings.NewReader(text), int64(len(text)), archive.CreateOptions{Replace: true})
	}
	l.store.through.Store(0)
	ok(t, create("text"))
	if l.store.through.Load() != 0 {
		t.Error("it went through the broker")
	}
	ok(t, create("text")) // the answer was lost
	if err := create("other"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("other content: %v", err)
	}
	b := make([]byte, 4)
	ok(t, l.store.Store.ReadAt(ctx, name, b, 0))
	if string(b) != "text" || s.direct.closed.Load() {
		t.Errorf("it is %q now", b)
	}
	if err := s.ReadAt(ctx, repository.Files("c1")+"pnothing", b, 0); !errors.Is(err, fs.ErrNotExist) || s.direct.closed.Load() {
		t.Errorf("a file that is not there: %v", err)
	}
}

// TestWhatIsNotLent asks for rights that no mover is to have.
func TestWhatIsNotLent(t *testing.T) {
	l := newLending(t)
	ctx, own := t.Context(), repository.Files("c1")
	ticket, s := l.mover(Job{Kind: Backup})
	_, restore := l.mover(Job{Kind: Restore})
	read := func(s *remote, name string) error {
		p, err := ask[archive.Presigned](ctx, s, lendPath(name))
		if err == nil && p.URL == "" {
			return errNotLent
		}
		return err
	}
	create := func(s *remote, name, sum string, size int64) error {
		p, err := askWith[archive.Presigned](ctx, s, lendPath(name), wanted{Size: size, Sum: sum})
		if err == nil && p.URL == "" {
			return errNotLent
		}
		return err
	}
	const sum = "AAAAAA=="
	ok(t, read(s, own+"p1"))
	ok(t, read(restore, own+"p1"))
	ok(t, create(s, own+"p1", sum, 4))
	for what, err := range map[string]error{
		"read the password":      read(s, "volumes/c1/keys/00000001.age"),
		"read another cluster's": read(s, "volumes/c2/kopia/p1"),
		"read history":           read(s, "c1/manifests/00000000000000000017.json"),
		"leave the directory":    read(s, own+"../keys/00000001.age"),
		"create a password":      create(s, "volumes/c1/keys/00000002.age", sum, 4),
		"create another's":       create(s, "volumes/c2/kopia/p1", sum, 4),
		"create the format":      create(s, own+"kopia.repository", sum, 4),
		"create in a restore":    create(restore, own+"p1", sum, 4),
	} {
		if !errors.Is(err, archive.ErrDenied) {
			t.Errorf("a mover may %s: %v", what, err)
		}
	}
	for what, err := range map[string]error{"replace a marker": create(s, own+"s1", sum, 4), "create what is sent in parts": create(s, own+"p1", sum, 1<<40)} {
		if !errors.Is(err, errNotLent) {
			t.Errorf("a mover may %s: %v", what, err)
		}
	}
	if err := create(s, own+"p1", "x\r\nX-Amz-Acl: public-read", 4); err == nil {
		t.Error("anything is a checksum")
	}
	l.remove(ticket)
	if err := read(s, own+"p1"); !errors.Is(err, errOver) {
		t.Errorf("of a job that is over: %v", err)
	}
}

// TestALimitHoldsForMovers looks for a way to the store where there is to be none.
func TestALimitHoldsForMovers(t *testing.T) {
	l := newLending(t)
	soon, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	over, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	through := NewBroker(BrokerOptions{Listen: "127.0.0.1:0", Host: "127.0.0.1", Through: true})
	defer through.Close()
	dir, err := archive.NewDirStore(t.TempDir())
	ok(t, err)
	s3 := l.store.Store
	for _, c := range []struct {
		what   string
		ctx    context.Context
		broker *Broker
		store  archive.Store
		lends  bool
		life   time.Duration
	}{
		{"a store without limits", t.Context(), l.Broker, repository.Limited(s3, 0, 0), true, lent},
		{"a job that ends soon", soon, l.Broker, s3, true, time.Minute},
		{"a job that ends at once", over, l.Broker, s3, true, 0},
		{"a limit", t.Context(), l.Broker, repository.Limited(s3, 1<<20, 0), false, 0},
		{"a limit for restores", t.Context(), l.Broker, repository.Limited(s3, 0, 1<<20), false, 0},
		{"a directory", t.Context(), l.Broker, dir, false, 0},
		{"a broker that lends nothing", t.Context(), through, s3, false, 0},
	} {
		ticket, err := c.broker.add(c.ctx, Job{Kind: Backup, Cluster: "c1"}, c.store, nil, nil)
		ok(t, err)
		if life := ticket.life(); (ticket.toDo().Direct != nil) != c.lends || life > c.life || life < c.life-10*time.Second {
			t.Errorf("%s: %+v, for %s", c.what, ticket.toDo().Direct, life)
		}
	}
}

// TestAMoverThatGoesToTheStoreIsHeard has the broker hear of content that does not pass it, and of nothing else.
func TestAMoverThatGoesToTheStoreIsHeard(t *testing.T) {
	l := newLending(t)
	ticket, s := l.mover(Job{Kind: Backup})
	name := repository.Files("c1") + "pnew"
	ok(t, s.Create(t.Context(), name, strings.NewReader("text"), 4, archive.CreateOptions{}))
	if s.direct.moved.Load() < 4 {
		t.Error("what is sent does not count")
	}
	p, err := s.direct.right(t.Context(), name)
	ok(t, err)
	ctx, end := context.WithCancelCause(t.Context())
	defer end(nil)
	ticks, ended := make(chan time.Time), make(chan struct{})
	go func() {
		defer close(ended)
		s.direct.tellMoves(ctx, ticks, end)
	}()
	tick := func() { // returns when what the tick brings about is done, as the next one is taken then
		ticks <- time.Now()
		ticks <- time.Now()
	}
	read := func() { ok(t, p.Read(ctx, s.direct.client, make([]byte, 4), 0)) }
	tick()
	for range 3 {
		before := ticket.heard()
		tick()
		if !ticket.heard().Equal(before) {
			t.Error("a mover that moves nothing is heard")
		}
		read()
		tick()
		if !ticket.heard().After(before) {
			t.Error("a mover that moves content is not heard")
		}
	}
	l.remove(ticket)
	read()
	ticks <- time.Now()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
	}
	if !errors.Is(context.Cause(ctx), errOver) {
		t.Errorf("a mover whose job is over goes on: %v", context.Cause(ctx))
	}
}
