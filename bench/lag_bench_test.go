package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
)

// BenchmarkLag measures capture lag against a real control plane: from the API server's answer
// to the writer until the change is durable in the journal, at 200 writes a second. etcd, the
// API server, the writers and Tidemark share the machine. A change that is durable before its
// writer has the answer has no lag. The disk's own part shows beside it: what a plain write of
// 4 KB with fsync takes on the same file system at the same time. One op is one run of ten seconds.
func BenchmarkLag(b *testing.B) {
	cluster := startCluster(b, localcluster.Options{NoControllers: true})
	client := fastClient(b, cluster.Config())
	createNamespace(b, client, "lag")
	c := client.Resource(configMaps).Namespace("lag")
	const writers, perSecond, seconds = 8, 200, 10
	filler := properties(60) // 4 KB
	for i := range writers {
		o := object("v1", "ConfigMap", "lag", fmt.Sprintf("o%d", i), map[string]any{"data": map[string]any{"properties": filler}})
		if _, err := c.Create(b.Context(), o, metav1.CreateOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	r := record(b, cluster.Config(), b.TempDir())
	for b.Loop() {
		durable := watchDurable(r)
		fsyncs := watchDisk(b)
		var mu sync.Mutex
		answered := map[uint64]time.Time{}
		var wg sync.WaitGroup
		start := time.Now()
		for i := range writers {
			wg.Go(func() {
				for n := range perSecond * seconds / writers {
					due := start.Add(time.Duration(n*writers+i) * time.Second / perSecond)
					time.Sleep(time.Until(due))
					patch := fmt.Appendf(nil, `{"data":{"n":"%d-%d"}}`, i, due.UnixNano())
					o, err := c.Patch(b.Context(), fmt.Sprintf("o%d", i), "application/merge-patch+json", patch, metav1.PatchOptions{})
					at := time.Now()
					if err != nil {
						b.Error(err)
						return
					}
					rv, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
					if err != nil {
						b.Error(err)
						return
					}
					mu.Lock()
					answered[rv] = at
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		rate := float64(len(answered)) / time.Since(start).Seconds()
		last := uint64(0)
		for rv := range answered {
			last = max(last, rv)
		}
		r.await(configMaps, last)
		lags := lagsOf(answered, durable())
		b.ReportMetric(rate, "writes/s")
		b.ReportMetric(quantile(lags, 0.5), "p50-ms")
		b.ReportMetric(quantile(lags, 0.99), "p99-ms")
		b.ReportMetric(quantile(lags, 1), "max-ms")
		disk := fsyncs()
		b.ReportMetric(quantile(disk, 0.5), "fsync-p50-ms")
		b.ReportMetric(quantile(disk, 0.99), "fsync-p99-ms")
	}
}

// sighting is when the journal was first seen to hold everything up to a revision.
type sighting struct {
	rv uint64
	at time.Time
}

// watchDurable follows the durable watermark until the returned func is called.
func watchDurable(r *recording) (stop func() []sighting) {
	ctx, cancel := context.WithCancel(context.Background())
	var seen []sighting
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			advanced := r.journal.Advanced()
			seen = append(seen, sighting{r.journal.Ledger(configMaps.GroupResource()).Watermark.RV, time.Now()})
			select {
			case <-advanced:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() []sighting {
		cancel()
		wg.Wait()
		return seen
	}
}

// watchDisk times a plain write with fsync 20 times a second until the returned func is called,
// which gives the sorted times in milliseconds.
func watchDisk(b *testing.B) (stop func() []float64) {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "plain"))
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	var took []float64
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		block := make([]byte, 4096)
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			start := time.Now()
			if _, err := f.Write(block); err != nil {
				b.Error(err)
			}
			if err := f.Sync(); err != nil {
				b.Error(err)
			}
			took = append(took, time.Since(start).Seconds()*1000)
		}
	})
	return func() []float64 {
		close(done)
		wg.Wait()
		if err := f.Close(); err != nil {
			b.Error(err)
		}
		slices.Sort(took)
		return took
	}
}

// lagsOf gives the sorted lags in milliseconds.
func lagsOf(answered map[uint64]time.Time, durable []sighting) []float64 {
	var lags []float64
	for rv, at := range answered {
		i, _ := slices.BinarySearchFunc(durable, rv, func(s sighting, rv uint64) int {
			if s.rv < rv {
				return -1
			}
			return 1
		})
		if i < len(durable) {
			lags = append(lags, max(0, durable[i].at.Sub(at).Seconds()*1000))
		}
	}
	slices.Sort(lags)
	return lags
}

func quantile(sorted []float64, q float64) float64 {
	return sorted[int(q*float64(len(sorted)-1))]
}
