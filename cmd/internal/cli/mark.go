package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newMark() *cobra.Command {
	var f historyFlags
	var at string
	cmd := &cobra.Command{
		Use:     "mark NAME",
		GroupID: "operate",
		Short:   "Give a moment a name, so that --at NAME finds it",
		Example: `  tidemark mark before-upgrade
  tidemark mark last-good --at 2026-11-22T10:30:00Z
  tidemark diff -n shop --at before-upgrade`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := f.open(cmd.Context(), nil)
			if err != nil {
				return err
			}
			defer h.src.Close()
			cut, err := h.cut(cmd.Context(), at)
			if err != nil {
				return err
			}
			if cut, err = h.src.Mark(cmd.Context(), args[0], cut); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is %s\n", args[0], cut)
			return err
		},
	}
	f.server.add(cmd)
	cmd.Flags().StringVar(&at, "at", "now", atHelp)
	return cmd
}
