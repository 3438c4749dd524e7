package bench

import (
	"context"
	"runtime"
	"testing"

	"github.com/tidemark-backup/tidemark/journal"
)

// BenchmarkSeal measures what one seal of a quiet cluster costs: 250 changes, which are 50 a second for the default
// interval of 5 s, into a directory. CPU is that of the whole process, the garbage collector's included.
func BenchmarkSeal(b *testing.B) {
	asDaemon()
	j := openJournal(b, b.TempDir(), journal.Options{})
	beginRecording(b, j, 1_000_000, podInfo, deploymentInfo)
	h := podsAndDeployments(1, 1000, 20)
	s, _ := shipperOn(b, j, dirStore(b))
	must(b, s.Seal(context.Background()))
	var before, after runtime.MemStats
	cpu, allocated, n := 0.0, 0.0, 0.0
	for b.Loop() {
		b.StopTimer()
		for range 250 {
			appendOne(b, j, h.next())
		}
		flush(b, j)
		runtime.ReadMemStats(&before)
		began := cpuTime(b)
		b.StartTimer()
		must(b, s.Seal(context.Background()))
		b.StopTimer()
		cpu += (cpuTime(b) - began).Seconds() * 1e3
		runtime.ReadMemStats(&after)
		allocated += float64(after.TotalAlloc-before.TotalAlloc) / (1 << 20)
		n++
		b.StartTimer()
	}
	b.ReportMetric(cpu/n, "CPU-ms/seal")
	b.ReportMetric(allocated/n, "MiB-allocated/seal")
	state := s.Archive().State()
	b.ReportMetric(float64(state.Segments[len(state.Segments)-1].Size)/1e3, "KB/segment")
}
