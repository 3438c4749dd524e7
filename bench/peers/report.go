package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

const reportHead = `# Benchmarks: Tidemark beside Velero, etcd's snapshots and an informer

This file is written by ` + "`make bench-peers`" + ` (bench/peers). Raw results: %s.

All tools have turns on one control plane (real kube-apiserver, etcd and controllers), with one S3 server, on the same objects,
one after the other and never at once; then it begins again. Figures are medians, with the least and the greatest in parentheses. Times of
another machine will be others; the ratios are what to look at.
`

const reportMethod = `
- The objects are the mix of bench/mix (ConfigMaps, Secrets, Services, Deployments, Pods, ...), 1,000 to a namespace; the API server writes
  their managedFields. %d of 100 are owned by a client that uses server-side apply, the others are created and updated by theirs: in a recorded cluster 190 of 870 were applied. Applied objects come back slower, as the
  API server needs more CPU for them; ` + "`--applied 100`" + ` makes all of them so. Controllers add Endpoints, EndpointSlices, service accounts and status. There are no nodes.
- Velero is the real server out of cluster with its plug-in for S3, whole cluster, without volumes; a server of its own for the backups and
  for each restore. Its time is from the request to the end of the operation, seen by a watch. Tidemark is the real daemon with its defaults and a bucket as
  its archive, and the command line as a user types it: the time is that of the whole process, plan included.
- "restore other" is into another namespace, "restore same" into its own after it was deleted. Ours ask the running daemon, which has the history on its own disk; Velero's are out of
  the bucket. "restore bucket" is ours when the daemon is lost with its disk: it is stopped, and the command reads the bucket alone, with a copy of its key, into another namespace.
  That is the like of Velero's "restore other", and compared with it. For half a minute after the end of a namespace the API server asks, at each creation in one of that name, whether it is there (admission
  plug-in NamespaceLifecycle), one request more of its own per object: "restore same" begins after that time, for all tools.
- Before each turn Events are deleted, as soon as the cluster is quiet: Tidemark and the recorder leave them and leases out, Velero backs up what there is of them. Leases are few.
- Memory is the most that all processes of a tool had resident together (daemon and command; Velero's server and its plug-ins), a page that several share counted once (Pss), looked at ten times a second while it grows; where there is only a command, its high-water mark. Of servers it is what they have resident. Looking takes CPU, which is told beside restores. "Anonymous" is what is not of files: heaps and stacks. The rest is nearly all the programs themselves, which
  the kernel maps in large pieces, needed or not, and can drop at any time. CPU is what they took, the store and the API server apart.
- Requests are those of the tool alone, by the API server's audit log. "of the audit" are those of them by which the daemon compares its history with
  the cluster at all times, whatever else goes on (user agent ` + "`tidemark-audit`" + `); they are in "requests" and in "requests per object", not in "of them lists". "objects/s" and "requests per object" count the objects of the mix that are there afterwards.
- "first recording" is the daemon's start with nothing until all that the cluster has is in the bucket. The first lists are archived as soon as they are complete, changes after them
  every 5 s; what controllers change meanwhile may have that wait in it.
- "stored" is what stays; "written" are all new files. They differ for Tidemark, which merges small files into larger ones.
- "backup changed" comes after 1 %% of the objects changed; it has in its bytes what the changes themselves take in the archive, too.
- The churn changes an annotation of objects of all kinds in turn: their owner applies them anew or patches them; one of ten objects is changed by another
  manager. Such an object takes two requests to restore, as two managers own parts of it, those of its owner alone take one. Churn and flood begin when what was archived before is merged, so that
  it cannot become smaller in them. "stored" is by how much the archive has grown at their end; "written" are all files that were new in the bucket then, among them those that were merged into
  others since: never less than what stays. Tidemark goes on merging for a day, which a minute does not show: merged history takes fewer bytes (` + "`make bench BENCH=ArchiveSize`" + `).
- The recorder is bench/peers/recorder: a dynamic informer per resource and JSON lines with an fsync per batch.
`

const reportCannot = `
## What the figures do not say

- Velero holds what was there when a backup ran; nothing between two backups can be had. Its figures have no counterpart to a restore of any moment.
- etcdctl's snapshot is the whole cluster or nothing: no namespace, no object, no other cluster beside the old one, every Secret in the clear unless the API server encrypts, and
  the revisions go back, which clients have to be told of. It needs access to etcd, which managed clusters do not give. With nothing recorded before, it is the fastest copy of everything; its file
  holds etcd's own recent history and free pages as well, so that its size is not that of the objects. "restore all" is etcdutl alone; etcd and the API
  server have yet to be started on it.
- The recorder cannot say what it missed while it was down, keeps Secrets in the clear, never drops anything, holds nothing that could be restored without more
  work, and writes to one disk. Its CPU has neither compression nor encryption nor an upload in it; Tidemark's has.
- Tidemark's own requests: lists and watches once at its start, watches after that, and the audit's lists in pages of 500, one resource after the other, at all times.
`

// writeReport writes docs/benchmarks.md.
func (r *results) writeReport(path, raw string) error {
	others, err := loadOthers(keptResults)
	if err != nil {
		return err
	}
	return os.WriteFile(path, r.report(raw, others), 0o644)
}

func (r *results) report(raw string, others others) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, reportHead, "`"+raw+"`")
	r.writeMachine(&b)
	applied := 100
	if r.Applied != nil {
		applied = *r.Applied
	}
	fmt.Fprintf(&b, "\n## How it is measured\n"+reportMethod, applied)
	r.writeGoals(&b, others.merged)
	for _, n := range r.Objects {
		r.writeSize(&b, n)
	}
	writeVolumes(&b, others.volumes)
	r.writeLosses(&b, others.volumes)
	fmt.Fprint(&b, reportCannot)
	return b.Bytes()
}

func (r *results) writeMachine(b *bytes.Buffer) {
	m := r.Machine
	fmt.Fprintf(b, "\n## Machine, versions, flags\n\n%s: %d cores (%s), %.0f GiB, kernel %s, %s; load before the run %s. runs at each size: %d, churn of %d changes/s for %.0f s.\n\n",
		r.Date, m.Cores, m.CPU, float64(m.MemMB)/1024, m.Kernel, m.Go, m.Load, r.Runs, r.Rate, r.Churn)
	if r.Took > 0 {
		fmt.Fprintf(b, "Measured in %s, with Tidemark at commit %s.\n\n", r.took(), r.Versions["tidemark"])
	}
	if r.Note != "" {
		fmt.Fprintf(b, "%s\n\n", r.Note)
	}
	fmt.Fprint(b, "| what | version |\n|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		fmt.Fprintf(b, "| %s | %s |\n", name, r.Versions[name])
	}
	fmt.Fprint(b, "\n| tool | flags |\n|---|---|\n")
	for _, tool := range slices.Sorted(maps.Keys(r.Flags)) {
		fmt.Fprintf(b, "| %s | %s |\n", tool, r.Flags[tool])
	}
}

// writeGoals shows each ratio that has a goal, and what is to be reached absolutely.
func (r *results) writeGoals(b *bytes.Buffer, merged []keptRun) {
	fmt.Fprintf(b, "\n## Goals\n\nThose of full backups and of an informer's memory are set for %d objects; at other sizes these ratios are in the tables below.\n\n| what | to reach | measured | |\n|---|---|---|---|\n", large)
	row := func(what, want, got string, met bool) {
		verdict := "**missed**"
		switch {
		case got == "":
			got, verdict = "-", "**not measured**"
		case met:
			verdict = "met"
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", what, want, got, verdict)
	}
	for _, x := range r.Ratios {
		if x.Goal == 0 {
			continue
		}
		got := ""
		if x.Value > 0 {
			got = fmt.Sprintf("%.3g x", x.Value)
		}
		row(x.Name, fmt.Sprintf(">= %g x", x.Goal), got, x.Value >= x.Goal)
	}
	for _, m := range merged {
		v := m.values[jsonByArchived]
		row(fmt.Sprintf("bytes per revision once all is merged, raw JSON by ours (%s, `%s`)", mergedContents[m.name], m.file), ">= 30 x", fmt.Sprintf("%.3g x", v), v >= 30)
	}
	for _, n := range r.Objects {
		// none is a goal that no run may miss.
		none := func(what, scenario, value string) {
			s, got := r.values(n, "tidemark", scenario, value), ""
			if len(s) > 0 {
				got = fmt.Sprintf("%.0f", s[len(s)-1])
			}
			row(fmt.Sprintf("%d objects: %s", n, what), "0", got, got == "0")
		}
		none("list requests of a full snapshot", "backup-first", "requests_list")
		for _, scenario := range ourRestores {
			s, got := r.values(n, "tidemark", scenario, "requests_per_object"), ""
			if len(s) > 0 {
				got = fmt.Sprintf("%.2f", s.median())
			}
			row(fmt.Sprintf("%d objects: %s, requests per object", n, scenario), "<= 1.2", got, s.median() <= 1.2)
			none(scenario+", objects that are missing afterwards", scenario, "objects_missing")
		}
	}
}

// column is one figure of a table: how it is headed, and read.
type column struct {
	head, value, format string
	unit                float64
}

// writeTable writes a row for each tool and scenario that was measured.
func (r *results) writeTable(b *bytes.Buffer, n int, tools, scenarios []string, columns ...column) {
	fmt.Fprint(b, "\n| tool | what |")
	for _, c := range columns {
		fmt.Fprintf(b, " %s |", c.head)
	}
	fmt.Fprint(b, "\n|---|---|"+strings.Repeat("---|", len(columns))+"\n")
	for _, scenario := range scenarios {
		for _, tool := range tools {
			if len(r.values(n, tool, scenario, "seconds")) == 0 {
				continue
			}
			fmt.Fprintf(b, "| %s | %s |", tool, strings.ReplaceAll(scenario, "-", " "))
			for _, c := range columns {
				fmt.Fprintf(b, " %s |", r.values(n, tool, scenario, c.value).format(c.format, c.unit))
			}
			fmt.Fprintln(b)
		}
	}
}

// format is "median (least to greatest)".
func (s spread) format(format string, unit float64) string {
	if len(s) == 0 {
		return "-"
	}
	text := func(v float64) string { return fmt.Sprintf(format, v/unit) }
	least, most := text(s[0]), text(s[len(s)-1])
	if least == most {
		return text(s.median())
	}
	return text(s.median()) + " (" + least + " to " + most + ")"
}

const (
	kilo = 1e3
	mega = 1e6
	mib  = 1 << 20
)

var (
	columnSeconds = column{"s", "seconds", "%.2f", 1}
	columnMemory  = column{"memory, MiB", "peak_bytes", "%.0f", mib}
	// columnAnonymous is of the same moment or another.
	columnAnonymous = column{"of it anonymous, MiB", "anonymous_peak_bytes", "%.0f", mib}
	columnCPU       = column{"CPU, s", "cpu_seconds", "%.2f", 1}
	columnServer    = column{"CPU of the API server, s", "apiserver_cpu_seconds", "%.2f", 1}
)

func (r *results) writeSize(b *bytes.Buffer, n int) {
	tools := []string{veleroTool, veleroTunedTool, "tidemark", "recorder", "etcd"}
	fmt.Fprintf(b, "\n## %d objects\n\nBackups of the whole cluster:\n", n)
	r.writeTable(b, n, tools, []string{"first-recording", "backup-first", "backup-unchanged", "backup-changed"},
		columnSeconds, column{"stored, KB", "stored_bytes", "%.1f", kilo}, column{"written, KB", "written_bytes", "%.1f", kilo}, column{"requests", "requests", "%.0f", 1},
		column{"of them lists", "requests_list", "%.0f", 1},
		column{"of the audit", "requests_audit", "%.0f", 1}, columnServer, columnCPU, columnMemory, columnAnonymous)
	fmt.Fprintf(b, "\nRestores of one namespace out of it:\n")
	r.writeTable(b, n, tools, append(slices.Clone(ourRestores), "restore-all"),
		columnSeconds, column{"objects", "objects", "%.0f", 1}, column{"missing", "objects_missing", "%.0f", 1}, column{"objects/s", "objects_per_second", "%.1f", 1},
		column{"requests", "requests", "%.0f", 1}, column{"of the audit", "requests_audit", "%.0f", 1}, column{"requests per object", "requests_per_object", "%.2f", 1}, columnServer, columnCPU, columnMemory, columnAnonymous,
		column{"CPU of the measuring, s", "bench_cpu_seconds", "%.2f", 1})
	r.writeEvents(b, n)
	r.writeLag(b, n)
	r.writeHistory(b, n)
	r.writeMemory(b, n)
	fmt.Fprint(b, "\nRatios, more is better for Tidemark:\n\n| what | ratio |\n|---|---|\n")
	prefix := fmt.Sprintf("%d objects: ", n)
	for _, x := range r.Ratios {
		if name, ok := strings.CutPrefix(x.Name, prefix); ok && x.Value > 0 {
			fmt.Fprintf(b, "| %s | %.3g |\n", name, x.Value)
		}
	}
}

func (r *results) writeEvents(b *bytes.Buffer, n int) {
	fmt.Fprintf(b, "\nRecording changes, %d changes/s and then %d as fast as the API server takes them; its CPU is that of the changes themselves as well:\n\n"+
		"| tool | what | events | CPU per event, µs | stored per event, B | written per event, B | requests | of the audit | CPU of the API server, s | memory, MiB |\n|---|---|---|---|---|---|---|---|---|---|\n", r.Rate, flood)
	for _, scenario := range []string{"churn", "flood"} {
		for _, tool := range []string{"tidemark", "recorder"} {
			values := func(value string) spread { return r.values(n, tool, scenario, value) }
			if len(values("events")) > 0 {
				fmt.Fprintf(b, "| %s | %s | %s | %.0f | %.0f | %.0f | %s | %s | %s | %s |\n", tool, scenario, values("events").format("%.0f", 1), 1e6*r.perEvent(n, tool, scenario, "cpu_seconds"),
					r.perEvent(n, tool, scenario, "stored_bytes"), r.perEvent(n, tool, scenario, "written_bytes"), values("requests").format("%.0f", 1), values("requests_audit").format("%.0f", 1),
					values("apiserver_cpu_seconds").format("%.2f", 1), values("peak_bytes").format("%.0f", mib))
			}
		}
	}
}

func (r *results) writeLag(b *bytes.Buffer, n int) {
	fmt.Fprintf(b, "\nFrom the API server's answer to the writer until the change is durable, at %d changes/s. Tidemark is asked every %s, which is in its figures (`make bench BENCH=Lag` looks closer); "+
		"the recorder tells by itself. Velero's is half of its schedule (every %s, or one backup after the other) and the backup:\n\n| tool | where | median, s | 99 of 100, s |\n|---|---|---|---|\n", r.Rate, pollEvery, veleroEvery)
	for _, t := range []struct{ tool, where, value string }{{"tidemark", "journal, on disk", "journal"}, {"recorder", "file, on disk", "journal"}, {"tidemark", "archive, in the bucket", "archive"}} {
		if s := r.values(n, t.tool, "lag", t.value+"_p50"); len(s) > 0 {
			fmt.Fprintf(b, "| %s | %s | %s | %s |\n", t.tool, t.where, s.format("%.3f", 1), r.values(n, t.tool, "lag", t.value+"_p99").format("%.3f", 1))
		}
	}
	for _, tool := range []string{veleroTool, veleroTunedTool} {
		if lag := r.veleroLag(n, tool); lag > 0 {
			took := r.values(n, tool, "backup-changed", "seconds").median()
			fmt.Fprintf(b, "| %s | bucket | %.0f (mean) | %.0f (longest) |\n", tool, lag.Seconds(), max(veleroEvery.Seconds(), took)+took)
		}
	}
}

func (r *results) writeHistory(b *bytes.Buffer, n int) {
	events := r.eventsPerDay(n)
	if events == 0 {
		return
	}
	raw := r.perEvent(n, "recorder", "churn", "written_bytes")
	fmt.Fprintf(b, "\nOne more day of history, at that rate all day (%.1f million revisions): bytes per revision times revisions, and for Velero bytes of a backup times backups:\n\n"+
		"| tool | how | GB a day |\n|---|---|---|\n", events/mega)
	if r.tidemarkPerDay(n) > 0 {
		fmt.Fprintf(b, "| tidemark | in the bucket, every revision, %.0f B each (not merged for a day yet, see above) | %.2f |\n", r.perEvent(n, "tidemark", "churn", "stored_bytes"), r.tidemarkPerDay(n)/1e9)
	}
	if s := r.values(n, "tidemark", "backup-first", "stored_bytes"); len(s) > 0 {
		fmt.Fprintf(b, "| tidemark | in the bucket, each full snapshot that is asked for besides; restores of any moment need none | %.4f |\n", s.median()/1e9)
	}
	if each := r.perEvent(n, "tidemark", "churn", "journal_bytes"); each > 0 {
		fmt.Fprintf(b, "| tidemark | on the daemon's own disk until it has left `--window`, every revision, %.0f B each as just written (compacted later, which a churn so short does not show: `make bench BENCH=Size`) | < %.2f |\n", each, each*events/1e9)
	}
	fmt.Fprintf(b, "| recorder | every revision as JSON, %.0f B each | %.2f |\n", raw, raw*events/1e9)
	for _, tool := range []string{veleroTool, veleroTunedTool} {
		if perDay := r.veleroPerDay(n, tool); perDay > 0 {
			fmt.Fprintf(b, "| %s | %.0f backups, and nothing between them | %.2f |\n", tool, r.veleroBackupsPerDay(n, tool), perDay/1e9)
		}
	}
}

// writeMemory shows each process, and not the sum of a tool's alone.
func (r *results) writeMemory(b *bytes.Buffer, n int) {
	fmt.Fprint(b, "\nResident memory of each process, MiB, the most in any run. The three servers on the right serve all tools and keep what they took in the turns before:\n\n"+
		"| tool | in | daemon, server or recorder | its plug-ins | command | kube-apiserver | etcd | S3 server |\n|---|---|---|---|---|---|---|---|\n")
	for _, tool := range []string{veleroTool, veleroTunedTool, "tidemark", "recorder", "etcd"} {
		for _, in := range []string{"first-recording", "backup", "churn", "flood", "restore"} {
			var cells []string
			for _, value := range []string{"own", "others", "cli", "apiserver", "etcd", "store"} {
				most := 0.
				for _, s := range r.Samples {
					if s.Objects == n && s.Tool == tool && strings.HasPrefix(s.Scenario, in) {
						most = max(most, s.Values[value+"_peak_bytes"])
					}
				}
				cells = append(cells, "-")
				if most > 0 {
					cells[len(cells)-1] = fmt.Sprintf("%.0f", most/mib)
				}
			}
			if strings.Join(cells, "") != "------" {
				fmt.Fprintf(b, "| %s | %s | %s |\n", tool, strings.ReplaceAll(in, "-", " "), strings.Join(cells, " | "))
			}
		}
	}
}

// writeLosses lists what Tidemark is worse in: these are not to be searched for.
func (r *results) writeLosses(b *bytes.Buffer, volumes []volumeRun) {
	fmt.Fprint(b, "\n## Where Tidemark is worse\n\nRatios below 1, and what takes more than kopia:\n\n")
	none := true
	for _, x := range r.Ratios {
		if x.Value > 0 && x.Value < 1 {
			none = false
			fmt.Fprintf(b, "- %s: %.2g\n", x.Name, x.Value)
		}
	}
	for _, v := range volumes {
		for _, text := range v.losses() {
			none = false
			fmt.Fprintf(b, "- %s\n", text)
		}
	}
	if none {
		fmt.Fprintln(b, "In nothing that was measured in this run.")
	}
}

// took is how long all of it took.
func (r *results) took() string {
	return (time.Duration(r.Took) * time.Second).String()
}
