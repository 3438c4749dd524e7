// Package localcluster runs a real Kubernetes control plane on this machine: etcd,
// kube-apiserver and kube-controller-manager, as processes of the calling user, on free
// loopback ports. Tests, the demo and the benchmarks share it. There is no node: pods are
// created and never run; Options.Scheduler binds them to what calls itself a node. Kill, StartAgain
// and Signal are for tests of faults.
//
// A Cluster lives between Start and Stop:
//
//	c, err := localcluster.Start(ctx, localcluster.Options{})
//	if err != nil { ... }
//	defer c.Stop()
//	client, err := kubernetes.NewForConfig(c.Config())
//
// The servers' binaries come from the directory KUBEBUILDER_ASSETS names, or are built from
// the Go module in the folder controlplane, once per machine (see Binaries). Those of the next
// minor version (Options.Newer) are always built, from the folder controlplane-1.37, and run
// with the etcd of the others.
//
// On Linux the servers end with the process that started them, even when that is killed.
// Elsewhere a killed test leaves them running. It needs no root and no container runtime. It
// is made for tests: etcd does not sync to disk unless asked, and its port has no password.
package localcluster
