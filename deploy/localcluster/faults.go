package localcluster

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

// scheduler is the name of the scheduler's program.
const scheduler = "kube-scheduler"

// process gives the place where a server's process is kept. c.mu is held.
func (c *Cluster) process(name string) (**localserver.Process, error) {
	p, ok := map[string]**localserver.Process{
		"etcd": &c.etcd, "kube-apiserver": &c.api, "kube-controller-manager": &c.kcm, scheduler: &c.sched,
	}[name]
	switch {
	case !ok:
		return nil, fmt.Errorf("the control plane has no server %q", name)
	case c.stopped:
		return nil, errStopped
	}
	return p, nil
}

// Kill ends one of the servers (etcd, kube-apiserver, kube-controller-manager, kube-scheduler) at once, as a
// crash does. Its data stays for StartAgain.
func (c *Cluster) Kill(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := c.process(name)
	if err != nil {
		return err
	}
	(*p).Stop(syscall.SIGKILL, stopLimit)
	*p = nil
	return nil
}

// StartAgain starts a server after Kill, at its old address, and returns when it is ready. The scheduler and the
// controller manager want an API server for it.
func (c *Cluster) StartAgain(ctx context.Context, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := c.process(name)
	if err != nil {
		return err
	}
	if *p != nil {
		return fmt.Errorf("%s runs already", name)
	}
	switch name {
	case "etcd":
		return c.startEtcd(ctx)
	case "kube-apiserver":
		return c.startAPIServer(ctx)
	case "kube-controller-manager":
		return c.startControllers(ctx)
	}
	return c.startScheduler()
}

// Signal sends a signal to one of the servers, such as SIGSTOP to pause it. A server that is paused must go on
// (SIGCONT) before any other method is called that ends it in order.
func (c *Cluster) Signal(name string, sig syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := c.process(name)
	if err != nil {
		return err
	}
	if *p == nil {
		return errors.New(name + " does not run")
	}
	return syscall.Kill((*p).Pid(), sig)
}
