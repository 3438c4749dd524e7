package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// verified is what verify found of an archive and of the volumes beside it.
type verified struct {
	*compactor.Report
	// Volumes is what was found of their content; nil: it was not looked at.
	Volumes *repository.Verified `json:"volumes,omitempty"`
	// NotLookedAt says that there are backups of volumes of which nothing is known, and how to look.
	NotLookedAt string `json:"notLookedAt,omitempty"`

	trouble error // that kept volumes from being looked at
}

// lookAtVolumes checks the content of volumes, or says that nobody did. That there is some is known by what lies there, and by
// history, which still tells of it when all of it is gone.
func (v *verified) lookAtVolumes(ctx context.Context, f *readArchiveFlags, a *archive.Archive, full bool) error {
	any, err := hasVolumes(ctx, a)
	if err != nil || !any {
		return err
	}
	look := fmt.Sprintf("'tidemark volumes verify --archive %s --identity FILE'", quote(f.url))
	if !full {
		v.NotLookedAt = "volumes were not looked at: " + look + " does, and so does --level full"
		return nil
	}
	o, store, err := f.options(ctx)
	if err != nil {
		return err
	}
	elsewhere := map[string]bool{}
	keeper := volumes.New(volumes.Options{
		Open: func(ctx context.Context, _ bool) (*repository.Repository, error) {
			return repository.Open(ctx, repository.Options{Store: store, Cluster: a.Cluster(), Identities: o.Identities, ReadOnly: true})
		},
		Recorded: func(ctx context.Context) iter.Seq2[journal.Event, error] {
			return recordedHere(ctx, a, elsewhere)
		},
	})
	if v.Volumes, err = keeper.Verify(ctx, 100); errors.Is(err, repository.ErrNoRepository) || errors.Is(err, repository.ErrNoBackup) {
		v.Volumes = &repository.Verified{Errors: []string{err.Error() + ", and there are records of backups"}}
	} else if err != nil {
		v.trouble = fmt.Errorf("look at volumes: %w", err)
		what := "volumes were not looked at"
		if v.Volumes != nil {
			what = "volumes were looked at in part"
		}
		v.NotLookedAt = fmt.Sprintf("%s: %v; %s tries again", what, err, look)
	}
	if v.trouble != nil || len(elsewhere) == 0 {
		return nil
	}
	here, err := keeper.List(ctx) // a copy of a location has what its records place in the other one
	if errors.Is(err, repository.ErrBroken) {
		return nil // which has been found, and is told
	}
	if err != nil {
		return err
	}
	for _, b := range here {
		delete(elsewhere, b.Metadata.Name)
	}
	if n := len(elsewhere); n > 0 {
		v.NotLookedAt = fmt.Sprintf("%s beside another archive, as history says: 'tidemark volumes verify --archive URL' looks there", english.Plural(n, "volume backup is", "volume backups are"))
	}
	return nil
}

// hasVolumes reports whether history or the location tells of backups of volumes.
func hasVolumes(ctx context.Context, a *archive.Archive) (bool, error) {
	if slices.ContainsFunc(a.State().Known.Ledgers, func(l journal.Ledger) bool { return l.GroupResource() == volumes.Info.GroupResource() }) {
		return true, nil
	}
	for _, err := range a.Store().List(ctx, archive.VolumesDir+"/"+a.Cluster()+"/", "") {
		return err == nil, err
	}
	return false, nil
}

// recordedHere are the newest records of backups whose content is at this location; it notes those of other places.
func recordedHere(ctx context.Context, a *archive.Archive, elsewhere map[string]bool) iter.Seq2[journal.Event, error] {
	return func(yield func(journal.Event, error) bool) {
		ranges := a.State().Ranges()
		if len(ranges) == 0 {
			return
		}
		end := ranges[len(ranges)-1].To.Cut // what came after a loss, only the location itself tells
		for e, err := range replay.NewArchived(a.History()).Fold(ctx, end, replay.Scope{Resources: []schema.GroupResource{volumes.Info.GroupResource()}}) {
			if err == nil {
				b, parseErr := volumes.Parse(e.Object)
				if parseErr == nil && b.Status.Content != nil && b.Status.Content.Location != a.Store().String() {
					elsewhere[b.Metadata.Name] = true
					continue
				}
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// verdict is the error, if any, that verify ends with.
func (v *verified) verdict() error {
	bad := 0
	if v.Volumes != nil {
		bad = len(v.Volumes.Errors)
	}
	var what []string
	if n := len(v.Problems); n > 0 {
		what = append(what, count(n, "problem")+": the report says what they cost; 'tidemark repair' puts right what can be")
	}
	if bad > 0 {
		what = append(what, count(bad, "problem")+" with volume backups: restore from others, and look after the store; the next backups write anew what they need")
	}
	if len(what) > 0 {
		return failure(ErrDamaged, "%s", strings.Join(what, "; "))
	}
	if v.trouble != nil {
		return v.trouble
	}
	if n := len(v.Closed); n > 0 {
		return failure(archive.ErrNoIdentity, "%s encrypted for other keys than the one given, and only their hashes were checked: verify again with that key", english.Plural(n, "file was", "files were"))
	}
	return nil
}

// write writes the report for people.
func (v *verified) write(w io.Writer) error {
	r := v.Report
	var b strings.Builder
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "DAMAGED: %s: %s\n", firstOf(p.File, "history"), p.What)
		if p.Cost != "" {
			fmt.Fprintf(&b, "  costs: %s\n", p.Cost)
		}
	}
	if v.Volumes != nil {
		for _, e := range v.Volumes.Errors {
			fmt.Fprintf(&b, "DAMAGED: volumes: %s\n", text(e))
		}
	}
	for _, p := range r.Lost {
		fmt.Fprintf(&b, "lost, and known: %s\n", p.Cost)
	}
	fmt.Fprintf(&b, "%s, %s, %s read in %s", count(r.Chain, "manifest"), count(r.Files, "file"), humanize.IBytes(uint64(r.Read)), r.Took.Round(time.Millisecond))
	if r.Proven > 0 {
		fmt.Fprintf(&b, ", %s made again and equal", count(r.Proven, "snapshot"))
	}
	b.WriteString("\n")
	if v.Volumes != nil {
		fmt.Fprintf(&b, "volumes: %s, %s files and directories, %s read\n", count(v.Volumes.Backups, "backup"), humanize.Comma(v.Volumes.Files), humanize.IBytes(uint64(v.Volumes.Read)))
	}
	if n := len(r.Unknown); n > 0 {
		fmt.Fprintf(&b, "nothing refers to %s: harmless; 'tidemark repair' removes what is an hour older than the archive's newest file, as nobody can be about to refer to that\n", count(n, "file"))
	}
	for _, g := range r.Restorable {
		if g.From.Time.Equal(g.To.Time) {
			fmt.Fprintf(&b, "restorable at %s (rv:%s)\n", stamp(g.From.Time), g.From.Revision)
		} else {
			fmt.Fprintf(&b, "restorable from %s to %s\n", stamp(g.From.Time), stamp(g.To.Time))
		}
	}
	if len(r.Restorable) == 0 {
		b.WriteString("nothing is restorable\n")
	}
	if n := len(r.Lost); n > 0 {
		b.WriteString(v.wayOn(r.Lost[n-1].To))
	}
	if v.NotLookedAt != "" {
		b.WriteString(v.NotLookedAt + "\n")
	}
	if !r.Damaged() && v.trouble == nil && (v.Volumes == nil || len(v.Volumes.Errors) == 0) {
		b.WriteString("no damage found\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// wayOn says whether moments after the newest loss can be restored, which takes a full snapshot.
func (v *verified) wayOn(loss time.Time) string {
	for _, g := range v.Restorable {
		if !g.To.Time.Before(loss) {
			return ""
		}
	}
	return "moments after what was lost need a full snapshot: 'tidemark snapshot create' takes one\n"
}
