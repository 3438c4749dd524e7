package cli

import (
	"fmt"
	"os"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/journal"
)

func newRecover() *cobra.Command {
	var f readArchiveFlags
	var dir, keyFile, keep string
	cmd := &cobra.Command{
		Use:     "recover --archive URL --identity FILE --data-dir DIR",
		GroupID: "operate",
		Short:   "Make a new data directory out of an archive, after its machine was lost",
		Long: `Make a new data directory out of an archive: the newest state and the history of the window. Then
'tidemark run --data-dir DIR --archive URL --identity FILE' goes on where the archive ends, on any machine. What changed
in the cluster in the meantime is found by comparing, and noted as a gap.

The archive then belongs to the new data directory: should the old daemon still run, or come back, it
stops archiving and says so. Cut off, the command is simply run again.`,
		Example: `  tidemark recover --archive s3://backups/prod --identity key.txt --data-dir /var/lib/tidemark`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.url == "" || dir == "" {
				return usage("recover wants --archive URL, --identity FILE and --data-dir DIR")
			}
			w, err := window(keep)
			if err != nil {
				return err
			}
			o, store, err := f.options(cmd.Context())
			if err != nil {
				return err
			}
			r, err := compactor.Recover(cmd.Context(), store, o, dir, journal.Options{KeyFile: keyFile}, w)
			if err != nil {
				return err
			}
			for _, name := range r.Lost {
				fmt.Fprintf(cmd.ErrOrStderr(), "# warning: archive file %s is lost: what hangs on it is not in the new journal; 'tidemark verify' tells what that costs\n", name)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "recovered %s changes and states of cluster %s, from %s to %s, out of %d files\n",
				humanize.Comma(int64(r.Keys)), r.Cluster, from(r.From), stamp(r.To.Time), r.Files)
			fmt.Fprintf(cmd.OutOrStdout(), "go on with: tidemark run --data-dir %s --archive %s --identity %s\n", quote(dir), quote(f.url), quote(firstOf(f.identity, os.Getenv("TIDEMARK_IDENTITY"))))
			return nil
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().StringVar(&dir, "data-dir", "", "the new data directory; it must hold no journal")
	cmd.Flags().StringVar(&keyFile, "key-file", "", "key that seals Secrets in the new journal (default: DATA-DIR/journal.key, made when it is missing)")
	cmd.Flags().StringVar(&keep, "window", "30d", "how much history the new journal gets; 0: all that there is. The archive keeps the rest")
	return cmd
}

func from(p journal.Position) string {
	if p.Time.IsZero() {
		return "the beginning"
	}
	return stamp(p.Time)
}
