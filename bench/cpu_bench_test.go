package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/journal/capture"
)

var (
	pods        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	deployments = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
)

// envClient makes BenchmarkCPU, in a process of its own, one of the clients that it compares.
const envClient = "TIDEMARK_BENCH_CLIENT"

const cpuEvents = 40_000

// clients that are compared, and what each does with the events.
var clients = map[string]func(*testing.B, *remote) time.Duration{
	"tidemark": cpuOfTidemark, "informer": cpuOfInformer, "journal": cpuOfJournal,
}

// BenchmarkCPU measures the CPU time (user and system, of the client's whole process) that one
// watch event costs: Tidemark, up to the event being durable and the store having flushed and
// compacted all it wants to, beside a dynamic informer that gets the same bytes from the same
// server and only counts them. "capture" is Tidemark without the journal's part, which is
// measured by giving the same events to a journal from memory. Each client, and the server,
// has a process of its own. One op is one stream of 40,000 events.
func BenchmarkCPU(b *testing.B) {
	if name := os.Getenv(envClient); name != "" {
		runClient(b, name)
		return
	}
	for _, rate := range []int{0, 2000} {
		name := "flat-out"
		if rate > 0 {
			name = fmt.Sprintf("rate=%d", 2*rate) // of each of the two kinds
		}
		b.Run(name, func(b *testing.B) {
			s := startServer(b, serverOptions{Objects: 2000, Namespaces: 20, Events: cpuEvents, Rate: rate})
			for b.Loop() {
				used := map[string]float64{}
				for client := range clients {
					used[client] = startClient(b, s, client)
					s.say("rewind")
				}
				b.ReportMetric(used["tidemark"], "tidemark-µs/event")
				b.ReportMetric(used["tidemark"]-used["journal"], "capture-µs/event")
				b.ReportMetric(used["informer"], "informer-µs/event")
				b.ReportMetric(used["tidemark"]/used["informer"], "of-informer")
				b.ReportMetric((used["tidemark"]-used["journal"])/used["informer"], "capture-of-informer")
			}
		})
	}
}

// clientTask is what a client's process is told.
type clientTask struct {
	Client, URL, CA, Result string
	Newest                  uint64
}

// startClient runs a client in a process of its own and returns its CPU time, in microseconds
// per event.
func startClient(b *testing.B, s *remote, name string) float64 {
	b.Helper()
	task := clientTask{Client: name, URL: s.config.Host, CA: string(s.config.CAData), Newest: s.newest, Result: filepath.Join(b.TempDir(), "result")}
	text, err := json.Marshal(task)
	if err != nil {
		b.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^$", "-test.bench=^BenchmarkCPU$", "-test.benchtime=1x")
	cmd.Env = append(os.Environ(), envClient+"="+string(text))
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", name, err, out)
	}
	result, err := os.ReadFile(task.Result)
	if err != nil {
		b.Fatal(err)
	}
	ns, err := strconv.ParseInt(string(result), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return float64(ns) / 1e3 / cpuEvents
}

// runClient is the client's process.
func runClient(b *testing.B, text string) {
	var task clientTask
	if err := json.Unmarshal([]byte(text), &task); err != nil {
		b.Fatal(err)
	}
	s := &remote{b: b, newest: task.Newest, config: remoteConfig(task.URL, task.CA)}
	used := clients[task.Client](b, s)
	if err := os.WriteFile(task.Result, strconv.AppendInt(nil, int64(used), 10), 0o600); err != nil {
		b.Fatal(err)
	}
}

// cpuTime is what this process has used so far.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// asDaemon sets the garbage collector as `tidemark run` does.
func asDaemon() {
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(80 << 20)
}

func cpuOfTidemark(b *testing.B, s *remote) time.Duration {
	b.Helper()
	asDaemon()
	dir := b.TempDir()
	r := record(b, s.config, dir, func(o *capture.Options) { o.Rediscover = time.Hour })
	s.awaitWatches(2)
	start := cpuTime(b)
	s.say("play")
	eventually(b, 5*time.Minute, "all events durable", func() (bool, string) {
		newest := r.journal.Newest()
		return newest.RV >= s.newest, fmt.Sprint(newest)
	})
	flush(b, r.journal)
	r.stop()
	s.awaitWatches(0)
	awaitQuiet(b, dir)
	return cpuTime(b) - start
}

// awaitQuiet lets the store of a closed journal finish its flushes and compactions.
func awaitQuiet(b *testing.B, dir string) {
	b.Helper()
	db := openStore(b, dir)
	quiet := 0
	eventually(b, 5*time.Minute, "compactions", func() (bool, string) {
		m := db.Metrics()
		if quiet++; m.Compact.NumInProgress > 0 || m.Flush.NumInProgress > 0 {
			quiet = 0
		}
		return quiet == 5, m.String()
	})
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
}

func cpuOfInformer(b *testing.B, s *remote) time.Duration {
	b.Helper()
	client, err := dynamic.NewForConfig(s.config)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	factory := dynamicinformer.NewDynamicSharedInformerFactory(client, 0)
	var seen atomic.Int64
	for _, gvr := range []schema.GroupVersionResource{pods, deployments} {
		if _, err := factory.ForResource(gvr).Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			UpdateFunc: func(any, any) { seen.Add(1) },
		}); err != nil {
			b.Fatal(err)
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	s.awaitWatches(2)
	start := cpuTime(b)
	s.say("play")
	eventually(b, 5*time.Minute, "all events in the informer", func() (bool, string) {
		return seen.Load() == cpuEvents, fmt.Sprint(seen.Load())
	})
	used := cpuTime(b) - start
	cancel()
	factory.Shutdown()
	s.awaitWatches(0)
	return used
}

// cpuOfJournal gives a journal as many events as the server sends, without a server. What it
// takes to make them up is not counted.
func cpuOfJournal(b *testing.B, _ *remote) time.Duration {
	b.Helper()
	asDaemon()
	h := podsAndDeployments(1, 2000, 20)
	start := cpuTime(b)
	for range cpuEvents {
		h.next()
	}
	making := cpuTime(b) - start
	dir := b.TempDir()
	j := openJournal(b, dir, journal.Options{})
	beginRecording(b, j, 1_000_000, podInfo, deploymentInfo)
	start = cpuTime(b)
	for range cpuEvents {
		appendOne(b, j, h.next())
	}
	flush(b, j)
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
	awaitQuiet(b, dir)
	return cpuTime(b) - start - making
}
