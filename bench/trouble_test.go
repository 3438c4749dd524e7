package bench

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
)

// refused waits for the daemon to end by itself, in failure, and returns what it said.
func (d *daemon) refused() string {
	d.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- d.cmd.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			d.t.Fatalf("the daemon ended as if all were well:\n%s", d.out.String())
		}
	case <-time.After(30 * time.Second):
		killed := d.cmd.Process.Kill()
		d.t.Fatalf("the daemon went on (killed: %v, %v):\n%s", killed, <-ended, d.out.String())
	}
	return d.out.String()
}

func mustSay(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not in:\n%s", p, text)
		}
	}
}

func TestJournalOfAnotherClusterIsRefused(t *testing.T) {
	one := startCluster(t, localcluster.Options{NoControllers: true})
	two := startCluster(t, localcluster.Options{NoControllers: true})
	dir := t.TempDir()
	d := startDaemon(t, one.Kubeconfig(), dir)
	awaitRecording(t, dir)
	d.terminate()
	mustSay(t, startDaemon(t, two.Kubeconfig(), dir).refused(), "another cluster", "--data-dir")

	d = startDaemon(t, one.Kubeconfig(), dir) // and it is unharmed
	awaitRecording(t, dir)
	d.terminate()
}

func TestDamagedJournalIsRefusedByName(t *testing.T) {
	cluster := startCluster(t, localcluster.Options{NoControllers: true})
	dir := t.TempDir()
	d := startDaemon(t, cluster.Kubeconfig(), dir)
	awaitRecording(t, dir)
	d.terminate()
	d = startDaemon(t, cluster.Kubeconfig(), dir) // the second start turns the log into a table
	awaitRecording(t, dir)
	d.terminate()
	tables, err := filepath.Glob(filepath.Join(dir, "journal", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("no tables in the journal: %v", err)
	}
	b, err := os.ReadFile(tables[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 0x40
	if err := os.WriteFile(tables[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	mustSay(t, startDaemon(t, cluster.Kubeconfig(), dir).refused(), filepath.Base(tables[0]), "damaged")
}

// awaitRecording waits until the daemon of the data directory has a restorable range.
func awaitRecording(t *testing.T, dir string) {
	t.Helper()
	eventually(t, 60*time.Second, "recording", func() (bool, string) {
		out, err := tidemark(t, dir, "status")
		if err != nil {
			return false, err.Error()
		}
		return strings.Contains(string(out), "restorable from"), string(out)
	})
}
