package cli

import (
	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/volumes/mover"
)

// newMover is what runs in the Pods that move the content of volumes. Nobody types it.
func newMover() *cobra.Command {
	cmd := &cobra.Command{
		Use:    "mover",
		Short:  "Move the content of a claim, in a Pod that the daemon makes",
		Hidden: true,
		Args:   noArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, kind := range []mover.Kind{mover.Backup, mover.Restore} {
		cmd.AddCommand(&cobra.Command{
			Use: string(kind), Short: "Do the " + string(kind) + " that the daemon made this Pod for", Args: noArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return mover.Main(cmd.Context(), kind) },
		})
	}
	return cmd
}
