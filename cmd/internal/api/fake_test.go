package api_test

import (
	"context"
	"errors"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

var (
	deployments = schema.GroupResource{Group: "apps", Resource: "deployments"}
	configMaps  = schema.GroupResource{Resource: "configmaps"}
	t0          = time.Date(2025, 1, 2, 10, 0, 0, 123456789, time.UTC)
)

// fakeSource is history in memory. Its fields are set before it is used.
type fakeSource struct {
	changes []replay.Change
	fail    error // after all changes
	resolve error
	block   chan struct{} // Changes with Follow waits for it, or for the context
	ended   chan error    // gets why a follower ended

	mu    sync.Mutex
	scope replay.Scope // of the last question
	query replay.ChangeQuery
	cut   journal.Cut
	at    replay.At
	marks map[string]journal.Cut
}

func (f *fakeSource) Ledgers(context.Context) (*replay.Catalog, error) {
	return &replay.Catalog{
		ClusterID: "cluster-1",
		Resources: []journal.Ledger{{
			ResourceInfo: journal.ResourceInfo{Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true},
			First:        cutAt(100), Since: cutAt(200), Watermark: cutAt(300),
			Gaps: []journal.Gap{{From: cutAt(150), To: cutAt(200), Cause: "too old", Inferred: 3}},
		}},
		From: cutAt(100), To: cutAt(300),
	}, nil
}

func cutAt(rv uint64) journal.Cut {
	return journal.Cut{Revision: journal.Revision{Epoch: 1, RV: rv}, Time: t0.Add(time.Duration(rv) * time.Second)}
}

func (f *fakeSource) Resolve(_ context.Context, at replay.At) (journal.Cut, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = at
	return cutAt(123), f.resolve
}

func (f *fakeSource) Fold(_ context.Context, cut journal.Cut, scope replay.Scope) iter.Seq2[journal.Event, error] {
	f.mu.Lock()
	f.cut, f.scope = cut, scope
	f.mu.Unlock()
	return func(yield func(journal.Event, error) bool) {
		for _, c := range f.changes {
			if !yield(c.Event, nil) {
				return
			}
		}
		if f.fail != nil {
			yield(journal.Event{}, f.fail)
		}
	}
}

func (f *fakeSource) Changes(ctx context.Context, q replay.ChangeQuery) iter.Seq2[replay.Change, error] {
	f.mu.Lock()
	f.query = q
	f.mu.Unlock()
	return func(yield func(replay.Change, error) bool) {
		for _, c := range f.changes {
			if !yield(c, nil) {
				return
			}
		}
		if q.Follow {
			select {
			case <-f.block:
			case <-ctx.Done():
			}
			f.ended <- ctx.Err()
			return
		}
		if f.fail != nil {
			yield(replay.Change{}, f.fail)
		}
	}
}

func (f *fakeSource) Mark(_ context.Context, name string, cut journal.Cut) (journal.Cut, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if name == "bad" {
		return cut, errors.New("no such name")
	}
	if f.marks == nil {
		f.marks = map[string]journal.Cut{}
	}
	if cut.Time.IsZero() {
		cut = cutAt(300)
	}
	f.marks[name] = cut
	return cut, nil
}

func (f *fakeSource) status(ctx context.Context, _ bool) (*api.Status, error) {
	c, err := f.Ledgers(ctx)
	return &api.Status{Version: "test", Now: cutAt(310).Time, Catalog: *c, Capture: api.CaptureStatus{Connected: true}}, err
}

// serve serves the source on a socket and returns a client of it.
func serve(t *testing.T, f *fakeSource) *api.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := api.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, f, l, "unix://"+path)
}

func serveOn(t *testing.T, f *fakeSource, l net.Listener, address string) *api.Client {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := api.NewServer(api.ServerOptions{Source: f, Status: f.status, Registry: api.NewRegistry(f.status)})
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: s.Handler(), BaseContext: func(net.Listener) context.Context { return ctx }}}
	srv.Start()
	t.Cleanup(func() { cancel(); srv.Close() })
	c, err := api.NewClient(api.ClientOptions{Server: address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func collect(seq iter.Seq2[journal.Event, error]) (out []journal.Event, err error) {
	for e, err := range seq {
		if err != nil {
			return out, err
		}
		e.Object = append([]byte(nil), e.Object...) // valid until the next one only
		out = append(out, e)
	}
	return out, nil
}

func collectChanges(seq iter.Seq2[replay.Change, error]) (out []replay.Change, err error) {
	for c, err := range seq {
		if err != nil {
			return out, err
		}
		c.Object = append([]byte(nil), c.Object...)
		c.Before = append([]byte(nil), c.Before...)
		out = append(out, c)
	}
	return out, nil
}
