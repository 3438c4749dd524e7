package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

type logFlags struct {
	historyFlags
	since, from, to, output string
	follow                  bool
}

func newLog() *cobra.Command {
	var f logFlags
	cmd := &cobra.Command{
		Use:     "log [TYPE[/NAME]]...",
		GroupID: "look",
		Short:   "Show what changed: when, what, which fields, by whom",
		Long: `Show what changed: when, what, which fields, by which field manager; oldest first.

The time at the start of a line can be given to --at: it is the moment right after that
change. (Lines older than what 'tidemark status' calls restorable are the exception.) Gaps in the recording have lines of their own; changes marked (inferred) were found by
comparing states after a gap, and happened some time inside it.`,
		Example: `  tidemark log -n shop --since 1h
  tidemark log deploy/web -n shop
  tidemark log cm,secrets -A --from 2026-11-22T10:00:00Z --to 2026-11-22T10:30:00Z
  tidemark log -A --follow -o json | jq .name`,
		ValidArgsFunction: f.complete,
		RunE:              func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	f.add(cmd)
	f.addSelector(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.since, "since", "", "only changes after this moment; the same as --from")
	fs.StringVar(&f.from, "from", "", "only changes after this moment, in any form of --at (default: the beginning)")
	fs.StringVar(&f.to, "to", "", "only changes up to this moment (default: now)")
	fs.BoolVarP(&f.follow, "follow", "f", false, "go on with what changes from now on, until interrupted")
	fs.StringVarP(&f.output, "output", "o", "", "json (a line for each change) or wide (all fields; default: shortened)")
	return cmd
}

func (f *logFlags) run(cmd *cobra.Command, args []string) error {
	if f.output != "" && f.output != "json" && f.output != "wide" {
		return usage("-o %s: want json or wide", f.output)
	}
	if f.since != "" && f.from != "" {
		return usage("--since and --from say the same: give one of them")
	}
	if f.follow && f.to != "" {
		return usage("--follow has no end: leave out --to")
	}
	ctx := cmd.Context()
	h, err := f.open(ctx, args)
	if err != nil {
		return err
	}
	defer h.src.Close()
	q := replay.ChangeQuery{Scope: scopeOf(h.targets, h.namespace), Follow: f.follow}
	q.Scope.Selector = h.selector
	first := "--from"
	if f.since != "" {
		first = "--since"
	}
	if q.From, err = h.moment(ctx, first, f.since+f.from); err != nil {
		return err
	}
	if f.since+f.from == "now" { // by the daemon's clock, and not without a bound
		q.From = h.catalog.To.Time
	}
	if q.From.After(h.catalog.To.Time) { // it may lie in the future, where nothing can have changed
		if _, err := h.cut(ctx, first, f.since+f.from); err != nil {
			return err
		}
	}
	if q.To, err = h.moment(ctx, "--to", f.to); err != nil {
		return err
	}
	if !q.To.IsZero() && q.To.Before(q.From) {
		return usage("--to %s is before --from %s", stamp(q.To), stamp(q.From))
	}
	if from := h.catalog.From.Time; !q.From.IsZero() && q.From.Before(from) {
		fmt.Fprintf(cmd.ErrOrStderr(), "# the recorded history begins at %s\n", stamp(from))
	}
	p := &logPrinter{w: cmd.OutOrStdout(), h: h, json: f.output == "json", wide: f.output == "wide", namespaces: f.namespace.all}
	n, err := p.all(ctx, q)
	if f.follow && ctx.Err() != nil {
		return nil // interrupted, which is how following ends
	}
	if err != nil || f.follow {
		return err
	}
	missing, err := h.neverSeen(ctx)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return h.explainMissing(ctx, missing, h.catalog.To)
	}
	if p.changes == 0 {
		if err := h.knownNamespace(ctx); err != nil {
			return err
		}
	}
	if n == 0 {
		h.warn(cmd.ErrOrStderr(), h.catalog.To) // of what is not recorded, there is none
		fmt.Fprintf(cmd.ErrOrStderr(), "No changes found %s.\n", h.where())
	}
	return nil
}

// moment is the time of an --at text. Times and durations are taken as they are: a log may
// begin before the restorable range does.
func (h *history) moment(ctx context.Context, flag, text string) (time.Time, error) {
	if text == "" || text == "now" {
		return time.Time{}, nil
	}
	at, err := replay.ParseAt(text)
	switch {
	case err != nil:
		return time.Time{}, usage("%v", err)
	case !at.Time.IsZero():
		return at.Time, nil
	}
	cut, err := h.src.Resolve(ctx, at)
	if _, ok := errors.AsType[*replay.RangeError](err); ok && at.Ago != 0 {
		return h.catalog.To.Time.Add(-at.Ago), nil // by the daemon's clock, not by this machine's
	}
	return cut.Time, h.asTyped(flag, text, at, err)
}

// logPrinter writes changes and the gaps between them.
type logPrinter struct {
	w                      io.Writer
	h                      *history
	json, wide, namespaces bool
	gaps                   []logGap // not written yet, oldest first
	changes                int      // written
}

// logGap is a gap of one resource, or of several that had it together.
type logGap struct {
	journal.Gap
	resources []string
}

func (p *logPrinter) all(ctx context.Context, q replay.ChangeQuery) (int, error) {
	p.gaps = gapsOf(p.h.catalog, &q)
	n := 0
	for c, err := range p.h.src.Changes(ctx, q) {
		if err != nil {
			return n, err
		}
		if !covers(p.h.targets, p.h.namespace, &c.Event) {
			continue
		}
		if q.Follow && c.Inferred() {
			if err := p.refresh(ctx, &q, c.Observed); err != nil {
				return n, err
			}
		}
		if err := p.gapsUpTo(c.Observed); err != nil {
			return n, err
		}
		n++
		p.changes++
		if err := p.change(&c); err != nil {
			return n, err
		}
	}
	n += len(p.gaps)
	for _, g := range p.gaps {
		if err := p.gap(&g); err != nil {
			return n, err
		}
	}
	return n, nil
}

// refresh looks for new gaps: an inferred change means that there was one.
func (p *logPrinter) refresh(ctx context.Context, q *replay.ChangeQuery, since time.Time) error {
	catalog, err := p.h.src.Ledgers(ctx)
	if err != nil {
		return err
	}
	newest := time.Time{}
	for i := range p.h.catalog.Resources {
		for _, g := range p.h.catalog.Resources[i].Gaps {
			if g.To.Time.After(newest) {
				newest = g.To.Time
			}
		}
	}
	p.h.catalog = catalog
	for _, g := range gapsOf(catalog, q) {
		if g.To.Time.After(newest) && !g.From.Time.After(since) {
			p.gaps = append(p.gaps, g)
		}
	}
	return nil
}

// gapsOf are the gaps of the resources in scope that touch the time asked for.
func gapsOf(c *replay.Catalog, q *replay.ChangeQuery) []logGap {
	var out []logGap
	for i := range c.Resources {
		l := &c.Resources[i]
		if q.Scope.Resources != nil && !slices.Contains(q.Scope.Resources, l.GroupResource()) {
			continue
		}
		if q.Scope.Namespaces != nil && !l.Namespaced && !slices.Contains(q.Scope.Namespaces, replay.ClusterScope) {
			continue
		}
		for _, g := range l.Gaps {
			if g.To.Time.Before(q.From) || !q.To.IsZero() && g.From.Time.After(q.To) {
				continue
			}
			out = append(out, logGap{g, []string{l.GroupResource().String()}})
		}
	}
	slices.SortStableFunc(out, func(a, b logGap) int { return a.From.Time.Compare(b.From.Time) })
	return out
}

func (p *logPrinter) gapsUpTo(t time.Time) error {
	for len(p.gaps) > 0 && p.gaps[0].From.Time.Before(t) { // what was seen as it began comes first
		if err := p.gap(&p.gaps[0]); err != nil {
			return err
		}
		p.gaps = p.gaps[1:]
	}
	return nil
}

func (p *logPrinter) gap(g *logGap) error {
	if p.json {
		return p.line(struct {
			Gap      journal.Gap `json:"gap"`
			Resource string      `json:"resource"`
		}{g.Gap, g.resources[0]})
	}
	_, err := fmt.Fprintf(p.w, "%s  -- gap in %s until %s: %s; %d changes inferred, others may be missing --\n",
		stamp(g.From.Time), strings.Join(g.resources, ", "), stamp(g.To.Time), text(g.Cause), g.Inferred)
	return err
}

func (p *logPrinter) change(c *replay.Change) error {
	if p.json {
		return p.line(api.RecordOf(c))
	}
	id := p.h.kinds.LabelOf(c.Resource) + "/" + c.Name
	if p.namespaces {
		ns := c.Namespace
		if ns == "" {
			ns = "-"
		}
		id = fmt.Sprintf("%-16s %s", ns, id)
	}
	var notes []string
	if len(c.Fields) > 0 {
		notes = append(notes, p.fields(c.Fields))
	}
	if len(c.Managers) > 0 {
		notes = append(notes, "by "+text(strings.Join(c.Managers, ", ")))
	}
	if c.Flags&journal.Initial != 0 {
		notes = append(notes, "(was there when recording began)")
	}
	if c.Inferred() {
		notes = append(notes, "(inferred)")
	}
	line := fmt.Sprintf("%s  %-8s  %-40s  %s", stamp(c.Observed), strings.ToLower(c.Op.String()), id, strings.Join(notes, "  "))
	_, err := fmt.Fprintln(p.w, strings.TrimRight(line, " "))
	return err
}

// fields shortens the list of changed fields to what fits beside the rest.
func (p *logPrinter) fields(all []string) string {
	const most = 3
	shown := all
	if !p.wide && len(all) > most {
		shown = all[:most]
	}
	out := text(strings.Join(shown, " "))
	if more := len(all) - len(shown); more > 0 {
		out += fmt.Sprintf(" +%d more", more)
	}
	return out
}

func (p *logPrinter) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return errors.Join(errors.New("write a change as JSON"), err)
	}
	_, err = p.w.Write(append(b, '\n'))
	return err
}
