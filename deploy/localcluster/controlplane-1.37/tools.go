//go:build tools

// Package controlplane pins the servers of a second, newer control plane, for what is restored between versions of
// Kubernetes. Its etcd is that of the module beside it.
package controlplane

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
)
