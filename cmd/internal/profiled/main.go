// Command profiled is the tidemark command with a window into its runtime: what bench/peers --profile measures. It is not
// shipped; the daemon itself has no such window, because a heap holds objects.
//
// GET /start and /stop on the socket that TIDEMARK_PROFILE names bound a CPU profile; /heap is a heap profile.
package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"sync"
	"syscall"
	"time"

	"github.com/tidemark-backup/tidemark/cmd/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if path := os.Getenv("TIDEMARK_PROFILE"); path != "" {
		runtime.MemProfileRate = 64 << 10
		l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
		if err != nil {
			return err
		}
		server := &http.Server{Handler: window(), ReadHeaderTimeout: time.Second}
		defer server.Close()
		go func() { _ = server.Serve(l) }()
	}
	return cli.New(cli.Env{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Name: "tidemark"}).ExecuteContext(ctx)
}

func window() http.Handler {
	var mu sync.Mutex
	var cpu bytes.Buffer
	m := http.NewServeMux()
	m.HandleFunc("GET /start", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		cpu.Reset()
		if err := pprof.StartCPUProfile(&cpu); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	m.HandleFunc("GET /stop", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		pprof.StopCPUProfile()
		_, _ = w.Write(cpu.Bytes())
	})
	m.HandleFunc("GET /heap", func(w http.ResponseWriter, _ *http.Request) {
		runtime.GC() // a heap profile is of the last collection
		_ = pprof.Lookup("heap").WriteTo(w, 0)
	})
	return m
}
