package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/journal"
)

func newStatus() *cobra.Command {
	var server serverFlags
	var output string
	var checked bool
	cmd := &cobra.Command{
		Use:     "status",
		GroupID: "look",
		Short:   "What is recorded, how current it is, and what can be restored",
		Long: `What is recorded, how current it is, and what can be restored.

Troubles come first. Then, per resource: since when its history is continuous, how old the
watermark is (the journal is complete up to there; of a resource that does not change it moves
about once a minute), how long an event takes from the wire to the disk, and the gaps. Then, per
archive, up to where it has everything and what waits, how the backups of volumes fare, and whether the audit has
proven that history equals the cluster. With --check, anything but good news is exit code 1; an audit that is switched off is none. With --archive it tells what an archive
holds, without a daemon.`,
		Example: `  tidemark status
  tidemark status --server unix:///var/lib/tidemark/tidemark.sock
  tidemark status --archive s3://backups/prod
  tidemark status -o json
  tidemark status --check`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return usage("-o %s: want json", output)
			}
			if checked && server.archive.url != "" {
				return usage("--check asks a daemon; 'tidemark verify' checks an archive")
			}
			if server.archive.url != "" {
				a, err := server.archive.open(cmd.Context())
				if err != nil {
					return err
				}
				return archiveStatus(cmd.OutOrStdout(), a, output == "json")
			}
			c, err := server.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			st, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(st)
			} else {
				err = writeStatus(cmd.OutOrStdout(), st)
			}
			if err == nil && checked {
				err = check(st)
			}
			return err
		},
	}
	server.add(cmd)
	cmd.Flags().BoolVar(&checked, "check", false, "exit code 1 when there is trouble, or no proof that history equals the cluster (unless the audit is off)")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (default: for people)")
	return cmd
}

func writeStatus(out io.Writer, st *api.Status) error {
	var b strings.Builder
	for _, t := range troubles(st) {
		fmt.Fprintf(&b, "TROUBLE: %s\n", t)
	}
	if b.Len() > 0 {
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "tidemark %s, running for %s, recording %s (cluster %s)\n\n",
		st.Version, ago(st.Now.Sub(st.Started)), firstOf(st.Capture.Server, "-"), firstOf(st.Catalog.ClusterID, "not known yet"))
	writeResources(&b, st)
	writeLimits(&b, st)
	writeGaps(&b, st)
	writeOutages(&b, st)
	fmt.Fprintf(&b, "\n%s, %s events, %s in tables", count(len(st.Catalog.Resources), "resource"), humanize.Comma(int64(st.Totals.Events)), humanize.IBytes(st.Totals.DiskBytes))
	if !st.Totals.Newest.IsZero() {
		fmt.Fprintf(&b, ", newest change %s ago", ago(st.Now.Sub(st.Totals.Newest)))
	}
	b.WriteString("\n")
	writeArchives(&b, st)
	writeVolumes(&b, st)
	writeAudit(&b, st)
	b.WriteString(restorable(st) + "\n")
	_, err := io.WriteString(out, b.String())
	return err
}

// restorable tells the range that can be asked for, or why there is none.
func restorable(st *api.Status) string {
	c := &st.Catalog
	if !c.From.Time.IsZero() && !c.To.Time.Before(c.From.Time) {
		from, to := stamp(c.From.Time), c.To.Time.UTC().Format("2006-01-02T15:04:05.000Z")
		if to < from { // both in the same millisecond: one was rounded up, the other down
			to = from
		}
		return fmt.Sprintf("restorable from %s to %s (rv:%s to rv:%s)", from, to, c.From.Revision, c.To.Revision)
	}
	listing := func(r api.ResourceStatus) bool { return r.State == "listing" || r.State == "watching" || r.Error == "" }
	switch {
	case st.Condition != "":
		return "nothing is restorable yet, and recording is paused"
	case !st.Capture.Connected:
		return "nothing is restorable yet: the API server was not reached"
	case len(st.Capture.Unmatched) > 0 && len(st.Capture.Resources) == 0:
		return "nothing is restorable: there is nothing to record"
	case len(st.Capture.Resources) > 0 && !slices.ContainsFunc(st.Capture.Resources, listing):
		return "nothing is restorable yet: no list has succeeded"
	}
	return "nothing is restorable yet: the first lists are still running"
}

// troubles are what an operator must know before anything else.
func troubles(st *api.Status) []string {
	var out []string
	if st.Condition != "" {
		out = append(out, "recording is paused: "+st.Condition)
	}
	if !st.Capture.Connected {
		out = append(out, fmt.Sprintf("not connected to the API server %s: %s; it is tried again and again, and history stays readable",
			st.Capture.Server, firstOf(st.Capture.Error, "still connecting")))
	} else if st.Capture.Error != "" {
		out = append(out, st.Capture.Error)
	}
	out = append(out, auditTroubles(st)...)
	out = append(out, archiveTroubles(st)...)
	out = append(out, volumeTroubles(st)...)
	for _, p := range st.Capture.Unmatched {
		out = append(out, fmt.Sprintf("--include %s matches nothing that can be recorded in this cluster: 'kubectl api-resources' lists what there is", p))
	}
	newest := st.Totals.Newest
	if st.Catalog.To.Time.After(newest) {
		newest = st.Catalog.To.Time
	}
	if behind := newest.Sub(st.Now); behind > 2*time.Second {
		out = append(out, fmt.Sprintf("the clock is %s behind the journal: new changes get times right after the newest one until the clock has caught up; check the machine's time", ago(behind)))
	}
	for _, r := range st.Capture.Resources {
		switch r.State {
		case "forbidden":
			out = append(out, fmt.Sprintf("%s: not recorded since %s, access is forbidden; grant list and watch on it", r.Resource, stamp(r.Since)))
		case "waiting":
			if r.Error != "" {
				out = append(out, fmt.Sprintf("%s: not being watched since %s: %s", r.Resource, stamp(r.Since), r.Error))
			}
		}
	}
	return out
}

func writeResources(b *strings.Builder, st *api.Status) {
	if len(st.Catalog.Resources)+len(st.Capture.Resources) == 0 {
		b.WriteString("nothing is recorded yet\n")
		return
	}
	w := tabwriter.NewWriter(b, 6, 4, 3, ' ', 0)
	fmt.Fprintln(w, "RESOURCE\tCONTINUOUS SINCE\tWATERMARK AGE\tLAG\tSTATE\tGAPS")
	ledgers := slices.Clone(st.Catalog.Resources)
	slices.SortFunc(ledgers, func(a, b journal.Ledger) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Resource, b.Resource))
	})
	listed := map[string]bool{}
	for i := range ledgers {
		l := &ledgers[i]
		name := l.GroupResource().String()
		listed[name] = true
		since, age, lag, state := "-", "-", "-", "-"
		if !l.First.Time.IsZero() {
			since = stamp(l.Since.Time)
			lag = ago(l.Lag)
			age = ago(max(0, st.Now.Sub(l.Watermark.Time)))
		}
		if r := st.Capture.Resource(name); r != nil {
			state = r.State
		}
		switch {
		case l.Removed != nil:
			state = "removed"
		case l.Group == journal.OwnGroup:
			state, age = "written here", "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\n", name, since, age, lag, state, len(l.Gaps))
	}
	for _, r := range st.Capture.Resources {
		if !listed[r.Resource] {
			fmt.Fprintf(w, "%s\t-\t-\t-\t%s\t-\n", r.Resource, r.State)
		}
	}
	_ = w.Flush() // a strings.Builder takes everything
}
