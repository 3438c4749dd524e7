package cli

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/retention"
)

func newVerify() *cobra.Command {
	var f readArchiveFlags
	var level, output string
	cmd := &cobra.Command{
		Use:     "verify --archive URL",
		GroupID: "operate",
		Short:   "Check an archive: is everything there, undamaged and restorable?",
		Long: `Check an archive. It needs no daemon, changes nothing, and reads as much as --level says:

  list         the chain of manifests; every file is there and has its size
  checksum     as list, and the hash of every file (needs no key)
  sample N%    as checksum, for some of the files, chosen anew each time
  full         as checksum; decrypts and reads every file, and makes every full snapshot again out
               of what came before it: the same state must come out. All content of volumes is read as well;
               the other levels leave volumes to 'tidemark volumes verify', and say so

It says what is damaged, what that costs, and what is still restorable. Exit code 5: damage. What a repair
has found lost before is told, and is no damage.`,
		Example: `  tidemark verify --archive s3://backups/prod
  tidemark verify --archive s3://backups/prod --identity key.txt --level full -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.url == "" {
				return usage("say which archive with --archive URL")
			}
			l, err := compactor.ParseLevel(level)
			if err != nil {
				return usage("--level: %v", err)
			}
			a, err := f.open(cmd.Context())
			if err != nil {
				return err
			}
			r, err := compactor.Verify(cmd.Context(), a, l)
			if err != nil {
				return err
			}
			all := &verified{Report: r}
			if err := all.lookAtVolumes(cmd.Context(), &f, a, l.Full); err != nil {
				return err
			}
			if output == "json" {
				err = writeJSON(cmd.OutOrStdout(), all)
			} else {
				err = all.write(cmd.OutOrStdout())
			}
			if err != nil {
				return err
			}
			return all.verdict()
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().StringVar(&level, "level", "checksum", "list, checksum, \"sample N%\" or full")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

func newRepair() *cobra.Command {
	var server serverFlags
	var dryRun, yes bool
	var output string
	cmd := &cobra.Command{
		Use:     "repair",
		GroupID: "operate",
		Short:   "Put right what is damaged in the archives, as far as it can be",
		Long: `Put right what is damaged in the archives: files that are damaged or missing are made anew from the
daemon's journal where it still has all of their history; what is lost is taken out, so that what
is left is read without stumbling; files that nothing refers to are removed. Nothing is made up.

Without --archive the daemon does it. With --archive it is done here, with no journal to rebuild from.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, done, err := server.archives(cmd.Context(), retention.Policy{})
			if err != nil {
				return err
			}
			defer done()
			if !dryRun && !yes {
				if err := confirm(cmd, "Put the archive right? What is lost is taken out of it for good."); err != nil {
					return err
				}
			}
			all, err := a.Repair(cmd.Context(), dryRun)
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), all)
			}
			out := cmd.OutOrStdout()
			for _, l := range all {
				if l.Error != "" {
					return failure(ErrPartly, "archive %s: %s", l.Archive, l.Error)
				}
				for _, list := range []struct {
					what  string
					names []string
				}{
					{"made anew", l.Rebuilt},
					{"lost, taken out", l.Dropped},
					{"removed, nothing referred to it", l.Removed},
					{"left for now, in case somebody is about to refer to it: it is not an hour older than the archive's newest file", l.Young},
				} {
					for _, n := range list.names {
						fmt.Fprintf(out, "%s: %s\n", list.what, n)
					}
				}
				if len(l.Rebuilt)+len(l.Dropped)+len(l.Removed) == 0 {
					fmt.Fprintln(out, "nothing to put right")
				}
			}
			if dryRun {
				fmt.Fprintln(cmd.ErrOrStderr(), "Dry run: nothing was changed.")
			}
			return nil
		},
	}
	server.add(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only tell; whether the journal could make a file anew is not tried")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

// retentionFlags are those of a retention policy.
type retentionFlags struct {
	window string
	policy retention.Policy
	zone   string
}

func (f *retentionFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.window, "retention-window", "0", "archives keep every moment of this time, such as 30d; 0: of all time")
	fs.IntVar(&f.policy.Hourly, "keep-hourly", 0, "beyond the window, keep the last snapshot of so many hours")
	fs.IntVar(&f.policy.Daily, "keep-daily", 0, "of so many days")
	fs.IntVar(&f.policy.Weekly, "keep-weekly", 0, "of so many weeks")
	fs.IntVar(&f.policy.Monthly, "keep-monthly", 0, "of so many months")
	fs.IntVar(&f.policy.Yearly, "keep-yearly", 0, "of so many years")
	fs.StringVar(&f.zone, "retention-time-zone", "UTC", "time zone in which days begin, such as Europe/Berlin")
}

// typed is the first flag of the policy that was given; empty: none was.
func (f *retentionFlags) typed(fs *pflag.FlagSet) (name string) {
	own := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(retentionFlags).add(own)
	own.VisitAll(func(flag *pflag.Flag) {
		if name == "" && fs.Changed(flag.Name) {
			name = flag.Name
		}
	})
	return name
}

func (f *retentionFlags) read() (retention.Policy, error) {
	d, err := window(f.window)
	if err != nil {
		return f.policy, usage("--retention-window %s: want a duration such as 30d, or 0 for all time", f.window)
	}
	p := f.policy
	p.Window = d
	if p.Location, err = time.LoadLocation(f.zone); err != nil {
		return p, usage("--retention-time-zone %s: %v", f.zone, err)
	}
	if err := p.Check(); err != nil {
		return p, usage("%v", err)
	}
	return p, nil
}

func newRetain() *cobra.Command {
	var server serverFlags
	var policy retentionFlags
	var dryRun bool
	var output string
	cmd := &cobra.Command{
		Use:     "retain",
		GroupID: "operate",
		Short:   "Remove from the archives what the retention policy does not keep",
		Long: `Remove from the archives what the retention policy does not keep; with --dry-run, only tell, with the
reason for each item. The daemon does this by itself every hour, by the policy in its configuration.

With --archive it is done here, by the policy of the flags, which are for nothing else. How old something is goes by a clock of
the archive that only runs while a daemon runs, so that a wall clock that jumps cannot delete anything early.`,
		Example: `  tidemark retain --dry-run
  tidemark retain --archive s3://backups/prod --retention-window 30d --keep-daily 90 --dry-run`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := policy.read()
			if err != nil {
				return err
			}
			if name := policy.typed(cmd.Flags()); server.archive.url == "" && name != "" {
				return usage("--%s means nothing to the daemon, which keeps to the policy in its configuration: change that, or give --archive URL", name)
			}
			a, done, err := server.archives(cmd.Context(), p)
			if err != nil {
				return err
			}
			defer done()
			all, err := a.Retain(cmd.Context(), dryRun)
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 6, 4, 3, ' ', 0)
			fmt.Fprintln(w, "ARCHIVE\tVERDICT\tITEM\tTIME\tREASON")
			verdict := map[bool]string{true: "keep", false: "delete"}
			for _, l := range all {
				if l.Error != "" {
					return failure(ErrPartly, "archive %s: %s", l.Archive, l.Error)
				}
				for _, v := range l.Snapshots {
					fmt.Fprintf(w, "%s\t%s\tsnapshot %s\t%s\t%s\n", l.Archive, verdict[v.Keep], firstOf(v.Name, v.ID), stamp(v.Time), v.Reason)
				}
				for _, v := range l.Segments {
					fmt.Fprintf(w, "%s\t%s\tsegment\tup to %s\t%s\n", l.Archive, verdict[v.Keep], stamp(v.To), v.Reason)
				}
			}
			if err := w.Flush(); err != nil {
				return err
			}
			for _, l := range all {
				fmt.Fprintf(cmd.OutOrStdout(), "archive %s: %s go\n", l.Archive, humanize.IBytes(uint64(l.Freed)))
			}
			if dryRun {
				fmt.Fprintln(cmd.ErrOrStderr(), "Dry run: nothing was removed.")
			}
			return nil
		},
	}
	server.add(cmd)
	policy.add(cmd.Flags())
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only tell what would be kept and deleted, and why")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: a table)")
	return cmd
}
