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
	"github.com/tidemark-backup/tidemark/volumes/policy"
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
	ro, err := f.repository(ctx)
	if err != nil {
		return nil, nil, err
	}
	return volumes.New(volumes.Options{Open: func(ctx context.Context, create bool) (*repository.Repository, error) {
		if create {
			return repository.Create(ctx, ro)
		}
		return repository.Open(ctx, ro)
	}}), func() {}, nil
}

// repository says where the content of volumes is, in the archive that --archive names.
func (f *serverFlags) repository(ctx context.Context) (ro repository.Options, err error) {
	o, store, err := f.archive.options(ctx)
	if err != nil {
		return ro, err
	}
	if o.Cluster == "" {
		a, err := archive.Open(ctx, store, o)
		if err != nil {
			return ro, fmt.Errorf("%w; or say whose volumes with --cluster", err)
		}
		o.Cluster = a.Cluster()
	}
	ro = repository.Options{Store: store, Cluster: o.Cluster, Identities: o.Identities}
	ro.Recipients, _ = archive.RecipientsOf(o.Identities)
	return ro, nil
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
		newVolumesVerify(), newVolumesCheck(), newVolumesDelete(), newVolumesMaintain())
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
	var path volumes.BackRequest
	var claims volumes.ClaimsRequest
	var namespace namespaceFlags
	var action, output string
	cmd := &cobra.Command{
		Use:   "backup [CLAIM...]",
		Short: "Back up claims (PersistentVolumeClaims), or a directory or block device",
		Long: `Back up claims, by name, by label (-l), all of a namespace (-n), or all there are (-A); or with --path, a
directory or block device of the daemon's machine.

What is done with a claim is for the daemon's policies to say, Velero's annotations and volume policies included, or for
--action: snapshot (the storage system takes and keeps one, through CSI), kopia (its files, read where it is mounted),
snapshot-then-kopia (the files of a snapshot, which is deleted afterwards unless --keep-snapshots), or auto: a snapshot where there
is a VolumeSnapshotClass, and files otherwise. Claims that share a value of the label tidemark.dev/volume-group (or
velero.io/volume-group) are taken at one instant.

Before and after, hooks are run in the containers of the Pods that use the claims: those of Velero's annotations, of the
configuration, or the ready ones for PostgreSQL, MySQL, MongoDB and Redis. Post hooks are run whatever happens.

With --path, files are read one after another: what is written to meanwhile is as consistent as a copy would be. Files
that are as in the backup before are not read again. Ctrl-C cancels; what was sent is not sent again by the next one.`,
		Example: `  tidemark volumes backup -n shop
  tidemark volumes backup data-db-0 -n shop --action snapshot-then-kopia
  tidemark volumes backup --path /srv/data -n shop --claim data
  tidemark volumes backup --path /srv/data --archive s3://backups/prod --identity key.txt`,
		Args: cobra.ArbitraryArgs,
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) error {
		if path.Path != "" {
			if len(args) > 0 || action != "" || claims.Selector != "" || namespace.all {
				return usage("--path names one directory: leave out what chooses claims")
			}
			path.Namespace = namespace.namespace
			return backPath(cmd, v, path, output)
		}
		if path.Claim != "" {
			return usage("--claim says whose volume a --path is; claims to back up are named without a flag")
		}
		ns, err := namespace.resolve()
		if err != nil {
			return err
		}
		if ns != "" {
			claims.Namespaces = []string{ns}
		}
		if claims.Claims = args; namespace.all && len(args) > 0 {
			return usage("claims are named in one namespace: give -n in place of -A")
		}
		if action != "" {
			if claims.Action, err = policy.ParseAction(action); err != nil {
				return usage("--action: %v", err)
			}
		}
		return backClaims(cmd, v, claims, output)
	})
	fs := cmd.Flags()
	namespace.add(cmd)
	fs.StringVar(&path.Path, "path", "", "directory or block device to back up, in place of claims")
	fs.StringVar(&path.Claim, "claim", "", "with --path and -n: the claim that the path belongs to (default: the path itself names the volume)")
	fs.StringVarP(&claims.Selector, "selector", "l", "", "only claims with these labels")
	fs.StringVar(&action, "action", "", "snapshot, kopia, snapshot-then-kopia or auto (default: what the policies say)")
	fs.BoolVar(&claims.KeepSnapshots, "keep-snapshots", false, "with snapshot-then-kopia: keep the snapshots as well")
	fs.StringVar(&claims.Run, "name", "", "name of what is made together, for people (default: one is made)")
	fs.StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

func backPath(cmd *cobra.Command, v api.Volumes, q volumes.BackRequest, output string) (err error) {
	if q.Path, err = filepath.Abs(q.Path); err != nil {
		return err
	}
	if name, err := cmd.Flags().GetString("name"); err == nil {
		q.Run = name
	}
	p := newBytesProgress(cmd.ErrOrStderr(), "backed up")
	b, err := v.Back(cmd.Context(), q, p.update)
	p.finish()
	if err != nil {
		return err
	}
	if output == "json" {
		return writeJSON(cmd.OutOrStdout(), b)
	}
	fmt.Fprintln(cmd.OutOrStdout(), summary(b))
	return nil
}

func backClaims(cmd *cobra.Command, v api.Volumes, q volumes.ClaimsRequest, output string) error {
	p := newBytesProgress(cmd.ErrOrStderr(), "backed up")
	m, err := v.BackClaims(cmd.Context(), q, p.update)
	p.finish()
	if m == nil {
		return err
	}
	failed := 0
	for _, b := range m.Backups {
		if b.Status.Phase != volumes.Done {
			failed++
		}
	}
	if output == "json" {
		if err := writeJSON(cmd.OutOrStdout(), m); err != nil {
			return err
		}
	} else {
		for _, b := range m.Backups {
			fmt.Fprintln(cmd.OutOrStdout(), summary(b))
		}
		for _, s := range m.Skipped {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: left out: %s\n", text(s.Claim), text(s.Reason))
		}
		if len(m.Backups)+len(m.Skipped) == 0 {
			fmt.Fprintln(cmd.OutOrStdout(), "there are no claims")
		}
	}
	if failed > 0 && cmd.Context().Err() == nil {
		kind := ErrPartly
		if failed == len(m.Backups) {
			kind = nil
		}
		return failure(kind, "%d of %d volumes were not backed up: 'tidemark volumes describe BACKUP' says more", failed, len(m.Backups))
	}
	return err
}

// summary is a backup in one line, or some more when there is something to say.
func summary(b *volumes.Backup) string {
	line := text(b.Metadata.Name)
	s := &b.Status
	switch {
	case s.Phase == volumes.Failed:
		line += ": FAILED: " + text(s.Error)
	case s.Content != nil:
		line += fmt.Sprintf(": %s files, %s, of which %s were unchanged; %s sent in %s", humanize.Comma(s.Content.Files),
			humanize.IBytes(uint64(s.Content.Bytes)), humanize.Comma(s.Content.Unchanged), humanize.IBytes(uint64(s.Content.Sent)), b.Duration().Round(time.Millisecond))
	case s.Snapshot != nil:
		line += fmt.Sprintf(": snapshot %s of %s, in %s", text(s.Snapshot.ID), s.Snapshot.Driver, b.Duration().Round(time.Millisecond))
	}
	notes := make([]string, len(s.Notes))
	for i, n := range s.Notes {
		notes[i] = "\n  note: " + text(n)
	}
	return line + strings.Join(notes, "")
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
			fmt.Fprintln(cmd.ErrOrStderr(), "there are none: 'tidemark volumes backup' makes some")
			return nil
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "NAME\tVOLUME\tTAKEN\tREVISION\tPHASE\tKEPT\tFILES\tSIZE\tCONSISTENCY")
		for _, b := range chosen {
			files, size := "-", "-"
			if c := b.Status.Content; c != nil {
				files, size = humanize.Comma(c.Files), humanize.IBytes(uint64(c.Bytes))
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", text(b.Metadata.Name), text(b.Volume()), stamp(b.Status.Taken), revisionOf(b), b.Status.Phase, kept(b), files, size, b.Status.Consistency)
		}
		return w.Flush()
	})
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only of claims of this namespace")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

// kept says where the content of a backup is.
func kept(b *volumes.Backup) string {
	var all []string
	if b.Status.Snapshot != nil {
		all = append(all, "snapshot")
	}
	if b.Status.Content != nil {
		all = append(all, "kopia")
	}
	if all == nil {
		return "-"
	}
	return strings.Join(all, ",")
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
		if b.Spec.Action != "" {
			row("Action", "%s (%s)", b.Spec.Action, text(b.Spec.Reason))
		}
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
		if h := b.Status.Snapshot; h != nil {
			row("Snapshot", "%s of driver %s", text(h.ID), text(h.Driver))
			if h.Group != "" {
				row("Group", "%s", text(h.Group))
			}
		}
		for _, h := range b.Status.Hooks {
			how := string(h.State)
			if h.Error != "" {
				how += ", " + text(h.Error)
			}
			row("Hook", "%s, Pod %s, container %s: %s %s", h.When, text(h.Pod), text(h.Container), how, h.Duration)
			if h.Set != "" {
				row("", "of the ready set %s", text(h.Set))
			}
			for line := range strings.Lines(h.Output) {
				row("", "| %s", text(strings.TrimRight(line, "\n")))
			}
		}
		for _, n := range b.Status.Notes {
			row("Note", "%s", text(n))
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
	var namespace namespaceFlags
	var claim, output string
	var used bool
	cmd := &cobra.Command{
		Use:     "restore BACKUP [PATH] (--claim CLAIM | --to DIR)",
		Aliases: []string{"restore-file"},
		Short:   "Write a backup, or a part of it, into a claim, a directory or a block device",
		Long: `Write a backup, or a part of it, into a claim that is there, or into a directory or over a block device of the daemon's
machine. 'tidemark restore' brings claims back together with their content; this is for what is there already.

A claim that Pods use is refused: scale the workload down first. --used does it all the same, while the workload sees files change under
it. Snapshots that were not read into the repository cannot be written into a claim that is there: 'tidemark restore --existing recreate'
makes the claim anew.

Files that are there are replaced, also those that are newer; other files stay, unless --delete-extra says
otherwise. Whatever has the directory open should be stopped: it sees files change under it. Cut off, the
same command once more completes it.`,
		Example: `  tidemark volumes restore data-20261125 --to /srv/data --delete-extra
  tidemark volumes restore data-20261125 etc/app.conf --to /tmp
  tidemark volumes restore data-20261125 -n shop --claim data --delete-extra`,
		Args: someArgs(1, 2, "the name of a backup, and optionally a path in it"),
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) error {
		if len(args) == 2 {
			q.Path = args[1]
		}
		if q.DeleteExtra && q.Path != "" {
			return usage("--delete-extra makes the target as the whole backup was: leave out the path")
		}
		if claim != "" {
			if q.To != "" {
				return usage("--claim and --to are two places: give one")
			}
			ns, err := namespace.resolve()
			if err != nil {
				return err
			}
			return fill(cmd, v, volumes.FillRequest{Backup: args[0], Namespace: ns, Claim: claim, Path: q.Path, DeleteExtra: q.DeleteExtra, Used: used}, output)
		}
		if q.To == "" {
			return usage("say where to with --claim CLAIM or --to DIR")
		}
		to, err := filepath.Abs(q.To)
		if err != nil {
			return err
		}
		q.To, q.Backup = to, args[0]
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
	namespace.add(cmd)
	fs.StringVar(&claim, "claim", "", "claim to write into, in the namespace -n")
	fs.BoolVar(&used, "used", false, "write into the claim although Pods use it")
	fs.StringVar(&q.To, "to", "", "directory (made when it is missing) or block device")
	fs.BoolVar(&q.DeleteExtra, "delete-extra", false, "remove what is in DIR and not in the backup")
	fs.BoolVar(&q.KeepOwners, "no-owners", false, "leave files to the user who restores (without root, nothing else works)")
	fs.StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

// fill writes a backup into a claim.
func fill(cmd *cobra.Command, v api.Volumes, q volumes.FillRequest, output string) error {
	p := newBytesProgress(cmd.ErrOrStderr(), "restored")
	began := time.Now()
	done, err := v.Fill(cmd.Context(), q, p.update)
	p.finish()
	if err != nil {
		return err
	}
	if output == "json" {
		return writeJSON(cmd.OutOrStdout(), done)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s files, %s, restored to claim %s/%s in %s\n", humanize.Comma(done.Files), humanize.IBytes(uint64(done.Bytes)), q.Namespace, q.Claim, time.Since(began).Round(time.Millisecond))
	return nil
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

func newVolumesCheck() *cobra.Command {
	var namespace namespaceFlags
	var output string
	cmd := &cobra.Command{
		Use:   "check [STORAGECLASS...]",
		Short: "Try what works: make, snapshot, restore and remove a small volume of each StorageClass",
		Long: `Try what works with each StorageClass, or those that are named: a claim of 1 GiB is made in the namespace and filled from the repository, a
snapshot of it is taken, a volume made of that and read back; then all of it is removed. Nothing is recorded.
Exit code 3: something does not work.`,
		Args: cobra.ArbitraryArgs,
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) error {
		ns, err := namespace.resolve()
		if err != nil {
			return err
		}
		if namespace.all {
			return usage("the check is made in one namespace: give it with -n")
		}
		p := newBytesProgress(cmd.ErrOrStderr(), "checking")
		all, err := v.Check(cmd.Context(), volumes.CheckRequest{Classes: args, Namespace: ns}, p.update)
		p.finish()
		if err != nil {
			return err
		}
		bad := 0
		for i := range all {
			if !all[i].Works() {
				bad++
			}
			if output != "json" {
				for line := range strings.Lines(all[i].Text()) {
					fmt.Fprintln(cmd.OutOrStdout(), text(strings.TrimRight(line, "\n")))
				}
			}
		}
		if output == "json" {
			if err := writeJSON(cmd.OutOrStdout(), all); err != nil {
				return err
			}
		}
		if bad > 0 {
			return failure(ErrPartly, "%d of %d storage classes do not work", bad, len(all))
		}
		return nil
	})
	namespace.add(cmd)
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
	if at.Step != "" && at.Bytes == 0 {
		p.show(text(at.Step))
		return
	}
	line := fmt.Sprintf("%s %s files, %s", p.doing, humanize.Comma(at.Files), humanize.IBytes(uint64(at.Bytes)))
	if at.Total > 0 {
		line += " of " + humanize.IBytes(uint64(at.Total))
	}
	p.show(line + fmt.Sprintf(", %s/s", humanize.IBytes(uint64(rate))))
}

func (p *bytesProgress) show(line string) {
	fmt.Fprintf(p.w, "\r%s%s", line, strings.Repeat(" ", max(p.shown-len(line), 0)))
	p.shown = len(line)
}

func (p *bytesProgress) finish() {
	if p.w != nil && p.shown > 0 {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.shown))
	}
}
