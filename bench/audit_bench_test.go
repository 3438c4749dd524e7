package bench

import (
	"fmt"
	"runtime/metrics"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/tidemark-backup/tidemark/bench/mix"
	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/replay/audit"
)

// BenchmarkAudit measures what one audit of a cluster costs, unpaced, against a real API server: requests, bytes, CPU time
// of the audit's process and of the API server, and how much the heap grew at its peak. The recording runs in the same
// process, but nothing happens that it could record. One op is one audit of every resource.
func BenchmarkAudit(b *testing.B) {
	for _, objects := range []int{10_000} {
		b.Run(fmt.Sprintf("objects=%d", objects), func(b *testing.B) {
			cluster := startCluster(b, localcluster.Options{})
			d := fastClient(b, cluster.Config())
			for i := range 10 {
				ns := fmt.Sprint("ns-", i)
				createNamespace(b, d, ns)
				all, resources := mix.Objects(ns, objects/10)
				createAll(b, d, 16, all, resources)
			}
			asDaemon()
			r := record(b, cluster.Config(), b.TempDir())
			settled := uint64(0)
			eventually(b, 3*time.Minute, "the controllers are done", func() (bool, string) {
				time.Sleep(2 * time.Second)
				before := settled
				settled = r.journal.Position().Count
				return settled == before, fmt.Sprint(settled)
			})
			for b.Loop() {
				a := audit.New(audit.Options{Journal: r.journal, Cluster: r.capture, Rate: 1 << 30, Every: time.Nanosecond, Limit: time.Hour})
				peak := watchHeap()
				began, server := cpuTime(b), cpuOf(b, cluster)
				if _, err := a.Round(b.Context()); err != nil {
					b.Fatal(err)
				}
				used, theirs := cpuTime(b)-began, cpuOf(b, cluster)-server
				rep := a.Report()
				if rep.State != audit.Equal || rep.Objects < uint64(objects) {
					b.Fatalf("%+v", rep)
				}
				b.ReportMetric(float64(rep.Objects), "objects")
				b.ReportMetric(float64(rep.Requests), "requests")
				b.ReportMetric(float64(rep.Bytes)/(1<<20), "read-MiB")
				b.ReportMetric(float64(used.Milliseconds()), "cpu-ms")
				b.ReportMetric(float64(theirs.Milliseconds()), "apiserver-cpu-ms")
				b.ReportMetric(peak(), "heap-growth-peak-MiB")
			}
		})
	}
}

// cpuOf is what the API server has used so far.
func cpuOf(b *testing.B, cluster *localcluster.Cluster) time.Duration {
	b.Helper()
	client, err := kubernetes.NewForConfig(cluster.Config())
	if err != nil {
		b.Fatal(err)
	}
	text, err := client.RESTClient().Get().AbsPath("/metrics").Do(b.Context()).Raw()
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "process_cpu_seconds_total "); ok {
			s, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				b.Fatal(err)
			}
			return time.Duration(s * float64(time.Second))
		}
	}
	b.Fatal("the API server does not tell its CPU time")
	return 0
}

// watchHeap looks at the heap until the returned func is called, which gives how far it grew, in MiB.
func watchHeap() func() float64 {
	heap := func() float64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(s)
		return float64(s[0].Value.Uint64())
	}
	stop, peak := make(chan struct{}), make(chan float64)
	before := heap()
	go func() {
		most := before
		for {
			most = max(most, heap())
			select {
			case <-stop:
				peak <- (most - before) / (1 << 20)
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return func() float64 {
		close(stop)
		return <-peak
	}
}
