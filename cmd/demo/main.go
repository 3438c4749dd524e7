// Demo shows Tidemark at work on a real control plane, from recording to rewinding: it runs
// the binary bin/tidemark as a user would, loses a namespace, has it put back, and then checks
// object by object, with plain client-go, that what came back is what was there. It exits with
// a status other than 0 when anything differs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/deploy/locals3"
)

func main() {
	runtime.LockOSThread() // the daemon is started from here and must not outlive this thread
	keep := flag.Bool("keep", false, "leave everything running afterwards, until Ctrl-C")
	binaries := flag.Bool("binaries", false, "only build the servers that tests talk to (control plane, S3) and say where they are")
	program := flag.String("tidemark", "bin/tidemark", "the program to show; `make build` makes it")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	err := run(ctx, os.Stdout, *keep, *binaries, *program)
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo: interrupted; everything is stopped")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "demo: "+err.Error())
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, keep, binaries bool, program string) error {
	if binaries {
		dir, err := localcluster.Binaries(ctx, out)
		if err != nil {
			return err
		}
		fmt.Fprintln(out, "control plane:", dir)
		dir, err = localcluster.NewerBinaries(ctx, out)
		if err != nil {
			return err
		}
		fmt.Fprintln(out, "newer control plane:", dir)
		store, err := locals3.Binary(ctx, out)
		if err != nil {
			return err
		}
		fmt.Fprintln(out, "S3 server:", store)
		return nil
	}
	d, err := newDemo(out, program)
	if err != nil {
		return err
	}
	err = d.show(ctx)
	if keep && ctx.Err() == nil {
		d.lookAround()
		if err != nil {
			fmt.Fprintf(out, "The demo failed: %v\n", err)
		}
		fmt.Fprintln(out, "Running until Ctrl-C ...")
		<-ctx.Done()
	}
	return errors.Join(err, d.stop())
}
