//go:build tools

// Package kubelet pins the servers of a local node. It is a module of its own, of the same versions as the control plane's.
package kubelet

import (
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
	_ "k8s.io/kubernetes/cmd/kubelet"
)
