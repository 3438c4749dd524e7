package bench

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/tidemark-backup/tidemark/journal"
)

// BenchmarkFirstList measures the CPU time that the first list of 20,000 Pods and Deployments of 4.7 KB costs the journal,
// without a server, and that of the same list again, as after a 410. One op is both.
func BenchmarkFirstList(b *testing.B) {
	asDaemon()
	const objects = 20_000
	h := podsAndDeployments(1, objects, 40)
	slices.SortFunc(h.objects, func(a, b *madeUp) int { return strings.Compare(a.namespace+"/"+a.name, b.namespace+"/"+b.name) }) // as servers list
	first, again, n := 0.0, 0.0, 0.0
	for b.Loop() {
		j := openJournal(b, b.TempDir(), journal.Options{})
		began := cpuTime(b)
		if listed := compareAll(b, j, h); listed != objects {
			b.Fatalf("%d objects were written", listed)
		}
		then := cpuTime(b)
		if listed := compareAll(b, j, h); listed != 0 {
			b.Fatalf("%d objects were written twice", listed)
		}
		first += (then - began).Seconds() * 1e6
		again += (cpuTime(b) - then).Seconds() * 1e6
		n += objects
		must(b, j.Close())
	}
	b.ReportMetric(first/n, "CPU-µs/object")
	b.ReportMetric(again/n, "again-CPU-µs/object")
}

// compareAll lists everything into the journal, and returns how many objects it wrote.
func compareAll(b *testing.B, j *journal.Journal, h *history) (written int) {
	b.Helper()
	for _, info := range []journal.ResourceInfo{podInfo, deploymentInfo} {
		c, err := j.Compare(context.Background(), journal.Recording{ResourceInfo: info}, h.rv, "")
		must(b, err)
		for _, o := range h.objects {
			if o.kind.info.Resource == info.Resource {
				must(b, c.Add(context.Background(), o.event(journal.Added)))
			}
		}
		n, err := c.Commit(context.Background(), h.rv)
		must(b, err)
		written += n
	}
	return written
}
