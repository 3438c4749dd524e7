package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/tidemark-backup/tidemark/journal"
)

// BenchmarkIngest measures durable ingest on a real disk, beside what Pebble alone can do in
// the same run with the same bytes, options, batch size and file system: plain Sets of the
// same bodies, without heads, time index, watermarks and all else that makes a journal.
// One op is one event.
func BenchmarkIngest(b *testing.B) {
	for _, batch := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			measureIngest(b, batch, func(j *journal.Journal, events func() journal.Event) {
				for range b.N {
					appendOne(b, j, events())
					if batch == 1 { // each is durable before the next
						flush(b, j)
					}
				}
				flush(b, j)
			}, func(db *pebble.DB, events func() journal.Event) { rawBatches(b, db, batch, events) })
		})
	}
	const appenders = 64
	b.Run(fmt.Sprintf("appenders=%d", appenders), func(b *testing.B) {
		measureIngest(b, 512, func(j *journal.Journal, events func() journal.Event) {
			concurrently(b.N, appenders, func() func() { // a resource's events come in order
				appendOne(b, j, events())
				return func() { flush(b, j) }
			})
		}, func(db *pebble.DB, events func() journal.Event) {
			concurrently(b.N, appenders, func() func() {
				e := events()
				return func() {
					if err := db.Set(rawKey(e), e.Object, pebble.Sync); err != nil {
						b.Error(err)
					}
				}
			})
		})
	})
}

func measureIngest(b *testing.B, batch int, ours func(*journal.Journal, func() journal.Event), raw func(*pebble.DB, func() journal.Event)) {
	b.StopTimer()
	events := func() (func() journal.Event, *int64) {
		h, size := podsAndDeployments(1, 4000, 40), new(int64)
		return func() journal.Event {
			e := h.next()
			*size += int64(len(e.Object))
			return e
		}, size
	}
	dir := b.TempDir()
	j := openJournal(b, dir, journal.Options{BatchEvents: batch})
	beginRecording(b, j, 1_000_000, podInfo, deploymentInfo)
	next, size := events()
	b.StartTimer()
	start := time.Now()
	ours(j, next)
	took := time.Since(start)
	b.StopTimer()
	if t, err := j.Totals(); err != nil || t.Events != uint64(b.N) {
		b.Fatalf("the journal holds %d of %d events (%v)", t.Events, b.N, err)
	}
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}

	db, err := pebble.Open(b.TempDir(), storeOptions(b, dir))
	if err != nil {
		b.Fatal(err)
	}
	next, _ = events()
	start = time.Now()
	raw(db, next)
	rawTook := time.Since(start)
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/took.Seconds(), "events/s")
	b.ReportMetric(float64(*size)/1e6/took.Seconds(), "MB/s")
	b.ReportMetric(float64(b.N)/rawTook.Seconds(), "raw-events/s")
	b.ReportMetric(rawTook.Seconds()/took.Seconds(), "of-raw")
}

func appendOne(b *testing.B, j *journal.Journal, e journal.Event) {
	if err := j.Append(context.Background(), e); err != nil {
		b.Error(err)
	}
}

func flush(b *testing.B, j *journal.Journal) {
	if err := j.Flush(context.Background()); err != nil {
		b.Error(err)
	}
}

// rawBatches writes b.N events the fastest way Pebble has: while a batch is synced, the next
// ones are already built and applied.
func rawBatches(b *testing.B, db *pebble.DB, size int, events func() journal.Event) {
	depth := 8
	if size == 1 {
		depth = 1
	}
	synced := make(chan *pebble.Batch, depth)
	var wg sync.WaitGroup
	wg.Go(func() {
		for batch := range synced {
			if err := batch.SyncWait(); err != nil {
				b.Error(err)
			}
			if err := batch.Close(); err != nil {
				b.Error(err)
			}
		}
	})
	for n := 0; n < b.N; {
		batch := db.NewBatch()
		for ; n < b.N && int(batch.Count()) < size; n++ {
			e := events()
			if err := batch.Set(rawKey(e), e.Object, nil); err != nil {
				b.Fatal(err)
			}
		}
		if size == 1 {
			if err := batch.Commit(pebble.Sync); err != nil {
				b.Fatal(err)
			}
			if err := batch.Close(); err != nil {
				b.Error(err)
			}
			continue
		}
		if err := db.ApplyNoSyncWait(batch, pebble.Sync); err != nil {
			b.Fatal(err)
		}
		synced <- batch
	}
	close(synced)
	wg.Wait()
}

// rawKey is shaped like the journal's key of a version.
func rawKey(e journal.Event) []byte {
	k := fmt.Appendf(nil, "v%s\x00%s\x00%s\x00", e.Namespace, e.Resource, e.Name)
	return binary.BigEndian.AppendUint64(append(k, 0xff, 0xff, 0xff, 0xfe), ^e.Revision.RV)
}

// concurrently runs n steps in several goroutines: first, one at a time, gives each its rest.
func concurrently(n, goroutines int, first func() (rest func())) {
	left := n
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for {
				mu.Lock()
				if left--; left < 0 {
					mu.Unlock()
					return
				}
				rest := first()
				mu.Unlock()
				rest()
			}
		})
	}
	wg.Wait()
}
