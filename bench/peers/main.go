// Command peers runs Tidemark and what people use instead side by side on one control plane and one S3 server, and
// writes what it measured to docs/benchmarks.md and bench/results:
//
//	go run ./bench/peers --objects 1000,10000,50000 --runs 3
//	go run ./bench/peers --check old.json,new.json
//
// The peers are built from their Go modules (bench/peers/velero, bench/peers/etcdtools), once per machine. The tools take
// turns and never run at the same time.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := start(ctx, os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "peers:", err)
		}
		os.Exit(1)
	}
}

func start(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("peers", flag.ContinueOnError)
	objects := flags.String("objects", "1000,10000,50000", "sizes of the cluster, in objects that are made")
	runs := flags.Int("runs", 3, "how often each tool has its turn at each size")
	rate := flags.Int("rate", 50, "changes per second of the churn")
	churn := flags.Duration("churn", time.Minute, "length of the churn")
	applied := flags.Int("applied", appliedPercent, "percent of the objects that are owned by server-side apply, which costs the API server more")
	out := flags.String("out", "docs/benchmarks.md", "report to write; empty: none")
	raw := flags.String("results", keptResults, "directory for the raw results")
	render := flags.String("render", "", "measure nothing: write the report of these results")
	compare := flags.String("check", "", "measure nothing: compare the ratios of two results, OLD.json,NEW.json, or of 'make bench', OLD.txt,NEW.txt")
	allowed := flags.Float64("allowed", 1.5, "with --check: by how much a ratio may be smaller")
	only := flags.String("only", "", "turns to take, such as recording,recorder,informer,reader (recording: the daemon, without snapshots and restores; informer, reader: parts of the recorder); empty: those of the report")
	profiles := flags.String("profiles", "", "directory for CPU and heap profiles of the daemon; they cost a little CPU; empty: none")
	keep := flags.Bool("keep", false, "leave logs and data where they are")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case *compare != "":
		before, after, ok := strings.Cut(*compare, ",")
		if !ok {
			return errors.New("--check takes two files: OLD.json,NEW.json")
		}
		was, err := load(before)
		if err != nil {
			return err
		}
		is, err := load(after)
		if err != nil {
			return err
		}
		return check(was, is, *allowed, os.Stdout)
	case *render != "":
		r, err := load(*render)
		if err != nil {
			return err
		}
		r.compute()
		return r.writeReport(*out, *render)
	}
	if *applied < 0 || *applied > 100 {
		return fmt.Errorf("--applied %d: percent, from 0 to 100", *applied)
	}
	sizes, err := parseSizes(*objects)
	if err != nil {
		return err
	}
	p, err := buildPrograms(ctx, *profiles != "", os.Stderr)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*raw, 0o755); err != nil {
		return err
	}
	r := &results{
		Date: time.Now().UTC().Format(time.DateOnly), Machine: thisMachine(), Versions: p.versions, Flags: flagsOfTools(), Objects: sizes,
		Runs: *runs, Rate: *rate, Churn: churn.Seconds(), Applied: applied, began: time.Now(),
	}
	file := filepath.Join(*raw, r.Date+"-peers.json")
	b := &bench{rate: *rate, churn: *churn, profiles: *profiles}
	if b.turns = reported; *only != "" {
		b.turns = strings.Split(*only, ",")
	}
	r.Turns = b.turns
	for _, n := range sizes {
		if err := b.size(ctx, p.programs, n, r, file, *keep); err != nil {
			return err
		}
	}
	fmt.Fprintf(os.Stderr, "measured in %s: %s\n", r.took(), file)
	if *out == "" {
		return nil
	}
	return r.writeReport(*out, file)
}

func parseSizes(text string) (sizes []int, err error) {
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 100 {
			return nil, fmt.Errorf("--objects %s: numbers of at least 100, such as 1000,10000", text)
		}
		sizes = append(sizes, n)
	}
	return sizes, nil
}

// size gives each tool its turns at one size of the cluster. What was measured is saved after each turn.
func (b *bench) size(ctx context.Context, p programs, n int, r *results, file string, keep bool) (err error) {
	dir, err := os.MkdirTemp("", "tidemark-peers-")
	if err != nil {
		return err
	}
	l, err := openLab(ctx, p, filepath.Join(dir, "lab"), n, *r.Applied, os.Stderr)
	if err != nil {
		return fmt.Errorf("%w (logs: %s)", err, dir)
	}
	defer func() {
		err = errors.Join(err, l.close())
		if err == nil && !keep {
			err = os.RemoveAll(dir)
		} else if err != nil {
			err = fmt.Errorf("%w (logs: %s)", err, dir)
		}
	}()
	if slices.ContainsFunc(b.turns, func(turn string) bool { return turn == veleroTool || turn == veleroTunedTool }) {
		if err := l.installVelero(ctx); err != nil {
			return err
		}
	}
	for run := range r.Runs {
		l.say("%d objects, run %d of %d", n, run+1, r.Runs)
		for _, turn := range b.turns {
			if err := l.awaitQuiet(ctx); err != nil { // else controllers make Events after those there are were deleted
				return err
			}
			if err := l.deleteEvents(ctx); err != nil {
				return err
			}
			samples, err := b.turn(ctx, l, turn)
			for _, s := range samples {
				s.Objects, s.Run = n, run+1
				r.Samples = append(r.Samples, s)
			}
			r.compute()
			if err := errors.Join(err, r.save(file)); err != nil {
				return err
			}
		}
	}
	return nil
}

// keptResults is where results are kept: of this program, and those of `make bench BENCH=Volumes`, which are in the report as well.
const keptResults = "bench/results"

// reported are the turns of which the report tells.
var reported = []string{veleroTool, "tidemark", veleroTunedTool, "recorder", "etcd"}

func (b *bench) turn(ctx context.Context, l *lab, name string) ([]sample, error) {
	switch name {
	case veleroTool:
		return b.veleroTurn(ctx, l, veleroTool, nil)
	case veleroTunedTool:
		return b.veleroTurn(ctx, l, veleroTunedTool, veleroTuned)
	case "tidemark":
		return b.tidemarkTurn(ctx, l, true)
	case "recording":
		return b.tidemarkTurn(ctx, l, false)
	case "recorder", "informer", "reader":
		return b.informerTurn(ctx, l, name)
	case "etcd":
		return l.etcdTurn(ctx)
	}
	return nil, fmt.Errorf("--only %s: want some of %s, recording, informer, reader", name, strings.Join(reported, ", "))
}
