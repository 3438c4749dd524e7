package main

import (
	"fmt"
	"time"
)

const (
	veleroTool, veleroTunedTool = "velero", "velero-tuned"
	// veleroEvery is the shortest schedule of Velero's that cron can say. Where a backup takes longer, the next
	// one waits for its end.
	veleroEvery = time.Minute
	day         = 24 * time.Hour
	// large is the number of objects for which the goals of full backups and of an informer's memory are set.
	large = 50_000
)

// compute derives all ratios. More is better for Tidemark in each; one below 1 is a loss.
func (r *results) compute() {
	r.Ratios = nil
	for _, n := range r.Objects {
		add := func(goal float64, what string, theirs, ours float64) {
			x := ratio{Name: fmt.Sprintf("%d objects: %s", n, what), Goal: goal}
			if theirs > 0 && ours > 0 {
				x.Value = theirs / ours
			} else if goal == 0 {
				return
			}
			r.Ratios = append(r.Ratios, x)
		}
		atLarge := func(goal float64) float64 {
			if n < large {
				return 0
			}
			return goal
		}
		of := func(tool, scenario, value string) float64 { return r.values(n, tool, scenario, value).median() }
		const us = "tidemark"
		for _, tool := range []string{veleroTool, veleroTunedTool} {
			add(atLarge(12), "time of a full backup, "+tool+" by a snapshot of ours", of(tool, "backup-first", "seconds"), of(us, "backup-first", "seconds"))
			add(0, "time of a full backup, "+tool+" by our first recording", of(tool, "backup-first", "seconds"), of(us, "first-recording", "seconds"))
			add(0, "time of a backup after 1 % changed, "+tool+" by ours", of(tool, "backup-changed", "seconds"), of(us, "backup-changed", "seconds"))
			add(0, "bytes of a backup after 1 % changed, "+tool+" by ours", of(tool, "backup-changed", "stored_bytes"), of(us, "backup-changed", "stored_bytes"))
			add(0, "memory of all processes in a full backup, "+tool+" by a snapshot of ours", of(tool, "backup-first", "peak_bytes"), of(us, "backup-first", "peak_bytes"))
			goal := 20.
			if tool == veleroTunedTool {
				goal = 15
			}
			for _, scenario := range ourRestores {
				theirs, whose := scenario, tool
				if scenario == "restore-bucket" { // all of theirs are
					theirs, whose = "restore-other", tool+"'s restore-other"
				}
				add(goal, scenario+", objects/s, ours by "+whose, of(us, scenario, "objects_per_second"), of(tool, theirs, "objects_per_second"))
				add(0, scenario+", requests per object, "+whose+" by ours", of(tool, theirs, "requests_per_object"), of(us, scenario, "requests_per_object"))
				add(4, scenario+", memory of all processes, "+whose+" by ours", of(tool, theirs, "peak_bytes"), of(us, scenario, "peak_bytes"))
				add(0, scenario+", anonymous memory of all processes, "+whose+" by ours", of(tool, theirs, "anonymous_peak_bytes"), of(us, scenario, "anonymous_peak_bytes"))
				add(0, scenario+", CPU of the API server, "+whose+" by ours", of(tool, theirs, "apiserver_cpu_seconds"), of(us, scenario, "apiserver_cpu_seconds"))
			}
			add(0, "bytes stored a day under churn, "+tool+" by ours", r.veleroPerDay(n, tool), r.tidemarkPerDay(n))
			add(0, "from a change to its durability in the store, "+tool+"'s mean by our median", r.veleroLag(n, tool).Seconds(), of(us, "lag", "archive_p50"))
		}
		add(atLarge(100), "bytes of a first snapshot by those of one with nothing changed", of(us, "backup-first", "written_bytes"), of(us, "backup-unchanged", "written_bytes"))
		add(0, "time of a full backup, etcdctl snapshot save by a snapshot of ours", of("etcd", "backup-first", "seconds"), of(us, "backup-first", "seconds"))
		add(0, "bytes of a full backup, etcdctl snapshot save by a snapshot of ours", of("etcd", "backup-first", "stored_bytes"), of(us, "backup-first", "stored_bytes"))
		add(0, "memory of all processes in a full backup, etcdctl snapshot save by a snapshot of ours", of("etcd", "backup-first", "peak_bytes"), of(us, "backup-first", "peak_bytes"))
		add(30, "bytes per revision, raw JSON by ours in the archive", r.perEvent(n, "recorder", "churn", "written_bytes"), r.perEvent(n, us, "churn", "stored_bytes"))
		for _, scenario := range []string{"churn", "flood"} {
			add(10, "CPU per event, "+scenario+", recorder by ours", r.perEvent(n, "recorder", scenario, "cpu_seconds"), r.perEvent(n, us, scenario, "cpu_seconds"))
		}
		add(0, "time until everything is listed and durable, recorder by ours", of("recorder", "first-recording", "seconds"), of(us, "first-recording", "seconds"))
		add(0, "requests until everything is listed, recorder by ours", of("recorder", "first-recording", "requests"), of(us, "first-recording", "requests"))
		add(0, "from a change to its durability on the disk, 99 of 100, recorder by ours", of("recorder", "lag", "journal_p99"), of(us, "lag", "journal_p99"))
		add(atLarge(5), "memory with everything listed, recorder by ours", of("recorder", "first-recording", "peak_bytes"), of(us, "first-recording", "peak_bytes"))
		add(0, "memory after a flood of changes, recorder by ours", of("recorder", "flood", "peak_bytes"), of(us, "flood", "peak_bytes"))
	}
}

// perEvent is the median of a value by the events of its run.
func (r *results) perEvent(n int, tool, scenario, value string) float64 {
	var all spread
	for _, s := range r.Samples {
		if v, ok := s.Values[value]; ok && s.Objects == n && s.Tool == tool && s.Scenario == scenario && s.Values["events"] > 0 {
			all = append(all, v/s.Values["events"])
		}
	}
	return sorted(all).median()
}

// veleroBackupsPerDay is how many backups the shortest schedule makes in a day.
func (r *results) veleroBackupsPerDay(n int, tool string) float64 {
	took := time.Duration(r.values(n, tool, "backup-changed", "seconds").median() * float64(time.Second))
	return float64(day) / float64(max(took, veleroEvery))
}

func (r *results) veleroPerDay(n int, tool string) float64 {
	return r.values(n, tool, "backup-changed", "stored_bytes").median() * r.veleroBackupsPerDay(n, tool)
}

// veleroLag is how long a change waits on average: for half of the schedule, and for the backup to end.
func (r *results) veleroLag(n int, tool string) time.Duration {
	took := time.Duration(r.values(n, tool, "backup-changed", "seconds").median() * float64(time.Second))
	if took == 0 {
		return 0
	}
	return max(took, veleroEvery)/2 + took
}

// eventsPerDay is what the churn's events, those of controllers included, are in a day.
func (r *results) eventsPerDay(n int) float64 {
	if r.Churn == 0 {
		return 0
	}
	return r.values(n, "tidemark", "churn", "events").median() / r.Churn * day.Seconds()
}

func (r *results) tidemarkPerDay(n int) float64 {
	return r.perEvent(n, "tidemark", "churn", "stored_bytes") * r.eventsPerDay(n)
}
