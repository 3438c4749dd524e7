package bench

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/bench/mix"
	"github.com/tidemark-backup/tidemark/deploy/localcluster"
)

// BenchmarkPlan measures the plan of everything in a cluster of 50,000 mixed objects in 50 namespaces: the whole
// `tidemark restore -A --dry-run`, a process of its own, against a real control plane and a running daemon, with
// its peak memory; once when nothing has changed, and once when all of one namespace is gone and 1,000 objects
// of another were changed. Filling the cluster takes a minute or two and is not counted. One op is one plan.
func BenchmarkPlan(b *testing.B) {
	const spaces, objects = 50, 1000
	cluster := startCluster(b, localcluster.Options{})
	plain := fastClient(b, cluster.Config())
	for i := range spaces {
		name := fmt.Sprintf("space-%d", i)
		createNamespace(b, plain, name)
		all, resources := mix.Objects(name, objects)
		createAll(b, plain, 32, all, resources)
	}
	dir := b.TempDir()
	d := startDaemon(b, cluster.Kubeconfig(), dir)
	eventually(b, time.Minute, "recording has begun", func() (bool, string) {
		out, err := tidemark(b, dir, "status")
		return err == nil && bytes.Contains(out, []byte("restorable from ")), string(out)
	})
	time.Sleep(time.Second)
	at := time.Now().Format(time.RFC3339Nano)
	plan := func(b *testing.B) {
		bin, err := buildTidemark()
		must(b, err)
		for b.Loop() {
			cmd := exec.Command(bin, "restore", "-A", "--at", at, "--existing", "update", "--dry-run", "--kubeconfig", cluster.Kubeconfig(), "--server", "unix://"+filepath.Join(dir, "tidemark.sock"))
			out, err := cmd.CombinedOutput()
			if err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
			b.ReportMetric(float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)/1024, "peak-MiB")
			if os.Getenv("TIDEMARK_BENCH_SHOW") != "" {
				b.Logf("%s", out)
			}
		}
	}
	b.Run("same", plan)
	var wg sync.WaitGroup
	all, resources := mix.Objects("space-1", objects)
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < objects; i += 8 {
				patch := []byte(`{"metadata":{"labels":{"app":"changed","new":"label"}}}`)
				if _, err := plain.Resource(resources[i]).Namespace("space-1").Patch(b.Context(), all[i].GetName(), "application/merge-patch+json", patch, metav1.PatchOptions{}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	must(b, plain.Resource(namespaces).Delete(b.Context(), "space-2", metav1.DeleteOptions{}))
	b.Run("differs", plan)
	d.terminate()
}
