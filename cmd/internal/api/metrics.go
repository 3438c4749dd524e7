package api

import (
	"context"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay/audit"
)

var (
	// The first figure anyone should look at: how much would be lost with this machine now.
	descNewest = prometheus.NewDesc("tidemark_newest_durable_change_age_seconds",
		"Age of the newest change that is durable in the journal.", nil, nil)
	descConnected = prometheus.NewDesc("tidemark_apiserver_connected_bool", "1 while connected to the API server.", nil, nil)
	descPaused    = prometheus.NewDesc("tidemark_recording_paused_bool", "1 while recording is paused, such as by a full disk.", nil, nil)
	descEvents    = prometheus.NewDesc("tidemark_journal_events_count", "Events in the journal.", nil, nil)
	descBytes     = prometheus.NewDesc("tidemark_journal_size_bytes", "Size of the journal on disk.", nil, nil)
	descOldest    = prometheus.NewDesc("tidemark_restorable_range_seconds", "Length of the restorable range.", nil, nil)

	// The second: how much would be lost with this machine and its disk.
	descArchiveAge      = prometheus.NewDesc("tidemark_archive_lag_seconds", "How long the oldest change waits that an archive does not have; 0 when it has all.", []string{"archive"}, nil)
	descArchivedTo      = prometheus.NewDesc("tidemark_archived_to_timestamp_seconds", "The moment up to which changes are archived.", []string{"archive"}, nil)
	descArchivePending  = prometheus.NewDesc("tidemark_archive_pending_bytes", "Size of the changes that wait to be archived, about.", []string{"archive"}, nil)
	descArchiveEvents   = prometheus.NewDesc("tidemark_archive_pending_events", "Changes that wait to be archived.", []string{"archive"}, nil)
	descArchiveFailing  = prometheus.NewDesc("tidemark_archive_failing_bool", "1 while archiving fails.", []string{"archive"}, nil)
	descArchiveBytes    = prometheus.NewDesc("tidemark_archive_size_bytes", "Size of the files of an archive.", []string{"archive"}, nil)
	descArchiveSegments = prometheus.NewDesc("tidemark_archive_segments_count", "Segments of an archive.", []string{"archive"}, nil)
	descArchiveShots    = prometheus.NewDesc("tidemark_archive_snapshots_count", "Snapshots of an archive.", []string{"archive"}, nil)

	descWatermark = prometheus.NewDesc("tidemark_watermark_age_seconds", "Age of the watermark of a resource.", []string{"resource"}, nil)
	descGaps      = prometheus.NewDesc("tidemark_gaps_count", "Gaps in the history of a resource.", []string{"resource"}, nil)
	descInferred  = prometheus.NewDesc("tidemark_inferred_events_count", "Events inferred by comparisons that closed gaps.", []string{"resource"}, nil)
	descLag       = prometheus.NewDesc("tidemark_lag_seconds", "Time from the wire to the disk of the newest event.", []string{"resource"}, nil)
	// The third: whether what is recorded is what there was.
	descAuditProven    = prometheus.NewDesc("tidemark_audit_proven_bool", "1 while all that can be audited was proven equal to the cluster, no longer ago than the limit.", nil, nil)
	descAuditEnabled   = prometheus.NewDesc("tidemark_audit_enabled_bool", "1 when history is compared with the cluster.", nil, nil)
	descAuditLimit     = prometheus.NewDesc("tidemark_audit_proof_limit_seconds", "The age that a proof may have.", nil, nil)
	descAuditAge       = prometheus.NewDesc("tidemark_audit_proof_age_seconds", "Age of the newest proof that the history of a resource equals the cluster; without one, how long it has been wanted.", []string{"resource"}, nil)
	descAuditObjects   = prometheus.NewDesc("tidemark_audit_objects_count", "Objects that the newest proof of a resource is about.", []string{"resource"}, nil)
	descAuditReshaped  = prometheus.NewDesc("tidemark_audit_reshaped_count", "Objects of that proof that were recorded in another form than they have now; what a change of form can add or drop was not compared.", []string{"resource"}, nil)
	descAuditDifferent = prometheus.NewDesc("tidemark_audit_different_count", "Objects of a resource over which history and the cluster differ, as the newest audit found.", []string{"resource"}, nil)
	descAuditFound     = prometheus.NewDesc("tidemark_audit_differences_total", "Differences ever found, also those that are gone.", []string{"resource"}, nil)
	descAuditExcluded  = prometheus.NewDesc("tidemark_audit_not_audited_count", "Recorded resources that cannot be audited.", nil, nil)
	descAuditRequests  = prometheus.NewDesc("tidemark_audit_requests_total", "List requests of the audit since the start.", nil, nil)
	descAuditBytes     = prometheus.NewDesc("tidemark_audit_read_bytes_total", "What the audit's lists brought since the start.", nil, nil)

	// The fourth: whether what is in the volumes would come back.
	descVolumeAge      = prometheus.NewDesc("tidemark_volume_newest_backup_age_seconds", "Age of a claim's newest backup by a policy, of the claim for which it is highest; without one, how long it has been wanted.", volumeLabels, nil)
	descVolumeLimit    = prometheus.NewDesc("tidemark_volume_newest_backup_limit_seconds", "The age that it may have by the policy's schedule; not there while the schedule is suspended.", volumeLabels, nil)
	descVolumeClaims   = prometheus.NewDesc("tidemark_volume_claims_count", "Claims that the newest run of a policy was for.", volumeLabels, nil)
	descVolumeFailing  = prometheus.NewDesc("tidemark_volume_failing_count", "Claims of a policy whose newest backup failed.", volumeLabels, nil)
	descVolumeRunning  = prometheus.NewDesc("tidemark_volume_running_count", "Backups that are being made.", volumeLabels, nil)
	descVolumeBackups  = prometheus.NewDesc("tidemark_volume_backups_total", "Backups that ended since the start.", append(slices.Clone(volumeLabels), "result"), nil)
	descVolumeSent     = prometheus.NewDesc("tidemark_volume_sent_bytes_total", "What the store got for backups that ended since the start.", volumeLabels, nil)
	descVolumeDone     = prometheus.NewDesc("tidemark_volume_last_success_timestamp_seconds", "When the newest backup ended that is whole.", volumeLabels, nil)
	descVolumeFailed   = prometheus.NewDesc("tidemark_volume_last_failure_timestamp_seconds", "When the newest backup ended that failed and is still listed.", volumeLabels, nil)
	descVolumeDuration = prometheus.NewDesc("tidemark_volume_last_duration_seconds", "From the begin of its run to the end of the newest backup that is whole.", volumeLabels, nil)

	descWatching = prometheus.NewDesc("tidemark_watching_bool", "1 while the resource is being watched.", []string{"resource"}, nil)
)

// volumeLabels are those of backups of volumes. Neither claims nor namespaces: of those there can be any number.
var volumeLabels = []string{"policy", "driver"}

// NewRegistry makes the registry that a Server serves: the daemon's own figures, read from
// its status at each scrape, and those of the Go runtime and the process. Labels name
// resources, policies and drivers, never objects.
func NewRegistry(status func(ctx context.Context, totals bool) (*Status, error)) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(&statusCollector{status}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

type statusCollector struct {
	status func(ctx context.Context, totals bool) (*Status, error)
}

// Describe implements prometheus.Collector.
func (c *statusCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descNewest, descConnected, descPaused, descEvents, descBytes, descOldest,
		descArchiveAge, descArchivedTo, descArchivePending, descArchiveEvents, descArchiveFailing, descArchiveBytes, descArchiveSegments, descArchiveShots,
		descWatermark, descGaps, descInferred, descLag, descWatching,
		descAuditProven, descAuditEnabled, descAuditLimit, descAuditAge, descAuditObjects, descAuditReshaped, descAuditDifferent, descAuditFound, descAuditExcluded,
		descAuditRequests, descAuditBytes,
		descVolumeAge, descVolumeLimit, descVolumeClaims, descVolumeFailing, descVolumeRunning, descVolumeBackups, descVolumeSent,
		descVolumeDone, descVolumeFailed, descVolumeDuration,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *statusCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	st, err := c.status(ctx, true)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descNewest, err)
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if to := st.Catalog.To.Time; !to.IsZero() {
		gauge(descNewest, st.Now.Sub(to).Seconds())
		if from := st.Catalog.From.Time; !from.IsZero() {
			gauge(descOldest, to.Sub(from).Seconds())
		}
	}
	gauge(descConnected, bit(st.Capture.Connected))
	gauge(descPaused, bit(st.Condition != ""))
	gauge(descEvents, float64(st.Totals.Events))
	gauge(descBytes, float64(st.Totals.DiskBytes))
	for i := range st.Archives {
		a := &st.Archives[i]
		lag := 0.0
		if !a.Waiting.IsZero() {
			lag = max(0, st.Now.Sub(a.Waiting).Seconds())
		}
		gauge(descArchiveAge, lag, a.Name)
		if to := a.ArchivedTo.Time; !to.IsZero() {
			gauge(descArchivedTo, float64(to.UnixMilli())/1000, a.Name)
		}
		gauge(descArchivePending, float64(a.PendingBytes), a.Name)
		gauge(descArchiveEvents, float64(a.PendingEvents), a.Name)
		gauge(descArchiveFailing, bit(a.Error != ""), a.Name)
		gauge(descArchiveBytes, float64(a.Bytes), a.Name)
		gauge(descArchiveSegments, float64(a.Segments), a.Name)
		gauge(descArchiveShots, float64(a.Snapshots), a.Name)
	}
	for i := range st.Catalog.Resources {
		l := &st.Catalog.Resources[i]
		name := l.GroupResource().String()
		if !l.Watermark.Time.IsZero() && l.Group != journal.OwnGroup { // what is written here is never behind
			gauge(descWatermark, st.Now.Sub(l.Watermark.Time).Seconds(), name)
		}
		gauge(descLag, l.Lag.Seconds(), name)
		gauge(descGaps, float64(len(l.Gaps)), name)
		inferred := 0
		for _, g := range l.Gaps {
			inferred += g.Inferred
		}
		gauge(descInferred, float64(inferred), name)
	}
	for _, r := range st.Capture.Resources {
		gauge(descWatching, bit(r.State == "watching"), r.Resource)
	}
	collectAudit(ch, st)
	collectVolumes(ch, st)
}

// collectAudit tells of the audit. While it is off nothing is proven.
func collectAudit(ch chan<- prometheus.Metric, st *Status) {
	metric := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	a := st.Audit
	metric(descAuditEnabled, prometheus.GaugeValue, bit(a != nil))
	metric(descAuditProven, prometheus.GaugeValue, bit(a != nil && a.Judge(st.Now) == audit.Equal))
	if a == nil {
		return
	}
	metric(descAuditLimit, prometheus.GaugeValue, a.Limit.Seconds())
	metric(descAuditRequests, prometheus.CounterValue, float64(a.Requests))
	metric(descAuditBytes, prometheus.CounterValue, float64(a.Bytes))
	excluded := 0
	for i := range a.Resources {
		r := &a.Resources[i]
		metric(descAuditFound, prometheus.CounterValue, float64(r.Found), r.Resource)
		if r.NotAudited != "" {
			excluded++
			continue
		}
		metric(descAuditAge, prometheus.GaugeValue, r.Age(st.Now).Seconds(), r.Resource)
		metric(descAuditDifferent, prometheus.GaugeValue, float64(r.Different), r.Resource)
		if r.Proof != nil {
			metric(descAuditObjects, prometheus.GaugeValue, float64(r.Proof.Objects), r.Resource)
			metric(descAuditReshaped, prometheus.GaugeValue, float64(r.Proof.Reshaped), r.Resource)
		}
	}
	metric(descAuditExcluded, prometheus.GaugeValue, float64(excluded))
}

// collectVolumes tells of the backups of volumes. Those that were asked for have no policy.
func collectVolumes(ch chan<- prometheus.Metric, st *Status) {
	for i := range st.Volumes {
		v := &st.Volumes[i]
		metric := func(d *prometheus.Desc, kind prometheus.ValueType, value float64, more ...string) {
			ch <- prometheus.MustNewConstMetric(d, kind, value, append([]string{v.Policy, v.Driver}, more...)...)
		}
		moment := func(d *prometheus.Desc, t time.Time) {
			if !t.IsZero() {
				metric(d, prometheus.GaugeValue, float64(t.UnixMilli())/1000)
			}
		}
		metric(descVolumeRunning, prometheus.GaugeValue, float64(v.Running))
		metric(descVolumeBackups, prometheus.CounterValue, float64(v.Done), "done")
		metric(descVolumeBackups, prometheus.CounterValue, float64(v.Failed), "failed")
		metric(descVolumeSent, prometheus.CounterValue, float64(v.Sent))
		moment(descVolumeDone, v.LastDone)
		moment(descVolumeFailed, v.LastFailed)
		if !v.LastDone.IsZero() {
			metric(descVolumeDuration, prometheus.GaugeValue, v.LastDuration.Seconds())
		}
		if v.Policy == "" {
			continue // nobody promised anything
		}
		metric(descVolumeClaims, prometheus.GaugeValue, float64(v.Claims))
		metric(descVolumeFailing, prometheus.GaugeValue, float64(v.Failing))
		if !v.Newest.IsZero() {
			metric(descVolumeAge, prometheus.GaugeValue, v.Age(st.Now).Seconds())
		}
		if v.Limit > 0 {
			metric(descVolumeLimit, prometheus.GaugeValue, v.Limit.Seconds())
		}
	}
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
