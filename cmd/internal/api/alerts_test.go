package api_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/replay/audit"
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
		{Resource: "pods", Since: st.Now.Add(-9 * time.Hour), Proof: &audit.Proof{Time: st.Now.Add(-time.Minute), Objects: 12}},
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
		`tidemark_audit_objects_count{resource="pods"} 12`, `tidemark_audit_different_count{resource="pods"} 0`, "tidemark_audit_requests_total 7", "tidemark_audit_read_bytes_total 700",
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
	body := scrape(t, func(st *api.Status) {
		auditedStatus(st)
		st.Archives = []compactor.Status{{Name: "main"}}
		st.Capture.Resources = []api.ResourceStatus{{Resource: "pods", State: "watching"}}
	})
	metric, label := regexp.MustCompile(`\btidemark_[a-z_]+`), regexp.MustCompile(`\$labels\.([a-z]+)`)
	seen := map[string]bool{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			names := metric.FindAllString(r.Expr, -1)
			if r.Alert == "" || seen[r.Alert] || len(names) == 0 || r.Annotations["summary"] == "" || r.Annotations["description"] == "" || r.Labels["severity"] == "" {
				t.Errorf("rule %+v", r)
			}
			seen[r.Alert] = true
			if _, err := time.ParseDuration(r.For); r.For != "" && err != nil {
				t.Errorf("%s: %v", r.Alert, err)
			}
			for _, n := range names {
				if !regexp.MustCompile(`(?m)^` + n + `[ {]`).MatchString(body) {
					t.Errorf("%s: the daemon has no metric %s", r.Alert, n)
				}
			}
			for _, l := range label.FindAllStringSubmatch(r.Annotations["summary"], -1) {
				if !strings.Contains(body, "\n"+names[0]+"{"+l[1]+"=") {
					t.Errorf("%s: %s has no label %s", r.Alert, names[0], l[1])
				}
			}
		}
	}
	if len(seen) < 9 {
		t.Errorf("only %d rules", len(seen))
	}
}
