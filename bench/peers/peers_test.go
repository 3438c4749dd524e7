package main

import (
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// made is a result with every tool, in which Velero takes v times as long and the recorder w times the CPU.
func made(v, w float64) *results {
	r := &results{Objects: []int{large}, Runs: 2, Churn: 60, Rate: 50}
	for run := 1; run <= 2; run++ {
		for _, s := range []sample{
			{Tool: veleroTool, Scenario: "backup-first", Values: map[string]float64{"seconds": v * 2}},
			{Tool: veleroTool, Scenario: "backup-changed", Values: map[string]float64{"seconds": 20, "stored_bytes": 1e6}},
			{Tool: "tidemark", Scenario: "backup-first", Values: map[string]float64{"seconds": 2, "written_bytes": 200, "requests": 0}},
			{Tool: "tidemark", Scenario: "backup-unchanged", Values: map[string]float64{"seconds": 2, "written_bytes": 1}},
			{Tool: "tidemark", Scenario: "restore-other", Values: map[string]float64{"seconds": 2, "requests_per_object": 1.3, "objects_missing": float64(run - 1), "own_peak_bytes": 64 << 20, "cli_peak_bytes": float64(run) * (32 << 20)}},
			{Tool: "tidemark", Scenario: "churn", Values: map[string]float64{"seconds": 60, "events": 600, "cpu_seconds": 1, "stored_bytes": 6000}},
			{Tool: "recorder", Scenario: "churn", Values: map[string]float64{"seconds": 60, "events": 300, "cpu_seconds": w / 2, "written_bytes": 300_000}},
		} {
			s.Objects, s.Run = large, run
			r.Samples = append(r.Samples, s)
		}
	}
	r.compute()
	return r
}

func (r *results) ratio(t *testing.T, name string) float64 {
	t.Helper()
	for _, x := range r.Ratios {
		if x.Name == "50000 objects: "+name {
			return x.Value
		}
	}
	t.Fatalf("no ratio %q in %v", name, r.Ratios)
	return 0
}

func TestRatios(t *testing.T) {
	r := made(30, 0.5)
	for name, want := range map[string]float64{
		"time of a full backup, velero by a snapshot of ours":            30,
		"bytes of a first snapshot by those of one with nothing changed": 200,
		"CPU per event, churn, recorder by ours":                         0.5,
		"bytes per revision, raw JSON by ours in the archive":            100,
		"bytes stored a day under churn, velero by ours":                 1440e6 / (10 * 10 * 86400),
	} {
		if got := r.ratio(t, name); got < want*0.999 || got > want*1.001 {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
	for _, x := range r.Ratios {
		if strings.Contains(x.Name, "durability") {
			t.Errorf("%s = %v, and nothing was measured of ours", x.Name, x.Value)
		}
	}
	if lag := r.veleroLag(large, veleroTool); lag != 50*time.Second {
		t.Errorf("backups of 20 s every minute: a change waits %s on average, want 50s", lag)
	}
	for _, s := range r.Samples {
		s.Values["seconds"] *= 6
	}
	if lag := r.veleroLag(large, veleroTool); lag != 3*time.Minute {
		t.Errorf("backups of 2 minutes, one after the other: a change waits %s on average, want 3m", lag)
	}
}

func TestReportTellsMissedGoalsAndLosses(t *testing.T) {
	whole := made(30, 0.5)
	whole.Took, whole.Versions = 5600, map[string]string{"tidemark": "abc1234"}
	text := string(whole.report("raw.json", others{}))
	for _, want := range []string{
		"| 50000 objects: time of a full backup, velero by a snapshot of ours | >= 12 x | 30 x | met |",
		"| 50000 objects: CPU per event, churn, recorder by ours | >= 10 x | 0.5 x | **missed** |",
		"| 50000 objects: restore-other, requests per object | <= 1.2 | 1.30 | **missed** |",
		"| 50000 objects: restore-other, objects that are missing afterwards | 0 | 1 | **missed** |",
		"| 50000 objects: restore-same, objects that are missing afterwards | 0 | - | **not measured** |",
		"| 50000 objects: restore-bucket, objects/s, ours by velero's restore-other | >= 20 x | - | **not measured** |",
		"| tidemark | restore | 64 | - | 64 | - | - | - |",
		"Measured in 1h33m20s, with Tidemark at commit abc1234.",
		"\n- 50000 objects: CPU per event, churn, recorder by ours: 0.5\n",
		"`raw.json`",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q", want)
		}
	}
	small := made(30, 0.5)
	small.Objects = []int{1000}
	for i := range small.Samples {
		small.Samples[i].Objects = 1000
	}
	small.compute()
	text = string(small.report("raw.json", others{}))
	if strings.Contains(text, "full backup, velero by a snapshot of ours | >=") || !strings.Contains(text, "full backup, velero by a snapshot of ours | 30 |") {
		t.Errorf("the goal of large backups is set for small ones too, or the ratio is not told")
	}
}

func TestCheckComparesRatiosAndNotTimes(t *testing.T) {
	for _, c := range []struct {
		name string
		now  *results
		want error
	}{
		{"the same", made(30, 0.5), nil},
		{"better", made(60, 5), nil},
		{"a little worse", made(21, 0.5), nil},
		{"much worse", made(19, 0.5), errWorse},
		{"worse in one thing, better in another", made(90, 0.3), errWorse},
	} {
		slower := c.now
		for _, s := range slower.Samples { // a machine that takes twice as long for everything
			s.Values["seconds"] *= 2
			s.Values["cpu_seconds"] *= 2
		}
		if err := check(made(30, 0.5), slower, 1.5, io.Discard); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestCheckMissesARatioThatIsGone(t *testing.T) {
	before := made(30, 0.5)
	gone := func(change func(*results)) *results {
		now := made(30, 0.5)
		for _, s := range now.Samples {
			if s.Tool == "tidemark" && s.Scenario == "churn" {
				s.Values["cpu_seconds"] = 0 // "CPU per event" has nothing to divide by
			}
		}
		change(now)
		now.compute()
		return now
	}
	for _, c := range []struct {
		name string
		now  *results
		want error
	}{
		{"all turns were taken", gone(func(*results) {}), errWorse},
		{"all turns were taken, as told", gone(func(r *results) { r.Turns = reported }), errWorse},
		{"some turns were taken", gone(func(r *results) { r.Turns = []string{"tidemark"} }), nil},
	} {
		if err := check(before, c.now, 1.5, io.Discard); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	before.Objects = []int{large, 1000}
	before.Ratios = append(before.Ratios, ratio{Name: "1000 objects: restore-other, objects/s, ours by velero", Value: 20})
	if err := check(before, made(30, 0.5), 1.5, io.Discard); err != nil {
		t.Errorf("one size less: %v", err)
	}
	if err := check(made(30, 0.5), &results{Objects: []int{large}}, 1.5, io.Discard); !errors.Is(err, errWorse) {
		t.Errorf("everything is gone: %v, want %v", err, errWorse)
	}
}

func TestOldResultsHaveNoListsWhereNoneWereCounted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "old.json")
	if err := made(30, 0.5).save(path); err != nil {
		t.Fatal(err)
	}
	r, err := load(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := "| 50000 objects: list requests of a full snapshot | 0 | 0 | met |"; !strings.Contains(string(r.report(path, others{})), want) {
		t.Errorf("the report lacks %q", want)
	}
}

func TestOtherBenchmarksAreInTheReport(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"2026-11-27-volumes-large.txt": "Unit of-kopia-first better=lower\nBenchmarkVolumes/large-2 \t 6 \t 55 ns/op \t 1.2 of-kopia-first \t 0.9 of-kopia-changed \t 1.001 of-kopia-bytes\n" +
			"--- BENCH: BenchmarkVolumes/large-2\n    x_test.go:1: first: wall 1.88 s\nPASS\n",
		"2026-11-26-archive-size.txt": "BenchmarkArchiveSize/corpus-2 1 55 ns/op 35.09 json/archived\n",
		"2026-11-27-archive-size.txt": "BenchmarkArchiveSize/synthetic-2 1 55 ns/op 42.75 json/archived\nBenchmarkArchiveSize/corpus-2 1 55 ns/op 29.1 json/archived\n",
		"2026-11-27-peers.json":       "{}",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := loadOthers(dir)
	if err != nil {
		t.Fatal(err)
	}
	text := string(made(30, 0.5).report("raw.json", kept))
	for _, want := range []string{
		"| 2 files of 1 GiB | time | 1.20 | - | 0.90 | - | 6 | 2026-11-27-volumes-large.txt |",
		"| bytes per revision once all is merged, raw JSON by ours (made-up changes, `2026-11-27-archive-size.txt`) | >= 30 x | 42.8 x | met |",
		"| bytes per revision once all is merged, raw JSON by ours (a recorded cluster, `2026-11-27-archive-size.txt`) | >= 30 x | 29.1 x | **missed** |",
		"\n- volumes, 2 files of 1 GiB, first, time: 1.20 of kopia's (2026-11-27-volumes-large.txt)\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q", want)
		}
	}
	if strings.Contains(text, "2026-11-26") {
		t.Error("an older result is told as well")
	}
	if strings.Contains(text, "bytes stored: 1.0") {
		t.Error("a thousandth is told as a loss")
	}
}

func TestRequestsOfAllUnderTestAreLogged(t *testing.T) {
	for tool := range informerModes {
		if !strings.Contains(auditPolicy, tool) {
			t.Errorf("requests of %s are not logged, and would be told as none", tool)
		}
	}
}

func TestCheckRefusesResultsWithNothingInCommon(t *testing.T) {
	if err := check(made(30, 1), &results{}, 1.5, io.Discard); err == nil || errors.Is(err, errWorse) {
		t.Errorf("nothing to compare: %v, want an error that says so", err)
	}
}

func TestCheckComparesBenchmarksToo(t *testing.T) {
	write := func(lines ...string) *results {
		t.Helper()
		path := filepath.Join(t.TempDir(), "bench.txt")
		text := "date: 2026-11-27T00:00:00Z\nUnit of-raw better=higher\nUnit of-kopia better=lower\n" + strings.Join(lines, "\n") + "\nPASS\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := load(path)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	before := write("BenchmarkIngest/512-2 \t 7 \t 100 ns/op \t 0.9 of-raw", "BenchmarkIngest/512-2 7 100 ns/op 0.5 of-raw", "BenchmarkIngest/512-2 7 100 ns/op 0.8 of-raw",
		"    bench_test.go:1: of-raw 0.1", "BenchmarkVolumes-2 1 5 ns/op 1.0 of-kopia")
	for _, c := range []struct {
		name string
		now  *results
		want error
	}{
		{"slower, with the same ratios, on a larger machine", write("BenchmarkIngest/512-8 7 900 ns/op 0.8 of-raw", "BenchmarkVolumes-8 1 50 ns/op 1.0 of-kopia"), nil},
		{"a smaller share", write("BenchmarkIngest/512-2 7 100 ns/op 0.5 of-raw", "BenchmarkVolumes-2 1 5 ns/op 1.0 of-kopia"), errWorse},
		{"more of theirs", write("BenchmarkIngest/512-2 7 100 ns/op 0.8 of-raw", "BenchmarkVolumes-2 1 5 ns/op 1.6 of-kopia"), errWorse},
		{"less of theirs", write("BenchmarkIngest/512-2 7 100 ns/op 0.8 of-raw", "BenchmarkVolumes-2 1 5 ns/op 0.1 of-kopia"), nil},
	} {
		if err := check(before, c.now, 1.5, io.Discard); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestCPUOfChildrenThatEndedIsCounted(t *testing.T) {
	p, err := parseStat([]byte("42 (a (b) c) S 7 42 42 0 -1 4194560 1 2 3 4 100 20 3000 400 20 0 5 0 123 1000 10 18446744073709551615 0"))
	if err != nil {
		t.Fatal(err)
	}
	want := process{pid: 42, parent: 7, name: "a (b) c", cpu: 3520 * clockTick}
	if p != want {
		t.Errorf("parseStat = %+v, want %+v", p, want)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S 1 2"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestMemoryOfACommandIsItsOwn(t *testing.T) {
	ballast := make([]byte, 256<<20)
	for i := range ballast {
		ballast[i] = 1
	}
	l := &lab{}
	r, err := l.run(t.Context(), nil, "sleep", "0.1")
	if err != nil || r.peak == 0 || r.peak > 64<<20 {
		t.Errorf("%v: %d bytes", err, r.peak)
	}
	runtime.KeepAlive(ballast)
}

func TestTreeHasChildrenOfChildren(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("this system has no /proc")
	}
	cmd := exec.Command("sh", "-c", "sh -c 'sleep 60; true' & wait; true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait() // it was killed
	}()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		all, err := tree(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 3 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("tree: %+v, want two shells and a sleep", all)
		}
	}
	watching := func(guest func() int, root int) *meter {
		m, err := watchTool(guest, root)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	shells, nothing, self := watching(nil, cmd.Process.Pid), watching(nil, 0), watching(nil, os.Getpid())
	alone := watching(func() int { return cmd.Process.Pid }, 0)
	server, err := watchServers(os.Getpid(), cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if guest := alone.end()[0]; guest.peak == 0 || guest.anonymous == 0 || guest.anonymous >= guest.peak {
		t.Errorf("a command alone: %+v", guest)
	}
	shell := shells.end()[0]
	if shell.own == 0 || shell.others == 0 || shell.peak <= shell.own || shell.peak > shell.own+shell.others || shell.anonymous == 0 || shell.anonymous >= shell.peak {
		t.Errorf("a shell and its children: %+v", shell)
	}
	if got := nothing.end()[0]; got != (taken{}) {
		t.Errorf("no process: %+v, want nothing", got)
	}
	own := self.end()[0]
	if own.others < shell.peak {
		t.Errorf("this process: %+v, which lacks the shells", own)
	}
	// As a server a process counts alone, pages that it shares included.
	got := server.end()
	if got[0].peak < own.own || got[0].peak > own.own*2 || got[1].peak < shell.own || got[1].others != 0 {
		t.Errorf("as servers: %+v, beside %+v and %+v", got, own, shell)
	}
}

func TestRequestsAreCountedForOneUserOnly(t *testing.T) {
	log := `{"verb":"get","user":{"username":"velero"}}
{"verb":"get","user":{"username":"tidemark"}}
{"verb":"patch","user":{"username":"velero"}}
{"verb":"get","user":{"username":"velero"}}
{"verb":"list","requestURI":"/api/v1/pods?limit=500","userAgent":"tidemark-capture","user":{"username":"tidemark"}}
{"verb":"list","requestURI":"/api/v1/pods?limit=500&resourceVersion=7&resourceVersionMatch=Exact","userAgent":"tidemark-audit","user":{"username":"tidemark"}}
{"verb":"list","requestURI":"/api/v1/pods?continue=abc&limit=500","userAgent":"tidemark-audit","user":{"username":"tidemark"}}
{"verb":"get","user":{"userna`
	for user, want := range map[string]map[string]int{
		"velero":   {"get": 2, "patch": 1},
		"tidemark": {"get": 1, "list": 1, "audit": 2},
	} {
		if got, err := countRequests(strings.NewReader(log), user); err != nil || !maps.Equal(got, want) {
			t.Errorf("requests of %s: %v, %v, want %v", user, got, err, want)
		}
	}
}

func TestMetricsWithAnotherNameAreNotAdded(t *testing.T) {
	text := "# HELP apiserver_request_total x\napiserver_request_total{verb=\"GET\"} 2\napiserver_request_total{verb=\"LIST\"} 3e1\napiserver_request_total_other 100\n"
	if got := sumMetric([]byte(text), "apiserver_request_total"); got != 32 {
		t.Errorf("sum = %v, want 32", got)
	}
}

func TestOnlyNewFilesAreBytesAdded(t *testing.T) {
	if n := added(map[string]int64{"a 1": 5, "b 1": 7}, map[string]int64{"a 1": 5, "b 2": 9, "c 1": 1}); n != 10 {
		t.Errorf("added = %d, want 10: what was replaced, and what is new", n)
	}
}

func TestRecorderWithNothingToWriteAfterItsListsHasListed(t *testing.T) {
	said, err := readSaid(strings.NewReader("W0101 a warning\nsynced 7 41 1000\nlisted\n"))
	if err != nil || len(said) != 2 {
		t.Fatalf("said %+v, %v", said, err)
	}
	if last := said[1]; !last.listed || last.objects != 7 || last.revision != 41 {
		t.Errorf("after the lists: %+v, want listed with 7 objects up to 41", last)
	}
}
