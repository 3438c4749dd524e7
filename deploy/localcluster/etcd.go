package localcluster

import (
	"context"
	"fmt"

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
