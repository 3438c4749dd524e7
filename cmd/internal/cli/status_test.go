package cli

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
	"github.com/tidemark-backup/tidemark/replay/audit"
	"github.com/tidemark-backup/tidemark/volumes"
)

// What an operator must know stands before everything else, and only when it is so.
func TestTroublesComeFirst(t *testing.T) {
	now := time.Date(2025, 1, 2, 10, 0, 0, 0, time.UTC)
	cut := func(ago time.Duration) journal.Cut {
		return journal.Cut{Revision: journal.Revision{Epoch: 1, RV: 5}, Time: now.Add(-ago)}
	}
	well := api.Status{
		Version: "v1", Now: now, Started: now.Add(-time.Hour), Totals: journal.Totals{Newest: now.Add(-time.Second)},
		Capture: api.CaptureStatus{Connected: true, Resources: []api.ResourceStatus{{Resource: "pods", State: "watching"}}},
		Catalog: replay.Catalog{From: cut(time.Hour), To: cut(time.Second)},
	}
	for name, c := range map[string]struct {
		change func(*api.Status)
		want   string
	}{
		"all is well":   {func(*api.Status) {}, ""},
		"disk full":     {func(s *api.Status) { s.Condition = "disk full: 3 MiB free" }, "recording is paused: disk full: 3 MiB free"},
		"no API server": {func(s *api.Status) { s.Capture.Connected, s.Capture.Error = false, "refused" }, "refused; it is tried again and again"},
		"clock behind":  {func(s *api.Status) { s.Totals.Newest = now.Add(3 * time.Hour) }, "the clock is 3h00m behind the journal"},
		"forbidden": {func(s *api.Status) {
			s.Capture.Resources = []api.ResourceStatus{{Resource: "secrets", State: "forbidden", Since: now}}
		}, "secrets: not recorded since 2025-01-02T10:00:00.000Z, access is forbidden"},
		"not watched": {func(s *api.Status) {
			s.Capture.Resources = []api.ResourceStatus{{Resource: "pods", State: "waiting", Since: now, Error: "timeout"}}
		}, "pods: not being watched since 2025-01-02T10:00:00.000Z: timeout"},
	} {
		st := well
		c.change(&st)
		var b strings.Builder
		if err := writeStatus(&b, &st); err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(b.String(), "\n")
		if c.want == "" && strings.Contains(b.String(), "TROUBLE") || c.want != "" && (!strings.HasPrefix(first, "TROUBLE: ") || !strings.Contains(first, c.want)) {
			t.Errorf("%s: the first line is %q, want %q in it", name, first, c.want)
		}
		if !strings.Contains(b.String(), "\nrestorable from 2025-01-02T09:00:00.000Z to 2025-01-02T09:59:59.000Z (rv:1/5 to rv:1/5)\n") {
			t.Errorf("%s: no restorable range in\n%s", name, b.String())
		}
	}
}

// What is not recorded, and what is not certain, has its place; many of a kind are one line.
func TestStatusTellsTheLimits(t *testing.T) {
	at := func(s int) journal.Cut {
		return journal.Cut{Revision: journal.Revision{Epoch: 1, RV: 5}, Time: time.Date(2025, 1, 2, 10, 0, s, 0, time.UTC)}
	}
	st := api.Status{Now: at(59).Time, Capture: api.CaptureStatus{Connected: true, Unmatched: []string{"widgetz"}}}
	for i, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		l := journal.Ledger{ResourceInfo: journal.ResourceInfo{Resource: name}, First: at(0), Since: at(30), Filter: "only namespaces shop"}
		l.Gaps = []journal.Gap{{From: at(10 + i), To: at(30 + i), Cause: "410 Gone", Inferred: 2}}
		st.Catalog.Resources = append(st.Catalog.Resources, l)
		gr := l.GroupResource()
		st.Catalog.Outages = append(st.Catalog.Outages, journal.Outage{Resource: &gr, From: at(40).Time, To: at(42).Time})
		st.Catalog.LeftOut = append(st.Catalog.LeftOut, journal.LeftOut{Resource: schema.GroupResource{Resource: "x" + name}, Why: "excluded"})
	}
	st.Catalog.Resources[6].Filter = ""
	st.Catalog.Resources[6].Gaps[0].Cause = "another"
	st.Catalog.Outages = append(st.Catalog.Outages, journal.Outage{From: at(50).Time, To: at(51).Time})
	st.Catalog.From, st.Catalog.To = at(1), at(1)
	st.Catalog.From.Time = st.Catalog.From.Time.Add(200 * time.Microsecond)
	st.Catalog.To.Time = st.Catalog.To.Time.Add(300 * time.Microsecond)
	var b strings.Builder
	if err := writeStatus(&b, &st); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"TROUBLE: --include widgetz matches nothing that can be recorded in this cluster: 'kubectl api-resources' lists what there is\n",
		"\nrecorded: only namespaces shop (6 resources)\n",
		"\nnot recorded: xa, xb, xc, xd, xe, 2 others (see -o json)\n",
		"\na, b, c, d, e, 1 others   2025-01-02T10:00:10.000Z   2025-01-02T10:00:35.000Z   12         410 Gone\n",
		"\ng                         2025-01-02T10:00:16.000Z   2025-01-02T10:00:36.000Z   2          another\n",
		"\na, b, c, d, e, 2 others   2025-01-02T10:00:40.000Z   2025-01-02T10:00:42.000Z\n",
		"\neverything                2025-01-02T10:00:50.000Z   2025-01-02T10:00:51.000Z\n",
		"\nrestorable from 2025-01-02T10:00:01.001Z to 2025-01-02T10:00:01.001Z ",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

// That lists are running is only said while they are.
func TestWhyNothingIsRestorable(t *testing.T) {
	waiting := api.ResourceStatus{Resource: "pods", State: "waiting", Error: "timeout"}
	for want, change := range map[string]func(*api.Status){
		"the first lists are still running": func(s *api.Status) {
			s.Capture.Resources = []api.ResourceStatus{waiting, {Resource: "services", State: "listing"}}
		},
		"no list has succeeded": func(s *api.Status) {
			s.Capture.Resources = []api.ResourceStatus{waiting, {State: "forbidden", Error: "no"}}
		},
		"recording is paused":            func(s *api.Status) { s.Condition = "disk full" },
		"the API server was not reached": func(s *api.Status) { s.Capture.Connected = false },
		"there is nothing to record":     func(s *api.Status) { s.Capture.Unmatched = []string{"widgetz"} },
	} {
		st := api.Status{Capture: api.CaptureStatus{Connected: true}}
		change(&st)
		var b strings.Builder
		if err := writeStatus(&b, &st); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(b.String(), want+"\n") {
			t.Errorf("no %q at the end of\n%s", want, b.String())
		}
	}
}

// A time that was printed and is given to --at must include what happened at that time.
func TestStampIncludesWhatItNames(t *testing.T) {
	base := time.Date(2025, 1, 2, 10, 0, 0, 0, time.UTC)
	for _, ns := range []int{0, 1, 999_999, 1_000_000, 1_000_001, 999_999_999} {
		at := base.Add(time.Duration(ns))
		printed, err := replay.ParseAt(stamp(at))
		if err != nil || printed.Time.Before(at) || printed.Time.Sub(at) >= time.Millisecond {
			t.Errorf("%v became %v, %v", at, printed.Time, err)
		}
	}
}

func TestAgoReadsWell(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 12 * time.Millisecond: "12ms", 90 * time.Second: "90s", 5*time.Minute + 3*time.Second: "5m03s",
		26 * time.Hour: "26h00m", 49 * time.Hour: "2d01h", -time.Minute: "-60s",
	} {
		if got := ago(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

// Only a proof of everything, none of it too old, is good news; everything else fails a check.
func TestStatusIsOnlyGoodWhenHistoryIsProven(t *testing.T) {
	now := time.Date(2025, 1, 2, 10, 0, 0, 0, time.UTC)
	proof := func(ago time.Duration) *audit.Proof { return &audit.Proof{Time: now.Add(-ago), Objects: 1500} }
	fresh := audit.Record{Resource: "pods", Since: now.Add(-9 * time.Hour), Proof: proof(time.Minute)}
	for name, c := range map[string]struct {
		record        audit.Record
		trouble, line string
		good          bool
	}{
		"proven":      {audit.Record{Resource: "secrets", Proof: proof(time.Hour)}, "", "audit: 2 of 2 resources proven equal to the cluster, 3,000 objects, within 60m00s (limit 3h00m)\n", true},
		"not audited": {audit.Record{Resource: "others.example", NotAudited: "because"}, "", "(limit 3h00m)\n  not audited: others.example (because)\n", true},
		"too old": {
			audit.Record{Resource: "secrets", Since: now.Add(-9 * time.Hour), Proof: proof(3*time.Hour + time.Second), Trouble: "forbidden"},
			"nothing has proven for over 3h00m that history equals the cluster, for secrets: forbidden", "audit: not proven; 1 of 2 resources", false,
		},
		"never":           {audit.Record{Resource: "secrets", Since: now.Add(-4 * time.Hour)}, "for secrets: the audit did not get to it", "audit: not proven; ", false},
		"not yet":         {audit.Record{Resource: "secrets", Since: now.Add(-time.Minute)}, "", "audit: not proven; 1 of 2 resources", false},
		"from the future": {audit.Record{Resource: "secrets", Since: now.Add(-time.Minute), Proof: proof(-time.Hour)}, "", "audit: not proven; 1 of 2 resources", false},
		"different": {audit.Record{
			Resource: "secrets", Proof: proof(time.Minute), Different: 30, Found: 40, FoundAt: now, Differences: []audit.Difference{
				{Namespace: "shop", Name: "a", Kind: audit.Missing, At: journal.Revision{Epoch: 1, RV: 5}}, {Name: "b", Kind: audit.Extra},
			},
		}, "secrets: shop/a (not in history, rv:1/5), b (not in the cluster, rv:0/0) and 28 more; found at 2025-01-02T10:00:00.000Z", "audit: HISTORY DIFFERS FROM THE CLUSTER; 1 of 2 resources", false},
		"healed":   {audit.Record{Resource: "secrets", Proof: proof(time.Minute), Found: 4}, "", "  4 differences were found earlier;", true},
		"reshaped": {audit.Record{Resource: "secrets", Proof: &audit.Proof{Time: now, Objects: 9, Reshaped: 7}}, "", "  7 objects are given in another form", true},
	} {
		st := api.Status{Now: now, Capture: api.CaptureStatus{Connected: true}}
		st.Audit = &audit.Report{Every: time.Hour, Limit: 3 * time.Hour, Resources: []audit.Record{fresh, c.record}}
		var b strings.Builder
		if err := writeStatus(&b, &st); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), c.line) || c.trouble == "" == strings.Contains(b.String(), "TROUBLE") || !strings.Contains(b.String(), c.trouble) {
			t.Errorf("%s: want %q and the trouble %q in\n%s", name, c.line, c.trouble, b.String())
		}
		if err := check(&st); (err == nil) != c.good {
			t.Errorf("%s: the check says %v", name, err)
		}
	}
	var b strings.Builder
	if err := writeStatus(&b, &api.Status{Now: now}); err != nil || !strings.Contains(b.String(), "audit: off; nothing shows") {
		t.Errorf("off: %s", b.String())
	}
}

// A policy that lags or fails is trouble, whatever the others say; one that is suspended is not.
func TestStatusTellsOfVolumes(t *testing.T) {
	now := time.Date(2025, 1, 2, 10, 0, 0, 0, time.UTC)
	good := api.VolumesStatus{Figures: volumes.Figures{
		Policy: "nightly", Driver: "d", Claims: 12, Newest: now.Add(-5 * time.Hour), LastDone: now.Add(-4 * time.Hour), LastDuration: time.Hour, Done: 12,
	}, Limit: 48 * time.Hour}
	with := func(change func(*api.VolumesStatus)) api.VolumesStatus {
		v := good
		v.Policy = "weekly"
		change(&v)
		return v
	}
	for name, c := range map[string]struct {
		all           []api.VolumesStatus
		trouble, line string
	}{
		"none": {},
		"good": {[]api.VolumesStatus{good}, "", "volumes: 12 claims of 1 policy, the newest whole backup of each at most 5h00m old\n  last success 2025-01-02T06:00:00.000Z (took 60m00s), last failure -\n"},
		"too old": {
			[]api.VolumesStatus{good, with(func(v *api.VolumesStatus) { v.Newest = now.Add(-49 * time.Hour) })},
			"volumes of policy weekly (d): the newest backup of one is 2d01h old, and by the policy's schedule 2d00h is the most", "volumes: 24 claims of 2 policies, the newest whole backup of each at most 2d01h old\n",
		},
		"suspended": {[]api.VolumesStatus{good, with(func(v *api.VolumesStatus) { v.Newest, v.Limit = now.Add(-500*time.Hour), 0 })}, "", "at most 20d20h old\n"},
		"failing": {
			[]api.VolumesStatus{good, with(func(v *api.VolumesStatus) { v.Failing, v.LastFailed = 2, now.Add(-time.Hour) })},
			"volumes of policy weekly (d): the newest backup of 2 of 12 failed", "; 2 FAILED the last time\n  last success 2025-01-02T06:00:00.000Z (took 60m00s), last failure 2025-01-02T09:00:00.000Z\n",
		},
		"running":      {[]api.VolumesStatus{with(func(v *api.VolumesStatus) { v.Running = 3 })}, "", "; 3 being backed up\n"},
		"nothing yet":  {[]api.VolumesStatus{{Figures: volumes.Figures{Policy: "nightly"}}}, "", "volumes: no backup yet\n"},
		"when wanted":  {[]api.VolumesStatus{{Figures: volumes.Figures{LastDone: now}}}, "", "volumes: no schedule backs any up\n"},
		"a clock back": {[]api.VolumesStatus{with(func(v *api.VolumesStatus) { v.Newest = now.Add(time.Hour) })}, "", "at most 0s old\n"},
	} {
		st := api.Status{Now: now, Capture: api.CaptureStatus{Connected: true}, Volumes: c.all}
		var b strings.Builder
		if err := writeStatus(&b, &st); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), c.line) || c.trouble == "" == strings.Contains(b.String(), "TROUBLE") || !strings.Contains(b.String(), c.trouble) || c.line == "" && strings.Contains(b.String(), "volumes") {
			t.Errorf("%s: want %q and the trouble %q in\n%s", name, c.line, c.trouble, b.String())
		}
		if err := check(&st); (err == nil) != (c.trouble == "") {
			t.Errorf("%s: the check says %v", name, err)
		}
	}
}
