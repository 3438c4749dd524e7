package api

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// Archives is what can be done with archives: a daemon's, or one that is open here.
type Archives interface {
	// Snapshots lists the snapshots of each location.
	Snapshots(ctx context.Context) ([]Location, error)
	// TakeSnapshot takes a full snapshot in each location that is asked for.
	TakeSnapshot(ctx context.Context, q SnapshotRequest) ([]Location, error)
	// EditSnapshot changes or deletes a snapshot wherever it is.
	EditSnapshot(ctx context.Context, q EditRequest) ([]Location, error)
	// Objects yields what is in a snapshot, in the order of Source.Fold.
	Objects(ctx context.Context, snapshot string) iter.Seq2[journal.Event, error]
	// Retain takes a round of retention.
	Retain(ctx context.Context, dryRun bool) ([]LocationRetained, error)
	// Repair puts right what can be.
	Repair(ctx context.Context, dryRun bool) ([]LocationRepaired, error)
}

// Location is what one location has, or why it could not be asked.
type Location struct {
	Archive   string             `json:"archive"`
	URL       string             `json:"url,omitempty"`
	Snapshots []archive.Snapshot `json:"snapshots"`
	Error     string             `json:"error,omitempty"`
}

// SnapshotRequest asks for a full snapshot.
type SnapshotRequest struct {
	Name     string                 `json:"name,omitempty"`
	Scope    *archive.SnapshotScope `json:"scope,omitempty"`
	TTL      time.Duration          `json:"ttl,omitempty"`
	Pinned   bool                   `json:"pinned,omitempty"`
	Archives []string               `json:"archives,omitempty"` // empty: all
}

// The actions of an EditRequest.
const (
	EditPin     = "pin"
	EditUnpin   = "unpin"
	EditHold    = "hold" // legal hold
	EditRelease = "release"
	EditDelete  = "delete"
)

// EditRequest changes the snapshot of that name or ID.
type EditRequest struct {
	Snapshot string `json:"snapshot"`
	Action   string `json:"action"`
}

// LocationRetained is what retention decided in one location.
type LocationRetained struct {
	Archive string `json:"archive"`
	*compactor.Retained
	Error string `json:"error,omitempty"`
}

// LocationRepaired is what was put right in one location.
type LocationRepaired struct {
	Archive string `json:"archive"`
	*compactor.Repaired
	Error string `json:"error,omitempty"`
}

// errNoArchives is returned by a daemon without any.
var errNoArchives = errors.New("the daemon has no archive: start it with --archive URL")

func (s *Server) addArchives(mux *http.ServeMux, guard func(http.HandlerFunc) http.HandlerFunc) {
	handle := func(pattern string, h http.HandlerFunc) {
		mux.HandleFunc(pattern, guard(func(w http.ResponseWriter, r *http.Request) {
			if s.o.Archives == nil {
				s.answer(w, r, nil, &requestError{errNoArchives})
				return
			}
			h(w, r)
		}))
	}
	handle("GET /v1/snapshots", func(w http.ResponseWriter, r *http.Request) {
		all, err := s.o.Archives.Snapshots(r.Context())
		s.answer(w, r, all, err)
	})
	handle("POST /v1/snapshots", func(w http.ResponseWriter, r *http.Request) {
		ask(s, w, r, s.o.Archives.TakeSnapshot)
	})
	handle("POST /v1/snapshots/edit", func(w http.ResponseWriter, r *http.Request) {
		ask(s, w, r, s.o.Archives.EditSnapshot)
	})
	handle("POST /v1/archives/retain", func(w http.ResponseWriter, r *http.Request) {
		all, err := s.o.Archives.Retain(r.Context(), r.URL.Query().Get("dryRun") == "true")
		s.answer(w, r, all, err)
	})
	handle("POST /v1/archives/repair", func(w http.ResponseWriter, r *http.Request) {
		all, err := s.o.Archives.Repair(r.Context(), r.URL.Query().Get("dryRun") == "true")
		s.answer(w, r, all, err)
	})
	handle("GET /v1/snapshots/objects", func(w http.ResponseWriter, r *http.Request) {
		s.stream(w, r, func(yield func(replay.Change, error) bool) {
			for e, err := range s.o.Archives.Objects(r.Context(), r.URL.Query().Get("snapshot")) {
				if !yield(replay.Change{Event: e}, err) {
					return
				}
			}
		}, false)
	})
}

// ask reads a request's body, asks, and writes the answer.
func ask[Q, A any](s *Server, w http.ResponseWriter, r *http.Request, f func(context.Context, Q) (A, error)) {
	var q Q
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&q); err != nil {
		s.answer(w, r, nil, badRequest("read the request: %w", err))
		return
	}
	a, err := f(r.Context(), q)
	s.answer(w, r, a, err)
}

var _ Archives = (*Client)(nil)

// Snapshots implements Archives.
func (c *Client) Snapshots(ctx context.Context) (all []Location, err error) {
	return all, c.get(ctx, "/v1/snapshots", nil, &all)
}

// TakeSnapshot implements Archives.
func (c *Client) TakeSnapshot(ctx context.Context, q SnapshotRequest) (all []Location, err error) {
	return all, c.post(ctx, "/v1/snapshots", nil, q, &all)
}

// EditSnapshot implements Archives.
func (c *Client) EditSnapshot(ctx context.Context, q EditRequest) (all []Location, err error) {
	return all, c.post(ctx, "/v1/snapshots/edit", nil, q, &all)
}

// Retain implements Archives.
func (c *Client) Retain(ctx context.Context, dryRun bool) (all []LocationRetained, err error) {
	return all, c.post(ctx, "/v1/archives/retain", dry(dryRun), nil, &all)
}

// Repair implements Archives.
func (c *Client) Repair(ctx context.Context, dryRun bool) (all []LocationRepaired, err error) {
	return all, c.post(ctx, "/v1/archives/repair", dry(dryRun), nil, &all)
}

func dry(dryRun bool) url.Values {
	if dryRun {
		return url.Values{"dryRun": {"true"}}
	}
	return nil
}

// Objects implements Archives.
func (c *Client) Objects(ctx context.Context, snapshot string) iter.Seq2[journal.Event, error] {
	return func(yield func(journal.Event, error) bool) {
		for change, err := range c.stream(ctx, "/v1/snapshots/objects", url.Values{"snapshot": {snapshot}}) {
			if !yield(change.Event, err) {
				return
			}
		}
	}
}

func (c *Client) post(ctx context.Context, path string, v url.Values, body, into any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	resp, err := c.do(ctx, http.MethodPost, path, v, b)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return decode(resp.Body, into)
}
