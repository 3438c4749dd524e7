package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/policy"
)

func newVolumesBackup() *cobra.Command {
	var path volumes.BackRequest
	var claims volumes.ClaimsRequest
	var namespace namespaceFlags
	var action, group, ttl, output string
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

Of block devices, only what has changed is read where the driver tells what that is; the newest snapshot is kept for that until the next
backup is done. Notes say when all was read, and why.

Before and after, hooks are run in the containers of the Pods that use the claims: those of Velero's annotations, of the
configuration, or the ready ones for PostgreSQL, MySQL, MongoDB and Redis. Post hooks are run whatever happens.

With --path, what is mounted below the directory is backed up with it; --one-file-system leaves that out (but not a bind mount of
the same file system). Files are read one after another: what is written to meanwhile is as consistent as a copy would be. Files
that have the size, time, mode and owner that they had in the backup before are not read again (--read-all reads them, and has damaged lists of directories in the repository written anew). Ctrl-C cancels; what was sent is not sent again by the next one.`,
		Example: `  tidemark volumes backup -n shop
  tidemark volumes backup data-db-0 -n shop --action snapshot-then-kopia
  tidemark volumes backup -n shop --name before-upgrade --ttl 30d
  tidemark volumes backup --path /srv/data -n shop --claim data
  tidemark volumes backup --path /srv/data --archive s3://backups/prod --identity key.txt
  tidemark volumes backup --path /srv/data --archive dir:///backups --identity key.txt --cluster laptop   # no daemon ever archived there`,
		Args: cobra.ArbitraryArgs,
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) (err error) {
		if claims.TTL, err = timeToLive(ttl); err != nil {
			return err
		}
		path.TTL, path.Pinned, path.ReadAll = claims.TTL, claims.Pinned, claims.ReadAll
		if path.Path != "" {
			if len(args) > 0 || claims.Selector != "" || namespace.all {
				return usage("--path names one directory: leave out what chooses claims")
			}
			if err := notWith(cmd, "--path, whose files are read where they are: it is for claims", "action", "group", "keep-snapshots"); err != nil {
				return err
			}
			path.Namespace = namespace.namespace
			return backPath(cmd, v, path, output)
		}
		if path.OneFileSystem {
			return usage("--one-file-system is for --path: a claim is one file system")
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
		if claims.KeepSnapshots && claims.Action != "" && claims.Action != policy.Move {
			return usage("--keep-snapshots is for --action snapshot-then-kopia, and this is %s", action)
		}
		if claims.Group, err = policy.ParseGroup(group); err != nil {
			return usage("--group: %v", err)
		}
		return backClaims(cmd, v, claims, output)
	})
	fs := cmd.Flags()
	namespace.add(cmd)
	fs.StringVar(&path.Path, "path", "", "directory or block device to back up, in place of claims")
	fs.StringVar(&path.Claim, "claim", "", "with --path and -n: the claim that the path belongs to (default: the path itself names the volume)")
	fs.BoolVar(&path.OneFileSystem, "one-file-system", false, "with --path: leave out what other file systems, mounted below it, hold; their directories come back empty")
	fs.StringVarP(&claims.Selector, "selector", "l", "", "only claims with these labels")
	fs.StringVar(&action, "action", "", "snapshot, kopia, snapshot-then-kopia or auto (default: what the policies say)")
	fs.BoolVar(&claims.KeepSnapshots, "keep-snapshots", false, "with snapshot-then-kopia: keep the snapshots as well")
	fs.StringVar(&group, "group", "", "label or pod: which claims are taken at one instant (default: what the policies say, and else label)")
	fs.BoolVar(&claims.ReadAll, "read-all", false, "read all, also files of the size, time, mode and owner that they had in the backup before, and unchanged blocks of devices (and find out whether the driver's list of those is right); damaged lists of directories in the repository are found, and written anew")
	fs.StringVar(&claims.Run, "name", "", "name of what is made together, which no other has: lower-case letters, digits, '-' and '.' (default: one is made)")
	fs.StringVar(&ttl, "ttl", "", "delete it after this time, such as 720h or 30d, but not the newest whole one of a volume (default: keep it until it is deleted by hand)")
	fs.BoolVar(&claims.Pinned, "pin", false, "keep it whatever retention says")
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
	if src, ok := v.(source); ok && len(m.Backups)+len(m.Skipped) == 0 && len(q.Namespaces) == 1 {
		if err := namespaceSeen(cmd.Context(), src, q.Namespaces[0]); err != nil {
			return err
		}
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
			where := "anywhere"
			if len(q.Namespaces) > 0 {
				where = "in namespace " + strings.Join(q.Namespaces, ", ") + ": name another with -n, or -A for all"
			}
			fmt.Fprintln(cmd.OutOrStdout(), "there are no claims "+where)
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

// namespaceSeen returns an error for a namespace that history does not know: it is misspelt rather than empty.
func namespaceSeen(ctx context.Context, src source, namespace string) error {
	catalog, err := src.Ledgers(ctx)
	if err != nil {
		return err
	}
	return (&history{src: src, catalog: catalog, namespace: namespace}).knownNamespace(ctx)
}

// summary is a backup in one line, or some more when there is something to say.
func summary(b *volumes.Backup) string {
	line := text(b.Metadata.Name)
	s := &b.Status
	switch {
	case s.Phase == volumes.Failed:
		line += ": FAILED: " + text(s.Error)
	case s.Content != nil && b.Spec.Source != nil && b.Spec.Source.Mode == "Block":
		line += fmt.Sprintf(": a device of %s, of which %s were read; %s sent in %s", humanize.IBytes(uint64(s.Content.Bytes)),
			humanize.IBytes(uint64(s.Content.Read)), humanize.IBytes(uint64(s.Content.Sent)), b.Duration().Round(time.Millisecond))
	case s.Content != nil:
		line += fmt.Sprintf(": %s, %s, of which %s unchanged; %s sent in %s", counted(s.Content.Files, "file"),
			humanize.IBytes(uint64(s.Content.Bytes)), was(s.Content.Unchanged), humanize.IBytes(uint64(s.Content.Sent)), b.Duration().Round(time.Millisecond))
	case s.Snapshot != nil:
		line += fmt.Sprintf(": snapshot %s of %s, in %s", text(s.Snapshot.ID), s.Snapshot.Driver, b.Duration().Round(time.Millisecond))
	}
	notes := make([]string, len(s.Notes))
	for i, n := range s.Notes {
		notes[i] = "\n  note: " + text(n)
	}
	return line + strings.Join(notes, "")
}
