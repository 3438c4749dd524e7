// Tidemark records every change of a Kubernetes cluster and puts any object or namespace back
// to any recorded moment. The same binary is the daemon, the command line and, called
// kubectl-tidemark, the kubectl plug-in.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/tidemark-backup/tidemark/cmd/internal/cli"
	"github.com/tidemark-backup/tidemark/replay"
)

// version is set by the build: -ldflags "-X main.version=v0.1.0".
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := cli.New(cli.Env{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Version: version,
		Name: strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe"),
	}).ExecuteContext(ctx)
	interrupted := context.Cause(ctx)
	stop()
	report(os.Stderr, err, interrupted)
	os.Exit(exitCode(err))
}

// report prints what went wrong; that there are differences is an answer and nothing wrong. interrupted, when not nil, is the signal that ended the
// command: whatever was being done then tells only that its context was canceled.
func report(w io.Writer, err, interrupted error) {
	if err == nil || errors.Is(err, cli.ErrDifferent) {
		return
	}
	text := err.Error()
	if interrupted != nil && errors.Is(err, context.Canceled) {
		text = strings.ReplaceAll(text, context.Canceled.Error(), interrupted.Error())
	}
	fmt.Fprintln(w, "error: "+text)
}

// exitCode is the only place that knows the numbers; 'tidemark help exit-codes' tells them.
func exitCode(err error) int {
	var outside *replay.RangeError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &outside), errors.Is(err, cli.ErrNotInHistory):
		return 4
	case errors.Is(err, cli.ErrDamaged):
		return 5
	case errors.Is(err, cli.ErrPartly):
		return 3
	case errors.Is(err, cli.ErrUsage), errors.Is(err, cli.ErrTrouble):
		return 2
	}
	return 1
}
