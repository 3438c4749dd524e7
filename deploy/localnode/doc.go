// Package localnode runs a real Kubernetes cluster of one node on this machine: the control plane of package localcluster, a
// scheduler, and a node with containerd, the kubelet and a CSI driver whose volumes are directories, so that Pods run, are
// executed in, and have volumes and snapshots. It is for tests.
//
// The node lives in namespaces of mounts and processes of its own. Its first process (agent node) dies with the process
// that called Start, and the kernel then ends everything in them and unmounts what was mounted. What is left of a killed
// one (a bridge, control groups) is removed by the next Start. Pods have one network, a bridge without a way out of the
// machine, on which the API server and everything else on this machine that listens at Node.Address can be reached.
//
// It needs Linux, root, and the packages that Missing names. The servers are built once per machine, from the modules in the folders
// kubelet, sidecars and agent.
package localnode
