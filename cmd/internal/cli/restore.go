package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/journal/durable"
	"github.com/tidemark-backup/tidemark/replay"
)

// restoreFlags are those of restore and undelete.
type restoreFlags struct {
	historyFlags
	applyFlags
	scope              scopeFlags
	at, existing       string
	planFile, savePlan string
	mappings, fields   []string
	status             []string
	nodePorts          bool
	transforms         transformFlags
	volumes            volumeFlags
	request            replay.RestoreRequest
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
your kubeconfig. By default only what is missing is created, and what exists is left alone. For more:

  --existing update     also make what exists as it was
  --existing recreate   also replace what cannot be changed in place
  --prune               also delete what was not there then; with --existing update a true rewind,
                        which removes fields that were not there then, too

Namespaces and cluster-scoped objects are only deleted when their type is named. To change a
cluster that is not the recorded one needs --other-cluster.

What is chosen: TYPE and NAME arguments, -n, -A and -l as everywhere, or Velero's words
--include-namespaces, --exclude-namespaces, --include-resources, --exclude-resources and
--or-selector. Objects with the label velero.io/exclude-from-backup=true are left alone. Of what
lies outside any namespace, a restore of namespaces brings back what its objects need and what
is missing: classes, volumes, roles; --include-cluster-resources says otherwise.

On their way back objects can be changed, which the plan shows: --namespace-mappings,
--storage-class-mappings, --image-rewrite, --resource-modifiers with Velero's files, and --transform
with CEL. An object for which a rule fails is not restored. --transform takes an expression over
object, resource, name, fromNamespace and toNamespace that gives a JSON merge patch ({} changes
nothing; map.with(map) is the first map with the entries of the second), or @FILE:

  version: v1
  transforms:
  - name: one replica is enough here
    when: resource == "deployments.apps" && object.spec.replicas > 1
    patch: '{"spec": {"replicas": 1}}'

With --quiesce, workloads are made without replicas, and jobs suspended; they are started when all
that they use is there. A restore that is cut off in between starts them when it is resumed.

Every step is recorded on this machine before it is taken. Interrupted, killed or partly failed?
'tidemark restores resume ID' goes on, and does nothing twice. Wrong? 'tidemark undo ID' takes it
back. The ID stands at the end, and in 'tidemark restores list'.

Claims (PersistentVolumeClaims) that are made get their content back: of the newest volume backup at or before the moment, as the
plan says; --volumes nearest, none or NAME chooses another one. A snapshot is used where the storage that has it makes the volume, and otherwise the
files in the repository, written by a Pod before anything can use the claim: by the daemon, or from here with --archive and
--identity. Content of claims that are there is left alone, unless --volumes-in-place replaces their files. A claim whose volume was
retained gets a new one where a backup is chosen, and otherwise its old one, as that is now.

With --save-plan FILE the plan is written down and nothing else; --plan FILE applies it later,
exactly, or not at all when the cluster is not as the plan found it. The file holds the objects
as they are, Secrets as well: it is for you only.`,
		Example: `  tidemark restore -n shop --at 15m
  tidemark restore -n shop --at 2026-11-22T10:30:00Z --existing update --prune --dry-run
  tidemark restore deploy/web cm/settings -n shop --at before-upgrade --existing update
  tidemark restore deploy/web -n shop --at 1h --field .spec.replicas
  tidemark restore -n shop --at 1h --namespace-mappings shop:shop-copy
  tidemark restore -n shop --at 1h --transform 'resource == "deployments.apps" ? {"spec": {"replicas": 1}} : {}'
  tidemark restore -n shop --at 1h --save-plan shop.plan && tidemark restore --plan shop.plan`,
		ValidArgsFunction: f.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.planFile != "" {
				return f.applyPlan(cmd, args)
			}
			if f.at == "" {
				return usage("restore needs a moment: give one with --at, such as --at 15m; 'tidemark log' shows what happened when")
			}
			return f.run(cmd, args)
		},
	}
	f.addRestore(cmd)
	f.addSelector(cmd)
	f.scope.add(cmd)
	f.transforms.add(cmd)
	cmd.Flags().StringArrayVar(&f.fields, "field", nil, "only this field of the objects, such as .spec.replicas; may be given several times")
	cmd.Flags().StringVar(&f.at, "at", "", atHelp)
	cmd.Flags().StringVar(&f.planFile, "plan", "", "apply the plan in this file, which --save-plan wrote")
	return cmd
}

func (f *restoreFlags) addRestore(cmd *cobra.Command) {
	f.historyFlags.add(cmd)
	f.applyFlags.add(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.savePlan, "save-plan", "", "write the plan to this file, to be applied later, and nothing else")
	fs.StringSliceVar(&f.mappings, "namespace-mappings", nil, "restore a namespace under another name, FROM:TO")
	fs.StringVar(&f.existing, "existing", "none", "what exists already: none (leave it alone), update, or recreate")
	fs.BoolVar(&f.request.Exact, "exact", false, "with --existing update: also remove fields that were not there then; --prune implies it")
	fs.BoolVar(&f.request.Prune, "prune", false, "delete what is there now and was not there then")
	fs.IntVar(&f.request.MaxDeletes, "max-deletes", replay.DefaultMaxDeletes, "refuse to prune more objects than this; 0 is the same as not given")
	fs.BoolVar(&f.request.OtherCluster, "other-cluster", false, "allow changing a cluster that is not the recorded one")
	fs.BoolVar(&f.request.Quiesce, "quiesce", false, "make workloads without replicas, and start them when all else is there")
	fs.StringSliceVar(&f.status, "restore-status", nil, "also write the status of created objects of these types, * for all; the annotation velero.io/restore-status on an object has the last word")
	fs.BoolVar(&f.nodePorts, "preserve-nodeports", false, "keep all node ports of Services, or with =false none (default: those that somebody chose)")
	f.volumes.add(fs)
	fs.BoolVar(&f.request.VolumesInPlace, "volumes-in-place", false, "with --existing update: also replace the files of claims that exist by those of their backups")
	fs.BoolVar(&f.request.Owned, "owned", false, "also bring back what a controller would make anew, such as the pods of a deployment")
}

func (f *restoreFlags) run(cmd *cobra.Command, args []string) error {
	if err := f.check(); err != nil {
		return err
	}
	if err := f.scope.check(&f.historyFlags, args, &f.request); err != nil {
		return err
	}
	ctx := cmd.Context()
	h, err := f.open(ctx, f.scope.types(args))
	if err != nil {
		return err
	}
	defer h.src.Close()
	cut, err := h.cut(ctx, "--at", f.at)
	if err != nil {
		return err
	}
	h.announce(cmd.ErrOrStderr(), cut)
	f.request.Cut = cut
	f.request.Scope = scopeOf(h.targets, h.namespace)
	f.request.Scope.Selector = h.selector
	if len(h.targets) == 0 && len(f.mappings) > 0 && f.namespace.namespace == "" && !f.namespace.all && !f.scope.namespaces() {
		f.request.Scope.Namespaces = nil // the mappings name the namespaces
		for from := range f.request.NamespaceMappings {
			f.request.Scope.Namespaces = append(f.request.Scope.Namespaces, from)
		}
		slices.Sort(f.request.Scope.Namespaces)
	}
	if err := f.scope.narrow(ctx, h, &f.request); err != nil {
		return err
	}
	return f.restore(cmd, h)
}

// check reads the flags that need reading, before anything is opened.
func (f *restoreFlags) check() (err error) {
	if err := f.applyFlags.check(); err != nil {
		return err
	}
	if f.request.Existing, err = replay.ParseExistingPolicy(f.existing); err != nil {
		return usage("%v", err)
	}
	if f.request.Exact && f.request.Existing == replay.ExistingNone && !f.request.Prune {
		return usage("--exact is about what exists, and that is left alone: add --existing update")
	}
	if f.request.Quiesce && f.request.Owned {
		return usage("--quiesce makes workloads at rest, and they would delete what --owned brings back: use one of them")
	}
	if f.request.MaxDeletes < 0 {
		return usage("--max-deletes %d: want a number of objects", f.request.MaxDeletes)
	}
	for _, field := range f.fields {
		path, err := replay.ParseField(field)
		if err != nil {
			return usage("--field: %v", err)
		}
		f.request.Fields = append(f.request.Fields, path)
	}
	if len(f.fields) > 0 && (f.request.Prune || f.request.Exact || f.request.Existing != replay.ExistingNone) {
		return usage("--field changes the fields and nothing else: leave out --existing, --exact and --prune")
	}
	if f.request.VolumesInPlace && f.request.Existing == replay.ExistingNone {
		return usage("--volumes-in-place changes what exists: add --existing update")
	}
	if f.request.Transforms, err = f.transforms.read(); err != nil {
		return err
	}
	if f.request.NamespaceMappings, err = replay.ParseNamespaceMappings(f.mappings); err != nil {
		return usage("%v", err)
	}
	return nil
}

// choices reads the flags that need to know whether they were given, or what types there are.
func (f *restoreFlags) choices(cmd *cobra.Command, h *history) error {
	if cmd.Flags().Changed("preserve-nodeports") {
		f.request.NodePorts = replay.NodePortsDropped
		if f.nodePorts {
			f.request.NodePorts = replay.NodePortsKept
		}
	}
	for _, name := range f.status {
		if name == "*" {
			f.request.Status = append(f.request.Status, replay.AnyResource)
			continue
		}
		ledgers, err := h.kinds.find(name)
		if err != nil {
			return err
		}
		for _, l := range ledgers {
			f.request.Status = append(f.request.Status, l.GroupResource())
		}
	}
	return nil
}

// restore plans, asks, applies and reports. The scope and the cut are set.
func (f *restoreFlags) restore(cmd *cobra.Command, h *history) error {
	ctx := cmd.Context()
	if err := f.choices(cmd, h); err != nil {
		return err
	}
	picked := picksFew(h.targets)
	f.request.Named = picked
	if picked && f.request.Prune && !sameNames(h.targets) {
		return usage("--prune with single objects of several types: use one command for each type")
	}
	target, err := newTarget(&f.namespace.kube)
	if err != nil {
		return err
	}
	var src replay.Source = h.src
	if picked {
		src = &onlyTargets{Source: src, targets: h.targets, namespace: h.namespace}
	}
	var unknown string
	if f.request.Volumes, unknown, err = f.volumes.choose(ctx, h.src, f.request.Cut); err != nil {
		return err
	}
	plan, err := replay.NewPlan(ctx, src, target, f.request)
	switch {
	case errors.Is(err, replay.ErrNothing):
		return failure(ErrNotInHistory, "%v%s", err, h.severalTypes())
	case errors.Is(err, replay.ErrTooManyDeletes), errors.Is(err, replay.ErrOtherCluster), errors.Is(err, replay.ErrNoField):
		return usage("%v", err)
	case err != nil:
		return err
	}
	if unknown != "" {
		plan.Warnings = append(plan.Warnings, unknown)
	}
	if len(plan.Items) == 0 { // with --prune, of something that never was
		if err := h.neverWas(ctx); err != nil {
			return err
		}
	}
	if f.savePlan != "" {
		return f.save(cmd, plan)
	}
	e := &execution{cmd: cmd, flags: &f.applyFlags, kube: &f.namespace.kube, plan: plan, target: target, mark: h.marker(plan), server: &f.historyFlags.server, volumes: &f.volumes}
	return e.run()
}

// save writes the plan to a file and shows it.
func (f *restoreFlags) save(cmd *cobra.Command, plan *replay.Plan) error {
	err := durable.Create(f.savePlan, plan.Save)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return usage("--save-plan: %v", err)
	}
	if err != nil {
		return fmt.Errorf("--save-plan %s: %w", f.savePlan, err)
	}
	report := &restoreReport{cmd: cmd, flags: &f.applyFlags, plan: plan}
	if err := report.showPlan(); err != nil {
		return err
	}
	if report.structured() {
		if err := report.encode(nil, "", ""); err != nil {
			return err
		}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "The plan is written down, and nothing is restored yet. Apply it with: %s restore --plan %s\n", cmd.Root().DisplayName(), quote(f.savePlan))
	return nil
}

// applyPlan applies a plan that was saved, if the cluster is as it was then.
func (f *restoreFlags) applyPlan(cmd *cobra.Command, args []string) error {
	if len(args) > 0 || f.at != "" || f.savePlan != "" || f.selector != "" || len(f.mappings) > 0 {
		return usage("--plan applies the plan in the file as it is: leave out what chooses objects and moments")
	}
	if err := f.applyFlags.check(); err != nil {
		return err
	}
	r, err := os.Open(f.planFile)
	if err != nil {
		return usage("--plan: %v", err)
	}
	defer r.Close()
	plan, err := replay.LoadPlan(r)
	if err != nil {
		return usage("--plan %s: %v", f.planFile, err)
	}
	target, err := newTarget(&f.namespace.kube)
	if err != nil {
		return err
	}
	if err := plan.Check(cmd.Context(), target); err != nil {
		return usage("--plan %s: %v", f.planFile, err)
	}
	e := &execution{cmd: cmd, flags: &f.applyFlags, kube: &f.namespace.kube, plan: plan, target: target, server: &f.historyFlags.server, volumes: &f.volumes}
	return e.run()
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
