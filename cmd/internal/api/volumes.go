package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// Volumes is what can be done with the content of volumes: a daemon's, or those of an archive that is open here.
type Volumes interface {
	// Back backs a path of the daemon's machine up.
	Back(ctx context.Context, q volumes.BackRequest, progress func(repository.Progress)) (*volumes.Backup, error)
	// BackClaims backs claims up.
	BackClaims(ctx context.Context, q volumes.ClaimsRequest, progress func(repository.Progress)) (*volumes.Made, error)
	// Fill writes the content of a backup into a claim.
	Fill(ctx context.Context, q volumes.FillRequest, progress func(repository.Progress)) (repository.Progress, error)
	// Check tries what works with storage classes.
	Check(ctx context.Context, q volumes.CheckRequest, progress func(repository.Progress)) ([]volumes.Checked, error)
	// List lists the backups, oldest first.
	List(ctx context.Context) ([]*volumes.Backup, error)
	// Find is one backup, by its name or the beginning of it.
	Find(ctx context.Context, name string) (*volumes.Backup, error)
	// Files yields the files of a backup at a path.
	Files(ctx context.Context, name, path string, deep bool) iter.Seq2[repository.File, error]
	// Read writes the content of one file of a backup.
	Read(ctx context.Context, name, path string, to io.Writer) error
	// Restore writes a backup to a path of the daemon's machine.
	Restore(ctx context.Context, q volumes.RestoreRequest, progress func(repository.Progress)) (repository.Progress, error)
	// Verify checks backups, and reads percent of their files.
	Verify(ctx context.Context, percent float64, names ...string) (*repository.Verified, error)
	// Pin has a backup kept whatever retention says, or no longer.
	Pin(ctx context.Context, name string, pinned bool) (*volumes.Backup, error)
	// Delete forgets a backup.
	Delete(ctx context.Context, name string) (*volumes.Backup, error)
	// Maintain lets the repository do what is due. It is nil where there is nothing to maintain.
	Maintain(ctx context.Context, q repository.Maintenance) (*repository.Maintained, error)
}

var (
	_ Volumes = (*volumes.Keeper)(nil)
	_ Volumes = (*Client)(nil)

	errNoVolumes = errors.New("the daemon has no archive that it can read, and the content of volumes is kept beside one: start it with --archive URL and --identity FILE")
)

// errNotHere keeps those who have the token, but are not on the daemon's machine, from its files.
var errNotHere = errors.New("paths of the daemon's machine are backed up and written to over its socket only: run this there, or give --archive and --identity to do it here")

// addVolumes serves what concerns the content of volumes. Paths of this machine are for who can reach the socket.
func (s *Server) addVolumes(mux *http.ServeMux, socket bool, guard func(http.HandlerFunc) http.HandlerFunc) {
	handle := func(pattern string, h func(http.ResponseWriter, *http.Request, Volumes)) {
		mux.HandleFunc(pattern, guard(func(w http.ResponseWriter, r *http.Request) {
			if s.o.Volumes == nil {
				s.answer(w, r, nil, &requestError{errNoVolumes})
				return
			}
			h(w, r, s.o.Volumes)
		}))
	}
	handle("GET /v1/volumes", func(w http.ResponseWriter, r *http.Request, v Volumes) {
		all, err := v.List(r.Context())
		s.answer(w, r, all, asked(err))
	})
	handle("GET /v1/volumes/one", func(w http.ResponseWriter, r *http.Request, v Volumes) {
		b, err := v.Find(r.Context(), r.URL.Query().Get("backup"))
		s.answer(w, r, b, asked(err))
	})
	handle("POST /v1/volumes/pin", func(w http.ResponseWriter, r *http.Request, v Volumes) {
		pinned, err := strconv.ParseBool(r.URL.Query().Get("pinned"))
		if err != nil {
			s.answer(w, r, nil, badRequest("pinned: %w", err))
			return
		}
		b, err := v.Pin(r.Context(), r.URL.Query().Get("backup"), pinned)
		s.answer(w, r, b, asked(err))
	})
	handle("DELETE /v1/volumes/one", func(w http.ResponseWriter, r *http.Request, v Volumes) {
		b, err := v.Delete(r.Context(), r.URL.Query().Get("backup"))
		s.answer(w, r, b, asked(err))
	})
	handle("POST /v1/volumes/maintain", func(w http.ResponseWriter, r *http.Request, v Volumes) {
		lines(s, w, r, func(func(repository.Progress)) (*repository.Maintained, error) {
			q := r.URL.Query()
			return v.Maintain(r.Context(), repository.Maintenance{Now: q.Get("now") == "true", AcceptLost: q.Get("accept-lost-index") == "true"})
		})
	})
	handle("POST /v1/volumes/back", func(w http.ResponseWriter, r *http.Request, v Volumes) {
		q, err := body[volumes.BackRequest](w, r)
		lines(s, w, r, func(progress func(repository.Progress)) (*volumes.Backup, error) {
			if !socket {
				err = &requestError{errNotHere}
			}
			if err != nil {
				return nil, err
			}
			return v.Back(r.Context(), q, progress)
		})
	})
	handle("POST /v1/volumes/restore", func(w http.ResponseWriter, r *http.Request, v Volumes) {
		q, err := body[volumes.RestoreRequest](w, r)
		lines(s, w, r, func(progress func(repository.Progress)) (repository.Progress, error) {
			if !socket {
				err = &requestError{errNotHere}
			}
			if err != nil {
				return repository.Progress{}, err
			}
			return v.Restore(r.Context(), q, progress)
		})
	})
	handle("POST /v1/volumes/claims", func(w http.ResponseWriter, r *http.Request, v Volumes) {
		q, err := body[volumes.ClaimsRequest](w, r)
		lines(s, w, r, func(progress func(repository.Progress)) (*volumes.Made, error) {
			if err != nil {
				return nil, err
			}
			return v.BackClaims(r.Context(), q, progress)
		})
	})
	handle("POST /v1/volumes/check", func(w http.ResponseWriter, r *http.Request, v Volumes) {
		q, err := body[volumes.CheckRequest](w, r)
		lines(s, w, r, func(progress func(repository.Progress)) ([]volumes.Checked, error) {
			if err != nil {
				return nil, err
			}
			return v.Check(r.Context(), q, progress)
		})
	})
	handle("POST /v1/volumes/fill", func(w http.ResponseWriter, r *http.Request, v Volumes) {
		q, err := body[volumes.FillRequest](w, r)
		lines(s, w, r, func(progress func(repository.Progress)) (repository.Progress, error) {
			if err != nil {
				return repository.Progress{}, err
			}
			return v.Fill(r.Context(), q, progress)
		})
	})
	handle("POST /v1/volumes/verify", func(w http.ResponseWriter, r *http.Request, v Volumes) {
		percent, err := strconv.ParseFloat(r.URL.Query().Get("read"), 64)
		lines(s, w, r, func(func(repository.Progress)) (*repository.Verified, error) {
			if err != nil {
				return nil, badRequest("read: %w", err)
			}
			return v.Verify(r.Context(), percent, r.URL.Query()["backup"]...)
		})
	})
	handle("GET /v1/volumes/files", func(w http.ResponseWriter, r *http.Request, v Volumes) {
		q := r.URL.Query()
		out := newLines[repository.File](s, w)
		var failed error
		for f, err := range v.Files(r.Context(), q.Get("backup"), q.Get("path"), q.Get("deep") == "true") {
			if failed = err; err != nil || out.write(reply[repository.File]{Result: &f}) != nil {
				break
			}
		}
		s.logTrouble(r, failed)
		out.end(asked(failed))
	})
	handle("GET /v1/volumes/content", func(w http.ResponseWriter, r *http.Request, v Volumes) {
		q := r.URL.Query()
		out := &patientWriter{w, http.NewResponseController(w), s.o.WriteTimeout}
		begun := &begunWriter{w: out}
		if err := v.Read(r.Context(), q.Get("backup"), q.Get("path"), begun); err != nil {
			if !begun.begun {
				s.answer(w, r, nil, asked(err))
				return
			}
			s.logTrouble(r, err)
			panic(http.ErrAbortHandler) // the client sees that it is cut off
		}
	})
}

// begunWriter knows whether something was written.
type begunWriter struct {
	w     io.Writer
	begun bool
}

// Write implements io.Writer.
func (b *begunWriter) Write(p []byte) (int, error) {
	b.begun = true
	return b.w.Write(p)
}

// asked marks the errors that are the asker's.
func asked(err error) error {
	if errors.Is(err, volumes.ErrUnknown) || errors.Is(err, repository.ErrNoFile) || errors.Is(err, volumes.ErrAmbiguous) || errors.Is(err, volumes.ErrNoContent) || errors.Is(err, volumes.ErrRequest) || errors.Is(err, volumes.ErrPartly) ||
		errors.Is(err, repository.ErrMaintained) {
		return &requestError{err}
	}
	return err
}

func body[Q any](w http.ResponseWriter, r *http.Request) (q Q, err error) {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&q); err != nil {
		return q, badRequest("read the request: %w", err)
	}
	return q, nil
}

// reply is one line of an answer that takes long: progress, a result, or what went wrong. A whole answer ends with a line
// that has End.
type reply[T any] struct {
	Progress *repository.Progress `json:"progress,omitempty"`
	Result   *T                   `json:"result,omitempty"`
	Error    *wireError           `json:"failed,omitempty"`
	End      bool                 `json:"end,omitempty"`
}

// lineWriter writes lines, each flushed.
type lineWriter[T any] struct {
	mu sync.Mutex
	w  *patientWriter
}

func newLines[T any](s *Server, w http.ResponseWriter) *lineWriter[T] {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	return &lineWriter[T]{w: &patientWriter{w, http.NewResponseController(w), s.o.WriteTimeout}}
}

func (l *lineWriter[T]) write(v reply[T]) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := json.NewEncoder(l.w).Encode(v); err != nil {
		return err
	}
	return l.w.flush()
}

func (l *lineWriter[T]) end(err error) {
	last := reply[T]{End: true}
	if err != nil {
		last.Error = toWire(err)
	}
	_ = l.write(last) // a client that is gone does not care
}

// lines does what takes long, and tells how far it is.
func lines[T any](s *Server, w http.ResponseWriter, r *http.Request, do func(progress func(repository.Progress)) (T, error)) {
	out := newLines[T](s, w)
	v, err := do(func(p repository.Progress) { _ = out.write(reply[T]{Progress: &p}) })
	s.logTrouble(r, asked(err))
	_ = out.write(reply[T]{Result: &v})
	out.end(asked(err))
}

// long asks for what takes long.
func long[T any](ctx context.Context, c *Client, path string, v url.Values, q any, progress func(repository.Progress)) (result T, err error) {
	b, err := json.Marshal(q)
	if err != nil {
		return result, err
	}
	for l, err := range readLines[T](ctx, c, http.MethodPost, path, v, b) {
		if err != nil {
			return result, err
		}
		if l.Progress != nil && progress != nil {
			progress(*l.Progress)
		}
		if l.Result != nil {
			result = *l.Result
		}
	}
	return result, nil
}

// readLines yields the lines of an answer, and an error when it is one or the end is missing.
func readLines[T any](ctx context.Context, c *Client, method, path string, v url.Values, body []byte) iter.Seq2[reply[T], error] {
	return func(yield func(reply[T], error) bool) {
		resp, err := c.do(ctx, method, path, v, body)
		if err != nil {
			yield(reply[T]{}, err)
			return
		}
		defer resp.Body.Close()
		dec := json.NewDecoder(resp.Body)
		for {
			var l reply[T]
			if err := dec.Decode(&l); err != nil {
				if ctx.Err() != nil {
					err = ctx.Err()
				} else {
					err = cutOff(err)
				}
				yield(l, err)
				return
			}
			if l.Error != nil {
				yield(l, fromWire(l.Error))
				return
			}
			if l.End || !yield(l, nil) {
				return
			}
		}
	}
}

// Back implements Volumes.
func (c *Client) Back(ctx context.Context, q volumes.BackRequest, progress func(repository.Progress)) (*volumes.Backup, error) {
	return long[*volumes.Backup](ctx, c, "/v1/volumes/back", nil, q, progress)
}

// BackClaims implements Volumes.
func (c *Client) BackClaims(ctx context.Context, q volumes.ClaimsRequest, progress func(repository.Progress)) (*volumes.Made, error) {
	return long[*volumes.Made](ctx, c, "/v1/volumes/claims", nil, q, progress)
}

// Check implements Volumes.
func (c *Client) Check(ctx context.Context, q volumes.CheckRequest, progress func(repository.Progress)) ([]volumes.Checked, error) {
	return long[[]volumes.Checked](ctx, c, "/v1/volumes/check", nil, q, progress)
}

// Fill implements Volumes.
func (c *Client) Fill(ctx context.Context, q volumes.FillRequest, progress func(repository.Progress)) (repository.Progress, error) {
	return long[repository.Progress](ctx, c, "/v1/volumes/fill", nil, q, progress)
}

// List implements Volumes.
func (c *Client) List(ctx context.Context) (all []*volumes.Backup, err error) {
	return all, c.get(ctx, "/v1/volumes", nil, &all)
}

// Find implements Volumes.
func (c *Client) Find(ctx context.Context, name string) (b *volumes.Backup, err error) {
	return b, c.get(ctx, "/v1/volumes/one", url.Values{"backup": {name}}, &b)
}

// Files implements Volumes.
func (c *Client) Files(ctx context.Context, name, path string, deep bool) iter.Seq2[repository.File, error] {
	return func(yield func(repository.File, error) bool) {
		v := url.Values{"backup": {name}, "path": {path}, "deep": {strconv.FormatBool(deep)}}
		for l, err := range readLines[repository.File](ctx, c, http.MethodGet, "/v1/volumes/files", v, nil) {
			if err != nil {
				yield(repository.File{}, err)
				return
			}
			if l.Result != nil && !yield(*l.Result, nil) {
				return
			}
		}
	}
}

// Read implements Volumes.
func (c *Client) Read(ctx context.Context, name, path string, to io.Writer) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/volumes/content", url.Values{"backup": {name}, "path": {path}}, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err = io.Copy(to, resp.Body); err != nil {
		return cutOff(err)
	}
	return nil
}

// Restore implements Volumes.
func (c *Client) Restore(ctx context.Context, q volumes.RestoreRequest, progress func(repository.Progress)) (repository.Progress, error) {
	return long[repository.Progress](ctx, c, "/v1/volumes/restore", nil, q, progress)
}

// Verify implements Volumes.
func (c *Client) Verify(ctx context.Context, percent float64, names ...string) (*repository.Verified, error) {
	return long[*repository.Verified](ctx, c, "/v1/volumes/verify", url.Values{"read": {strconv.FormatFloat(percent, 'f', -1, 64)}, "backup": names}, nil, nil)
}

// Pin implements Volumes.
func (c *Client) Pin(ctx context.Context, name string, pinned bool) (b *volumes.Backup, err error) {
	return b, c.post(ctx, "/v1/volumes/pin", url.Values{"backup": {name}, "pinned": {strconv.FormatBool(pinned)}}, nil, &b)
}

// Delete implements Volumes.
func (c *Client) Delete(ctx context.Context, name string) (b *volumes.Backup, err error) {
	resp, err := c.do(ctx, http.MethodDelete, "/v1/volumes/one", url.Values{"backup": {name}}, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return b, decode(resp.Body, &b)
}

// Maintain implements Volumes.
func (c *Client) Maintain(ctx context.Context, q repository.Maintenance) (*repository.Maintained, error) {
	return long[*repository.Maintained](ctx, c, "/v1/volumes/maintain", url.Values{"now": {strconv.FormatBool(q.Now)}, "accept-lost-index": {strconv.FormatBool(q.AcceptLost)}}, nil, nil)
}
