package config

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func known(flag string) bool {
	return map[string]bool{"data-dir": true, "window": true, "listen": true, "tls-cert": true}[flag]
}

func TestFileIsRead(t *testing.T) {
	f, err := Parse([]byte(`
dataDir: /var/lib/tidemark
window: 30d
listen: [unix:///a, https://0.0.0.0:8443]
archives:
- name: main
  url: s3://b/p
  recipients: [age1x]
  sealInterval: 10s
schedules:
- name: nightly
  cron: "0 3 * * *"
  timeZone: Europe/Berlin
  ttl: 30d
  concurrencyPolicy: Allow
retention:
  window: 7d
  daily: 30
`), known)
	if err != nil {
		t.Fatal(err)
	}
	want := []Flag{{"data-dir", []string{"/var/lib/tidemark"}, 2}, {"window", []string{"30d"}, 3}, {"listen", []string{"unix:///a", "https://0.0.0.0:8443"}, 4}}
	if d := cmp.Diff(want, f.Flags); d != "" {
		t.Error(d)
	}
	if a := f.Archives[0]; a.URL != "s3://b/p" || time.Duration(a.SealInterval) != 10*time.Second {
		t.Errorf("%+v", a)
	}
	if _, err := f.Schedules[0].Spec(); err != nil || time.Duration(f.Schedules[0].TTL) != 30*24*time.Hour {
		t.Errorf("%+v, %v", f.Schedules[0], err)
	}
	if p, err := f.Retention.Policy(); err != nil || p.Window != 7*24*time.Hour || p.Daily != 30 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestWhatIsNotKnownIsRefusedWithItsLine(t *testing.T) {
	for text, want := range map[string]string{
		"window: 1d\nwindoww: 2d":          `line 2: there is no setting "windoww"`,
		"data-dir: x":                      `line 1: there is no setting "data-dir"`,
		"window: 1d\n\nwindow: 2d":         `line 3: window is there twice`,
		"archives:\n- url: x\n  urls: y":   `line 3: there is no setting "urls" here`,
		"archives: x":                      `line 1: want a list here`,
		"retention:\n  window: soon":       `line 2: "soon" is not a duration`,
		"retention:\n  dayly: 1":           `line 2: there is no setting "dayly" here`,
		"schedules:\n- name: a\n  name: b": `already defined at line 2`,
		"window: {a: b}":                   `line 1: window wants a value`,
		"- a":                              `line 1: want keys`,
		"window: 1d\n---\nwindow: 2d":      `more than one document`,
		"window: [":                        `line 1`,
		"retention:\n  daily: many":        `line 2`,
		"listen:\n- {a: b}":                `line 2: listen wants plain values`,
		"archives:\n- url: dir:///x\n  sealInterval: -5s\n": `line 3: "-5s" is not a duration`,
	} {
		_, err := Parse([]byte(text), known)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestPartsKnowTheirLines(t *testing.T) {
	f, err := Parse([]byte("window: 1d\nschedules:\n- name: a\n  cron: x\n- name: b\nretention:\n  daily: 1\nvolumes:\n  policies:\n  - name: p\n    retention: {daily: 2}\n"), known)
	if err != nil {
		t.Fatal(err)
	}
	p := f.Volumes.Policies[0]
	got := []int{f.Schedules[0].Line, f.Schedules[1].Line, f.Retention.Line, f.Volumes.Line, p.Line, p.Retention.Line}
	if d := cmp.Diff([]int{3, 5, 7, 9, 10, 11}, got); d != "" {
		t.Error(d)
	}
	for _, key := range []string{"Line: 3", "line: 3", "\"-\": 3"} {
		if _, err := Parse([]byte("audit:\n  "+key), known); err == nil || strings.Contains(err.Error(), ", -") {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestBadSchedulesAndPoliciesAreRefused(t *testing.T) {
	for _, s := range []Schedule{{Name: "a", Cron: "x"}, {Name: "a", Cron: "TZ=UTC 0 0 * * *"}, {Name: "", Cron: "@daily"}, {Name: "a", Cron: "@daily", ConcurrencyPolicy: "Replace?"}} {
		if _, err := s.Spec(); err == nil {
			t.Errorf("%+v was taken", s)
		}
	}
	for _, r := range []Retention{{Daily: -1}, {Window: Duration(time.Second)}, {TimeZone: "Mars/Olympus"}} {
		if _, err := r.Policy(); err == nil {
			t.Errorf("%+v was taken", r)
		}
	}
}

func TestNamesGoThereAndBack(t *testing.T) {
	for _, name := range []string{"data-dir", "tls-cert", "window", "retention-time-zone"} {
		if got := kebab(camel(name)); got != name {
			t.Errorf("%s became %s", name, got)
		}
	}
}

func TestAuditIsReadAndChecked(t *testing.T) {
	f, err := Parse([]byte("audit: {every: 30m, limit: 2h, rate: 100, page: 50}"), known)
	if err != nil || f.Audit.Check() != nil || time.Duration(f.Audit.Every) != 30*time.Minute || time.Duration(f.Audit.Limit) != 2*time.Hour || f.Audit.Rate != 100 || f.Audit.Page != 50 {
		t.Errorf("%+v, %v", f.Audit, err)
	}
	if f, err := Parse([]byte("audit:\n  off: true"), known); err != nil || !f.Audit.Off || f.Audit.Check() != nil {
		t.Errorf("%+v, %v", f.Audit, err)
	}
	for text, want := range map[string]string{
		"every: 2h, limit: 1h": "limit", "limit: 30m": "limit", "page: 100000": "page", "page: -1": "page", "rate: -5": "rate",
	} {
		f, err := Parse([]byte("audit: {"+text+"}"), known)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Audit.Check(); err == nil || !strings.Contains(err.Error(), "audit: "+want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
