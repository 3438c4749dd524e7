package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-backup/tidemark/bench/soak/checker"
)

func TestARunThatComparedNothingIsNoProof(t *testing.T) {
	enough := counts{
		Daemon: answered{Moments: 2, Histories: 2, Versions: 2}, Archive: answered{Moments: 2, Histories: 2, Versions: 2},
		Restores: 2, RestoredObjects: 2, Gaps: 1, Ledgered: 1,
	}
	if err := floor(&enough, 10*time.Minute, 1); err != nil {
		t.Error(err)
	}
	if floor(&enough, time.Hour, 1) == nil {
		t.Error("as little is enough for an hour")
	}
	for what, spoil := range map[string]func(*counts){
		"moments compared with the daemon":    func(c *counts) { c.Daemon.Moments = 0 },
		"moments compared with the archive":   func(c *counts) { c.Archive.Moments = 0 },
		"histories compared with the daemon":  func(c *counts) { c.Daemon.Histories = 0 },
		"histories compared with the archive": func(c *counts) { c.Archive.Histories = 0 },
		"versions found in the daemon":        func(c *counts) { c.Daemon.Versions = 0 },
		"versions found in the archive":       func(c *counts) { c.Archive.Versions = 0 },
		"restores compared":                   func(c *counts) { c.Restores = 0 },
		"objects of restores":                 func(c *counts) { c.RestoredObjects = 0 },
		"1 storms":                            func(c *counts) { c.Gaps, c.Ledgered = 0, 0 },
		"0 in the ledger":                     func(c *counts) { c.Ledgered = 0 },
	} {
		c := enough
		spoil(&c)
		if err := floor(&c, time.Minute, 1); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func testJudge(t *testing.T) *judge {
	t.Helper()
	log, err := openActions(filepath.Join(t.TempDir(), "actions.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.close() })
	r := &rig{log: log}
	return &judge{
		rig: r, breaker: &breaker{rig: r}, model: checker.NewModel(nil), daemon: &checker.Source{Name: "the daemon"}, archive: &checker.Source{Name: "the archive"},
		failed: map[string]int{}, reviewed: map[checker.Gap]time.Time{},
	}
}

func TestAnswersThatKeepFailingAreADifference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := testJudge(t)
		n := 0
		ask := func(until int) error {
			return j.asked(t.Context(), j.daemon, "rv:7", func() error {
				if n++; n < until {
					return fmt.Errorf("%w: exit status 1", checker.ErrFailed)
				}
				return nil
			})
		}
		const never = 1 << 30
		for range failures - 1 { // a fault may have done that
			if err := ask(never); !errors.Is(err, checker.ErrNotYet) {
				t.Fatalf("found %v", err)
			}
		}
		began := time.Now()
		err := ask(never)
		if _, ok := errors.AsType[*checker.Difference](err); !ok || !strings.Contains(err.Error(), "rv:7") || time.Since(began) < insistFor {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		if !j.breaker.turn.TryLock() {
			t.Error("faults are held back for ever")
		}
		j.breaker.turn.Unlock()

		n = 0
		for range failures - 1 {
			_ = ask(failures + 2)
		}
		if err := ask(failures + 2); err != nil { // an answer in the end
			t.Error(err)
		}
		if err := ask(0); err != nil || len(j.failed) != 0 {
			t.Errorf("%v, %v", err, j.failed)
		}
	})
}

func TestWhatIsNotPossibleIsNotWaitedForForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := testJudge(t)
		began := time.Now()
		err := j.patiently(t.Context(), "do it", func(context.Context) error { return fmt.Errorf("%w: no", checker.ErrNotYet) })
		if err == nil || !strings.Contains(err.Error(), "do it") || time.Since(began) < drainLimit {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		if err := j.patiently(t.Context(), "do it", func(context.Context) error { return nil }); err != nil {
			t.Error(err)
		}
	})
}

func TestObjectsOfOldMomentsAreNotKept(t *testing.T) {
	j, dir := testJudge(t), t.TempDir()
	for i := range 2 * keepMoments {
		mo, err := j.model.TakeMoment(t.Context(), uint64(i/2), dir) // each revision twice
		if err != nil {
			t.Fatal(err)
		}
		j.pending = append(j.pending, &trial{Moment: mo, model: true, daemon: true, archive: true})
	}
	if err := j.compareAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "moment-*"))
	if err != nil || len(left) != keepMoments {
		t.Errorf("%d files are left, want %d; %v", len(left), keepMoments, err)
	}
	for _, one := range j.past[keepMoments:] {
		if _, err := one.Namespaces(""); err != nil {
			t.Errorf("rv:%d is forgotten: %v", one.RV, err)
		}
	}
}
