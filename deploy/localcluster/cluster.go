package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/rest"

	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

// ErrPortTaken is returned when the free ports chosen for the servers were taken by other
// processes again and again while these started.
var ErrPortTaken = localserver.ErrPortTaken

const (
	startAttempts = 4               // each with new ports
	stopLimit     = 8 * time.Second // between SIGTERM and SIGKILL
)

// Options of Start. The zero value is a full control plane in a temporary directory.
type Options struct {
	// Dir holds certificates, etcd's data, logs and the kubeconfig. It must be empty or not
	// exist. Default: a new directory in os.TempDir.
	Dir string
	// Keep leaves Dir on disk after Stop. Default: Stop removes it.
	Keep bool
	// NoControllers starts etcd and kube-apiserver only: nothing deletes the content of
	// deleted namespaces, collects garbage or makes service accounts.
	NoControllers bool
	// Scheduler starts kube-scheduler as well, which binds Pods to the cluster's nodes. Without it they stay unbound.
	Scheduler bool
	// APIServerArgs are added to kube-apiserver's flags; the last of two equal flags wins.
	APIServerArgs []string
	// Fsync makes etcd sync to disk as it does in production. Default: it does not, which
	// survives the death of the process but not that of the machine.
	Fsync bool
	// Newer runs kube-apiserver and kube-controller-manager of the next minor version.
	Newer bool
	// Services are the addresses of Services, such as "10.96.0.0/16", of a cluster that nodes are to join. The first of
	// them must be an address of this machine: the API server serves there at port 443, where Pods look for it.
	// Default: 127.0.0.1 and a free port, where no Pod could reach it.
	Services netip.Prefix
	// Output gets one line per step. Default: nothing is said.
	Output io.Writer

	ports func(n int) ([]int, error) // replaced by a test; default freePorts
}

// Cluster is a running control plane. Its methods may be called from several goroutines.
type Cluster struct {
	opts     Options
	dir      string
	bin      string // etcd is here
	kube     string // and the others here
	schedBin string // the path of kube-scheduler; empty: none is wanted
	ca       *authority
	admin    *rest.Config
	etcdURL  string
	peerURL  string
	apiPort  int
	mu       sync.Mutex // guards the fields below and orders start and stop of the servers
	etcd     *localserver.Process
	api      *localserver.Process
	kcm      *localserver.Process
	sched    *localserver.Process
	stopped  bool
	stopErr  error
	progress func(format string, args ...any)
}

// Start builds the servers when this machine has none yet, starts them, and returns when the
// API server is ready and, unless NoControllers is set, the default namespace has its
// ServiceAccount, so that pods can be created. It takes about 5 seconds. The servers outlive
// ctx: end them with Stop.
//
// When a server does not start, the error shows the last lines of its log, and the directory
// with the whole log stays.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	out := o.Output
	if out == nil {
		out = io.Discard
	}
	bin, err := Binaries(ctx, out)
	if err != nil {
		return nil, err
	}
	kube := bin
	if o.Newer {
		if kube, err = NewerBinaries(ctx, out); err != nil {
			return nil, err
		}
	}
	var schedBin string
	if o.Scheduler {
		if schedBin, err = Scheduler(ctx, out); err != nil {
			return nil, err
		}
	}
	dir, err := prepareDir(o.Dir)
	if err != nil {
		return nil, err
	}
	if o.ports == nil {
		o.ports = freePorts
	}
	began := time.Now()
	c := &Cluster{opts: o, dir: dir, bin: bin, kube: kube, schedBin: schedBin, progress: func(format string, args ...any) {
		fmt.Fprintf(out, "%5.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}}
	for attempt := 1; ; attempt++ {
		err = c.start(ctx)
		if err == nil {
			return c, nil
		}
		c.stopServers()
		if !errors.Is(err, ErrPortTaken) || attempt == startAttempts || ctx.Err() != nil {
			break
		}
		c.progress("%v; trying other ports", ErrPortTaken)
		if err = os.RemoveAll(filepath.Join(dir, "etcd")); err != nil {
			break
		}
	}
	if ctx.Err() != nil && !o.Keep {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return nil, fmt.Errorf("start control plane: %w", err)
}

// prepareDir makes the cluster's directory, or checks that the given one is empty.
func prepareDir(dir string) (string, error) {
	if dir == "" {
		return os.MkdirTemp("", "tidemark-cluster-")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	if len(entries) > 0 {
		return "", fmt.Errorf("start control plane: directory %s is not empty; remove it or name another one", dir)
	}
	return dir, nil
}

// start is one attempt with one choice of ports.
func (c *Cluster) start(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ports, err := c.opts.ports(3)
	if err != nil {
		return err
	}
	c.etcdURL = fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	c.peerURL = fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	c.apiPort = ports[2]
	if c.opts.Services.IsValid() {
		c.apiPort = 443
	}
	if err := c.writeIdentities(); err != nil {
		return err
	}
	if err := c.startEtcd(ctx); err != nil {
		return err
	}
	if err := c.startAPIServer(ctx); err != nil {
		return err
	}
	if !c.opts.NoControllers {
		if err := c.startControllers(ctx); err != nil {
			return err
		}
	}
	if c.schedBin == "" {
		return nil
	}
	return c.startScheduler()
}

// Stop ends the servers (SIGTERM, and SIGKILL for what is still there 8 seconds later) and
// removes the directory unless Keep is set. A second Stop does nothing.
func (c *Cluster) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return c.stopErr
	}
	c.stopped = true
	c.stopServers()
	if !c.opts.Keep {
		c.stopErr = os.RemoveAll(c.dir)
	}
	return c.stopErr
}

// stopServers ends the clients of etcd first, all at once, and then etcd.
func (c *Cluster) stopServers() {
	var wg sync.WaitGroup
	for _, p := range []*localserver.Process{c.sched, c.kcm, c.api} {
		wg.Go(func() { p.Stop(syscall.SIGTERM, stopLimit) })
	}
	wg.Wait()
	c.etcd.Stop(syscall.SIGTERM, stopLimit)
	c.sched, c.kcm, c.api, c.etcd = nil, nil, nil, nil
}

// address is where the API server serves.
func (c *Cluster) address() string {
	if c.opts.Services.IsValid() {
		return c.opts.Services.Masked().Addr().Next().String()
	}
	return "127.0.0.1"
}

// services are the addresses of Services.
func (c *Cluster) services() netip.Prefix {
	if c.opts.Services.IsValid() {
		return c.opts.Services.Masked()
	}
	return netip.MustParsePrefix("10.96.0.0/16")
}

// Dir is the directory with the logs (*.log), etcd's data and the certificates.
func (c *Cluster) Dir() string { return c.dir }

// EtcdEndpoint is etcd's client URL: plain HTTP on a loopback port.
func (c *Cluster) EtcdEndpoint() string { return c.etcdURL }

// Kubeconfig is the path of the administrator's kubeconfig file.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir, "admin.kubeconfig") }

// Config returns a copy of the administrator's client configuration (group system:masters),
// without a client-side rate limit.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.admin) }

// ConfigFor returns the client configuration of another user, who has a certificate of the
// cluster's authority and only the rights that RBAC gives to the user and the groups.
func (c *Cluster) ConfigFor(user string, groups ...string) (*rest.Config, error) {
	pair, err := c.ca.issueClient(user, groups)
	if err != nil {
		return nil, fmt.Errorf("certificate of user %s: %w", user, err)
	}
	return c.clientConfig(pair), nil
}

// StopAPIServer ends kube-apiserver alone, as a crash or an upgrade would.
func (c *Cluster) StopAPIServer() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return errStopped
	}
	c.api.Stop(syscall.SIGTERM, stopLimit)
	c.api = nil
	return nil
}

// StartAPIServer starts kube-apiserver again after StopAPIServer, at the same address, and
// returns when it is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.stopped:
		return errStopped
	case c.api != nil:
		return errors.New("the API server runs already")
	}
	return c.startAPIServer(ctx)
}

// RestartAPIServer is StopAPIServer and StartAPIServer.
func (c *Cluster) RestartAPIServer(ctx context.Context) error {
	if err := c.StopAPIServer(); err != nil {
		return err
	}
	return c.StartAPIServer(ctx)
}

var errStopped = errors.New("the control plane was stopped")
