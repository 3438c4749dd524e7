//go:build tools

// Package etcdtools pins the tools that save and restore snapshots of etcd, of the version of etcd that deploy/localcluster runs.
package etcdtools

import (
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/etcdutl/v3"
)
