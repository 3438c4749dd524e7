package api_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay/audit"
	"github.com/tidemark-backup/tidemark/volumes"
)

// scrape gives what /metrics says of a status.
func scrape(t *testing.T, change func(*api.Status)) string {
	t.Helper()
	f := &fakeSource{}
	status := func(ctx context.Context, totals bool) (*api.Status, error) {
		st, err := f.status(ctx, totals)
		if err == nil {
			change(st)
		}
		return st, err
	}
	s := api.NewServer(api.ServerOptions{Source: f, Status: status, Registry: api.NewRegistry(status)})
	w := httptest.NewRecorder()
	s.MachineHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// auditedStatus has every kind of resource that the audit knows.
func auditedStatus(st *api.Status) {
	st.Audit = &audit.Report{Every: time.Hour, Limit: 3 * time.Hour, Requests: 7, Bytes: 700, Resources: []audit.Record{
		{Resource: "pods", Since: st.Now.Add(-9 * time.Hour), Proof: &audit.Proof{Time: st.Now.Add(-time.Minute), Objects: 12, Reshaped: 5}},
		{Resource: "secrets", Since: st.Now.Add(-9 * time.Hour), Proof: &audit.Proof{Time: st.Now.Add(-4 * time.Hour), Objects: 3}, Trouble: "canary"},
		{Resource: "nodes", Since: st.Now.Add(-2 * time.Minute)},
		{Resource: "others.example", NotAudited: "canary"},
	}}
}

// The audit's metrics say what is proven; one difference, one old proof or none is enough for not proven.
func TestMetricsTellOfTheAudit(t *testing.T) {
	body := scrape(t, auditedStatus)
	for _, want := range []string{
		"tidemark_audit_enabled_bool 1", "tidemark_audit_proven_bool 0", "tidemark_audit_proof_limit_seconds 10800", "tidemark_audit_not_audited_count 1",
		`tidemark_audit_proof_age_seconds{resource="pods"} 60`, `tidemark_audit_proof_age_seconds{resource="secrets"} 14400`, `tidemark_audit_proof_age_seconds{resource="nodes"} 120`,
		`tidemark_audit_objects_count{resource="pods"} 12`, `tidemark_audit_reshaped_count{resource="pods"} 5`, `tidemark_audit_different_count{resource="pods"} 0`, "tidemark_audit_requests_total 7", "tidemark_audit_read_bytes_total 700",
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("no %q in:\n%s", want, body)
		}
	}
	if strings.Contains(body, "canary") {
		t.Error("a text is in the metrics")
	}
	for want, change := range map[string]func(*api.Status){
		"1": func(*api.Status) {},
		"0": func(st *api.Status) {
			r := &st.Audit.Resources[0]
			r.Different, r.Found, r.Differences = 1, 4, []audit.Difference{{Name: "canary", Kind: audit.Extra}}
		},
	} {
		body := scrape(t, func(st *api.Status) {
			auditedStatus(st)
			st.Audit.Resources = st.Audit.Resources[:1]
			change(st)
		})
		if !strings.Contains(body, "tidemark_audit_proven_bool "+want+"\n") || strings.Contains(body, "canary") {
			t.Errorf("want proven %s in:\n%s", want, body)
		}
		if want == "0" && !strings.Contains(body, `tidemark_audit_differences_total{resource="pods"} 4`) {
			t.Errorf("the count of all differences is not in:\n%s", body)
		}
	}
	if off := scrape(t, func(*api.Status) {}); !strings.Contains(off, "tidemark_audit_enabled_bool 0\n") || !strings.Contains(off, "tidemark_audit_proven_bool 0\n") {
		t.Errorf("off, and still:\n%s", off)
	}
}

// volumesStatus has a policy that fails, one whose schedule is suspended, and backups that were asked for.
func volumesStatus(st *api.Status) {
	st.Volumes = []api.VolumesStatus{
		{Figures: volumes.Figures{Driver: "d", Done: 1, LastDone: st.Now, LastDuration: time.Second}},
		{Figures: volumes.Figures{
			Policy: "nightly", Driver: "d", Running: 2, Done: 7, Failed: 3, Sent: 1000, Claims: 5, Failing: 1, Newest: st.Now.Add(-50 * time.Hour),
			LastDone: time.UnixMilli(1700000000500), LastFailed: time.UnixMilli(1700000060000), LastDuration: 90 * time.Second,
		}, Limit: 48 * time.Hour},
		{Figures: volumes.Figures{Policy: "suspended", Driver: "e", Claims: 1, Newest: st.Now.Add(-time.Hour)}},
	}
}

// The metrics of volumes tell how old a policy's backups are and may be, what fails, and nothing of claims.
func TestMetricsTellOfVolumes(t *testing.T) {
	body := scrape(t, volumesStatus)
	for _, want := range []string{
		`newest_backup_age_seconds{driver="d",policy="nightly"} 180000`, `newest_backup_limit_seconds{driver="d",policy="nightly"} 172800`,
		`claims_count{driver="d",policy="nightly"} 5`, `failing_count{driver="d",policy="nightly"} 1`, `running_count{driver="d",policy="nightly"} 2`,
		`backups_total{driver="d",policy="nightly",result="done"} 7`, `backups_total{driver="d",policy="nightly",result="failed"} 3`,
		`sent_bytes_total{driver="d",policy="nightly"} 1000`, `last_success_timestamp_seconds{driver="d",policy="nightly"} 1.7000000005e+09`,
		`last_failure_timestamp_seconds{driver="d",policy="nightly"} 1.70000006e+09`, `last_duration_seconds{driver="d",policy="nightly"} 90`,
		`backups_total{driver="d",policy="",result="done"} 1`, `newest_backup_age_seconds{driver="e",policy="suspended"} 3600`,
	} {
		if !strings.Contains(body, "\ntidemark_volume_"+want+"\n") {
			t.Errorf("no %q in:\n%s", want, body)
		}
	}
	for _, not := range []string{`newest_backup_limit_seconds{driver="e"`, `failing_count{driver="d",policy=""}`, `last_failure_timestamp_seconds{driver="e"`} {
		if strings.Contains(body, "tidemark_volume_"+not) {
			t.Errorf("%q is in:\n%s", not, body)
		}
	}
}

// docs/metrics.md lists each metric that there is, and no other.
func TestMetricsAreListed(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	body := scrape(t, everything)
	metric := regexp.MustCompile(`tidemark_[a-z_]+`)
	listed := metric.FindAllString(string(text), -1)
	for _, n := range listed {
		if !strings.Contains(body, "# TYPE "+n+" ") {
			t.Errorf("there is no metric %s", n)
		}
	}
	for _, line := range regexp.MustCompile(`(?m)^# TYPE (tidemark_\S+)`).FindAllStringSubmatch(body, -1) {
		if !slices.Contains(listed, line[1]) {
			t.Errorf("%s is not listed", line[1])
		}
	}
}

// everything gives a status of which each metric comes.
func everything(st *api.Status) {
	auditedStatus(st)
	volumesStatus(st)
	st.Archives = []compactor.Status{{Name: "main", ArchivedTo: journal.Position{Cut: journal.Cut{Time: st.Now}}}}
	st.Capture.Resources = []api.ResourceStatus{{Resource: "pods", State: "watching"}}
}

// Every metric and label that an alert rule names is one that the daemon has, and every rule can be read.
func TestAlertRulesNameMetricsThatThereAre(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "alerts", "tidemark.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	dec := yaml.NewDecoder(strings.NewReader(string(text)))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		t.Fatal(err)
	}
	body := scrape(t, everything)
	metric, label := regexp.MustCompile(`\btidemark_[a-z_]+`), regexp.MustCompile(`\$labels\.([a-z]+)`)
	seen := map[string]bool{}
	var silence, unproven bool
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			names := metric.FindAllString(r.Expr, -1)
			if r.Alert == "" || seen[r.Alert] || len(names) == 0 || r.Annotations["summary"] == "" || r.Annotations["description"] == "" || r.Labels["severity"] == "" {
				t.Errorf("rule %+v", r)
			}
			seen[r.Alert] = true
			lasts, err := time.ParseDuration(r.For)
			if r.For != "" && err != nil {
				t.Errorf("%s: %v", r.Alert, err)
			}
			silence = silence || strings.Contains(r.Expr, "absent(") && strings.Contains(r.Expr, "up{")
			unproven = unproven || strings.HasPrefix(r.Expr, "tidemark_audit_proven_bool == 0") && lasts > audit.Options{}.WithDefaults().Limit
			for _, n := range names {
				if !regexp.MustCompile(`(?m)^` + n + `[ {]`).MatchString(body) {
					t.Errorf("%s: the daemon has no metric %s", r.Alert, n)
				}
			}
			for _, l := range label.FindAllStringSubmatch(r.Annotations["summary"]+r.Annotations["description"], -1) {
				if !regexp.MustCompile(`(?m)^` + names[0] + `\{([^}]*,)?` + l[1] + `=`).MatchString(body) {
					t.Errorf("%s: %s has no label %s", r.Alert, names[0], l[1])
				}
			}
		}
	}
	if len(seen) < 13 {
		t.Errorf("only %d rules", len(seen))
	}
	if !silence {
		t.Error("no rule fires when the daemon says nothing at all")
	}
	if !unproven {
		t.Error("no rule fires when nothing can be audited, of which there are no ages")
	}
}
