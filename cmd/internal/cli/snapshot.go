package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/cmd/internal/daemon"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/compactor/retention"
)

// archivesOf is the daemon's archives, or the one that --archive names. close lets go of it.
func (f *serverFlags) archives(ctx context.Context, policy retention.Policy) (a api.Archives, done func(), err error) {
	if f.archive.url == "" {
		c, err := f.connect()
		if err != nil {
			return nil, nil, err
		}
		return c, c.Close, nil
	}
	if f.server != "" {
		return nil, nil, usage("--server and --archive are two places: give one")
	}
	open, err := f.archive.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	return &api.OpenArchive{Archive: open, Policy: policy}, func() {}, nil
}

func newSnapshot() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "snapshot",
		Aliases: []string{"snapshots", "backup"},
		GroupID: "operate",
		Short:   "Full snapshots: take, list, keep, delete and export them",
		Long: `Full snapshots: the state of the cluster, or of a part of it, at one moment, in one file of the archive.

Nothing needs a snapshot to be restored: every moment of the archive's history can be. Snapshots
are what stays of older times when retention has removed the history between them, and what can be
exported for people without Tidemark. They are made from the journal; the cluster sees nothing of it.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSnapshotCreate(), newSnapshotList(), newSnapshotDescribe(), newSnapshotExport(),
		newSnapshotEdit("pin", "Keep a snapshot whatever retention says", api.EditPin, api.EditHold),
		newSnapshotEdit("unpin", "Let retention decide about a snapshot again", api.EditUnpin, api.EditRelease),
		newSnapshotEdit("delete", "Delete a snapshot", api.EditDelete, ""))
	return cmd
}

func newSnapshotCreate() *cobra.Command {
	var server serverFlags
	var q api.SnapshotRequest
	var scope archive.SnapshotScope
	var ttl, output string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Take a full snapshot now",
		Example: `  tidemark snapshot create --name before-upgrade --ttl 30d
  tidemark snapshot create -l app=web --include-namespaces shop`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.Name != "" {
				if err := markable(q.Name); err != nil {
					return err
				}
			}
			var err error
			if q.TTL, err = timeToLive(ttl); err != nil {
				return err
			}
			if len(scope.Namespaces)+len(scope.Resources) > 0 || scope.Selector != "" {
				q.Scope = &scope
			}
			if err := daemon.CheckScope(q.Scope); err != nil {
				return usage("%v", err)
			}
			c, err := server.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			all, err := c.TakeSnapshot(cmd.Context(), q)
			switch {
			case api.Unknown(err):
				return failure(ErrNotInHistory, "%v", err)
			case api.Refused(err):
				return failure(ErrUsage, "%v", err)
			case err != nil:
				return err
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), all)
			}
			failed := 0
			for _, l := range all {
				if l.Error != "" {
					failed++
					fmt.Fprintf(cmd.ErrOrStderr(), "archive %s: %s\n", l.Archive, l.Error)
					continue
				}
				p := l.Snapshots[0]
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s objects at %s (rv:%s), %s in archive %s\n", firstOf(p.Label, p.ID),
					humanize.Comma(int64(p.Objects)), stamp(p.Position.Time), p.Position.Revision, humanize.IBytes(uint64(p.Size)), l.Archive)
			}
			if failed > 0 {
				return failure(ErrPartly, "the snapshot is missing in %d of %d archives", failed, len(all))
			}
			return nil
		},
	}
	server.add(cmd)
	hide(cmd, "archive", "identity", "cluster", "archive-credentials", "archive-profile", "archive-ca")
	fs := cmd.Flags()
	fs.StringVar(&q.Name, "name", "", "name, under which --at finds the moment as well (default: an ID)")
	fs.StringVarP(&scope.Selector, "selector", "l", "", "only objects with these labels, such as app=web")
	fs.StringSliceVar(&scope.Namespaces, "include-namespaces", nil, "only these namespaces, such as shop,team-* (default: everything)")
	fs.StringSliceVar(&scope.Resources, "include-resources", nil, "only these types, such as deploy,secrets (default: everything)")
	fs.StringVar(&ttl, "ttl", "", "delete it after this time, such as 720h or 30d (default: keep it until it is deleted by hand)")
	fs.BoolVar(&q.Pinned, "pin", false, "keep it whatever retention says")
	fs.StringSliceVar(&q.Archives, "to", nil, "only to these archives, by name (default: all)")
	fs.StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

// timeToLive reads --ttl; empty: zero.
func timeToLive(ttl string) (time.Duration, error) {
	if ttl == "" {
		return 0, nil
	}
	d, err := window(ttl)
	if err != nil || d == 0 {
		return 0, usage("--ttl %s: want a duration such as 720h or 30d", ttl)
	}
	return d, nil
}

// hide takes flags that make no sense for a command out of its help.
func hide(cmd *cobra.Command, flags ...string) {
	for _, name := range flags {
		_ = cmd.Flags().MarkHidden(name) // they are there
	}
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func newSnapshotList() *cobra.Command {
	var server serverFlags
	var output string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the snapshots, oldest first",
		Example: "  tidemark snapshot list\n  tidemark snapshot list --archive s3://backups/prod -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, done, err := server.archives(cmd.Context(), retention.Policy{})
			if err != nil {
				return err
			}
			defer done()
			all, err := a.Snapshots(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), all)
			}
			if !slices.ContainsFunc(all, func(l api.Location) bool { return l.Error != "" || len(l.Snapshots) > 0 }) {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "There are no snapshots. Moments can be restored without; 'tidemark snapshot create' takes one.")
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 6, 4, 3, ' ', 0)
			fmt.Fprintln(w, "NAME\tARCHIVE\tTIME\tREVISION\tOBJECTS\tSIZE\tSCOPE\tORIGIN\tKEPT")
			for _, l := range all {
				if l.Error != "" {
					fmt.Fprintf(cmd.ErrOrStderr(), "archive %s: %s\n", l.Archive, l.Error)
				}
				for i := range l.Snapshots {
					p := &l.Snapshots[i]
					fmt.Fprintf(w, "%s\t%s\t%s\trv:%s\t%d\t%s\t%s\t%s\t%s\n", firstOf(p.Label, p.ID), l.Archive, stamp(p.Position.Time), p.Position.Revision,
						p.Objects, humanize.IBytes(uint64(p.Size)), scopeText(p.Scope), p.Origin, keptText(p.Held, p.Pinned, p.TTL))
				}
			}
			return w.Flush()
		},
	}
	server.add(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: a table)")
	return cmd
}

func scopeText(s *archive.SnapshotScope) string {
	if s == nil {
		return "everything"
	}
	var parts []string
	if len(s.Namespaces) > 0 {
		parts = append(parts, "ns "+strings.Join(s.Namespaces, ","))
	}
	if len(s.Resources) > 0 {
		parts = append(parts, strings.Join(s.Resources, ","))
	}
	if s.Selector != "" {
		parts = append(parts, "-l "+s.Selector)
	}
	return strings.Join(parts, " ")
}

// keptText says how long something is kept, by what was asked for.
func keptText(held, pinned bool, ttl time.Duration) string {
	switch {
	case held:
		return "legal hold"
	case pinned:
		return "pinned"
	case ttl > 0:
		return "for " + ago(ttl)
	}
	return "-"
}

// found finds a snapshot in the first location that has it.
func found(all []api.Location, name string) (api.Location, *archive.Snapshot, error) {
	for _, l := range all {
		for i := range l.Snapshots {
			if p := &l.Snapshots[i]; p.ID == name || p.Label == name {
				return l, p, nil
			}
		}
	}
	return api.Location{}, nil, failure(ErrNotFound, "there is no snapshot %q: 'tidemark snapshot list' shows what there is", name)
}

func newSnapshotDescribe() *cobra.Command {
	var server serverFlags
	var output string
	cmd := &cobra.Command{
		Use:   "describe NAME",
		Short: "Tell about one snapshot",
		Args:  someArgs(1, 1, "the name or ID of a snapshot"),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, done, err := server.archives(cmd.Context(), retention.Policy{})
			if err != nil {
				return err
			}
			defer done()
			all, err := a.Snapshots(cmd.Context())
			if err != nil {
				return err
			}
			l, p, err := found(all, args[0])
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), p)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 6, 4, 2, ' ', 0)
			for _, row := range [][2]string{
				{"ID", p.ID},
				{"Name", firstOf(p.Label, "-")},
				{"Archive", l.URL},
				{"File", p.Name},
				{"Size", fmt.Sprintf("%s (%d bytes)", humanize.IBytes(uint64(p.Size)), p.Size)},
				{"SHA-256", p.SHA256},
				{"Moment", fmt.Sprintf("%s (rv:%s)", p.Position.Time.UTC().Format(time.RFC3339Nano), p.Position.Revision)},
				{"Objects", fmt.Sprint(p.Objects)},
				{"State hash", p.State},
				{"Scope", scopeText(p.Scope)},
				{"Origin", p.Origin},
				{"Created", p.Created.UTC().Format(time.RFC3339)},
				{"Kept", keptText(p.Held, p.Pinned, p.TTL)},
			} {
				fmt.Fprintf(w, "%s:\t%s\n", row[0], row[1])
			}
			return w.Flush()
		},
	}
	server.add(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

func newSnapshotEdit(use, short, action, hold string) *cobra.Command {
	var server serverFlags
	var legal, yes bool
	cmd := &cobra.Command{
		Use:   use + " NAME",
		Short: short,
		Args:  someArgs(1, 1, "the name or ID of a snapshot"),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, done, err := server.archives(cmd.Context(), retention.Policy{})
			if err != nil {
				return err
			}
			defer done()
			if action == api.EditDelete && !yes {
				if err := confirm(cmd, "Delete snapshot "+args[0]+"?"); err != nil {
					return err
				}
			}
			q := api.EditRequest{Snapshot: args[0], Action: action}
			if legal {
				q.Action = hold
			}
			all, err := a.EditSnapshot(cmd.Context(), q)
			if err != nil {
				return err
			}
			for _, l := range all {
				if l.Error != "" {
					return failure(ErrPartly, "archive %s: %s", l.Archive, l.Error)
				}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: done\n", args[0])
			return err
		},
	}
	if action == api.EditDelete {
		cmd.Long = short + `. Its file is removed a quarter of an hour later, so that whoever is reading it can finish.
One that is pinned, under a legal hold, or that restores of other moments are built on, is refused.`
		cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	} else {
		cmd.Flags().BoolVar(&legal, "legal-hold", false, "with the store's legal hold, which the store itself enforces (the bucket must have object lock)")
	}
	server.add(cmd)
	return cmd
}
