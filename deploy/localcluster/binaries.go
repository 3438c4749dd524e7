package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

var kubernetesVersion = regexp.MustCompile(`(?m)^(?:require|\s)\s*k8s\.io/kubernetes (v(\d+)\.(\d+)\.\S+)`)

// Binaries returns the directory that holds etcd, kube-apiserver and kube-controller-manager:
// $KUBEBUILDER_ASSETS when that is set, otherwise one in the user's cache directory, where they are built
// when they are not there; see localserver.Build.
func Binaries(ctx context.Context, progress io.Writer) (string, error) {
	if dir := os.Getenv("KUBEBUILDER_ASSETS"); dir != "" {
		return dir, nil
	}
	_, source, _, _ := runtime.Caller(0)
	return binaries(ctx, source, "", progress)
}

// NewerBinaries returns the directory that holds kube-apiserver and kube-controller-manager of the minor
// version after that of Binaries, and builds them like those.
func NewerBinaries(ctx context.Context, progress io.Writer) (string, error) {
	_, source, _, _ := runtime.Caller(0)
	return binaries(ctx, source, newer, progress)
}

// newer is what the folder of the newer servers' module adds to that of the others.
const newer = "-1.37"

// binaries builds from a module beside source, a file of this package.
func binaries(ctx context.Context, source, which string, progress io.Writer) (string, error) {
	b := localserver.Build{
		What: "the control plane", Module: "deploy/localcluster/controlplane" + which, Source: source, Cache: "controlplane", Version: versionOf,
		Programs: []localserver.Program{
			{Name: "kube-apiserver", Package: "k8s.io/kubernetes/cmd/kube-apiserver"},
			{Name: "kube-controller-manager", Package: "k8s.io/kubernetes/cmd/kube-controller-manager"},
		},
		Takes: "about 5 minutes for all on 2 cores",
	}
	if which == "" {
		b.Programs = append(b.Programs, localserver.Program{Name: "etcd", Package: "go.etcd.io/etcd/server/v3"})
	}
	dir, err := b.Dir(ctx, progress)
	if errors.Is(err, localserver.ErrNoCheckout) {
		err = fmt.Errorf("%w, or set KUBEBUILDER_ASSETS to a directory with etcd, kube-apiserver and kube-controller-manager", err)
	}
	return dir, err
}

// Scheduler returns the path of kube-scheduler, built like Binaries but apart from them, because few clusters want one.
// Of $KUBEBUILDER_ASSETS nothing is used: envtest's have none.
func Scheduler(ctx context.Context, progress io.Writer) (string, error) {
	_, source, _, _ := runtime.Caller(0)
	b := localserver.Build{
		What: "the scheduler", Module: "deploy/localcluster/controlplane", Source: source, Cache: "scheduler", Version: versionOf,
		Programs: []localserver.Program{{Name: scheduler, Package: "k8s.io/kubernetes/cmd/kube-scheduler"}},
		Takes:    "about a minute on 2 cores when the control plane was built before",
	}
	dir, err := b.Dir(ctx, progress)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, scheduler), nil
}

// versionOf finds the version of Kubernetes. What `kubectl version` shows comes from the linker's
// variables; from a module it would be v0.0.0.
func versionOf(gomod []byte) (version, ldflags string) {
	m := kubernetesVersion.FindSubmatch(gomod)
	if m == nil {
		return "", ""
	}
	version, ldflags = string(m[1]), "-s -w"
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		ldflags += fmt.Sprintf(" -X %s.gitVersion=%s -X %s.gitMajor=%s -X %s.gitMinor=%s -X %s.gitTreeState=clean",
			pkg, version, pkg, m[2], pkg, m[3], pkg)
	}
	return version, ldflags
}
