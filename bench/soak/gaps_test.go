package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-backup/tidemark/bench/soak/checker"
)

func TestAStormIsLedgeredForTheResourceThatItChanges(t *testing.T) {
	gone := "the server no longer had the changes since the watermark (410 Gone)"
	g := injected{from: 100, to: 200, of: "configmaps"}
	all := []checker.Gap{{Resource: "secrets", From: 50, To: 150, Cause: gone}, {Resource: "configmaps", From: 200, To: 300, Cause: gone}, {Resource: "configmaps", From: 90, To: 300, Cause: "another"}}
	if n := g.seen(all); n != 0 {
		t.Errorf("%d gaps of others are taken for its own", n)
	}
	if n := g.seen(append(all, checker.Gap{Resource: "configmaps", From: 100, To: 300, Cause: gone})); n != 2 {
		t.Errorf("seen %d times, want 2", n)
	}
	g.of = ""
	if n := g.seen(all); n != 1 {
		t.Errorf("seen %d times, want 1", n)
	}
}

func TestAGapIsExplainedByWhatHappenedAboutItsTime(t *testing.T) {
	at := func(seconds int) time.Time { return time.Unix(1e9+int64(seconds), 0) }
	slack := int(reasonSlack / time.Second)
	gap := func(r reason, resource string) bool { return explained([]reason{r}, resource, at(100), at(110)) != "" }
	for what, want := range map[string]struct {
		r    reason
		want bool
	}{
		"inside":                  {reason{from: at(103), to: at(104)}, true},
		"around it":               {reason{from: at(0), to: at(200)}, true},
		"just before":             {reason{from: at(90 - slack), to: at(100 - slack)}, true},
		"long before":             {reason{from: at(90 - slack), to: at(99 - slack)}, false},
		"just after":              {reason{from: at(110 + slack), to: at(200)}, true},
		"long after":              {reason{from: at(111 + slack), to: at(200)}, false},
		"going on":                {reason{from: at(0)}, true},
		"going on since after it": {reason{from: at(111 + slack)}, false},
		"of another resource":     {reason{from: at(0), resource: ".soak.example.com"}, false},
	} {
		want.r.what = what
		if gap(want.r, "configmaps") != want.want {
			t.Errorf("%s: want %v", what, want.want)
		}
	}
	if !gap(reason{what: "x", from: at(0), resource: ".soak.example.com"}, "gizmos.soak.example.com") {
		t.Error("a definition that changed does not explain a gap of its objects")
	}
}

func TestAGapWithoutAReasonIsADifference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := testJudge(t)
		ledger := func(resource, cause string) {
			t.Helper()
			answer := fmt.Sprintf(`{"catalog":{"from":{"revision":1},"resources":[{"resource":%q,"first":{"revision":1},"watermark":{"revision":9},"gaps":[{"from":{"revision":3},"to":{"revision":5},"cause":%q}]}]}}`, resource, cause)
			file := filepath.Join(t.TempDir(), "status")
			if err := os.WriteFile(file, []byte("#!/bin/sh\necho '"+answer+"'\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			j.daemon = &checker.Source{Name: "the daemon", Binary: file}
			if _, err := j.daemon.Ledgers(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		differs := func(limit time.Duration) bool {
			_, ok := errors.AsType[*checker.Difference](j.review(limit))
			return ok
		}
		ledger("configmaps", "410")
		if differs(reasonLimit) {
			t.Error("the reason may be known soon")
		}
		time.Sleep(reasonLimit)
		if !differs(reasonLimit) {
			t.Error("a gap without a reason passes")
		}
		over := j.breaker.reasoned("kill etcd", "")
		over()
		if differs(0) || j.counts.Reasoned != 1 {
			t.Error("a gap with a reason differs")
		}
		ledger("secrets", "the resource was removed from the cluster")
		if !differs(0) || !strings.Contains(j.review(0).Error(), "secrets") {
			t.Error("a resource that nobody can remove was removed")
		}
	})
}
