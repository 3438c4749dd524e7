package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/replay"
)

// undoFlags are those of undo.
type undoFlags struct {
	historyFlags
	applyFlags
	from, to, manager   string
	force, owned, other bool
	maxDeletes          int
}

func newUndo() *cobra.Command {
	var f undoFlags
	cmd := &cobra.Command{
		Use:     "undo ID | undo --from T1 [--to T2] [TYPE[/NAME]]...",
		GroupID: "change",
		Short:   "Take back a restore, or what changed in some time, and nothing else",
		Long: `Take back a restore, or what changed in some time, and nothing else.

'undo ID' takes back what that restore (or undo) did: what it created is deleted, what it changed
or deleted is as it was. It works from the record of the restore, with no daemon and in any
cluster; 'tidemark restores list' shows the records.

'undo --from T1 --to T2' takes back what changed in that time in the recorded history, or with
--manager what one field manager changed: kubectl-edit, helm, an operator gone wild. (Deletions
do not say who made them: --manager leaves them out.)

Both go field by field: what has been changed again since stays as it is, and so does everything
that was not changed then. The plan names each such conflict; --force takes those back as well.`,
		Example: `  tidemark undo shop-20261122-103000-1a2b
  tidemark undo -n shop --from 10m --dry-run
  tidemark undo -A --from 2026-11-22T10:00:00Z --to 2026-11-22T10:05:00Z --manager bad-operator
  tidemark undo deploy/web -n shop --from 1h --to 30m`,
		ValidArgsFunction: f.complete,
		RunE:              func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	f.historyFlags.add(cmd)
	f.addSelector(cmd)
	f.applyFlags.add(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.from, "from", "", "take back what changed since this moment")
	fs.StringVar(&f.to, "to", "", "and up to this one (default: now)")
	fs.StringVar(&f.manager, "manager", "", "only what this field manager changed, such as kubectl-edit; kubectl/scale is one subresource")
	fs.BoolVar(&f.force, "force", false, "also take back what has been changed again since")
	fs.BoolVar(&f.owned, "owned", false, "with --from: also objects that a controller makes, such as the pods of a deployment")
	fs.BoolVar(&f.other, "other-cluster", false, "with --from: allow changing a cluster that is not the recorded one")
	fs.IntVar(&f.maxDeletes, "max-deletes", replay.DefaultMaxDeletes, "with --from: refuse to delete more objects than this")
	return cmd
}

func (f *undoFlags) run(cmd *cobra.Command, args []string) error {
	if err := f.check(); err != nil {
		return err
	}
	if f.from == "" && f.to == "" {
		if len(args) != 1 || f.manager != "" || f.selector != "" {
			return usage("undo takes back either one restore, named by its ID ('tidemark restores list' shows them), or what changed since --from")
		}
		return f.undoRecord(cmd, args[0])
	}
	if f.from == "" {
		return usage("undo --to needs --from as well: take back what changed since when?")
	}
	return f.undoTime(cmd, args)
}

// undoRecord takes back one restore.
func (f *undoFlags) undoRecord(cmd *cobra.Command, id string) error {
	records, err := f.mustRecords()
	if err != nil {
		return err
	}
	rec, err := records.Open(id, true) // nobody else works on it now
	if errors.Is(err, replay.ErrNoRecord) {
		return failure(ErrNotInHistory, "%v", err)
	}
	if err != nil {
		return err
	}
	q := rec.Undo()
	if err := rec.Close(); err != nil {
		return err
	}
	q.Force = f.force
	return f.undo(cmd, q, nil)
}

// undoTime takes back what history tells of some time.
func (f *undoFlags) undoTime(cmd *cobra.Command, args []string) error {
	ctx := cmd.Context()
	h, err := f.open(ctx, args)
	if err != nil {
		return err
	}
	defer h.src.Close()
	from, err := h.cut(ctx, "--from", f.from)
	if err != nil {
		return err
	}
	if f.to == "" {
		f.to = "now"
	}
	to, err := h.cut(ctx, "--to", f.to)
	if err != nil {
		return err
	}
	if !to.Time.After(from.Time) {
		return usage("--from %s lies after --to %s", f.from, f.to)
	}
	h.announce(cmd.ErrOrStderr(), from)
	scope := scopeOf(h.targets, h.namespace)
	scope.Selector = h.selector
	all, err := replay.Reversals(ctx, h.src, from, to, scope, f.manager)
	if errors.Is(err, replay.ErrNobody) {
		return failure(ErrNotInHistory, "%v", text(err.Error()))
	}
	if err != nil {
		return err
	}
	if picksFew(h.targets) {
		all = h.onlyTargeted(all)
	}
	q := replay.UndoRequest{
		Reversals: all, Force: f.force, Owned: f.owned, MaxDeletes: f.maxDeletes,
		Purpose: fmt.Sprintf("takes back what changed from %s to %s", stamp(from.Time), stamp(to.Time)),
	}
	if f.manager != "" {
		q.Purpose += " by " + f.manager
	}
	if !f.other {
		q.Cluster = h.catalog.ClusterID
	}
	return f.undo(cmd, q, h)
}

// undo plans and does it; h is nil where there is no history to mark the moment in.
func (f *undoFlags) undo(cmd *cobra.Command, q replay.UndoRequest, h *history) error {
	target, err := newTarget(&f.namespace.kube)
	if err != nil {
		return err
	}
	plan, err := replay.NewUndo(cmd.Context(), target, q)
	if errors.Is(err, replay.ErrTooManyDeletes) || errors.Is(err, replay.ErrOtherCluster) {
		return usage("%v", err)
	}
	if err != nil {
		return err
	}
	e := &execution{cmd: cmd, flags: &f.applyFlags, kube: &f.namespace.kube, plan: plan, target: target}
	if h != nil {
		e.mark = h.marker(plan)
	}
	return e.run()
}
