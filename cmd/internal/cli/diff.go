package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

type diffFlags struct {
	historyFlags
	at, to, output string
	options        replay.DiffOptions
	status, all    bool
}

func newDiff() *cobra.Command {
	var f diffFlags
	cmd := &cobra.Command{
		Use:     "diff [TYPE[/NAME]]...",
		GroupID: "look",
		Short:   "Show what is different between a moment and now, or another moment",
		Long: `Show what is different between a moment and the live cluster, or between two moments.

Lines with - are how it was at --at, lines with + how it is at --to. By default --to is live:
the cluster of your kubeconfig, read with your rights. --to now is the newest recorded state
and needs no cluster. Status and what the API server sets by itself are left out, and values
of Secrets are not shown, unless asked for.

Against live, what comes anew with the same content is no difference: objects that a controller
owns (pods, replica sets, endpoints), uids in owner references, cluster IPs, volumes of service
account tokens. --all compares them too.

Exit codes: 0 no differences, 1 differences, 2 or 4 trouble.`,
		Example: `  tidemark diff -n shop --at 15m
  tidemark diff deploy/web -n shop --at 2026-11-22T10:30:00Z --to 2026-11-22T11:00:00Z
  tidemark diff -A --at before-upgrade --to now -o json`,
		ValidArgsFunction: f.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := f.run(cmd, args)
			var outside *replay.RangeError
			for _, known := range []error{ErrDifferent, ErrUsage, ErrNotInHistory} {
				if errors.Is(err, known) {
					return err
				}
			}
			if err != nil && !errors.As(err, &outside) {
				return failure(ErrTrouble, "%v", err)
			}
			return err
		},
	}
	f.add(cmd)
	f.addSelector(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.at, "at", "", atHelp)
	fs.StringVar(&f.to, "to", "live", "compare with live, now (the newest recorded state), or any moment")
	fs.BoolVar(&f.status, "status", false, "compare the status too")
	fs.BoolVar(&f.all, "all", false, "compare everything: status, what the API server and controllers set or make by themselves")
	fs.BoolVar(&f.options.ShowSecrets, "show-secrets", false, "show the values of Secrets")
	fs.StringVarP(&f.output, "output", "o", "", "json (default: for people)")
	return cmd
}

// objectDiff is one object that differs, in -o json.
type objectDiff struct {
	Change    string             `json:"change"` // added, removed or modified
	Resource  string             `json:"resource"`
	Namespace string             `json:"namespace,omitempty"`
	Name      string             `json:"name"`
	Fields    []replay.FieldDiff `json:"fields,omitempty"`
}

// diffAnswer is the whole answer, in -o json.
type diffAnswer struct {
	At          journal.Cut  `json:"at"`
	To          *journal.Cut `json:"to,omitempty"` // absent: live
	Live        bool         `json:"live,omitempty"`
	Differences []objectDiff `json:"differences"`
}

func (f *diffFlags) run(cmd *cobra.Command, args []string) error {
	if f.output != "" && f.output != "json" {
		return usage("-o %s: want json", f.output)
	}
	if f.to == "" {
		return usage("--to is empty: give live, now, or a moment such as 5m")
	}
	if f.at == "" {
		return usage("diff needs a moment to compare with: give one with --at, such as --at 15m")
	}
	f.options.IgnoreStatus = !f.status && !f.all
	f.options.ServerFields = f.all
	ctx := cmd.Context()
	h, err := f.open(ctx, args)
	if err != nil {
		return err
	}
	defer h.src.Close()
	if err := h.oneNamespace(); err != nil {
		return err
	}
	answer := diffAnswer{Live: f.to == "live", Differences: []objectDiff{}}
	if answer.At, err = h.cut(ctx, "--at", f.at); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "# - %s (rv:%s)\n", stamp(answer.At.Time), answer.At.Revision)
	h.warn(cmd.ErrOrStderr(), answer.At)
	var now *live
	if answer.Live {
		if now, err = openLive(&f.namespace.kube); err != nil {
			return err
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "# + live")
	} else {
		to, err := h.cut(ctx, "--to", f.to)
		if err != nil {
			return err
		}
		answer.To = &to
		fmt.Fprintf(cmd.ErrOrStderr(), "# + %s (rv:%s)\n", stamp(to.Time), to.Revision)
		h.warn(cmd.ErrOrStderr(), to)
	}
	n := 0
	each := func(d objectDiff) error {
		n++
		if f.output == "json" {
			answer.Differences = append(answer.Differences, d)
			return nil
		}
		return h.writeDiff(cmd, d)
	}
	for _, t := range h.everything() {
		if now != nil && t.ledger.Group == journal.OwnGroup { // the cluster has no such thing
			continue
		}
		scope := t.scope(h.namespace)
		scope.Selector = h.selector
		before := h.src.Fold(ctx, answer.At, scope)
		var after iter.Seq2[journal.Event, error]
		if now != nil {
			after = now.objects(ctx, t.ledger, scope)
		} else {
			after = h.src.Fold(ctx, *answer.To, scope)
		}
		if err := f.compare(before, after, each); err != nil {
			return err
		}
	}
	if f.output == "json" {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		if err := enc.Encode(answer); err != nil {
			return err
		}
	}
	if n > 0 {
		return ErrDifferent
	}
	if err := f.nothingThere(ctx, h, answer.At); err != nil {
		return err
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "No differences.")
	return nil
}

// nothingThere makes an error of a named object that is at neither end: that is no equality.
func (f *diffFlags) nothingThere(ctx context.Context, h *history, cut journal.Cut) error {
	var missing []missingObject
	for i := range h.targets {
		t := &h.targets[i]
		if len(t.names) == 0 || h.selector != nil {
			continue
		}
		_, m, err := h.printTarget(ctx, t, cut, discard{})
		if err != nil {
			return err
		}
		missing = append(missing, m...)
	}
	if len(missing) == 0 {
		return h.knownNamespace(ctx)
	}
	return h.explainMissing(ctx, missing, cut)
}

// discard prints nothing.
type discard struct{}

func (discard) print(*journal.Ledger, *journal.Event) error { return nil }
func (discard) finish() error                               { return nil }

// everything is the targets, or a target for each resource that a namespace can hold.
func (h *history) everything() []target {
	if len(h.targets) > 0 {
		return h.targets
	}
	var out []target
	for i := range h.kinds.Ledgers {
		if l := &h.kinds.Ledgers[i]; l.Namespaced || h.namespace == "" {
			out = append(out, target{ledger: l})
		}
	}
	return out
}

// compare walks two states of one resource, both ordered, side by side.
func (f *diffFlags) compare(before, after iter.Seq2[journal.Event, error], each func(objectDiff) error) error {
	next, stop := iter.Pull2(after)
	defer stop()
	right, err, more := next()
	report := func(change string, e *journal.Event, old, new []byte) error {
		if f.to == "live" && !f.all {
			if remade(e.Resource, e.Name, old) || remade(e.Resource, e.Name, new) {
				return nil
			}
			old, new = withoutMarksOfMaking(e.Resource, old), withoutMarksOfMaking(e.Resource, new)
		}
		d := objectDiff{Change: change, Resource: e.Resource.String(), Namespace: e.Namespace, Name: e.Name}
		o := f.options
		o.Secret = e.Resource.Group == "" && e.Resource.Resource == "secrets"
		fields, err := replay.DiffObjects(old, new, o)
		if err != nil {
			return fmt.Errorf("compare %s: %w", e.ID(), err)
		}
		if change == "modified" && len(fields) == 0 {
			return nil
		}
		d.Fields = fields
		return each(d)
	}
	for left, leftErr := range before {
		if leftErr != nil {
			return leftErr
		}
		order := 1
		for more {
			if err != nil {
				return err
			}
			if order = cmp.Or(cmp.Compare(right.Namespace, left.Namespace), cmp.Compare(right.Name, left.Name)); order >= 0 {
				break
			}
			if err := report("added", &right, nil, right.Object); err != nil {
				return err
			}
			right, err, more = next()
		}
		if !more || order > 0 {
			if err := report("removed", &left, left.Object, nil); err != nil {
				return err
			}
			continue
		}
		if err := report("modified", &left, left.Object, right.Object); err != nil {
			return err
		}
		right, err, more = next()
	}
	for more {
		if err != nil {
			return err
		}
		if err := report("added", &right, nil, right.Object); err != nil {
			return err
		}
		right, err, more = next()
	}
	return nil
}

// writeDiff prints one object's differences. Of an object that came or went its fields say
// nothing new, so they are left out: 'tidemark get' shows them.
func (h *history) writeDiff(cmd *cobra.Command, d objectDiff) error {
	out := cmd.OutOrStdout()
	id := d.Resource + " " + d.Name
	if d.Namespace != "" {
		id = d.Resource + " " + d.Namespace + "/" + d.Name
	}
	switch d.Change {
	case "added":
		return replay.WriteDiff(out, "+ "+id+" (was not there)", nil, colorful(out))
	case "removed":
		return replay.WriteDiff(out, "- "+id+" (is not there any more)", nil, colorful(out))
	}
	return replay.WriteDiff(out, "~ "+id, d.Fields, colorful(out))
}

// colorful reports whether the output is a terminal that wants colours (NO_COLOR unset).
func colorful(out any) bool {
	f, ok := out.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(f.Fd()))
}
