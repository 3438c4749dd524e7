package main

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// proxy stands between the daemon and the object store, and lets some requests fail.
type proxy struct {
	server *http.Server
	addr   string

	mu     sync.Mutex // guards what follows
	random *rand.Rand
	bad    bool
	failed map[string]int // by what happened
}

// newProxy listens on a free port and passes on to target. Which requests fail is up to seed and to their order.
func newProxy(target string, seed uint64) (*proxy, error) {
	to, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{addr: l.Addr().String(), random: rand.New(rand.NewPCG(seed, 4)), failed: map[string]int{}}
	pass := &httputil.ReverseProxy{
		// The host stays the client's: it is part of what it signed.
		Rewrite:      func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = to.Scheme, to.Host },
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ModifyResponse: func(r *http.Response) error {
			if r.Request.Context().Value(loseAnswer{}) != nil {
				return errors.New("lost") // the store did it, and nobody hears of it
			}
			return nil
		},
	}
	p.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(pass, w, r) }), ReadHeaderTimeout: time.Minute}
	go func() { _ = p.server.Serve(l) }() // until close
	return p, nil
}

// loseAnswer marks requests whose answer is lost on its way back.
type loseAnswer struct{}

func (p *proxy) serve(pass http.Handler, w http.ResponseWriter, r *http.Request) {
	switch what := p.fate(); what {
	case "500", "503":
		code := http.StatusInternalServerError
		if what == "503" {
			code = http.StatusServiceUnavailable
		}
		http.Error(w, "", code)
		return
	case "refused":
		panic(http.ErrAbortHandler)
	case "slow":
		select {
		case <-time.After(2 * time.Second):
		case <-r.Context().Done():
			return
		}
	case "lost":
		r = r.WithContext(context.WithValue(r.Context(), loseAnswer{}, true))
	}
	pass.ServeHTTP(w, r)
}

// fate decides about one request.
func (p *proxy) fate() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.bad {
		return ""
	}
	what := []string{"500", "503", "503", "refused", "slow", "lost", "lost", "", "", ""}[p.random.IntN(10)]
	if what != "" {
		p.failed[what]++
	}
	return what
}

// spoil lets requests fail from now on, or no longer.
func (p *proxy) spoil(bad bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bad = bad
}

func (p *proxy) failures() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.failed)
}

func (p *proxy) close() { _ = p.server.Close() }
