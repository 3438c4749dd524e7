package localnode

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
)

// ports on the node's address or on the loopback one; that of the blocks' sidecar, which listens on all, has the node's number added.
const (
	kubeletPort = 10250
	blocksPort  = 20600
)

// containerdConfig: a container's oom_score_adj cannot be lowered without CAP_SYS_RESOURCE, which not every machine gives.
const containerdConfig = `version = 2
root = "{{.Dir}}/containerd/root"
state = "{{.Dir}}/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{{.Dir}}/containerd/containerd.sock"
[ttrpc]
  address = "{{.Dir}}/containerd/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:local"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{{.Dir}}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
`

// cniConfig gives Pods one route: to the address of Services, through this machine.
const cniConfig = `{"cniVersion": "0.4.0", "name": "tidemark", "plugins": [
  {"type": "bridge", "bridge": "{{.Bridge}}", "isGateway": false, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "{{.Dir}}/cni/data",
            "ranges": [[{"subnet": "{{.PodNet}}", "gateway": "{{.Gateway}}"}]],
            "routes": [{"dst": "{{.ServiceNet}}", "gw": "{{.Gateway}}"}]}}]}
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {{.Gateway}}
port: {{.Port}}
healthzPort: 0
readOnlyPort: 0
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: {{.Dir}}/cluster/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: {{.Dir}}/kubelet/server.crt
tlsPrivateKeyFile: {{.Dir}}/kubelet/server.key
containerRuntimeEndpoint: unix://{{.Dir}}/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /{{.Cgroup}}
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
clusterDNS: [{{.Gateway}}]
clusterDomain: cluster.local
makeIPTablesUtilChains: false
resolvConf: ""
podLogsDir: {{.Dir}}/pods
volumePluginDir: {{.Dir}}/kubelet/flexvolume
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
nodeStatusReportFrequency: 10s
shutdownGracePeriod: 0s
syncFrequency: 10s
`

// settings the kubelet wants of the machine, and would write: it is shown files that hold them.
var settings = map[string]string{
	"/proc/sys/kernel/panic": "10", "/proc/sys/kernel/panic_on_oops": "1", "/proc/sys/vm/overcommit_memory": "1",
}

// kubeconfig writes a kubeconfig file for a user.
func (n *Node) kubeconfig(user string, groups ...string) (string, error) {
	cfg, err := n.Cluster.ConfigFor(user, groups...)
	if err != nil {
		return "", err
	}
	path := filepath.Join(n.dir, strings.ReplaceAll(user, ":", "-")+".kubeconfig")
	return path, localcluster.WriteKubeconfig(cfg, path)
}

// writeConfigs writes the configuration of everything that the node runs.
func (n *Node) writeConfigs() error {
	for _, dir := range []string{"cni", "csi", "containerd", "kubelet/root/plugins/" + Driver, "kubelet/root/plugins_registry", "images", "settings"} {
		if err := os.MkdirAll(filepath.Join(n.dir, dir), 0o755); err != nil {
			return err
		}
	}
	values := map[string]any{
		"Dir": n.dir, "Bridge": n.bridge(), "PodNet": n.podNet(), "ServiceNet": n.serviceNet(), "Gateway": n.gateway(), "Cgroup": n.cgroup(), "Port": kubeletPort,
	}
	for file, text := range map[string]string{"containerd/config.toml": containerdConfig, "cni/10-tidemark.conflist": cniConfig, "kubelet/config.yaml": kubeletConfig} {
		var b bytes.Buffer
		if err := template.Must(template.New(file).Parse(text)).Execute(&b, values); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(n.dir, file), b.Bytes(), 0o600); err != nil {
			return err
		}
	}
	cert, key, err := n.Cluster.ServerCertificate("system:node:"+Name, Name, n.gateway())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(n.dir, "kubelet/server.crt"), cert, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(n.dir, "kubelet/server.key"), key, 0o600); err != nil {
		return err
	}
	if err := n.writeBlocksKey(); err != nil {
		return err
	}
	kubelet, err := n.kubeconfig("system:node:"+Name, "system:nodes")
	if err != nil {
		return err
	}
	return n.writeSpec(kubelet)
}

// writeSpec tells the agent what there is to run.
func (n *Node) writeSpec(kubelet string) error {
	root := filepath.Join(n.dir, "kubelet/root")
	socket := filepath.Join(root, "plugins", Driver, "csi.sock")
	type program struct {
		Args []string
		Log  string
	}
	sidecar := func(path string, more ...string) program {
		args := []string{path, "--kubeconfig=" + n.Cluster.Kubeconfig(), "--csi-address=" + socket, "--extra-create-metadata=true", "--kube-api-qps=100", "--kube-api-burst=200"}
		return program{append(args, more...), n.log(filepath.Base(path))}
	}
	spec := struct {
		Tmpfs    []string
		Binds    map[string]string
		Programs map[string]program
	}{
		// Paths that are built into containerd, the kubelet and CNI.
		Tmpfs: []string{"/run/containerd", "/var/lib/kubelet", "/var/lib/cni"},
		Binds: map[string]string{},
		Programs: map[string]program{
			"containerd": {[]string{"/usr/bin/containerd", "--config", filepath.Join(n.dir, "containerd/config.toml")}, n.log("containerd")},
			"kubelet": {[]string{
				n.bin.kubelet, "--config=" + filepath.Join(n.dir, "kubelet/config.yaml"), "--kubeconfig=" + kubelet, "--hostname-override=" + Name, "--node-ip=" + n.gateway(),
				"--root-dir=" + root, "--cert-dir=" + filepath.Join(n.dir, "kubelet/pki"), "-v=2",
			}, n.log("kubelet")},
			"driver": {[]string{
				n.bin.agent, "driver", "-name", Driver, "-node", Name, "-dir", filepath.Join(n.dir, "csi"), "-socket", socket,
				"-registration", filepath.Join(root, "plugins_registry", Driver+"-reg.sock"), "-freezer", n.freezer(), "-snapshot-delay", n.o.SnapshotDelay.String(),
			}, n.log("driver")},
			"csi-provisioner":       sidecar(n.bin.provisioner),
			"csi-snapshot-metadata": {n.blocksArgs(socket), n.log("csi-snapshot-metadata")},
			"csi-snapshotter":       sidecar(n.bin.snapshotter, "--feature-gates=CSIVolumeGroupSnapshot=true", "--retry-interval-start=200ms", "--retry-interval-max=5s"),
		},
	}
	for place, text := range settings {
		file := filepath.Join(n.dir, "settings", filepath.Base(place))
		if err := os.WriteFile(file, []byte(text+"\n"), 0o644); err != nil {
			return err
		}
		spec.Binds[place] = file
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.dir, "spec.json"), b, 0o600)
}

// boot starts the node and waits until it is ready.
func (n *Node) boot(ctx context.Context) error {
	trouble, err := os.OpenFile(n.log("agent"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer trouble.Close()
	if n.agent, err = startAgent(n.bin.agent, filepath.Join(n.dir, "spec.json"), trouble); err != nil {
		return err
	}
	if err := n.Launch("containerd"); err != nil {
		return err
	}
	if err := n.until(ctx, "containerd to answer", "containerd", func() bool { return n.ctr("version") == nil }); err != nil {
		return err
	}
	if err := n.loadImages(); err != nil {
		return err
	}
	booted := time.Now()
	for _, p := range []string{"driver", "kubelet", "csi-provisioner", "csi-snapshotter", "csi-snapshot-metadata"} {
		if err := n.Launch(p); err != nil {
			return err
		}
	}
	err = n.until(ctx, "the node to be ready", "kubelet", func() bool {
		node, err := n.Client.CoreV1().Nodes().Get(ctx, Name, metav1.GetOptions{})
		if err != nil {
			return false
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady {
				return c.Status == corev1.ConditionTrue && c.LastHeartbeatTime.After(booted.Add(-time.Second))
			}
		}
		return false
	})
	if err != nil {
		return err
	}
	n.say("the node is ready")
	err = n.until(ctx, "the CSI driver to be registered", "driver", func() bool {
		c, err := n.Client.StorageV1().CSINodes().Get(ctx, Name, metav1.GetOptions{})
		return err == nil && len(c.Spec.Drivers) > 0
	})
	if err == nil {
		n.say("the CSI driver is registered")
	}
	return err
}

// until waits for a condition; the error has the end of a log.
func (n *Node) until(ctx context.Context, what, log string, met func() bool) error {
	for end := time.Now().Add(readyLimit); !met(); {
		if time.Now().After(end) {
			b, _ := os.ReadFile(n.log(log))
			return fmt.Errorf("waited %s for %s; %s ends:\n%s", readyLimit, what, n.log(log), b[max(0, len(b)-2000):])
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// ctr asks containerd.
func (n *Node) ctr(args ...string) error {
	return command("ctr", append([]string{"--address", filepath.Join(n.dir, "containerd/containerd.sock"), "--namespace", "k8s.io"}, args...)...)
}

// Load gives the node one more image, which later boots have as well.
func (n *Node) Load(i Image) error {
	if slices.ContainsFunc(n.o.Images, func(o Image) bool { return o.Ref == i.Ref }) {
		return nil
	}
	n.o.Images = append(n.o.Images, i)
	return n.loadImages()
}

// loadImages gives containerd the images; those that it has are only looked at.
func (n *Node) loadImages() error {
	links, err := exec.Command("busybox", "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox: %w", err)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	images := append([]Image{
		{Ref: "docker.io/library/pause:local", Files: map[string]string{"/agent": n.bin.agent}, Cmd: []string{"/agent", "pause"}},
		{Ref: Busybox, Files: map[string]string{"/bin/busybox": busybox}, Links: strings.Fields(string(links)), Cmd: []string{"/bin/sh"}},
	}, n.o.Images...)
	for i, image := range images {
		file := filepath.Join(n.dir, "images", strconv.Itoa(i)+".tar")
		if exists(file) {
			continue // loaded by an earlier boot
		}
		if err := image.write(file); err != nil {
			return err
		}
		if err := n.ctr("images", "import", file); err != nil {
			return err
		}
		if err := os.Truncate(file, 0); err != nil {
			return err
		}
	}
	n.say("%d images are loaded", len(images))
	return nil
}
