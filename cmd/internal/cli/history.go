package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

const atHelp = "the moment: a time (2026-11-22T10:30:00Z), a duration ago (15m, 2d), rv:REVISION, a mark's name, before:restore/ID, or now"

// historyFlags are those of every command that reads history.
type historyFlags struct {
	server    serverFlags
	namespace namespaceFlags
	selector  string
}

func (f *historyFlags) add(cmd *cobra.Command) {
	f.namespace.add(cmd)
	f.server.add(cmd)
}

func (f *historyFlags) addSelector(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.selector, "selector", "l", "", "only objects with these labels, such as app=web,tier!=cache")
}

// history is an open source with what a command line says about it.
type history struct {
	src       source
	catalog   *replay.Catalog
	kinds     *kinds
	namespace string // empty: all
	targets   []target
	selector  labels.Selector
}

// open connects, and reads the arguments with the help of the ledgers.
func (f *historyFlags) open(ctx context.Context, args []string) (*history, error) {
	h := &history{}
	var err error
	if f.selector != "" {
		if h.selector, err = labels.Parse(f.selector); err != nil {
			return nil, usage("-l %q: %v", f.selector, err)
		}
	}
	if h.namespace, err = f.namespace.resolve(); err != nil {
		return nil, err
	}
	if h.src, err = f.server.open(ctx); err != nil {
		return nil, err
	}
	if h.catalog, err = h.src.Ledgers(ctx); err != nil {
		return nil, err
	}
	h.kinds = newKinds(h.catalog)
	if h.targets, err = h.kinds.targets(args); err != nil {
		return nil, err
	}
	return h, nil
}

// cut resolves the text of a flag that takes what --at takes.
func (h *history) cut(ctx context.Context, flag, text string) (journal.Cut, error) {
	at, err := replay.ParseAt(text)
	if err != nil {
		return journal.Cut{}, usage("%v", err)
	}
	cut, err := h.src.Resolve(ctx, at)
	return cut, h.asTyped(flag, text, at, err)
}

// asTyped makes an error about a moment repeat what was typed, and offer the names there are, or a moment for the same flag.
func (h *history) asTyped(flag, text string, at replay.At, err error) error {
	outside, ok := errors.AsType[*replay.RangeError](err)
	if !ok {
		return err
	}
	if at.Mark != "" && len(h.catalog.Marks) < maxMarks && !h.marked(at.Mark) {
		return &message{fmt.Sprintf("no moment is named %q%s; 'tidemark mark' lists all names", at.Mark, h.someMarks(at.Mark)), outside}
	}
	if rest, found := strings.CutPrefix(outside.Error(), outside.At.String()); found {
		return &message{text + strings.ReplaceAll(rest, "'--at ", "'"+flag+" "), outside}
	}
	return err
}

// marker gives the moment before a plan is applied a name; where there is no daemon, it gives none.
func (h *history) marker(plan *replay.Plan) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := h.src.Mark(ctx, "restore/"+plan.ID, journal.Cut{})
		if errors.Is(err, replay.ErrReadOnly) {
			return nil
		}
		return err
	}
}

// onlyTargeted are the reversals of the objects that were named.
func (h *history) onlyTargeted(all []replay.Reversal) []replay.Reversal {
	return slices.DeleteFunc(all, func(r replay.Reversal) bool {
		return !covers(h.targets, h.namespace, &journal.Event{Resource: r.Resource, Namespace: r.Namespace, Name: r.Name})
	})
}

// where names the namespace for messages.
func (h *history) where() string {
	if h.namespace == "" {
		return "in any namespace"
	}
	return "in namespace " + h.namespace
}

// announce writes which cut an answer is for, and every gap that touches it.
func (h *history) announce(w io.Writer, cut journal.Cut) {
	fmt.Fprintf(w, "# as of %s (%s ago, rv:%s)\n", stamp(cut.Time), ago(time.Since(cut.Time)), cut.Revision)
	h.warn(w, cut)
}

// warn writes what the journal cannot vouch for at the cut, as far as it concerns the targets.
func (h *history) warn(w io.Writer, cut journal.Cut) {
	for _, c := range h.catalog.Caveats(cut, scopeOf(h.targets, h.namespace)) {
		fmt.Fprintf(w, "# warning: %s\n", c)
	}
}

// stamp writes a time for people, so that it can be given to --at: rounded up to the
// millisecond, so that what happened at that time is included.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	r := t.Truncate(time.Millisecond)
	if r.Before(t) {
		r = r.Add(time.Millisecond)
	}
	return r.UTC().Format("2006-01-02T15:04:05.000Z")
}

// ago writes a duration for people: "850ms", "42s", "3h12m".
func ago(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + ago(-d)
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}
