package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/deploy/localdisk"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// buildTidemark builds the real binary once for all tests.
var buildTidemark = sync.OnceValues(func() (string, error) {
	dir, err := filepath.Abs(filepath.Join("..", "bin", "test"))
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "tidemark")
	cmd := exec.Command("go", "build", "-o", bin, "../cmd/tidemark")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as what is shipped
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", &exec.Error{Name: "go build: " + string(out), Err: err}
	}
	return bin, nil
})

// daemon is a real `tidemark run` process.
type daemon struct {
	t   testing.TB
	cmd *exec.Cmd
	out bytes.Buffer
}

func startDaemon(t testing.TB, kubeconfig, dir string, args ...string) *daemon {
	t.Helper()
	bin, err := buildTidemark()
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, cmd: exec.Command(bin, append([]string{"run", "--kubeconfig", kubeconfig, "--data-dir", dir}, args...)...)}
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.out
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.cmd.ProcessState == nil {
			_ = d.cmd.Process.Kill()
			_ = d.cmd.Wait()
		}
	})
	return d
}

// kill ends the process at once. Its files have all that it wrote.
func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
}

// machine is what a daemon runs on, and how it ends.
type machine struct {
	dir  string // its files
	disk *localdisk.Disk
}

// onMachines runs a test twice: with a daemon that is killed, and with one whose machine loses its power, so that its files have only what it synced.
func onMachines(t *testing.T, test func(*testing.T, machine)) {
	t.Run("killed", func(t *testing.T) { test(t, machine{dir: t.TempDir()}) })
	t.Run("power cut", func(t *testing.T) {
		if !localdisk.Possible() {
			t.Skip(localdisk.Needs)
		}
		dir := filepath.Join(t.TempDir(), "disk")
		disk, err := localdisk.New(t.Context(), dir+".img", dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := disk.Close(); err != nil {
				t.Error(err)
			}
		})
		test(t, machine{dir, disk})
	})
}

// end ends the daemon, in the middle of whatever it does.
func (m machine) end(d *daemon) {
	d.t.Helper()
	if m.disk == nil {
		d.kill()
		return
	}
	err := errors.Join(d.cmd.Process.Signal(syscall.SIGSTOP), m.disk.CutPower()) // nothing is done between the cut and its end
	d.kill()
	if err = errors.Join(err, m.disk.Mount()); err != nil {
		d.t.Fatal(err)
	}
}

// terminate asks the process to stop; it must do so cleanly.
func (d *daemon) terminate() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	if err := d.cmd.Wait(); err != nil {
		d.t.Fatalf("SIGTERM: %v\n%s", err, d.out.String())
	}
}

// opened reads a journal that no daemon holds.
func opened(t testing.TB, dir string) *recording {
	t.Helper()
	j, err := journal.Open(dir, journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return &recording{t: t, dir: dir, journal: j, source: replay.NewLocal(j)}
}

// beginRecordingWith runs a daemon until there is a past to ask about, and kills it.
func beginRecordingWith(t *testing.T, kubeconfig, dir string, args ...string) {
	t.Helper()
	d := startDaemon(t, kubeconfig, dir, args...)
	eventually(t, time.Minute, "recording has begun", func() (bool, string) {
		out, err := tidemark(t, dir, "status")
		return err == nil && bytes.Contains(out, []byte("restorable from ")), string(out)
	})
	d.kill()
}

// TestKillLoopLosesNothing ends the real daemon again and again while several writers work.
// Every change that the API server acknowledged is then in the journal, or in a gap that the
// ledger shows, and the fold still equals the server's exact lists.
func TestKillLoopLosesNothing(t *testing.T) { onMachines(t, testKillLoopLosesNothing) }

func testKillLoopLosesNothing(t *testing.T, m machine) {
	cluster := startCluster(t, localcluster.Options{})
	d := fastClient(t, cluster.Config())
	dir := filepath.Join(m.dir, "data")
	w := &traffic{client: d, namespaces: []string{"red", "green"}, resources: []schema.GroupVersionResource{configMaps, secrets, buckets}, objects: 10}
	for _, ns := range w.namespaces {
		createNamespace(t, d, ns)
	}
	createBuckets(t, d)
	beginRecordingWith(t, cluster.Kubeconfig(), dir)

	ctx, stopTraffic := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	writers.Go(func() { w.run(ctx, t, 30, 1<<30) })
	random := rand.New(rand.NewPCG(30, 30))
	for range 12 {
		p := startDaemon(t, cluster.Kubeconfig(), dir)
		time.Sleep(time.Duration(200+random.IntN(1300)) * time.Millisecond) // when to pull the plug: any time is right
		m.end(p)
	}
	stopTraffic()
	writers.Wait()
	finish := &traffic{client: d, namespaces: w.namespaces, resources: w.resources, objects: 10}
	finish.run(t.Context(), t, 31, 20)
	w.acked = append(w.acked, finish.acked...)

	p := startDaemon(t, cluster.Kubeconfig(), dir)
	awaitArrival(t, dir, w)
	p.terminate()

	r := opened(t, dir)
	mustHoldAcked(t, r, w)
	r.mustEqualLive(t, cluster.Config(), w.resources...)
	for _, gvr := range w.resources {
		l := r.journal.Ledger(gvr.GroupResource())
		if len(l.Gaps) > 0 {
			t.Errorf("%s: a restart within the server's watch history cost a gap: %+v", gvr.Resource, l.Gaps)
		}
		for range 15 {
			a := w.acked[random.IntN(len(w.acked))]
			if a.rv < r.journal.Began().RV || a.rv > l.Watermark.RV {
				continue
			}
			if want, ok := exactList(t, cluster.Config(), l.ResourceInfo, a.rv); ok {
				compareObjects(t, gvr.GroupResource(), a.rv, r.fold(gvr.GroupResource(), a.rv), want)
			}
		}
	}
	t.Logf("%d acknowledged changes, ended 12 times", len(w.acked))
}

// tidemark runs a client command against the daemon of the data directory.
func tidemark(t testing.TB, dir string, args ...string) ([]byte, error) {
	t.Helper()
	bin, err := buildTidemark()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, append(args, "--server", "unix://"+filepath.Join(dir, "tidemark.sock"))...)
	return cmd.Output()
}

// awaitArrival waits until the daemon of the data directory says that it has recorded all that
// the writers were told is done.
func awaitArrival(t *testing.T, dir string, w *traffic) {
	t.Helper()
	eventually(t, 90*time.Second, "the daemon caught up", func() (bool, string) {
		out, err := tidemark(t, dir, "status", "-o", "json")
		if err != nil {
			return false, err.Error()
		}
		var s struct {
			Catalog replay.Catalog `json:"catalog"`
		}
		if err := json.Unmarshal(out, &s); err != nil {
			t.Fatal(err)
		}
		if s.Catalog.From.Time.IsZero() {
			return false, "the first lists are still running"
		}
		marks := map[schema.GroupResource]uint64{}
		for i := range s.Catalog.Resources {
			l := &s.Catalog.Resources[i]
			marks[l.GroupResource()] = l.Watermark.RV
		}
		for gvr, rv := range w.last() {
			if marks[gvr.GroupResource()] < rv {
				return false, fmt.Sprintf("%s: at %d, want %d", gvr.Resource, marks[gvr.GroupResource()], rv)
			}
		}
		return true, ""
	})
}
