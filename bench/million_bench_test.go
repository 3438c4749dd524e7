package bench

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/tidemark-backup/tidemark/journal"
)

// BenchmarkMillion measures getting one namespace (100 ConfigMaps of 1.7 KB) at random moments
// out of a journal of 1,000,000 revisions: 100 namespaces x 100 objects x 100 revisions. "fold"
// does it inside this process, with the journal open; "get" is the whole `tidemark get`, from
// starting the process to its end, against a running daemon. Building the journal takes a
// minute or two and is not counted. One op is one namespace at one moment.
func BenchmarkMillion(b *testing.B) {
	const namespaces, objects, revisions = 100, 100, 100
	dir := b.TempDir()
	h := newHistory(1).add(namespaces*objects, spaces(namespaces), madeUpConfigMap)
	first, last := recordAll(b, dir, h, revisions)
	b.Logf("%d revisions in %.0f MB", namespaces*objects*revisions, float64(dirBytes(b, dir))/1e6)
	random := rand.New(rand.NewPCG(3, 3))
	pick := func() (string, uint64) {
		return spaces(namespaces)[random.IntN(namespaces)], first + random.Uint64N(last-first+1)
	}
	b.Run("fold", func(b *testing.B) {
		j := openJournal(b, dir, journal.Options{})
		defer j.Close()
		for b.Loop() {
			ns, rv := pick()
			foldNamespace(b, j, ns, rv, objects)
		}
	})
	b.Run("get", func(b *testing.B) {
		d := startDaemon(b, nobodysKubeconfig(b), dir) // it answers from the journal while it cannot connect
		awaitDaemon(b, dir)
		bin, err := buildTidemark()
		if err != nil {
			b.Fatal(err)
		}
		server := "unix://" + filepath.Join(dir, "tidemark.sock")
		for _, form := range []string{"wide", "json"} {
			b.Run("output="+form, func(b *testing.B) {
				for b.Loop() {
					ns, rv := pick()
					cmd := exec.Command(bin, "get", "configmaps", "-n", ns, "--at", fmt.Sprintf("rv:%d", rv), "-o", form, "--server", server)
					if out, err := cmd.CombinedOutput(); err != nil || len(out) < objects*20 {
						b.Fatalf("%v: %v\n%s", cmd.Args, err, out)
					}
				}
			})
		}
		b.Run("version", func(b *testing.B) { // what starting the program costs alone
			for b.Loop() {
				if out, err := exec.Command(bin, "version").CombinedOutput(); err != nil {
					b.Fatalf("%v\n%s", err, out)
				}
			}
		})
		d.terminate()
	})
}

// nobodysKubeconfig names a server that is not there.
func nobodysKubeconfig(b *testing.B) string {
	return (&remote{b: b, config: &rest.Config{Host: "https://127.0.0.1:1"}}).kubeconfig()
}

func awaitDaemon(b *testing.B, dir string) {
	b.Helper()
	eventually(b, time.Minute, "the daemon answers", func() (bool, string) {
		out, err := tidemark(b, dir, "status", "-o", "json")
		return err == nil, string(out)
	})
}
