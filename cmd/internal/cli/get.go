package cli

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/journal"
)

type getFlags struct {
	historyFlags
	at, output string
}

func newGet() *cobra.Command {
	var f getFlags
	cmd := &cobra.Command{
		Use:     "get TYPE[,TYPE] [NAME...] | TYPE/NAME...",
		GroupID: "look",
		Short:   "Show objects as they were at a moment, like kubectl get",
		Long: `Show objects as they were at a moment, like kubectl get. It needs the daemon and no cluster.

TYPE is what kubectl takes: deploy, deployments, deployment.apps, po, cm, a custom resource's
short name, or "all". The moment that was used, and every gap in the history that touches it,
is told on the standard error. -o json of one named object is the object exactly as the API
server sent it; of several, a v1 List of them.`,
		Example: `  tidemark get all -n shop --at 15m
  tidemark get deploy/web -n shop --at 2026-11-22T10:30:00Z -o yaml
  tidemark get secrets -A -l app=web --at before:restore/ID -o name
  tidemark get cm settings -n shop --at rv:123456 -o json | kubectl diff -f -`,
		Args:              someArgs(1, 0, "a type, such as deploy, or all"),
		ValidArgsFunction: f.complete,
		RunE:              func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	f.add(cmd)
	f.addSelector(cmd)
	cmd.Flags().StringVar(&f.at, "at", "now", atHelp)
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "json, yaml, name or wide (default: a table)")
	return cmd
}

// objectPrinter writes the objects of an answer, resource by resource.
type objectPrinter interface {
	print(l *journal.Ledger, e *journal.Event) error
	// finish ends the answer; nothing may have been printed.
	finish() error
}

func (f *getFlags) printer(cmd *cobra.Command, cut journal.Cut, single, prefixed bool) (objectPrinter, error) {
	out := cmd.OutOrStdout()
	switch f.output {
	case "", "wide":
		return &tablePrinter{w: out, wide: f.output == "wide", namespaces: f.namespace.all, prefixed: prefixed, cut: cut}, nil
	case "json":
		return &jsonPrinter{w: out, single: single}, nil
	case "yaml":
		return &yamlPrinter{w: out, single: single}, nil
	case "name":
		return &namePrinter{w: out}, nil
	}
	return nil, usage("-o %s: want json, yaml, name or wide", f.output)
}

func (f *getFlags) run(cmd *cobra.Command, args []string) error {
	if _, err := f.printer(cmd, journal.Cut{}, false, false); err != nil {
		return err
	}
	if f.at == "" {
		return usage("--at is empty: give a moment, such as --at 15m, or leave it out for now")
	}
	ctx := cmd.Context()
	h, err := f.open(ctx, args)
	if err != nil {
		return err
	}
	defer h.src.Close()
	if err := h.oneNamespace(); err != nil {
		return err
	}
	cut, err := h.cut(ctx, "--at", f.at)
	if err != nil {
		return err
	}
	h.announce(cmd.ErrOrStderr(), cut)
	single := len(h.targets) == 1 && len(h.targets[0].names) == 1
	p, err := f.printer(cmd, cut, single, len(h.targets) > 1)
	if err != nil {
		return err
	}
	found, missing := 0, []missingObject(nil)
	for i := range h.targets {
		t := &h.targets[i]
		n, m, err := h.printTarget(ctx, t, cut, p)
		if err != nil {
			return err
		}
		found, missing = found+n, append(missing, m...)
	}
	if found == 0 && len(missing) == 0 {
		if err := h.knownNamespace(ctx); err != nil {
			return err
		}
	}
	if found > 0 || !single && len(missing) == 0 {
		if err := p.finish(); err != nil {
			return err
		}
	}
	if len(missing) > 0 {
		return h.explainMissing(ctx, missing, cut)
	}
	if found == 0 {
		if slices.ContainsFunc(h.targets, func(t target) bool { return t.ledger.Namespaced }) {
			fmt.Fprintf(cmd.ErrOrStderr(), "No resources found %s at %s.\n", h.where(), stamp(cut.Time))
		} else {
			fmt.Fprintf(cmd.ErrOrStderr(), "No resources found at %s.\n", stamp(cut.Time))
		}
	}
	return nil
}

// complete offers the recorded resources to the shell.
func (f *historyFlags) complete(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	src, err := f.server.open(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer src.Close()
	catalog, err := src.Ledgers(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, l := range catalog.Resources {
		out = append(out, l.GroupResource().String())
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
