package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

const (
	// maxMarks is how many names a catalog holds, the newest.
	maxMarks = 100
	// restorePrefix begins the names that restores give to the moment before they write.
	restorePrefix = "restore/"
	// backupPrefix begins those of snapshots, which --at finds without it as well.
	backupPrefix = "backup/"
)

type markFlags struct {
	historyFlags
	at, output string
	force      bool
}

func newMark() *cobra.Command {
	var f markFlags
	cmd := &cobra.Command{
		Use:     "mark [NAME]",
		GroupID: "operate",
		Short:   "Give a moment a name, so that --at NAME finds it; or list the names",
		Long: `Give a moment a name, so that --at NAME finds it. Without a name it lists the named moments,
newest first (at most 100). Those called restore/ID were made by restores, backup/NAME by snapshots.`,
		Example: `  tidemark mark before-upgrade
  tidemark mark last-good --at 2026-11-22T10:30:00Z
  tidemark diff -n shop --at before-upgrade
  tidemark mark`,
		Args: someArgs(0, 1, "one name"),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	f.server.add(cmd)
	cmd.Flags().StringVar(&f.at, "at", "now", atHelp)
	cmd.Flags().BoolVar(&f.force, "force", false, "move a name that is taken")
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "json, of the list (default: for people)")
	return cmd
}

func (f *markFlags) run(cmd *cobra.Command, args []string) error {
	if f.output != "" && f.output != "json" {
		return usage("-o %s: want json", f.output)
	}
	if f.at == "" {
		return usage("--at is empty: give a moment, such as --at 15m, or leave it out for now")
	}
	if len(args) == 0 && cmd.Flags().Changed("at") {
		return usage("mark --at needs a name for the moment: 'tidemark mark NAME --at %s'", f.at)
	}
	if len(args) > 0 {
		if err := markable(args[0]); err != nil {
			return err
		}
	}
	ctx := cmd.Context()
	h, err := f.open(ctx, nil)
	if err != nil {
		return err
	}
	defer h.src.Close()
	if len(args) == 0 {
		return f.list(cmd.OutOrStdout(), h.catalog.Marks)
	}
	if !f.force {
		_, err := h.src.Resolve(ctx, replay.At{Mark: args[0]})
		if err == nil || h.marked(args[0]) {
			return usage("the name %s is taken: choose another, or move it with --force; 'tidemark mark' lists all names", args[0])
		}
		if !errors.As(err, new(*replay.RangeError)) {
			return err
		}
	}
	cut, err := h.cut(ctx, "--at", f.at)
	if err != nil {
		return err
	}
	if cut, err = h.src.Mark(ctx, args[0], cut); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is %s\n", args[0], cut)
	return err
}

// markable refuses names that --at, or --to, would not take for a name.
func markable(name string) error {
	if strings.HasPrefix(name, restorePrefix) {
		return usage("names that begin with %s are given by restores: choose another", restorePrefix)
	}
	if strings.HasPrefix(name, backupPrefix) {
		return usage("names that begin with %s are given by snapshots: choose another, or take one with 'tidemark snapshot create --name NAME'", backupPrefix)
	}
	at, err := replay.ParseAt(name)
	if err != nil || at.Mark == "" || name == "live" {
		return usage("%q cannot be the name of a moment, because --at reads it as something else: a name must start with a letter, hold only letters, digits and - . _ /, and not be now, live or a duration", name)
	}
	return nil
}

func (f *markFlags) list(out io.Writer, marks []journal.Mark) error {
	if f.output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(slices.Concat([]journal.Mark{}, marks))
	}
	if len(marks) == 0 {
		_, err := fmt.Fprintln(out, "No moment has a name yet: give one with 'tidemark mark NAME'.")
		return err
	}
	w := tabwriter.NewWriter(out, 6, 4, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tTIME\tREVISION")
	for _, m := range marks {
		fmt.Fprintf(w, "%s\t%s\trv:%s\n", m.Name, stamp(m.Time), m.Revision)
	}
	return w.Flush()
}

// marked reports whether the name is one of the catalog's.
func (h *history) marked(name string) bool {
	return slices.ContainsFunc(h.catalog.Marks, func(m journal.Mark) bool { return m.Name == name })
}

// someMarks names a few moments, those like the wanted one and people's own first.
func (h *history) someMarks(wanted string) string {
	var own, restores []string
	for _, m := range h.catalog.Marks {
		if strings.HasPrefix(m.Name, restorePrefix) {
			restores = append(restores, "before:"+m.Name)
		} else {
			own = append(own, m.Name)
		}
	}
	slices.SortStableFunc(own, func(a, b string) int {
		return cmp.Compare(replay.EditDistance(wanted, a), replay.EditDistance(wanted, b))
	})
	all := append(own, restores...)
	if len(all) == 0 {
		return ""
	}
	return ": there is " + strings.Join(all[:min(5, len(all))], ", ")
}
