package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// defaultWriteTimeout is how long a client may take no byte of an answer before it is cut off:
// an open answer holds a snapshot of the journal.
const defaultWriteTimeout = time.Minute

// ServerOptions say what a Server serves.
type ServerOptions struct {
	Source replay.Source
	// Status answers /v1/status; with totals false it may leave out Totals, which cost reading.
	Status func(ctx context.Context, totals bool) (*Status, error)
	// Archives are the daemon's archives; nil when it has none.
	Archives Archives
	// Volumes are the daemon's; nil when it cannot read an archive of its own.
	Volumes Volumes
	// Registry is served at /metrics; nil serves an empty one.
	Registry *prometheus.Registry
	Logger   *zap.Logger // nil: none
	// WriteTimeout is how long a client may take no byte of an answer. Default: a minute.
	WriteTimeout time.Duration
}

// Server answers the API's requests. It has no state of its own.
type Server struct {
	o ServerOptions
}

// NewServer makes a server.
func NewServer(o ServerOptions) *Server {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	if o.WriteTimeout == 0 {
		o.WriteTimeout = defaultWriteTimeout
	}
	return &Server{o: o}
}

// Handler serves the whole API to whoever can reach it: for a socket that its file mode guards.
func (s *Server) Handler() http.Handler {
	mux := s.machineMux()
	s.addAPI(mux, true, func(h http.HandlerFunc) http.HandlerFunc { return h })
	return mux
}

// TokenHandler serves the API to those who send the token, for listeners on a network. Only
// /healthz and /readyz, which tell nothing, are open.
func (s *Server) TokenHandler(token string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.health)
	mux.HandleFunc("GET /readyz", s.ready)
	guard := requireToken(token)
	mux.HandleFunc("GET /metrics", guard(s.metrics().ServeHTTP))
	s.addAPI(mux, false, guard)
	return mux
}

// MachineHandler serves only /healthz, /readyz and /metrics, none of which tells of objects.
func (s *Server) MachineHandler() http.Handler { return s.machineMux() }

func (s *Server) machineMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.health)
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", s.metrics())
	return mux
}

func (s *Server) metrics() http.Handler {
	return promhttp.HandlerFor(s.o.Registry, promhttp.HandlerOpts{})
}

func (s *Server) addAPI(mux *http.ServeMux, socket bool, guard func(http.HandlerFunc) http.HandlerFunc) {
	mux.HandleFunc("GET /v1/status", guard(s.status))
	mux.HandleFunc("GET /v1/catalog", guard(s.catalog))
	mux.HandleFunc("GET /v1/resolve", guard(s.resolve))
	mux.HandleFunc("GET /v1/fold", guard(s.fold))
	mux.HandleFunc("GET /v1/changes", guard(s.changes))
	mux.HandleFunc("POST /v1/marks", guard(s.mark))
	s.addArchives(mux, guard)
	s.addVolumes(mux, socket, guard)
}

// requireToken compares in constant time; hashing first makes the lengths equal.
func requireToken(token string) func(http.HandlerFunc) http.HandlerFunc {
	want := sha256.Sum256([]byte(token))
	return func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			given, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			got := sha256.Sum256([]byte(given))
			if !found || token == "" || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
				w.Header().Set("WWW-Authenticate", "Bearer")
				why := "the daemon wants its token: use --token-file or TIDEMARK_TOKEN"
				if found && given != "" {
					why = "the token that was sent is not the daemon's: compare --token-file or TIDEMARK_TOKEN with the daemon's --token-file"
				}
				writeWire(w, &wireError{Kind: kindDenied, Message: why})
				return
			}
			h(w, r)
		}
	}
}

// health answers whether the process works at all.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok") }

// ready answers whether history is being recorded and can be restored.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	st, err := s.o.Status(r.Context(), false)
	switch {
	case err != nil:
		writeText(w, http.StatusServiceUnavailable, "no status")
	case st.Condition != "":
		writeText(w, http.StatusServiceUnavailable, "recording is paused")
	case !st.Capture.Connected:
		writeText(w, http.StatusServiceUnavailable, "not connected to the API server")
	case st.Catalog.From.Time.IsZero():
		writeText(w, http.StatusServiceUnavailable, "the first lists are still running")
	default:
		writeText(w, http.StatusOK, "ok")
	}
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	st, err := s.o.Status(r.Context(), true)
	s.answer(w, r, st, err)
}

func (s *Server) catalog(w http.ResponseWriter, r *http.Request) {
	c, err := s.o.Source.Ledgers(r.Context())
	s.answer(w, r, c, err)
}

func (s *Server) resolve(w http.ResponseWriter, r *http.Request) {
	at, err := replay.ParseAt(r.URL.Query().Get("at"))
	if err != nil {
		s.answer(w, r, nil, &requestError{err})
		return
	}
	cut, err := s.o.Source.Resolve(r.Context(), at)
	s.answer(w, r, cut, err)
}

func (s *Server) fold(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	cut, err := cutOf(v)
	if err != nil {
		s.answer(w, r, nil, err)
		return
	}
	scope, err := scopeOf(v)
	if err != nil {
		s.answer(w, r, nil, err)
		return
	}
	s.stream(w, r, func(yield func(replay.Change, error) bool) {
		for e, err := range s.o.Source.Fold(r.Context(), cut, scope) {
			if !yield(replay.Change{Event: e}, err) {
				return
			}
		}
	}, false)
}

func (s *Server) changes(w http.ResponseWriter, r *http.Request) {
	q, err := changesOf(r.URL.Query())
	if err != nil {
		s.answer(w, r, nil, err)
		return
	}
	s.stream(w, r, func(yield func(replay.Change, error) bool) {
		for c, err := range s.o.Source.Changes(r.Context(), q) {
			if !q.Objects {
				c.Object, c.Before = nil, nil
			}
			if !yield(c, err) {
				return
			}
		}
	}, q.Follow)
}

// markRequest is the body of POST /v1/marks.
type markRequest struct {
	Name string      `json:"name"`
	Cut  journal.Cut `json:"cut"` // zero: now
}

func (s *Server) mark(w http.ResponseWriter, r *http.Request) {
	var m markRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&m); err != nil {
		s.answer(w, r, nil, badRequest("read the mark: %w", err))
		return
	}
	cut, err := s.o.Source.Mark(r.Context(), m.Name, m.Cut)
	s.answer(w, r, cut, err)
}

// stream writes the changes as records. What fails before the first record is answered with a
// status, later failures with the stream's last line.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, seq iter.Seq2[replay.Change, error], follow bool) {
	pw := &patientWriter{w, http.NewResponseController(w), s.o.WriteTimeout}
	rw := newRecordWriter(pw)
	begin := func() {
		w.Header().Set("Content-Type", "application/x-tidemark-records")
		w.WriteHeader(http.StatusOK)
	}
	begun := follow
	if follow {
		begin()
		_ = pw.flush() // the client waits for the header, and the first change may be hours away
	}
	var failed error
	for c, err := range seq {
		if err != nil {
			failed = err
			break
		}
		if !begun {
			begin()
			begun = true
		}
		if rw.write(&c) != nil {
			return // the client is gone, or takes nothing any more
		}
		if follow && (rw.w.Flush() != nil || pw.flush() != nil) {
			return
		}
	}
	if follow && failed == nil && r.Context().Err() != nil {
		failed = errStopping // a follower's stream has no end of its own
	}
	if failed != nil && !begun {
		s.answer(w, r, nil, failed)
		return
	}
	if !begun {
		begin()
	}
	s.logTrouble(r, failed)
	if rw.end(failed) == nil {
		_ = pw.flush() // a client that is gone does not care
	}
}

// patientWriter gives every write its own deadline, and none to the time between: what is
// slow then is history, or nothing happens.
type patientWriter struct {
	w       io.Writer
	ctl     *http.ResponseController
	timeout time.Duration
}

// Write implements io.Writer.
func (p *patientWriter) Write(b []byte) (n int, err error) {
	p.limited(func() error { n, err = p.w.Write(b); return err })
	return n, err
}

func (p *patientWriter) flush() (err error) {
	p.limited(func() error { err = p.ctl.Flush(); return err })
	return err
}

// limited runs the write. After a failure the deadline stays: the connection is of no use.
func (p *patientWriter) limited(write func() error) {
	_ = p.ctl.SetWriteDeadline(time.Now().Add(p.timeout))
	if write() == nil {
		_ = p.ctl.SetWriteDeadline(time.Time{})
	}
}

// answer writes v as JSON, or the error.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, v any, err error) {
	if err == nil {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
		return
	}
	s.logTrouble(r, err)
	writeWire(w, toWire(err))
}

// logTrouble logs what is the daemon's fault and not the asker's.
func (s *Server) logTrouble(r *http.Request, err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	if statusOf(toWire(err)) == http.StatusInternalServerError {
		s.o.Logger.Warn("a request failed", zap.String("path", r.URL.Path), zap.Error(err))
	}
}

func writeWire(w http.ResponseWriter, e *wireError) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(statusOf(e))
	_ = json.NewEncoder(w).Encode(e)
}

func writeText(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text + "\n"))
}
