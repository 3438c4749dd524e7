package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// BenchmarkScale measures the real daemon, with its default options and an archive in a directory, on clusters of so many Pods
// and Deployments of 4.7 KB in 1,000 namespaces, at 1,000 changes a second for one minute. The largest is a cluster of
// 5,000 nodes: 150,000 Pods and as many other objects. It is what docs/scale.md is made of. CPU is that of the daemon,
// "cores" what it takes of one core while the changes come. One op is one run.
func BenchmarkScale(b *testing.B) {
	const rate, seconds = 1000, 60
	for _, objects := range []int{30_000, 100_000, 300_000} {
		b.Run(fmt.Sprintf("objects=%d", objects), func(b *testing.B) {
			s := startServer(b, serverOptions{Objects: objects, Namespaces: 1000, Events: rate * seconds, Rate: rate / 2}) // of each of the two kinds
			kubeconfig := s.kubeconfig()
			for b.Loop() {
				dir := b.TempDir()
				archiveDir := b.TempDir()
				began := time.Now()
				d := startDaemon(b, kubeconfig, dir, "--archive", "dir://"+archiveDir)
				s.awaitWatches(2)
				b.ReportMetric(time.Since(began).Seconds(), "s-first-lists")
				awaitSealed(b, dir, 0)
				b.ReportMetric(time.Since(began).Seconds(), "s-first-in-archive")
				b.ReportMetric(memoryOf(b, d, "VmHWM"), "MiB-first-peak")
				b.ReportMetric(float64(dirBytes(b, filepath.Join(dir, "journal")))/float64(objects), "B/object-journal")
				journalBytes, archiveBytes, cpu := dirBytes(b, dir), dirBytes(b, archiveDir), cpuOfDaemon(b, d)

				s.say("play")
				played := time.Now()
				behind := 0.0
				for time.Since(played) < seconds*time.Second {
					time.Sleep(time.Second) // what is measured is what it does meanwhile
					behind = max(behind, float64(scaleStatus(b, dir).Archives[0].PendingEvents))
				}
				awaitSealed(b, dir, s.newest)
				took := time.Since(played).Seconds()
				used := (cpuOfDaemon(b, d) - cpu).Seconds()
				b.ReportMetric(took-seconds, "s-behind-at-end") // up to a seal's interval of 5 s
				b.ReportMetric(behind/rate, "s-most-behind")
				b.ReportMetric(used/seconds, "cores")
				b.ReportMetric(used/(rate*seconds)*1e6, "µs/event")
				b.ReportMetric(memoryOf(b, d, "VmHWM"), "MiB-peak")
				b.ReportMetric(float64(dirBytes(b, dir)-journalBytes)/(rate*seconds), "B/event-journal")
				b.ReportMetric(float64(dirBytes(b, archiveDir)-archiveBytes)/(rate*seconds), "B/event-archive")

				fold := time.Now()
				if out, err := tidemark(b, dir, "get", "pods", "-n", spaces(1000)[500], "--at", fmt.Sprintf("rv:%d", s.newest-1000)); err != nil || bytes.Count(out, []byte("\n")) < objects/2000 {
					b.Fatalf("%v\n%s", err, out)
				}
				b.ReportMetric(float64(time.Since(fold).Milliseconds()), "ms-get-namespace")
				snapshot := time.Now()
				if out, err := tidemark(b, dir, "snapshot", "create"); err != nil {
					b.Fatalf("%v\n%s", err, out)
				}
				b.ReportMetric(time.Since(snapshot).Seconds(), "s-snapshot")
				d.terminate()
				s.say("rewind")
				s.awaitWatches(0)
			}
		})
	}
}

// scaledStatus is what BenchmarkScale reads of `tidemark status -o json`.
type scaledStatus struct {
	Catalog  struct{ From, To struct{ Revision uint64 } }
	Archives []struct {
		ArchivedTo, From struct{ Revision uint64 }
		PendingEvents    uint64
	}
}

func scaleStatus(b *testing.B, dir string) (s scaledStatus) {
	b.Helper()
	out, err := tidemark(b, dir, "status", "-o", "json")
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	if err != nil || len(s.Archives) != 1 {
		b.Fatalf("%v\n%s", err, out)
	}
	return s
}

// awaitSealed waits until the archive has everything up to a revision.
func awaitSealed(b *testing.B, dir string, revision uint64) {
	b.Helper()
	eventually(b, 10*time.Minute, "all in the archive", func() (bool, string) {
		s := scaleStatus(b, dir)
		a := s.Archives[0]
		return a.From.Revision > 0 && a.PendingEvents == 0 && a.ArchivedTo.Revision >= revision, fmt.Sprintf("%+v", s)
	})
}

// cpuOfDaemon is the CPU time that the daemon's process took so far.
func cpuOfDaemon(b *testing.B, d *daemon) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		b.Skipf("this system does not tell a process's CPU time: %v", err)
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	ticks := 0
	for _, f := range fields[11:13] { // user and system, in hundredths of a second; see proc_pid_stat(5)
		n, err := strconv.Atoi(string(f))
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
