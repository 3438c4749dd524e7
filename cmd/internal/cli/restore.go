package cli

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/cmd/internal/daemon"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// restoreFlags are those of restore and undelete.
type restoreFlags struct {
	historyFlags
	at, existing, output string
	mappings             []string
	request              replay.RestoreRequest
	dryRun, yes, verbose bool
	wait                 time.Duration
}

func newRestore() *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:     "restore [TYPE[/NAME]]...",
		GroupID: "change",
		Short:   "Put objects, a namespace or the cluster back to how they were at a moment",
		Long: `Put objects, a namespace or the cluster back to how they were at a moment.

First the plan is shown: what will be created, updated, deleted and left out, and why. Nothing
is written before you say yes. Applying does exactly what the plan shows, with the rights of
your kubeconfig. By default only what is missing is created and what exists is left alone:

  --existing update     also make what exists as it was
  --existing recreate   also replace what cannot be changed in place
  --prune               also delete what was not there then; with --existing update a true rewind,
                        which removes fields that were not there then, too

Namespaces and cluster-scoped objects are only deleted when their type is named. Before anything
is written the moment is marked, and at the end stand the commands that undo it, and what they
leave. To change a cluster that is not the recorded one needs --other-cluster, and has no undo.
Interrupted or partly failed? Run the same command again: what is done already is unchanged.`,
		Example: `  tidemark restore -n shop --at 15m
  tidemark restore -n shop --at 2026-11-22T10:30:00Z --existing update --prune --dry-run
  tidemark restore deploy/web cm/settings -n shop --at before-upgrade --existing update
  tidemark restore -n shop --at 1h --namespace-mappings shop:shop-copy`,
		ValidArgsFunction: f.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.at == "" {
				return usage("restore needs a moment: give one with --at, such as --at 15m; 'tidemark log' shows what happened when")
			}
			return f.run(cmd, args)
		},
	}
	f.addRestore(cmd)
	f.addSelector(cmd)
	cmd.Flags().StringVar(&f.at, "at", "", atHelp)
	return cmd
}

func (f *restoreFlags) addRestore(cmd *cobra.Command) {
	f.add(cmd)
	fs := cmd.Flags()
	fs.StringSliceVar(&f.mappings, "namespace-mappings", nil, "restore a namespace under another name, FROM:TO")
	fs.StringVar(&f.existing, "existing", "none", "what exists already: none (leave it alone), update, or recreate")
	fs.BoolVar(&f.request.Exact, "exact", false, "with --existing update: also remove fields that were not there then; --prune implies it")
	fs.BoolVar(&f.request.Prune, "prune", false, "delete what is there now and was not there then")
	fs.IntVar(&f.request.MaxDeletes, "max-deletes", replay.DefaultMaxDeletes, "refuse to prune more objects than this; 0 is the same as not given")
	fs.BoolVar(&f.request.OtherCluster, "other-cluster", false, "allow changing a cluster that is not the recorded one")
	fs.BoolVar(&f.request.Owned, "owned", false, "also bring back what a controller would make anew, such as the pods of a deployment")
	fs.DurationVar(&f.wait, "wait", replay.DefaultWait, "how long to wait for a namespace to go or a definition to be ready")
	fs.BoolVar(&f.dryRun, "dry-run", false, "show the plan and write nothing")
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "name every object in the plan, and show what differs")
	fs.BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	fs.StringVarP(&f.output, "output", "o", "", "json: the plan and the result (default: for people)")
}

func (f *restoreFlags) run(cmd *cobra.Command, args []string) error {
	if err := f.check(); err != nil {
		return err
	}
	ctx := cmd.Context()
	h, err := f.open(ctx, args)
	if err != nil {
		return err
	}
	defer h.src.Close()
	cut, err := h.cut(ctx, f.at)
	if err != nil {
		return err
	}
	h.announce(cmd.ErrOrStderr(), cut)
	f.request.Cut = cut
	f.request.Scope = scopeOf(h.targets, h.namespace)
	f.request.Scope.Selector = h.selector
	if len(h.targets) == 0 && len(f.mappings) > 0 && f.namespace.namespace == "" && !f.namespace.all {
		f.request.Scope.Namespaces = nil // the mappings name the namespaces
		for from := range f.request.NamespaceMappings {
			f.request.Scope.Namespaces = append(f.request.Scope.Namespaces, from)
		}
		slices.Sort(f.request.Scope.Namespaces)
	}
	return f.restore(cmd, h)
}

// check reads the flags that need reading, before anything is opened.
func (f *restoreFlags) check() (err error) {
	if f.output != "" && f.output != "json" {
		return usage("-o %s: want json", f.output)
	}
	if f.request.Existing, err = replay.ParseExistingPolicy(f.existing); err != nil {
		return usage("%v", err)
	}
	if f.request.Exact && f.request.Existing == replay.ExistingNone && !f.request.Prune {
		return usage("--exact is about what exists, and that is left alone: add --existing update")
	}
	if f.request.MaxDeletes < 0 {
		return usage("--max-deletes %d: want a number of objects", f.request.MaxDeletes)
	}
	if f.request.NamespaceMappings, err = replay.ParseNamespaceMappings(f.mappings); err != nil {
		return usage("%v", err)
	}
	return nil
}

// restore plans, asks, applies and reports. The scope and the cut are set.
func (f *restoreFlags) restore(cmd *cobra.Command, h *history) error {
	ctx := cmd.Context()
	picked := picksFew(h.targets)
	if picked && f.request.Prune && !sameNames(h.targets) {
		return usage("--prune with single objects of several types: use one command for each type")
	}
	cfg, err := daemon.LoadConfig(f.namespace.kube.kubeconfig, f.namespace.kube.context)
	if err != nil {
		return err
	}
	target, err := replay.NewTarget(cfg)
	if err != nil {
		return err
	}
	var src replay.Source = h.src
	if picked {
		src = &onlyTargets{Source: src, targets: h.targets, namespace: h.namespace}
	}
	plan, err := replay.NewPlan(ctx, src, target, f.request)
	switch {
	case errors.Is(err, replay.ErrNothing):
		return failure(ErrNotInHistory, "%v%s", err, h.severalTypes())
	case errors.Is(err, replay.ErrTooManyDeletes), errors.Is(err, replay.ErrOtherCluster):
		return usage("%v", err)
	case err != nil:
		return err
	}
	if len(plan.Items) == 0 { // with --prune, of something that never was
		if err := h.neverWas(ctx); err != nil {
			return err
		}
	}
	report := &restoreReport{cmd: cmd, json: f.output == "json", verbose: f.verbose, plan: plan, done: map[replay.Action]int{}}
	if err := report.showPlan(); err != nil {
		return err
	}
	if f.dryRun {
		return report.dryRun()
	}
	if plan.Writes() == 0 {
		return report.nothingToDo()
	}
	if err := f.confirm(cmd, plan); err != nil {
		return err
	}
	back := f.undo(cmd, h, plan)
	_, err = h.src.Mark(ctx, "restore/"+plan.ID, journal.Cut{})
	if errors.Is(err, replay.ErrReadOnly) {
		back = &undo{Stays: []string{"there is no command that undoes it: the archive was read without a daemon, so nothing recorded the moment before"}}
	} else if err != nil {
		return fmt.Errorf("mark the moment before the restore: %w; nothing was written", err)
	}
	bar := newProgress(cmd.ErrOrStderr())
	result, err := plan.Apply(ctx, target, replay.ApplyOptions{Wait: f.wait, Progress: func(at replay.Progress) {
		report.count(at)
		bar.update(at)
	}})
	bar.finish()
	return report.applied(result, err, back)
}

// picksFew reports whether single objects are named, rather than whole types.
func picksFew(ts []target) bool {
	return slices.ContainsFunc(ts, func(t target) bool { return len(t.names) > 0 })
}

// onlyTargets is a source that knows nothing but the targets: "deploy/web cm/settings" has no
// scope of its own that would not hold cm/web as well.
type onlyTargets struct {
	replay.Source
	targets   []target
	namespace string
}

// Fold implements replay.Source.
func (o *onlyTargets) Fold(ctx context.Context, cut journal.Cut, scope replay.Scope) iter.Seq2[journal.Event, error] {
	return func(yield func(journal.Event, error) bool) {
		for e, err := range o.Source.Fold(ctx, cut, scope) {
			if err == nil && !covers(o.targets, o.namespace, &e) {
				continue
			}
			if !yield(e, err) {
				return
			}
		}
	}
}
