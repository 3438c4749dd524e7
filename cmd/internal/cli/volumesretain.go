package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/volumes"
)

// named are the backups of names, each once; it fails before anything is done with the first when one is not there.
func named(ctx context.Context, v api.Volumes, names []string) (all []*volumes.Backup, err error) {
	for _, name := range names {
		b, err := v.Find(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("nothing is done: %w", err)
		}
		if !slices.ContainsFunc(all, func(o *volumes.Backup) bool { return o.Metadata.Name == b.Metadata.Name }) {
			all = append(all, b)
		}
	}
	return all, nil
}

func newVolumesPin(use, short string, pinned bool) *cobra.Command {
	done := "is pinned"
	if !pinned {
		done = "is pinned no longer"
	}
	cmd := &cobra.Command{
		Use:   use + " BACKUP...",
		Short: short,
		Args:  someArgs(1, 0, "the names of backups"),
	}
	if pinned {
		cmd.Long = short + ". One that is pinned is not deleted, by retention or by hand, until 'tidemark volumes unpin'. It is noted in history and in the repository;\npinned in one of them is pinned."
	}
	return volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) error {
		all, err := named(cmd.Context(), v, args)
		if err != nil {
			return err
		}
		for _, b := range all {
			if b, err = v.Pin(cmd.Context(), b.Metadata.Name, pinned); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", text(b.Metadata.Name), done)
		}
		return nil
	})
}

func newVolumesDelete() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:     "delete BACKUP...",
		Aliases: []string{"forget", "rm"},
		Short:   "Delete backups",
		Long: `Delete backups. Snapshots are deleted at once, those of a group with the last of them. Content in the repository is freed a day later, when the daemon maintains the repository, or 'tidemark volumes maintain' does: a backup that is being made may use it.
One that is pinned is refused.`,
		Args: someArgs(1, 0, "the names of backups"),
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) error {
		all, err := named(cmd.Context(), v, args)
		if err != nil {
			return err
		}
		var what []string
		for _, b := range all {
			what = append(what, fmt.Sprintf("%s (%s, %s)", text(b.Metadata.Name), text(b.Volume()), stamp(b.Metadata.Created)))
			if b.Spec.Pinned {
				return failure(nil, "nothing is deleted: %s is pinned: 'tidemark volumes unpin %s' first", text(b.Metadata.Name), text(b.Metadata.Name))
			}
		}
		if !yes {
			if err := confirm(cmd, "Delete volume backup "+strings.Join(what, ", ")+"?"); err != nil {
				return err
			}
		}
		for _, b := range all {
			if b, err = v.Delete(cmd.Context(), b.Metadata.Name); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is deleted\n", text(b.Metadata.Name))
		}
		if local(v) {
			fmt.Fprintln(cmd.ErrOrStderr(), "'tidemark volumes maintain' frees the space, from a day on")
		}
		return nil
	})
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func newVolumesMaintain() *cobra.Command {
	var now bool
	cmd := &cobra.Command{
		Use:   "maintain",
		Short: "Delete backups whose TTL is over, free what no backup needs, and compact indexes",
		Long: `Free what no backup needs, and compact indexes, as far as it is due, after backups whose TTL is over were deleted. The daemon does so every hour; this is for repositories
without one. One process at a time maintains a repository, wherever it runs: a second one is refused, until 15 minutes after the first has died.`,
		Args: noArgs,
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, _ []string) error {
		var retainErr error
		if k, here := v.(*volumes.Keeper); here {
			var told []retention.Verdict
			told, retainErr = k.Retain(cmd.Context(), nil)
			for _, o := range told {
				if o.Keep {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s is not deleted, though its TTL is over: %s\n", text(o.Name), o.Reason)
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is deleted: %s\n", text(o.Name), o.Reason)
			}
		}
		return errors.Join(retainErr, v.Maintain(cmd.Context(), now)) // what could not be deleted is no reason not to free the rest
	})
	cmd.Flags().BoolVar(&now, "now", false, "free what was just deleted without the day of grace (all of it may take two runs); right only while no backup is being made anywhere")
	return cmd
}
