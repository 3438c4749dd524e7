// Soak runs a real control plane with controllers, a scheduler and fake nodes, an object store and the daemon, changes
// the cluster all the time, lets random things go wrong, and has an independent checker compare random moments with
// what the API server says, all the while. It ends at the first difference, with everything that is needed to look
// into it. What is done follows from --seed; when exactly, from the machine.
//
//	make soak SOAK=10m SEED=7
//	go run ./bench/soak --for 8h --seed 7 --dir /tmp/soak
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/tidemark-backup/tidemark/bench/soak/checker"
	"github.com/tidemark-backup/tidemark/deploy/localdisk"
)

type options struct {
	length       time.Duration
	seed         uint64
	dir, program string
	given        string // with --tidemark
	tamper       string
}

// again is the command that does the same.
func (o *options) again() string {
	text := fmt.Sprintf("go run ./bench/soak --seed %d --for %s", o.seed, o.length)
	if o.given != "" {
		text += " --tidemark " + o.given
	}
	if o.tamper != "" {
		text += " --tamper " + o.tamper
	}
	return text
}

// replay is what the file REPLAY says: the command, and on what it ran.
func (o *options) replay(ctx context.Context) string {
	commit := "unknown (no git checkout)"
	if id, err := exec.CommandContext(ctx, "git", "rev-parse", "HEAD").Output(); err == nil {
		commit = strings.TrimSpace(string(id))
		if changed, err := exec.CommandContext(ctx, "git", "status", "--porcelain").Output(); err != nil || len(changed) > 0 {
			commit += ", with changes"
		}
	}
	who := "not as root"
	if os.Geteuid() == 0 {
		who = "as root"
	}
	return fmt.Sprintf("%s\n# commit %s\n# %s %s/%s, %d CPUs, %s\n", o.again(), commit, runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), who)
}

func main() {
	var o options
	flag.DurationVar(&o.length, "for", 10*time.Minute, "how long things change and go wrong; some minutes of preparing and of last comparisons come on top")
	flag.Uint64Var(&o.seed, "seed", 0, "what is done, and what goes wrong (default: a random one, which is told)")
	flag.StringVar(&o.dir, "dir", "", "new directory for everything: data, logs, evidence (default: one in the temporary directory, removed when all is well)")
	flag.StringVar(&o.program, "tidemark", "", "the program to try, whose clock never jumps (default: built from this checkout, with a clock that can be set)")
	flag.StringVar(&o.tamper, "tamper", "", "for trying the checker: spoil the daemon's answer, the archive's answer, the journal or a file of the archive (answer, archive-answer, journal, file)")
	flag.Parse()
	if again, code := localdisk.Isolate(); again {
		os.Exit(code)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if o.seed == 0 {
		o.seed = rand.Uint64N(1 << 32)
	}
	if err := soak(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "soak: "+err.Error())
		os.Exit(1)
	}
}

// soak is one run from the beginning to the summary.
func soak(ctx context.Context, o options, out io.Writer) (err error) {
	own := o.dir == ""
	if own {
		if o.dir, err = os.MkdirTemp("", "tidemark-soak-"); err != nil {
			return err
		}
	} else if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	clock := o.program == ""
	if !clock {
		if o.program, err = filepath.Abs(o.program); err != nil {
			return err
		}
		o.given = o.program
	}
	fmt.Fprintf(out, "seed %d, %s, in %s\n", o.seed, o.length, o.dir)
	if err := os.WriteFile(filepath.Join(o.dir, "REPLAY"), []byte(o.replay(ctx)), 0o600); err != nil {
		return err
	}
	log, err := openActions(filepath.Join(o.dir, "actions.jsonl"))
	if err != nil {
		return err
	}
	defer log.close()
	if clock {
		o.program = filepath.Join(o.dir, "tidemark")
		if err := buildSkewed(ctx, o.dir, o.program); err != nil {
			return err
		}
	}
	r, err := newRig(ctx, o, clock, log, out)
	var s *session
	if err == nil {
		if left := r.leftOut(); len(left) > 0 {
			fmt.Fprintln(out, "left out, for this machine cannot:", strings.Join(left, ", "))
		}
		if s, err = newSession(ctx, r, o); err == nil {
			err = s.run(ctx, o, out)
		}
	}
	if err != nil {
		log.note("check", 0, "the end", nil, err)
	}
	if ended := r.close(err != nil); ended != nil {
		fmt.Fprintln(out, "while ending:", ended)
	}
	if s != nil {
		s.summary(out, err)
	}
	switch {
	case err != nil:
		data := "disk/data/"
		if r.disk != nil {
			data = "journal/"
		}
		return fmt.Errorf("%w\n\neverything is in %s: actions.jsonl (what was done when), daemon.log, %s, store/, cluster/etcd/, moment-*.jsonl.gz, answer-*\nthe same again: %s (REPLAY says of which commit)", err, o.dir, data, o.again())
	case own:
		return os.RemoveAll(o.dir)
	}
	return nil
}

// session is the work of one run.
type session struct {
	*judge
	churned, refused int
	began            time.Time
}

// newSession furnishes the cluster, and waits until the daemon has recorded the beginning.
func newSession(ctx context.Context, r *rig, o options) (*session, error) {
	writer, err := newCluster(r.cluster.Config())
	if err != nil {
		return nil, err
	}
	if err := writer.furnish(ctx); err != nil {
		return nil, fmt.Errorf("furnish the cluster: %w", err)
	}
	live, err := client(r.cluster.Config())
	if err != nil {
		return nil, err
	}
	target, err := client(r.scratch.Config())
	if err != nil {
		return nil, err
	}
	j := &judge{
		rig: r, model: checker.NewModel(live), live: live, target: target, daemon: r.source(false), archive: r.source(true),
		random: rand.New(rand.NewPCG(o.seed, 3)), verified: map[*checker.Source]uint64{}, lastHistory: time.Now(), lastRestore: time.Now(), failed: map[string]int{}, reviewed: map[checker.Gap]time.Time{},
	}
	j.breaker = &breaker{rig: r, writer: writer, revision: live.Revision, counts: map[string]int{}}
	s := &session{judge: j, began: time.Now()}
	for end := time.Now().Add(2 * time.Minute); ; hold(ctx, 300*time.Millisecond) {
		known, err := j.daemon.Ledgers(ctx)
		if err == nil && known.From.Revision > 0 {
			j.first = known.From.Revision
			break
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return s, fmt.Errorf("recording does not begin: %w", errors.Join(err, ctx.Err()))
		}
	}
	if err := r.keepKey(); err != nil {
		return s, err
	}
	id, err := live.ClusterID(ctx)
	if err != nil {
		return s, err
	}
	j.chain = &checker.Chain{Dir: r.chainDir(id)}
	return s, s.spoil(o.tamper)
}

// run lets the cluster change, things go wrong and the judge look for the time given, and then compares what is left.
func (s *session) run(ctx context.Context, o options, out io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ending := errors.New("the time is over")
	timed, over := context.WithTimeoutCause(ctx, o.length, ending)
	defer over()
	failed := func(err error) {
		if err != nil {
			cancel(err)
		}
	}
	var all, watching group
	watching.run(func() { s.model.Run(ctx) })
	watching.run(func() { failed(s.guard(ctx)) })
	defer watching.Wait()
	defer cancel(nil)
	all.run(func() { s.churn(timed, o.seed) })
	all.run(func() { failed(s.breaker.run(timed, ctx, o.seed)) })
	all.run(func() { failed(s.judge.run(timed)) })
	all.run(func() { s.progress(timed, out) })
	all.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	fmt.Fprintln(out, "comparing what is left ...")
	err := s.drain(ctx, o.length)
	if err == nil {
		err = s.archive.Verify(ctx)
	}
	if ctx.Err() != nil { // what ended it says more
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	return errors.Join(s.stands(), floor(&s.counts, o.length, s.breaker.storms()))
}

// churn changes the cluster.
func (s *session) churn(ctx context.Context, seed uint64) {
	next := churn(seed)
	for n := 1; ; n++ {
		one := next()
		hold(ctx, one.Wait)
		if ctx.Err() != nil {
			return
		}
		over := func() {}
		if strings.HasSuffix(one.Op, "define") || one.Op == "definition" {
			over = s.breaker.reasoned(one.Op, ".soak.example.com")
		}
		err := s.breaker.writer.do(ctx, one)
		over()
		s.churned++
		if err != nil {
			s.refused++
		}
		s.log.note("churn", n, one.Op, one, err)
	}
}

// guard ends the run when the daemon ends by itself and nothing explains it.
func (s *session) guard(ctx context.Context) error {
	for ctx.Err() == nil {
		hold(ctx, 200*time.Millisecond)
		if err := s.stands(); ctx.Err() == nil && err != nil {
			return err
		}
	}
	return nil
}

func (s *session) stands() error {
	if s.daemonFell() {
		return fmt.Errorf("the daemon ended by itself: see %s", filepath.Join(s.dir, "daemon.log"))
	}
	return nil
}
