package localcluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	modulePath = "github.com/tidemark-backup/tidemark"
	nestedPath = "deploy/localcluster/controlplane" // the servers' own module, from the root of the checkout
)

// servers are built in this order; the second string is the package.
var servers = [][2]string{
	{"etcd", "go.etcd.io/etcd/server/v3"},
	{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
	{"kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"},
}

// Binaries returns the directory that holds etcd, kube-apiserver and kube-controller-manager:
// $KUBEBUILDER_ASSETS when that is set, otherwise one in the user's cache directory, named
// after the versions. When it is not there the servers are built into it, which takes minutes
// and is said on progress; other processes that want them meanwhile wait. A build that was
// killed leaves nothing that would be taken for a finished one.
func Binaries(ctx context.Context, progress io.Writer) (string, error) {
	if dir := os.Getenv("KUBEBUILDER_ASSETS"); dir != "" {
		return dir, nil
	}
	_, source, _, _ := runtime.Caller(0)
	module, err := nestedModule(ctx, source)
	if err != nil {
		return "", err
	}
	b, err := newBuild(module)
	if err != nil {
		return "", err
	}
	if b.done() {
		return b.dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(b.dir), 0o755); err != nil {
		return "", err
	}
	unlock, err := lockFile(ctx, b.dir+".lock", func() {
		fmt.Fprintln(progress, "waiting for another process that builds the control plane ...")
	})
	if err != nil {
		return "", fmt.Errorf("lock control plane's cache: %w", err)
	}
	defer unlock()
	if b.done() { // by the process we waited for
		return b.dir, nil
	}
	if err := b.run(ctx, progress); err != nil {
		return "", fmt.Errorf("build control plane: %w", err)
	}
	return b.dir, nil
}

// build is the making of one cache directory.
type build struct {
	module  string // folder of the servers' module
	version string // of Kubernetes, like "v1.36.3"
	ldflags string
	dir     string // the directory to make
}

var (
	kubernetesVersion = regexp.MustCompile(`(?m)^\s*k8s\.io/kubernetes (v(\d+)\.(\d+)\.\S+)`)
	errNoCheckout     = errors.New("the control plane is built from a checkout of " + modulePath + ", and none was found; " +
		"run this inside one, or set KUBEBUILDER_ASSETS to a directory with etcd, kube-apiserver and kube-controller-manager")
)

// newBuild names the cache directory after everything that decides what is in it.
func newBuild(module string) (*build, error) {
	gomod, err := os.ReadFile(filepath.Join(module, "go.mod"))
	if err != nil {
		return nil, err
	}
	gosum, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return nil, err
	}
	m := kubernetesVersion.FindSubmatch(gomod)
	if m == nil {
		return nil, fmt.Errorf("%s does not require k8s.io/kubernetes", filepath.Join(module, "go.mod"))
	}
	b := &build{module: module, version: string(m[1]), ldflags: "-s -w"}
	// What `kubectl version` shows comes from these variables; from a module it would be v0.0.0.
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		b.ldflags += fmt.Sprintf(" -X %s.gitVersion=%s -X %s.gitMajor=%s -X %s.gitMinor=%s -X %s.gitTreeState=clean",
			pkg, b.version, pkg, m[2], pkg, m[3], pkg)
	}
	h := sha256.New()
	for _, part := range []string{string(gomod), string(gosum), b.ldflags, runtime.GOOS, runtime.GOARCH, runtime.Version()} {
		fmt.Fprintf(h, "%d\n%s\n", len(part), part)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find the cache directory for the control plane: %w", err)
	}
	b.dir = filepath.Join(cache, "tidemark", "controlplane", b.version+"-"+hex.EncodeToString(h.Sum(nil))[:10])
	return b, nil
}

// done reports whether the directory is complete: it gets its name only when it is.
func (b *build) done() bool {
	_, err := os.Stat(b.dir)
	return err == nil
}

// run builds all servers into a directory beside the final one and then gives it its name.
func (b *build) run(ctx context.Context, progress io.Writer) error {
	leftovers, err := filepath.Glob(b.dir + ".tmp-*") // of builds that were killed; we hold the lock
	if err != nil {
		return err
	}
	for _, dir := range leftovers {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	tmp, err := os.MkdirTemp(filepath.Dir(b.dir), filepath.Base(b.dir)+".tmp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	began := time.Now()
	for i, s := range servers {
		version := ""
		if s[0] != "etcd" {
			version = " " + b.version
		}
		fmt.Fprintf(progress, "building %s%s (%d of %d; once per machine, about 5 minutes for all on 2 cores) ...\n", s[0], version, i+1, len(servers))
		if err := b.compile(ctx, filepath.Join(tmp, s[0]), s[1]); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp, b.dir); err != nil {
		return err
	}
	fmt.Fprintf(progress, "built the control plane in %s into %s\n", time.Since(began).Round(time.Second), b.dir)
	return nil
}

// compile builds one server.
func (b *build) compile(ctx context.Context, to, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", b.ldflags, "-o", to, pkg)
	cmd.Dir = b.module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("go build %s in %s: %w\n%s", pkg, b.module, err, bytes.TrimSpace(output.Bytes()))
	}
	return nil
}

// nestedModule finds the folder of the servers' module: beside the source file of this
// package, or, when the program was built with -trimpath and source is no path, in the
// checkout around the working directory.
func nestedModule(ctx context.Context, source string) (string, error) {
	if filepath.IsAbs(source) {
		if dir := filepath.Join(filepath.Dir(source), "controlplane"); isModule(dir) {
			return dir, nil
		}
	}
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", modulePath).Output()
	if err != nil {
		return "", errNoCheckout
	}
	if dir := filepath.Join(strings.TrimSpace(string(out)), nestedPath); isModule(dir) {
		return dir, nil
	}
	return "", errNoCheckout
}

func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// lockFile takes the lock of a file that all processes on this machine agree on. It calls
// waiting once when another process has it.
func lockFile(ctx context.Context, path string, waiting func()) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for first := true; ; first = false {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil // closing gives the lock back
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, err
		}
		if first {
			waiting()
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}
