package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// volumes are the daemon's, or those of the archive that --archive names.
func (f *serverFlags) volumes(ctx context.Context) (v api.Volumes, done func(), err error) {
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
	o, store, err := f.archive.options(ctx)
	if err != nil {
		return nil, nil, err
	}
	if o.Cluster == "" {
		a, err := archive.Open(ctx, store, o)
		if err != nil {
			return nil, nil, fmt.Errorf("%w; or say whose volumes with --cluster", err)
		}
		o.Cluster = a.Cluster()
	}
	ro := repository.Options{Store: store, Cluster: o.Cluster, Identities: o.Identities}
	ro.Recipients, _ = archive.RecipientsOf(o.Identities)
	return volumes.New(volumes.Options{Open: func(ctx context.Context, create bool) (*repository.Repository, error) {
		if create {
			return repository.Create(ctx, ro)
		}
		return repository.Open(ctx, ro)
	}}), func() {}, nil
}

func newVolumes() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "volumes",
		Aliases: []string{"volume", "vol"},
		GroupID: "operate",
		Short:   "The content of volumes: back up, list, look into, restore, verify",
		Long: `The content of volumes, in a repository beside the archive, encrypted, deduplicated and compressed.

Each backup is an event of history: 'volumes list' says which moment of the cluster it belongs to. A
backup is given by its name, or as much of it as no other has. With --archive and --identity, everything
is done here, without a daemon; otherwise the daemon does it, with paths of its own machine.

Files come back with owner, mode, times, extended attributes and ACLs, hard links, holes, pipes and devices.
Symbolic links are kept as they are, and never followed.

The repository is one of Kopia's: 'kopia' can open the directory volumes/CLUSTER/kopia/ of the location.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newVolumesBackup(), newVolumesList(), newVolumesDescribe(), newVolumesFiles(), newVolumesGet(), newVolumesRestore(),
		newVolumesVerify(), newVolumesDelete(), newVolumesMaintain())
	return cmd
}

// volumesCommand adds what all of them have, and opens the volumes.
func volumesCommand(cmd *cobra.Command, run func(cmd *cobra.Command, v api.Volumes, args []string) error) *cobra.Command {
	server := new(serverFlags)
	server.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		v, done, err := server.volumes(cmd.Context())
		if err != nil {
			return err
		}
		defer done()
		return run(cmd, v, args)
	}
	return cmd
}

func newVolumesBackup() *cobra.Command {
	var q volumes.BackRequest
	var output string
	cmd := &cobra.Command{
		Use:   "backup --path DIR",
		Short: "Back up a directory or a block device",
		Long: `Back up a directory or a block device: a hostPath, an NFS mount, a mounted snapshot.

Files are read one after another. What is written to meanwhile is as consistent as a copy would be; of a
database, back up a snapshot, or stop it first. Files that are as in the backup before are not read
again. Ctrl-C cancels; what was sent is not sent again by the next one.`,
		Example: `  tidemark volumes backup --path /srv/data -n shop --claim data
  tidemark volumes backup --path /srv/data --archive s3://backups/prod --identity key.txt`,
		Args: noArgs,
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, _ []string) error {
		if q.Path == "" {
			return usage("say what to back up with --path DIR")
		}
		path, err := filepath.Abs(q.Path)
		if err != nil {
			return err
		}
		q.Path = path
		p := newBytesProgress(cmd.ErrOrStderr(), "backed up")
		b, err := v.Back(cmd.Context(), q, p.update)
		p.finish()
		if err != nil {
			return err
		}
		if output == "json" {
			return writeJSON(cmd.OutOrStdout(), b)
		}
		c := b.Status.Content
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %s files, %s, of which %s were unchanged; %s sent in %s\n", b.Metadata.Name, humanize.Comma(c.Files),
			humanize.IBytes(uint64(c.Bytes)), humanize.Comma(c.Unchanged), humanize.IBytes(uint64(c.Sent)), b.Duration().Round(time.Millisecond))
		return nil
	})
	fs := cmd.Flags()
	fs.StringVar(&q.Path, "path", "", "directory or block device to back up")
	fs.StringVarP(&q.Namespace, "namespace", "n", "", "namespace of the claim that the path belongs to")
	fs.StringVar(&q.Claim, "claim", "", "PersistentVolumeClaim that the path belongs to (default: the path itself names the volume)")
	fs.StringVar(&q.Run, "name", "", "name of what is made together, for people (default: the backup's own)")
	fs.StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

func newVolumesList() *cobra.Command {
	var namespace, output string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the backups, oldest first",
		Args:    noArgs,
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, _ []string) error {
		all, err := v.List(cmd.Context())
		if err != nil {
			return err
		}
		chosen := []*volumes.Backup{}
		for _, b := range all {
			if namespace == "" || b.Metadata.Namespace == namespace {
				chosen = append(chosen, b)
			}
		}
		if output == "json" {
			return writeJSON(cmd.OutOrStdout(), chosen)
		}
		if len(chosen) == 0 {
			fmt.Fprintln(cmd.ErrOrStderr(), "there are none: 'tidemark volumes backup --path DIR' makes one")
			return nil
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "NAME\tVOLUME\tTAKEN\tREVISION\tPHASE\tFILES\tSIZE\tCONSISTENCY")
		for _, b := range chosen {
			files, size := "-", "-"
			if c := b.Status.Content; c != nil {
				files, size = humanize.Comma(c.Files), humanize.IBytes(uint64(c.Bytes))
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", text(b.Metadata.Name), text(b.Volume()), stamp(b.Status.Taken), revisionOf(b), b.Status.Phase, files, size, b.Status.Consistency)
		}
		return w.Flush()
	})
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only of claims of this namespace")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

// revisionOf is where in history a backup belongs.
func revisionOf(b *volumes.Backup) string {
	if b.Status.Before.RV == 0 {
		return "-"
	}
	if b.Status.After.RV == 0 || b.Status.After.Revision == b.Status.Before.Revision {
		return b.Status.Before.Revision.String()
	}
	return b.Status.Before.Revision.String() + "-" + fmt.Sprint(b.Status.After.RV)
}

func newVolumesDescribe() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "describe BACKUP",
		Short: "All about one backup",
		Args:  someArgs(1, 1, "the name of one backup"),
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) error {
		b, err := v.Find(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if output == "json" {
			return writeJSON(cmd.OutOrStdout(), b)
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
		row := func(name, format string, args ...any) { fmt.Fprintf(w, name+":\t"+format+"\n", args...) }
		row("Name", "%s", text(b.Metadata.Name))
		row("Volume", "%s", text(b.Volume()))
		if b.Spec.Claim != "" && b.Spec.Path != "" {
			row("Path", "%s", text(b.Spec.Path))
		}
		row("Run", "%s (%s)", text(b.Spec.Run), text(b.Spec.Origin))
		row("Phase", "%s", b.Status.Phase)
		if b.Status.Error != "" {
			row("Error", "%s", text(b.Status.Error))
		}
		row("Taken", "%s", stamp(b.Status.Taken))
		row("Before it", "%s", place(b.Status.Before.Time, b.Status.Before.Revision.String(), b.Status.Before.RV))
		row("After it", "%s", place(b.Status.After.Time, b.Status.After.Revision.String(), b.Status.After.RV))
		row("Consistency", "%s", b.Status.Consistency)
		if d := b.Duration(); d > 0 {
			row("Duration", "%s", d.Round(time.Millisecond))
		}
		if c := b.Status.Content; c != nil {
			row("Content", "%s files, %s, %s of them unchanged, %s sent", humanize.Comma(c.Files), humanize.IBytes(uint64(c.Bytes)), humanize.Comma(c.Unchanged), humanize.IBytes(uint64(c.Sent)))
			row("Kept in", "%s as %s", c.Location, c.ID)
		}
		return w.Flush()
	})
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

// place names a moment, with its revision when there is one.
func place(t time.Time, revision string, rv uint64) string {
	switch {
	case t.IsZero():
		return "-"
	case rv == 0:
		return stamp(t)
	}
	return stamp(t) + " (rv:" + revision + ")"
}

func newVolumesFiles() *cobra.Command {
	var deep bool
	var output string
	cmd := &cobra.Command{
		Use:     "files BACKUP [PATH]",
		Short:   "List the files of a backup",
		Example: "  tidemark volumes files data-20261125 var/lib\n  tidemark volumes files data-20261125 -R -o json",
		Args:    someArgs(1, 2, "the name of a backup, and optionally a path in it"),
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) error {
		path := ""
		if len(args) == 2 {
			path = args[1]
		}
		all := []repository.File{}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 1, ' ', 0)
		for f, err := range v.Files(cmd.Context(), args[0], path, deep) {
			if err != nil {
				_ = w.Flush() // the error says that there is more
				return err
			}
			if output == "json" {
				all = append(all, f)
				continue
			}
			name := text(f.Path)
			if f.Target != "" {
				name += " -> " + text(f.Target)
			}
			fmt.Fprintf(w, "%s\t%d:%d\t%d\t%s\t%s\n", f.Mode, f.UID, f.GID, f.Size, stamp(f.Modified), name)
		}
		if output == "json" {
			return writeJSON(cmd.OutOrStdout(), all)
		}
		return w.Flush()
	})
	cmd.Flags().BoolVarP(&deep, "recursive", "R", false, "all below the path as well")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

func newVolumesGet() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "get BACKUP PATH",
		Aliases: []string{"cat"},
		Short:   "Write the content of one file of a backup to the standard output",
		Example: "  tidemark volumes get data-20261125 etc/app.conf > app.conf",
		Args:    someArgs(2, 2, "the name of a backup and a path in it"),
	}
	return volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) error {
		return v.Read(cmd.Context(), args[0], args[1], cmd.OutOrStdout())
	})
}

func newVolumesRestore() *cobra.Command {
	var q volumes.RestoreRequest
	var output string
	cmd := &cobra.Command{
		Use:     "restore BACKUP [PATH] --to DIR",
		Aliases: []string{"restore-file"},
		Short:   "Write a backup, or a part of it, into a directory or over a block device",
		Long: `Write a backup, or a part of it, into a directory or over a block device.

Files that are there are replaced, also those that are newer; other files stay, unless --delete-extra says
otherwise. Whatever has the directory open should be stopped: it sees files change under it. Cut off, the
same command once more completes it.`,
		Example: `  tidemark volumes restore data-20261125 --to /srv/data --delete-extra
  tidemark volumes restore data-20261125 etc/app.conf --to /tmp`,
		Args: someArgs(1, 2, "the name of a backup, and optionally a path in it"),
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) error {
		if q.To == "" {
			return usage("say where to with --to DIR")
		}
		to, err := filepath.Abs(q.To)
		if err != nil {
			return err
		}
		q.To, q.Backup = to, args[0]
		if len(args) == 2 {
			q.Path = args[1]
		}
		if q.DeleteExtra && q.Path != "" {
			return usage("--delete-extra makes DIR as the whole backup was: leave out the path")
		}
		p := newBytesProgress(cmd.ErrOrStderr(), "restored")
		began := time.Now()
		done, err := v.Restore(cmd.Context(), q, p.update)
		p.finish()
		if err != nil {
			return err
		}
		if output == "json" {
			return writeJSON(cmd.OutOrStdout(), done)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s files, %s, restored to %s in %s\n", humanize.Comma(done.Files), humanize.IBytes(uint64(done.Bytes)), q.To, time.Since(began).Round(time.Millisecond))
		return nil
	})
	fs := cmd.Flags()
	fs.StringVar(&q.To, "to", "", "directory (made when it is missing) or block device")
	fs.BoolVar(&q.DeleteExtra, "delete-extra", false, "remove what is in DIR and not in the backup")
	fs.BoolVar(&q.KeepOwners, "no-owners", false, "leave files to the user who restores (without root, nothing else works)")
	fs.StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

func newVolumesVerify() *cobra.Command {
	var percent float64
	var output string
	cmd := &cobra.Command{
		Use:   "verify [BACKUP...]",
		Short: "Check that backups are whole; all of them without names",
		Long: `Check that the repository has all that backups need, and read, decrypt and compare the hashes of as many files as --read
says, chosen anew each time. Exit code 5: damage.`,
		Example: "  tidemark volumes verify --read 100\n  tidemark volumes verify data-20261125",
		Args:    cobra.ArbitraryArgs,
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) error {
		if percent < 0 || percent > 100 {
			return usage("--read %g: want 0 to 100", percent)
		}
		found, err := v.Verify(cmd.Context(), percent, args...)
		if err != nil {
			return err
		}
		if output == "json" {
			err = writeJSON(cmd.OutOrStdout(), found)
		} else {
			for _, e := range found.Errors {
				fmt.Fprintf(cmd.OutOrStdout(), "DAMAGED: %s\n", text(e))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d backups, %s files, %s read\n", found.Backups, humanize.Comma(found.Files), humanize.IBytes(uint64(found.Read)))
		}
		if err == nil && len(found.Errors) > 0 {
			return failure(ErrDamaged, "%d files of volume backups are damaged: restore them from another backup, and look after the store", len(found.Errors))
		}
		return err
	})
	cmd.Flags().Float64Var(&percent, "read", 10, "percent of the files that are read")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

func newVolumesDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete BACKUP...",
		Aliases: []string{"forget", "rm"},
		Short:   "Delete backups",
		Long:    "Delete backups. Their content is freed a day later, when the daemon maintains the repository: a backup that is being made may use it.",
		Args:    someArgs(1, 0, "the names of backups"),
	}
	return volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) error {
		for _, name := range args {
			b, err := v.Delete(cmd.Context(), name)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is deleted\n", b.Metadata.Name)
		}
		return nil
	})
}

func newVolumesMaintain() *cobra.Command {
	var now bool
	cmd := &cobra.Command{
		Use:   "maintain",
		Short: "Free what no backup needs, and compact indexes",
		Long: `Free what no backup needs, and compact indexes, as far as it is due. The daemon does so every hour; this is for repositories
without one. Only one process at a time may maintain a repository.`,
		Args: noArgs,
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, _ []string) error { return v.Maintain(cmd.Context(), now) })
	cmd.Flags().BoolVar(&now, "now", false, "free at once what was just deleted; right only while no backup is being made anywhere")
	return cmd
}

// bytesProgress shows on a terminal how far something is.
type bytesProgress struct {
	w     io.Writer
	doing string
	began time.Time
	shown int
}

func newBytesProgress(w io.Writer, doing string) *bytesProgress {
	if f, ok := w.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		w = nil
	}
	return &bytesProgress{w: w, doing: doing, began: time.Now()}
}

func (p *bytesProgress) update(at repository.Progress) {
	if p.w == nil {
		return
	}
	rate := float64(at.Bytes) / max(time.Since(p.began).Seconds(), 0.1)
	line := fmt.Sprintf("%s %s files, %s", p.doing, humanize.Comma(at.Files), humanize.IBytes(uint64(at.Bytes)))
	if at.Total > 0 {
		line += " of " + humanize.IBytes(uint64(at.Total))
	}
	line += fmt.Sprintf(", %s/s", humanize.IBytes(uint64(rate)))
	fmt.Fprintf(p.w, "\r%s%s", line, strings.Repeat(" ", max(p.shown-len(line), 0)))
	p.shown = len(line)
}

func (p *bytesProgress) finish() {
	if p.w != nil && p.shown > 0 {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.shown))
	}
}
