package localcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// CompactEtcd forgets etcd's history before the revision rev; 0 stands for the newest one.
// The API server answers a list at a forgotten exact revision with 410 Gone at once. Watches
// still start from its own watch cache: restart it to see 410 there as well.
func (c *Cluster) CompactEtcd(ctx context.Context, rev int64) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{c.etcdURL}, Logger: zap.NewNop(), Context: ctx})
	if err != nil {
		return fmt.Errorf("connect to etcd: %w", err)
	}
	defer client.Close()
	if rev == 0 {
		r, err := client.Get(ctx, "/", clientv3.WithCountOnly())
		if err != nil {
			return fmt.Errorf("read etcd's revision: %w", err)
		}
		rev = r.Header.Revision
	}
	if _, err := client.Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil {
		return fmt.Errorf("compact etcd to revision %d: %w", rev, err)
	}
	return nil
}

// SaveEtcd copies etcd's data to the new directory dir. The servers are stopped for it and
// started again.
func (c *Cluster) SaveEtcd(ctx context.Context, dir string) error {
	return c.withoutEtcd(ctx, func(data string) error { return os.CopyFS(dir, os.DirFS(data)) })
}

// RestoreEtcd puts back what SaveEtcd saved, as an operator does after a disaster: revisions
// go backwards, and what was written since is gone.
func (c *Cluster) RestoreEtcd(ctx context.Context, dir string) error {
	return c.withoutEtcd(ctx, func(data string) error {
		return errors.Join(os.RemoveAll(data), os.CopyFS(data, os.DirFS(dir)))
	})
}

// withoutEtcd calls f with the data directory while neither etcd nor the API server runs.
func (c *Cluster) withoutEtcd(ctx context.Context, f func(data string) error) error {
	if err := c.StopAPIServer(); err != nil {
		return err
	}
	c.mu.Lock()
	c.etcd.Stop(syscall.SIGTERM, stopLimit)
	err := f(filepath.Join(c.dir, "etcd"))
	if err == nil {
		err = c.startEtcd(ctx)
	}
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("change etcd's data: %w", err)
	}
	return c.StartAPIServer(ctx)
}
