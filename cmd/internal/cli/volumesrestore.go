package cli

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

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
otherwise. A directory that is there loses the ACLs and extended attributes (user.*, trusted.*) that the backup does not have; what the system sets
by itself (security.*) stays. With PATH, a directory comes back as the directory of --to (or the claim's root) itself, which gets its mode, owner and time; a file
comes back in it. A file that is there stays until its new content is complete, so that damage or a store that is away does not cost it; that takes
room for both. (A block device is written over as it is read.) Owners, extended attributes and devices that the target or this user cannot have are told, and no reason to stop (exit code 3). Neither is
damage: what cannot be read, or replaced as it is immutable or a mount point, is named, and all else comes back (exit code 3). Whatever has the directory open should be stopped: it sees files change under it. Cut off, the
same command once more completes it.`,
		Example: `  tidemark volumes restore data-20261125 --to /srv/data --delete-extra
  tidemark volumes restore data-20261125 etc/app.conf --to /tmp
  tidemark volumes restore data-20261125 -n shop --claim data --delete-extra`,
		Args: someArgs(1, 2, "the name of a backup, and optionally a path in it"),
	}
	volumesCommand(cmd, func(cmd *cobra.Command, v api.Volumes, args []string) error {
		if len(args) == 2 {
			q.Path = repository.EscapePath(args[1])
		}
		if q.DeleteExtra && q.Path != "" {
			return usage("--delete-extra makes the target as the whole backup was: leave out the path")
		}
		if claim != "" {
			if q.To != "" {
				return usage("--claim and --to are two places: give one")
			}
			if q.KeepOwners {
				return usage("--no-owners is for --to: a claim is written by a Pod of root's, and gets the owners of the backup")
			}
			if local(v) {
				return usage("claims are written by the daemon of their cluster: leave out --archive; without a daemon, restore into a directory with --to, or make the claim anew with 'tidemark restore'")
			}
			if namespace.all {
				return usage("a claim is in one namespace: give -n in place of -A")
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
		if err := notWith(cmd, "--to, which is a directory or a device: it is for --claim", "namespace", "all-namespaces", "used"); err != nil {
			return err
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
		return told(cmd, &done, err, q.To, time.Since(began), output)
	})
	fs := cmd.Flags()
	namespace.add(cmd)
	fs.StringVar(&claim, "claim", "", "claim to write into, in the namespace -n")
	fs.BoolVar(&used, "used", false, "write into the claim although Pods use it")
	fs.StringVar(&q.To, "to", "", "directory (made when it is missing) or block device")
	fs.BoolVar(&q.DeleteExtra, "delete-extra", false, "remove what is in DIR and not in the backup (what is mounted below DIR stays, and is told)")
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
	return told(cmd, &done, err, "claim "+q.Namespace+"/"+q.Claim, time.Since(began), output)
}

// told says what a restore has done, and what it could not do; err is that of the restore.
func told(cmd *cobra.Command, done *repository.Progress, err error, to string, took time.Duration, output string) error {
	if err != nil && !api.Partly(err) {
		return err
	}
	out := cmd.OutOrStdout()
	if output == "json" {
		return cmp.Or(writeJSON(out, done), err, partly(done))
	}
	fmt.Fprintf(out, "%s, %s, restored to %s in %s\n", counted(done.Files, "file"), humanize.IBytes(uint64(done.Bytes)), to, took.Round(time.Millisecond))
	switch {
	case done.Removed == 1:
		fmt.Fprintln(out, "1 file or directory that the backup does not have was removed")
	case done.Removed > 1:
		fmt.Fprintf(out, "%s files and directories that the backup does not have were removed\n", humanize.Comma(done.Removed))
	}
	for _, at := range done.Mounts {
		fmt.Fprintf(out, "note: something is mounted at %s: nothing in it was removed\n", text(at))
	}
	for _, line := range done.LostFirst {
		fmt.Fprintf(out, "not restored: %s\n", text(line))
	}
	if more := done.Lost - int64(len(done.LostFirst)); more > 0 {
		fmt.Fprintf(out, "not restored: %s more\n", humanize.Comma(more))
	}
	for _, line := range done.MissedFirst {
		fmt.Fprintf(out, "not set: %s\n", text(line))
	}
	if more := done.Missed - int64(len(done.MissedFirst)); more > 0 {
		fmt.Fprintf(out, "not set: %s more\n", humanize.Comma(more))
	}
	return cmp.Or(err, partly(done))
}

// partly is the error of a restore that could not give files all that they had.
func partly(done *repository.Progress) error {
	if done.Missed == 0 {
		return nil
	}
	return failure(ErrPartly, "all content is back, but %s owners, extended attributes or special files are not, as the target or this user cannot have them: restore as root, or leave owners out with --no-owners", humanize.Comma(done.Missed))
}

// bytesProgress shows on a terminal how far something is, and anywhere what keeps it from going on.
type bytesProgress struct {
	w, log  io.Writer // a terminal, if there is one; anything
	doing   string
	began   time.Time
	shown   int
	waiting string // said last, so that it is said once
}

func newBytesProgress(w io.Writer, doing string) *bytesProgress {
	p := &bytesProgress{w: w, log: w, doing: doing, began: time.Now()}
	if f, ok := w.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		p.w = nil
	}
	return p
}

func (p *bytesProgress) update(at repository.Progress) {
	if at.Waiting != "" && at.Waiting != p.waiting {
		p.waiting = at.Waiting
		p.finish()
		fmt.Fprintf(p.log, "waiting for %s\n", text(at.Waiting))
		return
	}
	if p.w == nil {
		return
	}
	rate := float64(at.Bytes) / max(time.Since(p.began).Seconds(), 0.1)
	if at.Step != "" && at.Bytes == 0 {
		p.show(text(at.Step))
		return
	}
	line := fmt.Sprintf("%s %s, %s", p.doing, counted(at.Files, "file"), humanize.IBytes(uint64(at.Bytes)))
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
		p.shown = 0
	}
}
