package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/cmd/internal/daemon"
	"github.com/tidemark-backup/tidemark/replay"
)

// applyFlags are those of every command that writes to a cluster.
type applyFlags struct {
	records        string
	output         string
	resultFile     string
	dryRun         string
	yes            bool
	verbose, diffs bool
	events         bool
	hooks          bool
	wait           time.Duration
}

// detail says how much of a plan is shown.
func (f *applyFlags) detail() replay.Detail {
	switch {
	case f.verbose:
		return replay.DetailAll
	case f.diffs:
		return replay.DetailDiffs
	}
	return replay.DetailShort
}

func (f *applyFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	f.addRecords(cmd)
	fs.DurationVar(&f.wait, "wait", replay.DefaultWait, "how long to wait for a namespace to go or a definition to be ready")
	fs.StringVar(&f.dryRun, "dry-run", "none", "client: show the plan and write nothing; server: also let the API server try each write, and tell what it would refuse")
	fs.Lookup("dry-run").NoOptDefVal = "client"
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "name every object in the plan, and show what differs")
	fs.BoolVar(&f.diffs, "show-diff", false, "show what differs in objects that exist")
	fs.StringVar(&f.resultFile, "result-file", "", "also write the plan and the result to this file, as JSON")
	fs.BoolVar(&f.events, "events", true, "leave Events in the namespaces that were restored and on objects that failed")
	fs.BoolVar(&f.hooks, "restore-hooks", true, "run the programs that the annotations post.hook.restore.velero.io/* of restored Pods ask for")
	fs.BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	fs.StringVarP(&f.output, "output", "o", "", "json or yaml: the plan and the result (default: for people)")
}

func (f *applyFlags) addRecords(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.records, "records", "", "where restores are recorded, to be gone on with and undone; none: nowhere (default: ~/.local/state/tidemark/restores)")
}

func (f *applyFlags) check() error {
	if f.output != "" && f.output != "json" && f.output != "yaml" {
		return usage("-o %s: want json or yaml", f.output)
	}
	if f.dryRun != "none" && f.dryRun != "client" && f.dryRun != "server" {
		return usage("--dry-run=%s: want client or server", f.dryRun)
	}
	return nil
}

// openRecords finds the records of this person; nil with --records none.
func (f *applyFlags) openRecords() (*replay.Records, error) {
	switch {
	case f.records == "none":
		return nil, nil
	case f.records != "":
		return replay.OpenRecords(f.records), nil
	}
	state := os.Getenv("XDG_STATE_HOME")
	if state == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, usage("%v: say with --records where restores are recorded, or --records none", err)
		}
		state = filepath.Join(home, ".local", "state")
	}
	return replay.OpenRecords(filepath.Join(state, "tidemark", "restores")), nil
}

// mustRecords is openRecords for commands that are about records.
func (f *applyFlags) mustRecords() (*replay.Records, error) {
	r, err := f.openRecords()
	if r == nil && err == nil {
		return nil, usage("--records none: there are no records to look into")
	}
	return r, err
}

// frugal trades a tenth of the time of a large plan for a quarter of its memory. A small one, whose heap grows by half all the time, is
// collected as if there were more: what is never written to takes no memory. GOGC in the environment wins.
func frugal() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
		if ballast == nil {
			ballast = make([]byte, 16<<20)
		}
	}
}

var ballast []byte

// newTarget connects to the cluster that is written to.
func newTarget(kube *kubeFlags) (*replay.Target, error) {
	frugal()
	cfg, err := daemon.LoadConfig(kube.kubeconfig, kube.context)
	if err != nil {
		return nil, err
	}
	return replay.NewTarget(cfg)
}

// execution shows a plan, asks, records, applies and reports.
type execution struct {
	cmd    *cobra.Command
	flags  *applyFlags
	kube   *kubeFlags
	plan   *replay.Plan
	target *replay.Target
	// mark gives the moment before a name, in the history of the cluster; nil: it cannot.
	mark func(context.Context) error
	// record is the record of a restore that is gone on with; nil: a new one.
	record *replay.Record
	// server and volumes say who writes the content of claims; nil: nobody has to.
	server  *serverFlags
	volumes *volumeFlags
}

func (e *execution) run() error {
	cmd, ctx := e.cmd, e.cmd.Context()
	report := &restoreReport{cmd: cmd, flags: e.flags, plan: e.plan, done: map[replay.Action]int{}}
	if err := e.checkRights(ctx); err != nil {
		return err
	}
	if err := report.showPlan(); err != nil {
		return err
	}
	switch e.flags.dryRun {
	case "client":
		return report.dryRun()
	case "server":
		return report.rehearsal(ctx, e.target)
	}
	if e.plan.Writes() == 0 {
		return report.nothingToDo()
	}
	if err := e.flags.confirm(cmd, e.plan); err != nil {
		return err
	}
	if err := report.open(); err != nil {
		return err
	}
	var fill func(context.Context, replay.Filling, func(string)) error
	if does, might := fills(e.plan); e.volumes != nil && (does || might) {
		f, done, err := e.volumes.filler(ctx, e.plan, e.server, e.kube)
		switch {
		case err == nil:
			defer done()
			fill = f
		case does:
			return err
		}
	}
	if err := e.begin(); err != nil {
		return err
	}
	if e.mark != nil {
		if err := e.mark(ctx); err != nil {
			if ctx.Err() != nil {
				return err
			}
			// Whoever restores is in trouble already, and the record undoes it without a mark.
			fmt.Fprintf(cmd.ErrOrStderr(), "# warning: the moment before the restore gets no name: %v\n", err)
		}
	}
	work, cancel := e.patient()
	defer cancel()
	bar := newProgress(cmd.ErrOrStderr())
	result, err := e.plan.Apply(work, e.target, replay.ApplyOptions{Wait: e.flags.wait, Record: e.record, Fill: fill, Stop: ctx.Done(), Progress: func(at replay.Progress) {
		report.count(at)
		bar.update(at)
	}})
	bar.finish()
	if e.flags.events && result != nil && (result.Done > 0 || result.Failed > 0) {
		if err := e.plan.Announce(work, e.target, result); err != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "no Events could be left: %v\n", err)
		}
	}
	err = e.tellApplied(report, result, err)
	if err == nil {
		err = e.runPostHooks(work)
	}
	if e.record == nil {
		return err
	}
	if closed := e.record.Close(); closed != nil && err == nil {
		err = closed
	}
	return err
}

// tellApplied reports what was done, and how to go on or back.
func (e *execution) tellApplied(report *restoreReport, result *replay.Result, err error) error {
	if e.record == nil {
		return report.applied(result, err, "", "")
	}
	undo, resume := e.command("undo"), e.command("restores", "resume")
	report.describe = e.command("restores", "describe")
	return report.applied(result, err, undo, resume)
}

// checkRights adds to the plan's warnings what the API server will not allow.
func (e *execution) checkRights(ctx context.Context) error {
	missing, err := e.plan.Rights(ctx, e.target)
	if err != nil {
		return fmt.Errorf("ask for the rights that the plan needs: %w", err)
	}
	for _, m := range missing {
		e.plan.Warnings = append(e.plan.Warnings, "your rights do not allow to "+m+": these will fail")
	}
	return nil
}

// begin makes the record, unless there is one.
func (e *execution) begin() error {
	if e.record != nil {
		return nil
	}
	records, err := e.flags.openRecords()
	if err != nil || records == nil {
		return err
	}
	if e.record, err = records.Begin(e.plan); err != nil {
		return fmt.Errorf("%w: nothing was written; name a directory that can be written with --records DIR, or do without undo and resume with --records none", err)
	}
	return nil
}

// patient is a context that outlives the first Ctrl-C, which lets what is being written be finished,
// and ends with the second.
func (e *execution) patient() (context.Context, context.CancelFunc) {
	ctx := e.cmd.Context()
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		again := make(chan os.Signal, 1)
		signal.Notify(again, os.Interrupt, syscall.SIGTERM)
		defer signal.Stop(again)
		fmt.Fprintln(e.cmd.ErrOrStderr(), "stopping once what is being written is done; interrupt again to stop at once")
		select {
		case <-ended:
		case <-again:
			cancel(errors.New("interrupted"))
		}
	}()
	return work, func() {
		close(ended)
		cancel(nil)
	}
}

// command is what to type about this restore.
func (e *execution) command(words ...string) string {
	words = append([]string{e.cmd.Root().DisplayName()}, words...)
	words = append(words, e.plan.ID)
	words = append(words, given("--kubeconfig", e.kube.kubeconfig, "--context", e.kube.context, "--records", e.flags.records)...)
	for i := 1; i < len(words); i++ { // the first may be "kubectl tidemark"
		words[i] = quote(words[i])
	}
	return strings.Join(words, " ")
}
