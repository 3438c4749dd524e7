package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/repository"
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
	var q repository.Maintenance
	var output string
	cmd := &cobra.Command{
		Use:   "maintain",
		Short: "Delete backups whose TTL is over, free what no backup needs, and compact indexes",
		Long: `Free what no backup needs, and compact indexes, as far as it is due, after backups whose TTL is over were deleted. The daemon does so every hour; this is for repositories
without one. One process at a time maintains a repository, wherever it runs: a second one is refused, until 15 minutes after the first has died.

When an index of the repository (a file x... in kopia/) is lost from the store, nothing is done: what it listed looks as if no backup needed it. Bring the file back from a copy or
an older version of the store. Or 'volumes verify --read 0' says which backups lost content; back their volumes up anew, and go on with --accept-lost-index.`,
		Args: noArgs,
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, _ []string) error {
		told := cmd.OutOrStdout()
		if output == "json" {
			told = cmd.ErrOrStderr()
		}
		retainErr := retainHere(cmd, v, told)
		did, err := v.Maintain(cmd.Context(), q) // what could not be deleted is no reason not to free the rest
		switch {
		case output == "json" && did != nil && err == nil:
			err = writeJSON(cmd.OutOrStdout(), did)
		case did != nil:
			tellMaintained(told, did, err == nil)
		case err == nil:
			fmt.Fprintln(cmd.ErrOrStderr(), "there is nothing to maintain: no content of volumes was backed up yet")
		}
		if err != nil && retainErr != nil && strings.Contains(err.Error(), retainErr.Error()) {
			retainErr = nil // told once
		}
		return errors.Join(retainErr, err)
	})
	cmd.Flags().BoolVar(&q.Now, "now", false, "free what was just deleted without the day of grace (all of it may take two runs); right only while no backup is being made anywhere")
	cmd.Flags().BoolVar(&q.AcceptLost, "accept-lost-index", false, "go on without an index that is lost from the store: what only it listed is freed")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

// retainHere deletes backups whose TTL is over, where no daemon does.
func retainHere(cmd *cobra.Command, v api.Volumes, told io.Writer) error {
	k, here := v.(*volumes.Keeper)
	if !here {
		return nil
	}
	verdicts, err := k.Retain(cmd.Context(), nil)
	for _, o := range verdicts {
		if o.Keep {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s is not deleted, though its TTL is over: %s\n", text(o.Name), o.Reason)
			continue
		}
		fmt.Fprintf(told, "%s is deleted: %s\n", text(o.Name), o.Reason)
	}
	return err
}

// tellMaintained says what a maintenance did. One that failed has a result as well, for what it did first.
func tellMaintained(w io.Writer, did *repository.Maintained, whole bool) {
	if did.Rescheduled {
		fmt.Fprintln(w, "the file that says what is due (kopia.maintenance) was damaged, and is begun anew: what is deleted takes some days longer to be freed")
	}
	for _, name := range did.Accepted {
		fmt.Fprintf(w, "the index %s is lost, and is not missed any more\n", text(name))
	}
	took := did.Took.Round(time.Millisecond)
	switch {
	case !whole:
	case did.Full:
		fmt.Fprintf(w, "%s freed (%s); %s there now (%s); took %s\n", english.Plural(did.Freed, "pack is", "packs are"), humanize.IBytes(uint64(did.FreedBytes)),
			english.Plural(did.Packs, "pack is", "packs are"), humanize.IBytes(uint64(did.Bytes)), took)
	default:
		fmt.Fprintf(w, "indexes are compacted as far as that is due; what no backup needs is freed once a day, which is not due yet; took %s\n", took)
	}
}
