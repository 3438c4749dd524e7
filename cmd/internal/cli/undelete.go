package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/dustin/go-humanize/english"
	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/replay"
)

func newUndelete() *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:     "undelete ns/NAME | TYPE/NAME",
		GroupID: "change",
		Short:   "Bring a deleted object, or a whole namespace, back as it last lived",
		Long: `Bring a deleted object, or a whole namespace with all that was in it, back as it last lived.

It finds the last moment before the deletion began, and restores that: the plan is shown
first, and nothing is written before you say yes.`,
		Example: `  tidemark undelete ns/shop
  tidemark undelete deploy/web -n shop
  tidemark undelete cm settings -n shop --dry-run`,
		Args:              someArgs(1, 2, "one object, such as ns/shop or deploy/web"),
		ValidArgsFunction: f.complete,
		RunE:              func(cmd *cobra.Command, args []string) error { return f.undelete(cmd, args) },
	}
	f.addRestore(cmd)
	return cmd
}

func (f *restoreFlags) undelete(cmd *cobra.Command, args []string) error {
	if err := f.check(); err != nil {
		return err
	}
	ctx := cmd.Context()
	h, err := f.open(ctx, args)
	if err != nil {
		return err
	}
	defer h.src.Close()
	if len(h.targets) != 1 || len(h.targets[0].names) != 1 {
		return usage("undelete brings back one object: name it as TYPE/NAME, or ns/NAME for a whole namespace")
	}
	t := &h.targets[0]
	gr, name := t.ledger.GroupResource(), t.names[0]
	ref := replay.Ref{Resource: gr, Name: name}
	if t.ledger.Namespaced {
		if h.namespace == "" {
			return usage("%s %s lives in a namespace: say which with -n", t.ledger.Singular, name)
		}
		ref.Namespace = h.namespace
	}
	cut, end, err := replay.LastAlive(ctx, h.src, ref)
	switch {
	case errors.Is(err, replay.ErrNeverSeen):
		near, nearErr := h.nearObjects(ctx, missingObject{t.ledger, ref.Namespace, name})
		if nearErr != nil {
			return nearErr
		}
		return failure(ErrNotInHistory, "%v%s%s", err, near, h.severalTypes())
	case errors.Is(err, replay.ErrStillLives) && f.historyFlags.server.archive.url != "":
		return fmt.Errorf("%s lives at the end of the archive, %s: if it was deleted after that, bring it back as it was then with 'tidemark restore %s --at now' and the same --archive", ref, stamp(h.catalog.To.Time), ref.Typed())
	case err != nil:
		return err
	}
	by := ""
	if len(end.Managers) > 0 {
		by = " by " + text(strings.Join(end.Managers, ", "))
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "# %s: its deletion began at %s%s\n", ref, stamp(end.Observed), by)
	h.announce(cmd.ErrOrStderr(), cut)
	f.request.Cut = cut
	f.request.Scope = t.scope(h.namespace)
	if gr == namespaceKind {
		full, n, err := replay.EmptiedBefore(ctx, h.src, name, cut)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil: // it is no more than advice
			fmt.Fprintf(cmd.ErrOrStderr(), "# warning: whether it was emptied before cannot be found out: %v\n", err)
		case n > 0:
			fmt.Fprintf(cmd.ErrOrStderr(), "# warning: it was empty by then: %s had been deleted since %s; to have them too: tidemark restore -n %s --at rv:%s\n",
				english.Plural(n, "object", ""), stamp(full.Time), name, full.Revision)
		}
		f.request.Scope = replay.InNamespace(name)
		h.targets = nil // the namespace and all that was in it
	}
	return f.restore(cmd, h)
}
