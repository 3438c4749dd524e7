package checker

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Unrecorded are the resources that Tidemark leaves out by default, and so does the checker.
var Unrecorded = map[string]bool{"events": true, "events.events.k8s.io": true, "leases.coordination.k8s.io": true}

// sum is the hash of an object's bytes.
type sum [sha256.Size]byte

func (s sum) String() string { return fmt.Sprintf("%x", s[:8]) }

// version is one version of one object.
type version struct {
	rv      uint64
	body    sum
	deleted bool
	seen    bool // on the wire; otherwise found in a list
}

// span is a stretch of revisions, from not included.
type span struct{ from, to uint64 }

// stream is what is known of one resource.
type stream struct {
	Resource
	objects map[string][]version // by namespace/name, oldest first
	blind   []span               // where versions may have been missed
	upTo    uint64               // complete up to here, but for blind
	broke   []time.Time          // when a watch ended, or began with a list
}

// pace says by when the cluster had got to a revision.
type pace struct {
	rv uint64
	at time.Time
}

// Model is the checker's own picture of the cluster and its past.
type Model struct {
	client *Client
	mu     sync.Mutex // guards what follows
	all    map[string]*stream
	events int
	paces  []pace // in the order of both
	watch  map[string]context.CancelFunc
	done   sync.WaitGroup
}

// NewModel knows nothing yet; Run makes it learn.
func NewModel(c *Client) *Model {
	return &Model{client: c, all: map[string]*stream{}, watch: map[string]context.CancelFunc{}}
}

// Run watches everything until ctx ends. Discovery is asked again every few seconds.
func (m *Model) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if found, err := m.client.Resources(ctx); err == nil {
			m.follow(ctx, found)
		}
		pause(ctx, 5*time.Second)
	}
	m.done.Wait()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// follow begins to watch what is new and ends with what is gone.
func (m *Model) follow(ctx context.Context, found []Resource) {
	m.mu.Lock()
	defer m.mu.Unlock()
	there := map[string]bool{}
	for _, r := range found {
		there[r.Name] = true
		if Unrecorded[r.Name] || m.watch[r.Name] != nil {
			continue
		}
		s := m.all[r.Name]
		if s == nil {
			s = &stream{Resource: r, objects: map[string][]version{}}
			m.all[r.Name] = s
		}
		one, cancel := context.WithCancel(ctx)
		m.watch[r.Name] = cancel
		m.done.Go(func() { m.track(one, s) })
	}
	for name, cancel := range m.watch {
		if !there[name] {
			cancel()
			delete(m.watch, name)
		}
	}
}

// track lists and then watches one resource, again and again, until ctx ends.
func (m *Model) track(ctx context.Context, s *stream) {
	for ctx.Err() == nil {
		items, rv, err := m.client.list(ctx, &s.Resource, s.all(), "")
		if err != nil {
			pause(ctx, 500*time.Millisecond)
			continue
		}
		m.learn(s, items, rv)
		for ctx.Err() == nil && !errors.Is(err, errGone) && !errors.Is(err, errMissing) {
			if err = m.read(ctx, s); err != nil {
				pause(ctx, 200*time.Millisecond)
			}
		}
	}
}

// learn takes over a list. What happened between the last thing that was seen and it is not known.
func (m *Model) learn(s *stream, items []item, rv uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	there := map[string]bool{}
	for _, it := range items {
		there[it.key] = true
		v := s.objects[it.key]
		if len(v) == 0 || v[len(v)-1].rv < it.rv {
			s.objects[it.key] = append(v, version{rv: it.rv, body: sha256.Sum256(it.raw)})
		}
	}
	for key, v := range s.objects {
		if last := v[len(v)-1]; !there[key] && !last.deleted && last.rv <= rv {
			s.objects[key] = append(v, version{rv: rv, deleted: true})
		}
	}
	if rv > s.upTo {
		s.blind = append(s.blind, span{s.upTo, rv})
		s.upTo = rv
	}
	s.broke = append(s.broke, time.Now())
	m.reached(rv)
}

// reached notes how far the cluster is. m.mu is held.
func (m *Model) reached(rv uint64) {
	now := time.Now()
	if n := len(m.paces); n == 0 || m.paces[n-1].rv < rv && now.Sub(m.paces[n-1].at) > 100*time.Millisecond {
		m.paces = append(m.paces, pace{rv, now})
	}
}

// When returns two times between which the cluster went from one revision to the other, as far as the Model saw it.
func (m *Model) When(from, to uint64) (time.Time, time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	began, ended := time.Time{}, time.Now()
	for _, p := range m.paces {
		if p.rv <= from {
			began = p.at
		}
		if p.rv >= to {
			ended = p.at
			break
		}
	}
	return began, ended
}

// Broke reports whether a watch of the resource ended, or had to begin with a list, between two times: the server let go of
// whoever watched it.
func (m *Model) Broke(resource string, from, to time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.all[resource]
	return s != nil && slices.ContainsFunc(s.broke, func(at time.Time) bool { return !at.Before(from) && !at.After(to) })
}

// read reads one watch to its end.
func (m *Model) read(ctx context.Context, s *stream) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.mu.Lock()
	from := s.upTo
	m.mu.Unlock()
	r, err := m.client.stream(ctx, http.MethodGet, s.all()+"?watch=true&allowWatchBookmarks=true&resourceVersion="+strconv.FormatUint(from, 10), nil)
	if err != nil {
		return err
	}
	defer r.Close()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		s.broke = append(s.broke, time.Now())
	}()
	// A bookmark comes about once a minute: a stream that says nothing for longer hangs.
	quiet := time.AfterFunc(2*time.Minute, cancel)
	defer quiet.Stop()
	lines := bufio.NewReaderSize(r, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return nil // as every watch ends; an error would be no news
		}
		quiet.Reset(2 * time.Minute)
		var e struct {
			Type   string
			Object json.RawMessage
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return errors.New("a watch event is no JSON")
		}
		if e.Type == "ERROR" {
			var status struct{ Code int }
			if json.Unmarshal(e.Object, &status) == nil && status.Code == http.StatusGone {
				return errGone
			}
			return errors.New("the watch ended in an error")
		}
		it, _, err := parseItem(e.Object)
		if err != nil {
			return err
		}
		m.see(s, e.Type, it)
	}
}

// see takes one event.
func (m *Model) see(s *stream, kind string, it item) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if kind != "BOOKMARK" {
		v := s.objects[it.key]
		if len(v) == 0 || v[len(v)-1].rv < it.rv {
			s.objects[it.key] = append(v, version{rv: it.rv, body: sha256.Sum256(it.raw), deleted: kind == "DELETED", seen: true})
			m.events++
		}
	}
	s.upTo = max(s.upTo, it.rv)
	m.reached(it.rv)
}

// knows reports whether the stream tells the whole truth about the revision.
func (s *stream) knows(rv uint64) bool {
	return rv <= s.upTo && !slices.ContainsFunc(s.blind, func(b span) bool { return b.from < rv && rv < b.to })
}

// sighted reports whether a version of that revision would have been seen on the wire.
func (s *stream) sighted(rv uint64) bool {
	return rv <= s.upTo && !slices.ContainsFunc(s.blind, func(b span) bool { return b.from < rv && rv <= b.to })
}

// at is the state at a revision.
func (s *stream) at(rv uint64) map[string]sum {
	out := map[string]sum{}
	for key, all := range s.objects {
		for _, v := range slices.Backward(all) {
			if v.rv <= rv {
				if !v.deleted {
					out[key] = v.body
				}
				break
			}
		}
	}
	return out
}

// Events counts what was seen on the wire.
func (m *Model) Events() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.events
}

// watched are the resources that are watched now.
func (m *Model) watched() []Resource {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Resource
	for name := range m.watch {
		out = append(out, m.all[name].Resource)
	}
	slices.SortFunc(out, func(a, b Resource) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out
}
