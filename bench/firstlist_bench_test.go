package bench

import (
	"context"
	"testing"

	"github.com/tidemark-backup/tidemark/journal"
)

// BenchmarkFirstList measures the CPU time that the first list of 20,000 Pods and Deployments of 4.7 KB costs the journal,
// without a server. One op is one list.
func BenchmarkFirstList(b *testing.B) {
	asDaemon()
	const objects = 20_000
	h := podsAndDeployments(1, objects, 40)
	cpu, n := 0.0, 0.0
	for b.Loop() {
		j := openJournal(b, b.TempDir(), journal.Options{})
		began := cpuTime(b)
		for _, info := range []journal.ResourceInfo{podInfo, deploymentInfo} {
			c, err := j.Compare(context.Background(), journal.Recording{ResourceInfo: info}, h.rv, "")
			must(b, err)
			for _, o := range h.objects {
				if o.kind.info.Resource == info.Resource {
					must(b, c.Add(context.Background(), o.event(journal.Added)))
				}
			}
			listed, err := c.Commit(context.Background(), h.rv)
			must(b, err)
			if listed == 0 {
				b.Fatal("nothing was listed")
			}
		}
		cpu += (cpuTime(b) - began).Seconds() * 1e6
		n += objects
		must(b, j.Close())
	}
	b.ReportMetric(cpu/n, "CPU-µs/object")
}
