package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"github.com/spf13/cobra"

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
	ro, err := f.repository(ctx)
	if err != nil {
		return nil, nil, err
	}
	var warned sync.Once
	return volumes.New(volumes.Options{Open: func(ctx context.Context, create bool) (*repository.Repository, error) {
		if create {
			if others, err := repository.Clusters(ctx, ro.Store); err == nil && len(others) > 0 && !slices.Contains(others, ro.Cluster) {
				fmt.Fprintf(os.Stderr, "# note: %s has no volumes of cluster %s yet, and those of %s: a repository of its own is made\n", ro.Store, ro.Cluster, strings.Join(others, ", "))
			}
			return repository.Create(ctx, ro)
		}
		r, err := repository.Open(ctx, ro)
		if errors.Is(err, repository.ErrNoRepository) {
			err = noVolumes(ctx, ro, err)
		}
		if err == nil {
			warned.Do(func() { warnOfLostIndexes(ctx, r) })
		}
		return r, err
	}}), func() {}, nil
}

// warnOfLostIndexes says that what follows may lack backups. Where that cannot be told, what follows fails for the same reason, and says so.
func warnOfLostIndexes(ctx context.Context, r *repository.Repository) {
	if lost, err := r.LostIndexes(ctx); err == nil && lost != "" {
		fmt.Fprintf(os.Stderr, "# warning: an index of the repository of volumes is lost from the store (%s): backups that need what it listed are missing here, or damaged: 'tidemark volumes verify' says what to do\n", lost)
	}
}

// noVolumes says what there is in place of the volumes of a cluster. It leaves the error as it is when only the cluster's archive is there: then there are
// none yet. Anything else may be the wrong place, which must not look like good news.
func noVolumes(ctx context.Context, ro repository.Options, none error) error {
	if _, err := ro.Store.Stat(ctx, ro.Cluster+"/format"); err == nil {
		return none
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	others, err := repository.Clusters(ctx, ro.Store)
	if err != nil {
		return err
	}
	if len(others) == 0 {
		return failure(ErrNotInHistory, "%s holds no volumes, of no cluster: is it the right place? 'tidemark volumes backup' makes some", ro.Store)
	}
	return failure(ErrNotInHistory, "%s holds no volumes of cluster %s%s: name another with --cluster: %s", ro.Store, ro.Cluster, didYouMean(ro.Cluster, others), strings.Join(others, ", "))
}

// repository says where the content of volumes is, in the archive that --archive names.
func (f *serverFlags) repository(ctx context.Context) (ro repository.Options, err error) {
	o, store, err := f.archive.options(ctx)
	if err != nil {
		return ro, err
	}
	if o.Cluster == "" {
		if o.Cluster, err = onlyCluster(ctx, store, o); err != nil {
			return ro, err
		}
	}
	ro = repository.Options{Store: store, Cluster: o.Cluster, Identities: o.Identities}
	ro.Recipients, _ = archive.RecipientsOf(o.Identities)
	return ro, nil
}

// onlyCluster is the cluster that an archive is of, or where no daemon ever archived, the one whose volumes are there.
func onlyCluster(ctx context.Context, store archive.Store, o archive.Options) (string, error) {
	a, err := archive.Open(ctx, store, o)
	if err == nil {
		return a.Cluster(), nil
	}
	have, listErr := repository.Clusters(ctx, store)
	switch {
	case listErr != nil || !errors.Is(err, archive.ErrNoArchive):
		return "", fmt.Errorf("%w; or say whose volumes with --cluster", err)
	case len(have) == 0:
		return "", usage("%v; or say whose volumes with --cluster: a first backup of a directory may name it as you like", err)
	}
	if _, err := store.Stat(ctx, have[0]+"/format"); len(have) == 1 && errors.Is(err, fs.ErrNotExist) {
		return have[0], nil
	}
	return "", usage("say whose volumes with --cluster: %s has those of %s", store, strings.Join(have, ", "))
}

func newVolumes() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "volumes",
		Aliases: []string{"volume", "vol"},
		GroupID: "operate",
		Short:   "The content of volumes: back up, list, look into, restore, verify",
		Long: `The content of volumes, in a repository beside the archive, encrypted, deduplicated and compressed.

Each backup is an event of history: 'volumes list' says which moment of the cluster it belongs to. A
backup is given by its name, or as much of it as no other has. Claims (PersistentVolumeClaims) are backed up
by the daemon of their cluster. With --archive and --identity, all else is done here, without a daemon;
otherwise the daemon does it, with paths of its own machine.

Files come back with their names byte for byte, owner, mode, times, extended attributes and ACLs, hard links, holes, pipes and devices;
sockets are left out, as who listens makes them anew ('volumes describe' says how many). Symbolic links are kept as they are, and never followed.

The repository is one of Kopia's: 'kopia' can open the directory volumes/CLUSTER/kopia/ of the location.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newVolumesBackup(), newVolumesList(), newVolumesDescribe(), newVolumesFiles(), newVolumesGet(), newVolumesRestore(),
		newVolumesVerify(), newVolumesCheck(), newVolumesPin("pin", "Keep backups whatever retention says", true),
		newVolumesPin("unpin", "Let retention decide about backups again", false), newVolumesDelete(), newVolumesMaintain())
	return cmd
}

// volumesCommand adds what all of them have, and opens the volumes.
func volumesCommand(cmd *cobra.Command, run func(cmd *cobra.Command, v api.Volumes, args []string) error) *cobra.Command {
	server := new(serverFlags)
	server.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if o := cmd.Flags().Lookup("output"); o != nil && o.Value.String() != "" && o.Value.String() != "json" {
			return usage("-o %s: want json", o.Value)
		}
		v, done, err := server.volumes(cmd.Context())
		if err != nil {
			return err
		}
		defer done()
		err = run(cmd, v, args)
		switch {
		case api.Unknown(err):
			err = failure(ErrNotInHistory, "%v", err)
		case api.Partly(err):
			err = failure(ErrPartly, "%v", err)
		case api.Refused(err):
			err = failure(ErrUsage, "%v", err)
		}
		return err
	}
	return cmd
}

// notWith refuses flags that would go unheeded.
func notWith(cmd *cobra.Command, what string, flags ...string) error {
	for _, name := range flags {
		if cmd.Flags().Changed(name) {
			return usage("--%s means nothing with %s", name, what)
		}
	}
	return nil
}

// local reports whether volumes are looked after by this process, and by no daemon.
func local(v api.Volumes) bool {
	_, keeper := v.(*volumes.Keeper)
	return keeper
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
		fmt.Fprintln(w, "NAME\tVOLUME\tTAKEN\tREVISION\tPHASE\tKEPT\tFILES\tSIZE\tCONSISTENCY\tRETENTION\tRUN")
		for _, b := range chosen {
			files, size := "-", "-"
			if c := b.Status.Content; c != nil {
				files, size = humanize.Comma(c.Files), humanize.IBytes(uint64(c.Bytes))
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", text(b.Metadata.Name), text(b.Volume()), stamp(b.Status.Taken), revisionOf(b), b.Status.Phase, kept(b), files, size,
				firstOf(string(b.Status.Consistency), "-"), keptText(false, b.Spec.Pinned, b.Spec.TTL), runOf(b))
		}
		return w.Flush()
	})
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only of claims of this namespace")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

// runOf names what a backup was made in, with 'volumes backup --name' for instance.
func runOf(b *volumes.Backup) string {
	if b.Spec.Run == b.Metadata.Name {
		return "-" // it is by itself, and has no other name
	}
	return firstOf(text(b.Spec.Run), "-")
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
		Long:  "All about one backup: by its name, a part of it that no other has, or the --name it was made with.",
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
		row("Retention", "%s", retentionOf(b))
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
			figures := fmt.Sprintf("%s, %s", counted(c.Files, "file"), humanize.IBytes(uint64(c.Bytes)))
			if c.Sent > 0 { // only a daemon's history has these
				figures += fmt.Sprintf(", %s of them unchanged, %s sent", humanize.Comma(c.Unchanged), humanize.IBytes(uint64(c.Sent)))
			}
			row("Content", "%s", figures)
			if c.Read > 0 || c.Listed > 0 {
				row("Read", "%s of the device; %d backups rely on the driver's lists of changed blocks since all was read", humanize.IBytes(uint64(c.Read)), c.Listed)
			}
			row("Kept in", "%s as %s", c.Location, c.ID)
		}
		if h := b.Status.Snapshot; h != nil {
			row("Snapshot", "%s of driver %s", text(h.ID), text(h.Driver))
			if h.Group != "" {
				row("Group", "%s", text(h.Group))
			}
		}
		if h := b.Status.Base; h != nil {
			row("Base", "snapshot %s of driver %s, kept until the next backup has asked what has changed since", text(h.ID), text(h.Driver))
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

// retentionOf says how long a backup is kept.
func retentionOf(b *volumes.Backup) string {
	policy, ofSchedule := strings.CutPrefix(b.Spec.Origin, volumes.Scheduled(""))
	switch {
	case b.Spec.Pinned:
		return "pinned: it stays until 'tidemark volumes unpin " + text(b.Metadata.Name) + "', and then as it was made"
	case b.Spec.TTL > 0:
		return fmt.Sprintf("%s, until %s; longer while it is the newest whole one of its volume", keptText(false, false, b.Spec.TTL), stamp(b.Metadata.Created.Add(b.Spec.TTL)))
	case ofSchedule:
		return "as policy " + text(policy) + " says"
	}
	return "until it is deleted by hand"
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
		Use:   "files BACKUP [PATH]",
		Short: "List the files of a backup",
		Long: `List the files of a backup. A name that is not UTF-8 is shown as .tidemark-name. and the name, with % and two digits for each byte that
is none; other commands take it like this, or as it is. One with control characters, such as the end of a line, is shown in quotes ("a\nb": $'a\nb' in a
shell). A directory that is damaged in the repository is named, and all else is listed (exit code 3).`,
		Example: "  tidemark volumes files data-20261125 var/lib\n  tidemark volumes files data-20261125 -R -o json",
		Args:    someArgs(1, 2, "the name of a backup, and optionally a path in it"),
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) error {
		path := ""
		if len(args) == 2 {
			path = repository.EscapePath(args[1])
		}
		all := []repository.File{}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 1, ' ', 0)
		var partly error
		for f, err := range v.Files(cmd.Context(), args[0], path, deep) {
			if partly = err; api.Partly(err) {
				break // it comes last
			}
			if err != nil {
				_ = w.Flush() // the error says that there is more
				return err
			}
			if output == "json" {
				all = append(all, f)
				continue
			}
			name := shownName(f.Path)
			if f.Target != "" {
				name += " -> " + shownName(f.Target)
			}
			fmt.Fprintf(w, "%s\t%d:%d\t%d\t%s\t%s\n", f.Mode, f.UID, f.GID, f.Size, stamp(f.Modified), name)
		}
		if output == "json" {
			return cmp.Or(writeJSON(cmd.OutOrStdout(), all), partly)
		}
		return cmp.Or(w.Flush(), partly)
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
		return v.Read(cmd.Context(), args[0], repository.EscapePath(args[1]), cmd.OutOrStdout())
	})
}

func newVolumesVerify() *cobra.Command {
	var read, output string
	cmd := &cobra.Command{
		Use:   "verify [BACKUP...]",
		Short: "Check that backups are whole; all of them without names",
		Long: `Check that the repository has all that backups need, and read, decrypt and compare the hashes of as many files as --read
says, chosen anew each time. Nothing else finds files that are damaged in place: a backup takes what the repository lists for stored. It reads the lists of what was in
directories the last time, with --read-all those of all backups, and writes damaged ones anew. Exit code 5: damage.`,
		Example: "  tidemark volumes verify --read 100\n  tidemark volumes verify data-20261125",
		Args:    cobra.ArbitraryArgs,
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) error {
		percent, err := strconv.ParseFloat(strings.TrimSuffix(read, "%"), 64)
		if err != nil || !(percent >= 0 && percent <= 100) {
			return usage("--read %s: want how many percent of the files, from 0 to 100", read)
		}
		found, unread := v.Verify(cmd.Context(), percent, args...)
		if unread != nil && (found == nil || len(found.Errors) == 0) {
			return unread
		}
		if output == "json" {
			err = writeJSON(cmd.OutOrStdout(), found)
		} else {
			for _, e := range found.Errors {
				fmt.Fprintf(cmd.OutOrStdout(), "DAMAGED: %s\n", text(e))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s, %s different files and directories, %s read\n", count(found.Backups, "backup"), humanize.Comma(found.Files), humanize.IBytes(uint64(found.Read)))
			if found.Read == 0 && len(found.Errors) == 0 && found.Backups > 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "all that is wanted is there; no content was read: --read 100 reads all of it")
			}
		}
		if err == nil && len(found.Errors) > 0 {
			rest := ""
			if unread != nil {
				rest = fmt.Sprintf("; and not all was looked at: %v", unread)
			}
			return failure(ErrDamaged, "%s with volume backups: %s%s", count(len(found.Errors), "problem"), afterDamage(found), rest)
		}
		return err
	})
	cmd.Flags().StringVar(&read, "read", "10", "percent of the files that are read")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

// afterDamage says what to do about what a verification found.
func afterDamage(found *repository.Verified) string {
	if !slices.ContainsFunc(found.Errors, func(e string) bool { return !strings.HasPrefix(e, repository.OfAll) }) {
		return "no backup could be looked at, or none is hit by it alone: do what is said above, look after the store, and verify again"
	}
	hit := "no backup is hit by it yet: look after the store. "
	switch n := len(found.Hit); {
	case n > 0 && n == found.Backups:
		hit = "all of these backups are hit, and what is not named above can still be restored: look after the store. "
	case n > 0:
		hit = fmt.Sprintf("%d of %s hit, %s: restore from another, and look after the store. ", n, english.Plural(found.Backups, "backup is", "backups are"), shortened(found.Hit, 20))
	}
	return hit +
		"A next backup with --read-all writes anew, for all backups that share it, what is missing or cut short, and damaged lists of directories (in files q..., which must stay: they list backups, too). Where a file p... is damaged within, move it out of kopia/ first. " +
		"What is still hit then, delete ('tidemark volumes delete')"
}

// shortened lists names, at most so many.
func shortened(names []string, most int) string {
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more (all with -o json)", strings.Join(names[:most], ", "), len(names)-most)
}

func newVolumesCheck() *cobra.Command {
	var namespace namespaceFlags
	var output string
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "check [STORAGECLASS...]",
		Short: "Try what works: make, snapshot, restore and remove a small volume of each StorageClass",
		Long: `Try what works with each StorageClass, or those that are named: a claim of 1 GiB is made in the namespace and filled from the repository, a
snapshot of it is taken, a volume made of that and read back; then all of it is removed. Nothing is recorded. One class is tried after another; a
step that takes longer than --timeout fails.
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
		if limit <= 0 {
			return usage("--timeout: want a time, such as 1m")
		}
		p := newBytesProgress(cmd.ErrOrStderr(), "checking")
		all, err := v.Check(cmd.Context(), volumes.CheckRequest{Classes: args, Namespace: ns, Limit: limit}, p.update)
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
		if len(all) == 0 && output != "json" {
			fmt.Fprintln(cmd.OutOrStdout(), "nothing was tried: the cluster has no StorageClass")
		}
		if bad > 0 {
			return failure(ErrPartly, "%d of %d storage classes do not work", bad, len(all))
		}
		return nil
	})
	cmd.Flags().DurationVar(&limit, "timeout", volumes.DefaultCheckTime, "how long each step may take")
	namespace.add(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}
