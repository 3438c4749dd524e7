package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
)

// archiveTroubles are what is wrong with archives.
func archiveTroubles(st *api.Status) []string {
	var out []string
	for i := range st.Archives {
		a := &st.Archives[i]
		switch {
		case a.Stopped:
			out = append(out, fmt.Sprintf("archive %s is not written any more: %s", a.Name, a.Error))
		case a.Error != "":
			out = append(out, fmt.Sprintf("archive %s: failing for %s: %s; it is tried again, and what waits is safe in the journal", a.Name, ago(st.Now.Sub(a.Since)), a.Error))
		}
		if a.Tidying != "" && a.Error == "" {
			out = append(out, fmt.Sprintf("archive %s: merging fails: %s; nothing is lost, but restores read more files", a.Name, a.Tidying))
		}
		if n := len(a.Damage); n > 0 {
			out = append(out, fmt.Sprintf("archive %s: %s damaged, %s among them: 'tidemark verify --archive %s' tells what that costs", a.Name, english.Plural(n, "file is", "files are"), a.Damage[0], a.URL))
		}
	}
	return append(out, st.Warnings...)
}

func writeArchives(b *strings.Builder, st *api.Status) {
	for i := range st.Archives {
		a := &st.Archives[i]
		fmt.Fprintf(b, "archive %s (%s): ", a.Name, firstOf(a.URL, "not reached yet"))
		if a.ArchivedTo.Time.IsZero() {
			b.WriteString("nothing archived yet")
		} else {
			fmt.Fprintf(b, "archived up to %s (%s ago)", stamp(a.ArchivedTo.Time), ago(max(0, st.Now.Sub(a.ArchivedTo.Time))))
		}
		if a.PendingEvents > 0 {
			fmt.Fprintf(b, ", %s changes wait (about %s)", humanize.Comma(int64(a.PendingEvents)), humanize.IBytes(uint64(a.PendingBytes)))
		} else if !a.ArchivedTo.Time.IsZero() {
			b.WriteString(", nothing waits")
		}
		fmt.Fprintf(b, "; %s, %s, %s", count(a.Segments, "segment"), count(a.Snapshots, "snapshot"), humanize.IBytes(uint64(a.Bytes)))
		if a.RecipientsOnly {
			b.WriteString("; this daemon cannot read it")
		}
		b.WriteString("\n")
	}
}

// archiveReport is what status tells of an archive alone.
type archiveReport struct {
	URL        string           `json:"url"`
	Cluster    string           `json:"cluster"`
	Writer     string           `json:"writer"`
	ArchivedTo journal.Position `json:"archivedTo"`
	Ranges     []archive.Range  `json:"restorable"` // oldest first
	Segments   int              `json:"segments"`
	Snapshots  int              `json:"snapshots"`
	Bytes      int64            `json:"bytes"`
	Damage     []string         `json:"damage,omitempty"`
	Ledgers    []journal.Ledger `json:"resources"`
}

// archiveStatus tells what an archive holds, from its manifests alone: it needs no identity.
func archiveStatus(w io.Writer, a *archive.Archive, asJSON bool) error {
	s := a.State()
	r := archiveReport{
		URL: a.Store().String(), Cluster: a.Cluster(), Writer: s.Writer, ArchivedTo: s.Known.Position, Ranges: s.Ranges(),
		Segments: len(s.Segments), Snapshots: len(s.Snapshots), Ledgers: s.Known.Ledgers,
	}
	for _, f := range s.Files() {
		r.Bytes += f.Size
	}
	for _, d := range a.Damage() {
		r.Damage = append(r.Damage, d.File)
	}
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	var b strings.Builder
	for _, d := range a.Damage() {
		fmt.Fprintf(&b, "TROUBLE: %v\n", d)
	}
	fmt.Fprintf(&b, "archive %s of cluster %s, written by %s\n", r.URL, r.Cluster, firstOf(s.Writer, "nobody yet"))
	fmt.Fprintf(&b, "%s; %s, %s, %s\n", count(len(r.Ledgers), "resource"), count(r.Segments, "segment"), count(r.Snapshots, "snapshot"), humanize.IBytes(uint64(r.Bytes)))
	if !r.ArchivedTo.Time.IsZero() {
		fmt.Fprintf(&b, "archived up to %s (%s ago), %s changes\n", stamp(r.ArchivedTo.Time), ago(max(0, time.Since(r.ArchivedTo.Time))), humanize.Comma(int64(r.ArchivedTo.Count)))
	}
	if len(r.Ranges) == 0 {
		b.WriteString("nothing is restorable from it yet\n")
	}
	for _, g := range r.Ranges {
		if g.From.Time.Equal(g.To.Time) {
			fmt.Fprintf(&b, "restorable at %s (rv:%s)\n", stamp(g.From.Time), g.From.Revision)
			continue
		}
		fmt.Fprintf(&b, "restorable from %s to %s (rv:%s to rv:%s)\n", stamp(g.From.Time), stamp(g.To.Time), g.From.Revision, g.To.Revision)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
