package localnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

const (
	// Name is the node's name.
	Name = "node"
	// Driver is the name of the CSI driver.
	Driver = "local.csi.tidemark.dev"
	// StorageClass is the default class.
	StorageClass = "local"
	// Late is a class whose volumes are made when a Pod wants them (WaitForFirstConsumer).
	Late = "local-late"
	// SnapshotClass is the default class of snapshots, and of snapshots of groups.
	SnapshotClass = "local"
	// Kept is a class of volumes, of snapshots and of groups of them that stay when their claim or object goes (Retain). Its snapshots are
	// made with a secret, without which the driver does not delete them: the Secret SnapshotKey of the namespace that they are taken in,
	// those of groups with the one of "default".
	Kept = "local-kept"
	// SnapshotKey is a Secret that is there in the namespace "default".
	SnapshotKey = "snapshot-key"
	// Busybox is the image that is always there, with a shell.
	Busybox = "docker.io/library/busybox:local"

	readyLimit = 2 * time.Minute // for one step, on a busy machine
	stopLimit  = 5 * time.Second
)

// Options of Start. The zero value is usable.
type Options struct {
	// Number tells clusters on this machine apart, 0 to 99: several can run side by side.
	Number int
	// Images are there beside Busybox.
	Images []Image
	// SnapshotDelay is how long a new snapshot is not ready to use.
	SnapshotDelay time.Duration
	// Output gets one line per step. Default: nothing is said.
	Output io.Writer
}

// Node is a running cluster of one node.
type Node struct {
	// Cluster is its control plane.
	Cluster *localcluster.Cluster
	// Client and Dynamic have all rights.
	Client  kubernetes.Interface
	Dynamic dynamic.Interface
	// Address is that of this machine, as Pods see it.
	Address string

	o        Options
	dir      string
	bin      *programs
	lock     *os.File
	say      func(format string, args ...any)
	mu       sync.Mutex // one command for the agent at a time
	agent    *agent
	services []*localserver.Process // outside of the node's namespaces
}

// Missing says what this machine lacks for a node, or nothing.
func Missing() string {
	switch {
	case runtime.GOOS != "linux":
		return "a node needs Linux"
	case os.Geteuid() != 0:
		return "a node needs root: it makes namespaces, mounts and a bridge"
	}
	var lacks []string
	for program, pkg := range map[string]string{
		"containerd": "containerd", "ctr": "containerd", "runc": "runc", "busybox": "busybox-static", "ip": "iproute2", "iptables": "iptables", "losetup": "mount", "/usr/lib/cni/bridge": "containernetworking-plugins",
	} {
		if _, err := exec.LookPath(program); err != nil && !slices.Contains(lacks, pkg) {
			lacks = append(lacks, pkg)
		}
	}
	if len(lacks) > 0 {
		slices.Sort(lacks)
		return "a node needs packages that are not installed: apt-get install --no-install-recommends " + strings.Join(lacks, " ")
	}
	return ""
}

// Start starts a cluster of one node, and returns when Pods can be made on it and the CSI driver is there. It takes about
// 15 seconds once everything is built. End it with Stop. When something does not start, the error shows the end of its log, and
// the directory with all logs stays.
func Start(ctx context.Context, o Options) (_ *Node, err error) {
	if why := Missing(); why != "" {
		return nil, errors.New(why)
	}
	out := o.Output
	if out == nil {
		out = io.Discard
	}
	began := time.Now()
	n := &Node{o: o, say: func(format string, args ...any) {
		fmt.Fprintf(out, "%5.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}}
	if n.bin, err = build(ctx, out); err != nil {
		return nil, err
	}
	if n.lock, err = lock(o.Number); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			n.stop()
			err = fmt.Errorf("start a node: %w", err)
		}
	}()
	if n.dir, err = os.MkdirTemp("", n.dirPrefix()); err != nil {
		return nil, err
	}
	n.cleanUp() // what a killed one left
	if err := n.makeNetwork(); err != nil {
		return nil, err
	}
	n.Address = n.gateway()
	n.Cluster, err = localcluster.Start(ctx, localcluster.Options{
		Dir: filepath.Join(n.dir, "cluster"), Keep: true, Services: netip.MustParsePrefix(n.serviceNet()), Output: out,
	})
	if err != nil {
		return nil, err
	}
	if n.Client, err = kubernetes.NewForConfig(n.Cluster.Config()); err != nil {
		return nil, err
	}
	if n.Dynamic, err = dynamic.NewForConfig(n.Cluster.Config()); err != nil {
		return nil, err
	}
	if err := n.makeClasses(ctx); err != nil {
		return nil, err
	}
	if err := n.startServices(); err != nil {
		return nil, err
	}
	if err := n.writeConfigs(); err != nil {
		return nil, err
	}
	return n, n.boot(ctx)
}

// startServices starts what runs beside the node's namespaces.
func (n *Node) startServices() error {
	scheduler, err := n.kubeconfig("system:kube-scheduler")
	if err != nil {
		return err
	}
	for _, p := range []struct {
		path string
		args []string
	}{
		{n.bin.scheduler, []string{"--kubeconfig=" + scheduler, "--authentication-kubeconfig=" + scheduler, "--authorization-kubeconfig=" + scheduler, "--secure-port=0", "--leader-elect=false"}},
		{n.bin.snapshotController, []string{
			"--kubeconfig=" + n.Cluster.Kubeconfig(), "--leader-election=false", "--retry-interval-start=200ms", "--retry-interval-max=5s",
			"--kube-api-qps=100", "--kube-api-burst=200", "--feature-gates=CSIVolumeGroupSnapshot=true",
		}},
	} {
		s, err := localserver.Start(p.path, p.args, nil, n.log(filepath.Base(p.path)))
		if err != nil {
			return err
		}
		n.services = append(n.services, s)
	}
	return nil
}

// log is the path of a program's log.
func (n *Node) log(name string) string { return filepath.Join(n.dir, name+".log") }

// Dir holds the logs (*.log) and everything else of the cluster.
func (n *Node) Dir() string { return n.dir }

// Volume is where the CSI driver has the content of a volume, by the handle of its PersistentVolume.
func (n *Node) Volume(handle string) string { return filepath.Join(n.dir, "csi", "volumes", handle) }

// Snapshots are the handles of the snapshots that the CSI driver has.
func (n *Node) Snapshots() []string {
	names, _ := filepath.Glob(filepath.Join(n.dir, "csi", "snapshots", "*.json"))
	for i, name := range names {
		names[i] = strings.TrimSuffix(filepath.Base(name), ".json")
	}
	return names
}

// Trouble has the CSI driver fail on purpose, or not any more with an empty text; see package agent for what it knows.
func (n *Node) Trouble(what, text string) error {
	path := filepath.Join(n.dir, "csi", what)
	if text == "" {
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	return os.WriteFile(path, []byte(text), 0o600)
}

// Kill ends a program of the node (containerd, kubelet, driver, csi-provisioner, csi-snapshotter, csi-snapshot-metadata) as a crash would.
func (n *Node) Kill(program string) error { return n.command("kill " + program) }

// Launch starts a program of the node that was killed.
func (n *Node) Launch(program string) error { return n.command("start " + program) }

// Crash ends the node, with all its programs and Pods, as a loss of power would. Boot starts it again.
func (n *Node) Crash() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.agent.kill()
	n.agent = nil
}

// Boot starts the node again after Crash.
func (n *Node) Boot(ctx context.Context) error { return n.boot(ctx) }

func (n *Node) command(line string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.agent == nil {
		return errors.New("the node does not run")
	}
	return n.agent.do(line)
}

// Stop ends the cluster and removes what it made.
func (n *Node) Stop() {
	n.stop()
	_ = os.RemoveAll(n.dir)
}

func (n *Node) stop() {
	if n.agent != nil {
		n.Crash()
	}
	for _, s := range n.services {
		s.Stop(syscall.SIGTERM, stopLimit)
	}
	if n.Cluster != nil {
		_ = n.Cluster.Stop()
	}
	n.cleanUp()
	n.lock.Close()
}

// dirPrefix is what the name of its directory begins with: that of a node of the same number that was killed, too.
func (n *Node) dirPrefix() string { return fmt.Sprintf("tidemark-node%d-", n.o.Number) }

// lock makes sure that nobody else on this machine has a cluster of the same number.
func lock(number int) (*os.File, error) {
	path := filepath.Join(os.TempDir(), fmt.Sprintf("tidemark-node-%d.lock", number))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("a local node %d runs already: use another number", number)
	}
	return f, nil
}

// Kubeconfig is the path of a kubeconfig file with all rights.
func (n *Node) Kubeconfig() string { return n.Cluster.Kubeconfig() }
