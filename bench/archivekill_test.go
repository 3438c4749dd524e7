package bench

import (
	"context"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/replay"
)

// TestKillLoopKeepsTheArchiveWhole ends the real daemon again and again while it seals, merges and takes
// snapshots under traffic. The archive is whole afterwards, has everything that the journal has, and
// alone gives the API server's exact lists; a journal made from it goes on where it ends.
func TestKillLoopKeepsTheArchiveWhole(t *testing.T) { onMachines(t, testKillLoopKeepsTheArchiveWhole) }

func testKillLoopKeepsTheArchiveWhole(t *testing.T, m machine) {
	cluster := startCluster(t, localcluster.Options{})
	d := fastClient(t, cluster.Config())
	dir, url := filepath.Join(m.dir, "data"), "dir://"+filepath.Join(m.dir, "archive")
	key := filepath.Join(dir, "archive.key")
	args := []string{"--archive", url, "--seal-interval", "100ms"}
	w := &traffic{client: d, namespaces: []string{"red", "green"}, resources: []schema.GroupVersionResource{configMaps, secrets}, objects: 10}
	for _, ns := range w.namespaces {
		createNamespace(t, d, ns)
	}
	beginRecordingWith(t, cluster.Kubeconfig(), dir, args...)
	ctx, stopTraffic := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	writers.Go(func() { w.run(ctx, t, 40, 1<<30) })
	random := rand.New(rand.NewPCG(40, 40))
	for i := range 10 {
		p := startDaemon(t, cluster.Kubeconfig(), dir, args...)
		if i%3 == 1 { // in the middle of a snapshot, now and then
			go func() {
				_ = exec.Command(p.cmd.Path, "snapshot", "create", "--server", "unix://"+filepath.Join(dir, "tidemark.sock")).Run()
			}()
		}
		time.Sleep(time.Duration(300+random.IntN(1700)) * time.Millisecond) // when to pull the plug: any time is right
		m.end(p)
	}
	stopTraffic()
	writers.Wait()

	p := startDaemon(t, cluster.Kubeconfig(), dir, args...)
	awaitArrival(t, dir, w)
	eventually(t, time.Minute, "everything is archived", func() (bool, string) {
		out, err := tidemark(t, dir, "status", "-o", "json")
		return err == nil && strings.Contains(string(out), `"pendingEvents": 0`), string(out)
	})
	p.terminate()

	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(p.cmd.Path, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("tidemark %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	if out := run("verify", "--archive", url, "--identity", key, "--level", "full"); !strings.Contains(out, "no damage found") {
		t.Errorf("verify: %s", out)
	}
	r := opened(t, dir)
	identities, err := archive.LoadIdentities(key)
	if err != nil {
		t.Fatal(err)
	}
	store, err := archive.OpenStore(t.Context(), url, archive.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := archive.Open(t.Context(), store, archive.Options{Identities: identities})
	if err != nil {
		t.Fatal(err)
	}
	from := &recording{t: t, dir: dir, journal: r.journal, source: replay.NewArchived(a.History())}
	if got, want := a.State().Known.Position.Count, r.journal.Position().Count; got != want {
		t.Errorf("the archive has %d events, the journal %d", got, want)
	}
	compared := 0
	for _, gvr := range w.resources {
		l := r.journal.Ledger(gvr.GroupResource())
		for range 15 {
			a := w.acked[random.IntN(len(w.acked))]
			if a.rv < r.journal.Began().RV || a.rv > l.Watermark.RV {
				continue
			}
			if want, ok := exactList(t, cluster.Config(), l.ResourceInfo, a.rv); ok {
				compareObjects(t, gvr.GroupResource(), a.rv, from.fold(gvr.GroupResource(), a.rv), want)
				compared++
			}
		}
	}
	if compared == 0 {
		t.Error("no moment of the past was compared: the test proves nothing")
	}

	recovered := filepath.Join(t.TempDir(), "new")
	run("recover", "--archive", url, "--identity", key, "--data-dir", recovered)
	p = startDaemon(t, cluster.Kubeconfig(), recovered, "--archive", url, "--identity", key, "--seal-interval", "100ms")
	awaitArrival(t, recovered, w)
	p.terminate()
	opened(t, recovered).mustEqualLive(t, cluster.Config(), w.resources...)
	t.Logf("%d acknowledged changes, ended 10 times, %d moments compared, %d segments", len(w.acked), compared, len(a.State().Segments))
}
