package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkMemory measures the resident memory of the real daemon (`tidemark run`, a process of
// its own, with its default options) that records a cluster of so many Pods and Deployments of
// 4.7 KB: the peak while it makes its first lists, what it keeps a moment later (and how much of that is pages of the
// program's own file, which the system may drop at any time), and the peak
// after 20,000 more events, sent as fast as it takes them. One op is one run.
func BenchmarkMemory(b *testing.B) {
	for _, objects := range []int{10_000, 50_000} {
		b.Run(fmt.Sprintf("objects=%d", objects), func(b *testing.B) {
			s := startServer(b, serverOptions{Objects: objects, Namespaces: 100, Events: 20_000})
			kubeconfig := s.kubeconfig()
			for b.Loop() {
				dir := b.TempDir()
				d := startDaemon(b, kubeconfig, dir)
				s.awaitWatches(2)
				b.ReportMetric(memoryOf(b, d, "VmHWM"), "first-sync-peak-MiB")
				time.Sleep(5 * time.Second) // what is measured is what it keeps when nothing happens
				b.ReportMetric(memoryOf(b, d, "VmRSS"), "idle-MiB")
				b.ReportMetric(memoryOf(b, d, "RssFile"), "of-it-program-MiB")
				s.say("play")
				eventually(b, 5*time.Minute, "all events recorded", func() (bool, string) {
					out, err := tidemark(b, dir, "status", "-o", "json")
					return strings.Contains(string(out), strconv.FormatUint(s.newest, 10)), fmt.Sprintf("%s %v", out, err)
				})
				b.ReportMetric(memoryOf(b, d, "VmHWM"), "events-peak-MiB")
				d.terminate()
				s.say("rewind")
				s.awaitWatches(0)
			}
		})
	}
}

// memoryOf reads a size of the daemon's process, in MiB.
func memoryOf(b *testing.B, d *daemon, what string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		b.Skipf("this system does not tell a process's memory: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, what+":"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatalf("no %s in\n%s", what, text)
	return 0
}
