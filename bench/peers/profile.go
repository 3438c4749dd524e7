package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
)

// profiles keeps CPU and heap profiles of the daemon's turns. They need the daemon of cmd/internal/profiled.
type profiles struct {
	dir    string // of the profiles; empty: none are taken
	socket string
	client *http.Client
	name   string // what they begin with
}

func newProfiles(dir, name, socket string) profiles {
	return profiles{dir: dir, name: name, socket: socket, client: &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}}
}

func (p *profiles) env() []string {
	if p.dir == "" {
		return nil
	}
	return append(os.Environ(), "TIDEMARK_PROFILE="+p.socket)
}

// begin begins a CPU profile of a scenario; end keeps it.
func (p *profiles) begin(ctx context.Context) error {
	if p.dir == "" {
		return nil
	}
	_, err := fetch(ctx, p.client, "http://profiled/start")
	return err
}

func (p *profiles) end(ctx context.Context, scenario string) error {
	return p.keep(ctx, "stop", scenario+".cpu")
}

// heap keeps a heap profile, which costs a garbage collection: never while something is measured.
func (p *profiles) heap(ctx context.Context, scenario string) error {
	return p.keep(ctx, "heap", scenario+".heap")
}

func (p *profiles) keep(ctx context.Context, what, name string) error {
	if p.dir == "" {
		return nil
	}
	text, err := fetch(ctx, p.client, "http://profiled/"+what)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.dir, fmt.Sprintf("%s-%s.pb.gz", p.name, name)), text, 0o644)
}
