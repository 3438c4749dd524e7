package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/deploy/locals3"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// shipperOn makes a Shipper for the journal, and the identity of its archive.
func shipperOn(b *testing.B, j *journal.Journal, store archive.Store, change ...func(*compactor.Options)) (*compactor.Shipper, *age.X25519Identity) {
	b.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		b.Fatal(err)
	}
	o := compactor.Options{
		Journal: j, Dir: b.TempDir(), Open: func(context.Context) (archive.Store, error) { return store, nil },
		Archive: archive.Options{Recipients: []age.Recipient{identity.Recipient()}, Identities: []age.Identity{identity}},
	}
	for _, f := range change {
		f(&o)
	}
	s, err := compactor.NewShipper(o)
	if err != nil {
		b.Fatal(err)
	}
	must(b, j.Bind(context.Background(), "bench"))
	must(b, j.SetBegan(context.Background()))
	_, err = s.Connect(context.Background())
	must(b, err)
	return s, identity
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func dirStore(b *testing.B) archive.Store {
	s, err := archive.OpenStore(context.Background(), "dir://"+b.TempDir(), archive.StoreOptions{})
	must(b, err)
	return s
}

// steppingClock goes a step further at each look, so that a recording of minutes fills days.
func steppingClock(step time.Duration) func() time.Time {
	var n atomic.Int64
	begin := time.Date(2026, 5, 4, 0, 0, 0, 0, time.UTC)
	return func() time.Time { return begin.Add(time.Duration(n.Add(1)) * step) }
}

// BenchmarkArchiveSize measures the bytes of a revision in the archive, everything included:
// segments, manifests and checkpoints, once all is merged; json/archived is how many times as many the revisions have as JSON. One op is one whole history.
// TIDEMARK_CORPUS names a recording; see BenchmarkSize.
func BenchmarkArchiveSize(b *testing.B) {
	b.Run("synthetic", func(b *testing.B) {
		archiveSize(b, func(j *journal.Journal) (raw int) {
			beginRecording(b, j, 1_000_000, podInfo, deploymentInfo)
			h := podsAndDeployments(1, 1000, 20)
			for range 40_000 {
				e := h.next()
				raw += len(e.Object)
				appendOne(b, j, e)
			}
			return raw
		})
	})
	corpus := os.Getenv("TIDEMARK_CORPUS")
	if corpus == "" {
		b.Log("TIDEMARK_CORPUS names no recording: only the synthetic history is measured")
		return
	}
	b.Run("corpus", func(b *testing.B) {
		archiveSize(b, func(j *journal.Journal) (raw int) { return replayRecording(b, j, corpus) })
	})
}

func archiveSize(b *testing.B, fill func(*journal.Journal) (raw int)) {
	for b.Loop() {
		clock := steppingClock(100 * time.Millisecond)
		j := openJournal(b, b.TempDir(), journal.Options{Clock: clock})
		raw := fill(j)
		flush(b, j)
		store := dirStore(b)
		s, _ := shipperOn(b, j, store, func(o *compactor.Options) { o.Clock = clock })
		must(b, s.Seal(context.Background()))
		must(b, s.Merge(context.Background()))
		total, files := 0.0, 0
		for f, err := range store.List(context.Background(), "", "") {
			must(b, err)
			total += float64(f.Size)
			files++
		}
		n := float64(s.Archive().State().Known.Position.Count)
		b.ReportMetric(n, "revisions")
		b.ReportMetric(total/n, "B/revision")
		b.ReportMetric(float64(raw)/total, "json/archived")
		b.ReportMetric(float64(files), "files")
		must(b, j.Close())
	}
}

// BenchmarkSnapshot measures a full snapshot of 50,000 objects of 4.7 KB into a directory: time, and
// how much the process grows by it. Nothing asks an API server: there is none.
func BenchmarkSnapshot(b *testing.B) {
	const objects = 50_000
	j := openJournal(b, b.TempDir(), journal.Options{})
	beginRecording(b, j, 1_000_000, podInfo, deploymentInfo)
	h := podsAndDeployments(1, objects, 50)
	for _, o := range h.objects {
		appendOne(b, j, o.event(journal.Added))
	}
	flush(b, j)
	s, _ := shipperOn(b, j, dirStore(b))
	must(b, s.Seal(context.Background()))
	for b.Loop() {
		b.StopTimer()
		appendOne(b, j, h.next()) // or both would share a file
		flush(b, j)
		must(b, s.Seal(context.Background()))
		debug.FreeOSMemory() // what filled the journal is not what a snapshot takes
		before := residentBytes(b)
		peak := watchMemory(b)
		b.StartTimer()
		p, err := s.Snapshot(context.Background(), compactor.SnapshotRequest{})
		must(b, err)
		b.StopTimer()
		b.ReportMetric(max(0, peak()-before)/(1<<20), "MiB-growth")
		b.ReportMetric(float64(p.Size)/(1<<20), "MiB")
		if p.Objects != objects {
			b.Fatalf("%d objects", p.Objects)
		}
		b.StartTimer()
	}
	must(b, j.Close())
}

// watchMemory looks at the resident memory until the returned func is called, which gives its peak.
func watchMemory(b *testing.B) func() float64 {
	stop, peak := make(chan struct{}), make(chan float64)
	go func() {
		most := 0.0
		for {
			most = max(most, residentBytes(b))
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() float64 {
		close(stop)
		return <-peak
	}
}

func residentBytes(b *testing.B) float64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Skip("resident memory is only known on Linux")
	}
	var size, resident float64
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		b.Fatal(err)
	}
	return resident * float64(os.Getpagesize())
}

// BenchmarkArchiveFold measures one namespace of 1,000 objects at random moments out of an archive
// of 50,000 objects and 1,000,000 revisions in an S3 server, opened anew each time, as a person does
// who has nothing but the bucket. read/own is what was read, beside the namespace's own compressed
// bytes in the files that were opened; "verify" is 'tidemark verify --level full' of the same archive.
func BenchmarkArchiveFold(b *testing.B) {
	const namespaces, objects, revisions = 50, 1000, 20
	ctx := context.Background()
	server, err := locals3.Start(ctx, locals3.Options{})
	must(b, err)
	defer func() { must(b, server.Stop()) }()
	must(b, server.MakeBucket(ctx, "bench", false))
	open := func() archive.Store {
		s, err := archive.OpenStore(ctx, server.URL("bench", "fold"), archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
		must(b, err)
		return s
	}
	clock := steppingClock(50 * time.Millisecond) // 14 hours and more
	j := openJournal(b, b.TempDir(), journal.Options{Clock: clock})
	h := newHistory(1).add(namespaces*objects, spaces(namespaces), madeUpPod, madeUpDeployment)
	beginRecording(b, j, 1_000_000, podInfo, deploymentInfo)
	var shipper *compactor.Shipper
	shipper, identity := shipperOn(b, j, open(), func(o *compactor.Options) { o.Clock = clock })
	first := h.rv + 1
	for i := range namespaces * objects * revisions {
		if i < len(h.objects) {
			appendOne(b, j, h.objects[i].event(journal.Added))
		} else {
			appendOne(b, j, h.next())
		}
		if i%2000 == 0 { // 10 s at 200 changes a second
			flush(b, j)
			must(b, shipper.Round(ctx))
		}
	}
	flush(b, j)
	must(b, shipper.Round(ctx))
	last := h.rv
	state := shipper.Archive().State()
	b.Logf("%d revisions in %d segments, %d snapshots", state.Known.Position.Count, len(state.Segments), len(state.Snapshots))
	must(b, j.Close())
	random := rand.New(rand.NewPCG(3, 3))
	b.Run("namespace", func(b *testing.B) {
		var requests, bytes, files, took []float64
		debug.FreeOSMemory()
		before, peak := residentBytes(b), watchMemory(b)
		for b.Loop() {
			began := time.Now()
			a, err := archive.Open(ctx, open(), archive.Options{Identities: []age.Identity{identity}})
			must(b, err)
			src := replay.NewArchived(a.History())
			cut, err := src.Resolve(ctx, replay.At{Revision: journal.Revision{RV: first + 50_000 + random.Uint64N(last-first-50_000)}})
			must(b, err)
			n := 0
			for _, err := range src.Fold(ctx, cut, replay.InNamespace(spaces(namespaces)[random.IntN(namespaces)])) {
				must(b, err)
				n++
			}
			if n < objects*9/10 {
				b.Fatalf("%d objects", n)
			}
			took = append(took, time.Since(began).Seconds())
			r, by := a.Traffic()
			f, all, err := a.History().FilesAt(cut)
			must(b, err)
			requests, bytes, files = append(requests, float64(r)), append(bytes, float64(by)/(float64(all)/namespaces)), append(files, float64(f))
		}
		b.ReportMetric(max(0, peak()-before)/(1<<20), "MiB-growth")
		slices.Sort(took)
		slices.Sort(bytes)
		b.ReportMetric(took[len(took)-1]*1000, "ms-longest")
		b.ReportMetric(bytes[len(bytes)/2], "read/own")
		b.ReportMetric(mean(requests), "requests")
		b.ReportMetric(mean(files), "files")
	})
	b.Run("verify", func(b *testing.B) {
		debug.FreeOSMemory()
		before, peak := residentBytes(b), watchMemory(b)
		for b.Loop() {
			a, err := archive.Open(ctx, open(), archive.Options{Identities: []age.Identity{identity}})
			must(b, err)
			r, err := compactor.Verify(ctx, a, compactor.Level{Checksum: true, Percent: 100, Full: true})
			must(b, err)
			if r.Damaged() {
				b.Fatal(r.Problems)
			}
			b.ReportMetric(float64(r.Read)/1e6/r.Took.Seconds(), "MB/s")
			b.ReportMetric(float64(r.Proven), "snapshots-proven")
			b.ReportMetric(float64(r.Read)/1e6, "MB")
		}
		b.ReportMetric(max(0, peak()-before)/(1<<20), "MiB-growth")
	})
}

func mean(all []float64) float64 {
	sum := 0.0
	for _, x := range all {
		sum += x
	}
	return sum / float64(len(all))
}

// BenchmarkArchiveLag measures how long a change takes until an S3 server has it, at 200 events/s and
// with the default seal interval of 5 s. One op is one change.
func BenchmarkArchiveLag(b *testing.B) {
	ctx, cancel := context.WithCancel(context.Background())
	server, err := locals3.Start(ctx, locals3.Options{})
	must(b, err)
	defer func() { must(b, server.Stop()) }()
	must(b, server.MakeBucket(ctx, "bench", false))
	store, err := archive.OpenStore(ctx, server.URL("bench", "lag"), archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
	must(b, err)
	j := openJournal(b, b.TempDir(), journal.Options{})
	defer j.Close()
	beginRecording(b, j, 1_000_000, podInfo, deploymentInfo)
	s, _ := shipperOn(b, j, store)
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	h := podsAndDeployments(1, 1000, 20)
	type sent struct {
		rv uint64
		at time.Time
	}
	var waiting []sent
	var lags []float64
	next := time.Now()
	for n := 0; n < b.N || len(waiting) > 0; {
		if n < b.N && !time.Now().Before(next) {
			e := h.next()
			appendOne(b, j, e)
			waiting = append(waiting, sent{e.Revision.RV, time.Now()})
			next = next.Add(5 * time.Millisecond)
			n++
		}
		to := s.Archive().State().Known.Position.RV
		for len(waiting) > 0 && waiting[0].rv <= to {
			lags = append(lags, time.Since(waiting[0].at).Seconds())
			waiting = waiting[1:]
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		b.Fatal(err)
	}
	slices.Sort(lags)
	b.ReportMetric(quantile(lags, 0.5), "s-p50")
	b.ReportMetric(quantile(lags, 0.99), "s-p99")
}
