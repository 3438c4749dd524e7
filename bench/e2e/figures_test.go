package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
	"github.com/tidemark-backup/tidemark/volumes/csi"
)

// TestFigures measures what is no proof by itself, and is only run when it is asked for: TIDEMARK_E2E=figures.
func TestFigures(t *testing.T) {
	if os.Getenv("TIDEMARK_E2E") != "figures" {
		t.Skip("measures; run it with TIDEMARK_E2E=figures")
	}
	w := newWorld(t, "")
	w.namespace("many")
	w.claim("many", "data", localnode.StorageClass, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("20Gi")
	})
	w.shell("many", "app", "", "data")
	dir := w.path("many", "data")
	b := make([]byte, 4096)
	for i := range 100_000 {
		copy(b, fmt.Sprintf("%08d-%d", i, time.Now().UnixNano()))
		sub := filepath.Join(dir, strconv.Itoa(i/1000))
		if i%1000 == 0 {
			w.ok(os.Mkdir(sub, 0o755))
		}
		w.ok(os.WriteFile(filepath.Join(sub, strconv.Itoa(i)), b, 0o644))
	}
	measure := func(what string, do func()) {
		t.Helper()
		peak := w.peakOfMover()
		began := time.Now()
		do()
		took, most := time.Since(began), peak()>>20
		t.Logf("%s: %s; the mover's peak is %d MiB", what, took.Round(time.Millisecond), most)
		if most == 0 || most > 400 {
			t.Errorf("%s: the mover has %d MiB at most, want 1 to 400", what, most)
		}
	}
	for _, what := range []string{"first", "unchanged"} {
		measure("100,000 files of 4 KiB, "+what, func() {
			made := w.back("-n", "many", "--action", "kopia")[0]
			t.Logf("%d bytes sent", made.Status.Content.Sent)
		})
	}
	w.ok(w.big5(filepath.Join(dir, "large")))
	measure("5 GiB in one file beside them", func() { w.back("-n", "many", "--action", "kopia") })
	w.claim("many", "copy", localnode.StorageClass, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("20Gi")
	})
	measure("all of it restored", func() { w.run("volumes", "restore", w.newest(), "-n", "many", "--claim", "copy") })
	if out, err := exec.Command("diff", "-r", "-q", dir, w.path("many", "copy")).CombinedOutput(); err != nil {
		t.Errorf("what was restored differs: %v\n%.2000s", err, out)
	}
}

// big5 makes a file of 5 GiB that does not shrink.
func (w *world) big5(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	x := uint64(88172645463325252)
	for range 5 << 10 {
		for i := 0; i < len(b); i += 8 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			for j := range 8 {
				b[i+j] = byte(x >> (8 * j))
			}
		}
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// peakOfMover watches the movers that come, and gives the most memory that one had resident, in bytes.
func (w *world) peakOfMover() func() int64 {
	var peak atomic.Int64
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
			}
			dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, d := range dirs {
				if b, _ := os.ReadFile(d); !strings.HasPrefix(string(b), "tidemark\x00mover") {
					continue
				}
				b, _ := os.ReadFile(filepath.Join(filepath.Dir(d), "status"))
				for line := range strings.Lines(string(b)) {
					if f := strings.Fields(line); len(f) > 1 && f[0] == "VmHWM:" {
						n, _ := strconv.ParseInt(f[1], 10, 64)
						peak.Store(max(peak.Load(), n<<10))
					}
				}
			}
		}
	}()
	return func() int64 { close(done); return peak.Load() }
}

// TestWhatMoversCostTheDaemon compares what a backup of 256 MiB costs the daemon when movers go to the store, and when all goes through it.
func TestWhatMoversCostTheDaemon(t *testing.T) {
	if os.Getenv("TIDEMARK_E2E") != "figures" {
		t.Skip("measures; run it with TIDEMARK_E2E=figures")
	}
	w := newNode(t)
	s, config := w.bucket()
	endpoint, ca, seen := w.between(s)
	w.namespace("cost")
	w.claim("cost", "data", localnode.StorageClass)
	w.shell("cost", "app", "", "data")
	for range 3 {
		for _, through := range []bool{false, true} {
			w.config = fmt.Sprintf("image: %s\n  throughDaemon: %v\n%s  ca: %s\n", moverImage, through, config(endpoint), ca)
			w.startDaemon()
			w.exec("cost", "app", "dd if=/dev/urandom of=/data/data/f bs=1M count=256 2>/dev/null")
			before, began, passed := w.cpuOfDaemon(), time.Now(), seen.daemon.Load()
			w.back("-n", "cost", "--action", "kopia")
			t.Logf("through the daemon %-5v: %s; the daemon used %s of CPU, and sent %d MiB of content", through,
				time.Since(began).Round(time.Millisecond), w.cpuOfDaemon()-before, (seen.daemon.Load()-passed)>>20)
			w.stopDaemon(syscall.SIGTERM)
		}
	}
}

// cpuOfDaemon is the CPU time that the daemon has used, in steps of 10 ms.
func (w *world) cpuOfDaemon() time.Duration {
	w.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", w.daemon.Pid()))
	w.ok(err)
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:])) // the third field, the state, is the first here
	user, err := strconv.ParseInt(f[11], 10, 64)
	w.ok(err)
	system, err := strconv.ParseInt(f[12], 10, 64)
	w.ok(err)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// TestSnapshotRestoreIsAsFastAsTheStorage compares a restore of a namespace from snapshots with the same objects made by hand, all at once.
func TestSnapshotRestoreIsAsFastAsTheStorage(t *testing.T) {
	if os.Getenv("TIDEMARK_E2E") != "figures" {
		t.Skip("measures; run it with TIDEMARK_E2E=figures")
	}
	w := newWorld(t, "")
	w.application("timed")
	for _, claim := range []string{"files", "rows-db-0"} { // whose managers take a second request to come back
		_, err := w.Client.CoreV1().PersistentVolumeClaims("timed").Patch(t.Context(), claim, types.MergePatchType, []byte(`{"metadata":{"labels":{"cost":"team"}}}`), metav1.PatchOptions{FieldManager: "team"})
		w.ok(err)
	}
	all := w.back("-n", "timed")
	at := w.moment()
	w.deleteNamespace("timed")
	var ratios []float64
	for range 5 {
		began := time.Now()
		w.namespace("timed")
		for _, b := range all {
			h := *b.Status.Snapshot
			content, snapshot := csi.Objects(h, "timed", b.Spec.Claim)
			_, err := w.Dynamic.Resource(contentObjects).Create(t.Context(), &unstructured.Unstructured{Object: content}, metav1.CreateOptions{})
			w.ok(err)
			_, err = w.Dynamic.Resource(snapshotObjects).Namespace("timed").Create(t.Context(), &unstructured.Unstructured{Object: snapshot}, metav1.CreateOptions{})
			w.ok(err)
			class := b.Spec.Source.StorageClass
			c := csi.Claim(&corev1.PersistentVolumeClaimSpec{StorageClassName: &class, Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("16Mi")}}}, h, "timed", b.Spec.Claim, b.Spec.Claim, false)
			c.Labels = nil
			_, err = w.Client.CoreV1().PersistentVolumeClaims("timed").Create(t.Context(), c, metav1.CreateOptions{})
			w.ok(err)
		}
		for _, claim := range []string{"files", "rows-db-0"} { // two Pods, as the application has
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: claim, Labels: map[string]string{"app": "by-hand"}}, Spec: w.podSpec("", claim)}
			_, err := w.Client.CoreV1().Pods("timed").Create(t.Context(), p, metav1.CreateOptions{})
			w.ok(err)
		}
		w.await("both Pods", func() bool { return w.ready("timed", "app=by-hand") })
		plain := time.Since(began)
		w.deleteNamespace("timed")
		for _, b := range all {
			_ = w.Dynamic.Resource(contentObjects).Delete(t.Context(), "tidemark-timed-"+b.Spec.Claim, metav1.DeleteOptions{})
		}

		began = time.Now()
		w.run("restore", "-n", "timed", "--at", at, "--yes")
		w.await("the application", func() bool { return w.ready("timed", "app=web") && w.ready("timed", "app=db") })
		ours := time.Since(began)
		ratios = append(ratios, ours.Seconds()/plain.Seconds())
		t.Logf("ready after %s, by hand after %s: %.2f times", ours.Round(time.Millisecond), plain.Round(time.Millisecond), ours.Seconds()/plain.Seconds())
		w.deleteNamespace("timed")
	}
	// The slowest shows whether a controller has to wait for its next look at everything, which takes it 15 s.
	if slices.Sort(ratios); ratios[2] > 1.2 || ratios[4] > 3 {
		t.Errorf("a restore takes %.2f times as long as the same by hand, and %.2f times once, want at most 1.2 and 3", ratios[2], ratios[4])
	}
	w.forget(all...)
}
