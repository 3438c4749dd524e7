package localcluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"k8s.io/client-go/rest"

	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

const (
	readyLimit = 90 * time.Second // for one server, on a busy machine
	bindTries  = 5                // of an API server that must come back at its old port
)

// freePorts returns n different loopback ports that are free now. Nothing reserves them, so
// the servers may find them taken, and then Start begins again.
func freePorts(n int) ([]int, error) {
	ports := make([]int, 0, n)
	for range n {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("choose a free port: %w", err)
		}
		defer l.Close() // only after all are chosen, so that they differ
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// startEtcd starts etcd and waits until it answers.
func (c *Cluster) startEtcd(ctx context.Context) error {
	args := []string{
		"--name=local", "--data-dir=" + filepath.Join(c.dir, "etcd"),
		"--listen-client-urls=" + c.etcdURL, "--advertise-client-urls=" + c.etcdURL,
		"--listen-peer-urls=" + c.peerURL, "--initial-advertise-peer-urls=" + c.peerURL,
		"--initial-cluster=local=" + c.peerURL,
		"--watch-progress-notify-interval=5s", // as kubeadm does: feeds the API server's bookmarks
		"--log-level=warn", "--logger=zap",
	}
	if !c.opts.Fsync {
		args = append(args, "--unsafe-no-fsync")
	}
	var err error
	if c.etcd, err = c.spawn("etcd", args); err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	return c.etcd.Await(ctx, readyLimit, func(ctx context.Context) error {
		return get(ctx, client, c.etcdURL+"/health")
	})
}

// startAPIServer starts kube-apiserver at c.apiPort and waits until it is ready.
func (c *Cluster) startAPIServer(ctx context.Context) error {
	pki := func(name string) string { return filepath.Join(c.dir, "pki", name) }
	args := []string{
		"--etcd-servers=" + c.etcdURL,
		"--bind-address=" + c.address(), "--secure-port=" + strconv.Itoa(c.apiPort), "--advertise-address=" + c.address(),
		"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
		"--client-ca-file=" + pki("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + pki("sa.key"), "--service-account-signing-key-file=" + pki("sa.key"),
		"--service-cluster-ip-range=" + c.services().String(),
		"--authorization-mode=Node,RBAC",
		"--allow-privileged=true", "--profiling=false",
		"--shutdown-watch-termination-grace-period=1s", // else open watches hold the end back for a minute
	}
	if c.opts.Services.IsValid() {
		args = append(args, "--enable-admission-plugins=NodeRestriction", "--kubelet-preferred-address-types=InternalIP",
			"--kubelet-client-certificate="+pki("kubelets.crt"), "--kubelet-client-key="+pki("kubelets.key"), "--kubelet-certificate-authority="+pki("ca.crt"))
	} else {
		// Without a node nobody reaches the service "kubernetes"; its endpoint would be a
		// loopback address, which the API server refuses to publish.
		args = append(args, "--endpoint-reconciler-type=none")
	}
	args = append(args, c.opts.APIServerArgs...)
	client, err := rest.HTTPClientFor(c.admin)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	began := time.Now()
	for try := 1; ; try++ {
		if c.api, err = c.spawn("kube-apiserver", args); err != nil {
			return err
		}
		err = c.api.Await(ctx, readyLimit, func(ctx context.Context) error {
			return get(ctx, client, c.admin.Host+"/readyz")
		})
		if err == nil {
			c.progress("kube-apiserver ready at %s (%.1fs)", c.admin.Host, time.Since(began).Seconds())
			return nil
		}
		c.api.Stop(syscall.SIGTERM, stopLimit)
		c.api = nil
		if !errors.Is(err, ErrPortTaken) || try == bindTries {
			return err
		}
	}
}

// startControllers starts kube-controller-manager and waits for the first thing it makes.
func (c *Cluster) startControllers(ctx context.Context) error {
	kubeconfig := filepath.Join(c.dir, "kcm.kubeconfig")
	controllers := "*,-node-ipam-controller"
	if !c.opts.Services.IsValid() { // there is no node whose life could be watched
		controllers += ",-node-lifecycle-controller"
	}
	if !c.opts.Newer { // 1.37 has no such controller and refuses its name
		controllers += ",-cloud-node-lifecycle-controller"
	}
	var err error
	c.kcm, err = c.spawn("kube-controller-manager", []string{
		"--kubeconfig=" + kubeconfig, "--secure-port=0", "--leader-elect=false",
		"--kube-api-qps=1000", "--kube-api-burst=1000", // the default of 20 costs seconds at the start
		"--root-ca-file=" + filepath.Join(c.dir, "pki", "ca.crt"),
		"--service-account-private-key-file=" + filepath.Join(c.dir, "pki", "sa.key"),
		"--use-service-account-credentials=true",
		"--cluster-signing-cert-file=" + filepath.Join(c.dir, "pki", "ca.crt"),
		"--cluster-signing-key-file=" + filepath.Join(c.dir, "pki", "ca.key"),
		"--controllers=" + controllers,
	})
	if err != nil {
		return err
	}
	client, err := rest.HTTPClientFor(c.admin)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	began := time.Now()
	err = c.kcm.Await(ctx, readyLimit, func(ctx context.Context) error {
		return get(ctx, client, c.admin.Host+"/api/v1/namespaces/default/serviceaccounts/default")
	})
	if err != nil {
		return err
	}
	c.progress("kube-controller-manager runs (%.1fs)", time.Since(began).Seconds())
	return nil
}

// startScheduler starts kube-scheduler. When it works shows in its deeds alone: Pods are bound.
func (c *Cluster) startScheduler() error {
	kubeconfig := filepath.Join(c.dir, "scheduler.kubeconfig")
	var err error
	c.sched, err = c.spawn(scheduler, []string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--secure-port=0", "--leader-elect=false", "--kube-api-qps=1000", "--kube-api-burst=1000",
	})
	return err
}

// spawn starts one server with its log in the cluster's directory.
func (c *Cluster) spawn(name string, args []string) (*localserver.Process, error) {
	path := filepath.Join(c.kube, name)
	switch name {
	case "etcd":
		path = filepath.Join(c.bin, name)
	case scheduler:
		path = c.schedBin
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w (unset KUBEBUILDER_ASSETS to have it built)", err)
	}
	return localserver.Start(path, args, nil, filepath.Join(c.dir, name+".log"))
}

// get reports whether url answers 200 OK.
func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}
