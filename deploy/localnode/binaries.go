package localnode

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

// programs are the paths of what was built.
type programs struct {
	kubelet, scheduler                           string
	provisioner, snapshotter, snapshotController string
	blocks                                       string // the sidecar that tells of changed blocks
	agent                                        string
	definitions                                  []string // directories of the CustomResourceDefinitions of snapshots and of changed blocks
}

var kubernetesVersion = regexp.MustCompile(`(?m)^\s*k8s\.io/kubernetes (v(\d+)\.(\d+)\.\S+)`)

// The modules in which the definitions of snapshots, and of the service that tells of changed blocks, lie.
const (
	snapshotClient = "github.com/kubernetes-csi/external-snapshotter/client/v8"
	blocksClient   = "github.com/kubernetes-csi/external-snapshot-metadata/client"
)

// build builds what is not there yet.
func build(ctx context.Context, progress io.Writer) (*programs, error) {
	_, source, _, _ := runtime.Caller(0)
	kubelet := localserver.Build{
		What: "the node", Module: "deploy/localnode/kubelet", Source: source, Cache: "node", Takes: "about 3 minutes for all on 2 cores",
		Version: func(gomod []byte) (version, ldflags string) {
			m := kubernetesVersion.FindSubmatch(gomod)
			if m == nil {
				return "", ""
			}
			version, ldflags = string(m[1]), "-s -w"
			for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
				ldflags += fmt.Sprintf(" -X %s.gitVersion=%s -X %s.gitMajor=%s -X %s.gitMinor=%s", pkg, version, pkg, m[2], pkg, m[3])
			}
			return version, ldflags
		},
		Programs: []localserver.Program{
			{Name: "kube-scheduler", Package: "k8s.io/kubernetes/cmd/kube-scheduler"},
			{Name: "kubelet", Package: "k8s.io/kubernetes/cmd/kubelet"},
		},
	}
	sidecars := localserver.Build{
		What: "CSI's controllers", Module: "deploy/localnode/sidecars", Source: source, Cache: "csi", Version: versionOf("external-snapshotter/v8"), Takes: "about 4 minutes for all on 2 cores",
		Programs: []localserver.Program{
			{Name: "csi-provisioner", Package: "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"},
			{Name: "csi-snapshotter", Package: "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter"},
			{Name: "snapshot-controller", Package: "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller"},
		},
	}
	blocks := localserver.Build{
		What: "CSI's sidecar for changed blocks", Module: "deploy/localnode/blocks", Source: source, Cache: "csi-blocks", Version: versionOf("external-snapshot-metadata"), Takes: "about a minute",
		Programs: []localserver.Program{{Name: "csi-snapshot-metadata", Package: "github.com/kubernetes-csi/external-snapshot-metadata/cmd/csi-snapshot-metadata"}},
	}
	var p programs
	dir, err := kubelet.Dir(ctx, progress)
	if err != nil {
		return nil, err
	}
	p.kubelet, p.scheduler = filepath.Join(dir, "kubelet"), filepath.Join(dir, "kube-scheduler")
	if dir, err = sidecars.Dir(ctx, progress); err != nil {
		return nil, err
	}
	p.provisioner, p.snapshotter, p.snapshotController = filepath.Join(dir, "csi-provisioner"), filepath.Join(dir, "csi-snapshotter"), filepath.Join(dir, "snapshot-controller")
	if dir, err = blocks.Dir(ctx, progress); err != nil {
		return nil, err
	}
	p.blocks = filepath.Join(dir, "csi-snapshot-metadata")
	for client, of := range map[string]*localserver.Build{snapshotClient: &sidecars, blocksClient: &blocks} {
		dir, err := definitions(ctx, of, client)
		if err != nil {
			return nil, err
		}
		p.definitions = append(p.definitions, dir)
	}
	agent := localserver.Build{
		What: "the node's agent", Module: "deploy/localnode/agent", Source: source, Cache: "agent", Own: true, Takes: "half a minute",
		Version: versionOf("container-storage-interface/spec"), Programs: []localserver.Program{{Name: "agent", Package: "."}},
	}
	dir, err = agent.Dir(ctx, progress)
	p.agent = filepath.Join(dir, "agent")
	return &p, err
}

// versionOf finds the version of a module in a go.mod.
func versionOf(module string) func([]byte) (string, string) {
	at := regexp.MustCompile(`(?m)` + regexp.QuoteMeta(module) + ` (v\S+)`)
	return func(gomod []byte) (version, ldflags string) {
		if m := at.FindSubmatch(gomod); m != nil {
			version = string(m[1])
		}
		return version, "-s -w"
	}
}

// definitions is the directory of a module's definitions, in the module cache.
func definitions(ctx context.Context, of *localserver.Build, client string) (string, error) {
	module, err := of.Folder(ctx)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", client)
	cmd.Dir = module
	var trouble bytes.Buffer
	cmd.Stderr = &trouble
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the definitions in %s: %w\n%s", client, err, bytes.TrimSpace(trouble.Bytes()))
	}
	return filepath.Join(strings.TrimSpace(string(out)), "config", "crd"), nil
}
