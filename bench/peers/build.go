package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

const modulePath = "github.com/tidemark-backup/tidemark"

// built are the programs, and their versions.
type built struct {
	programs
	versions map[string]string
}

// buildPrograms builds Tidemark and the recorder from this checkout, and the peers from their modules.
func buildPrograms(ctx context.Context, profiled bool, progress io.Writer) (*built, error) {
	_, source, _, _ := runtime.Caller(0)
	b := &built{versions: map[string]string{}}
	velero := localserver.Build{
		What: "Velero", Module: "bench/peers/velero", Source: source, Cache: "velero",
		Version: func(gomod []byte) (version, ldflags string) {
			version = required(gomod, "github.com/vmware-tanzu/velero")
			b.versions["velero"] = version
			b.versions["velero-plugin-for-aws"] = required(gomod, "github.com/vmware-tanzu/velero-plugin-for-aws")
			return version, "-s -w -X github.com/vmware-tanzu/velero/pkg/buildinfo.Version=" + version
		},
		Programs: []localserver.Program{
			{Name: "velero", Package: "github.com/vmware-tanzu/velero/cmd/velero"},
			{Name: "velero-plugin-for-aws", Package: "github.com/vmware-tanzu/velero-plugin-for-aws/velero-plugin-for-aws"},
		},
		Takes: "about 4 minutes for both on 2 cores",
	}
	etcd := localserver.Build{
		What: "etcd's tools", Module: "bench/peers/etcdtools", Source: source, Cache: "etcdtools",
		Version: func(gomod []byte) (version, ldflags string) {
			version = required(gomod, "go.etcd.io/etcd/etcdctl/v3")
			b.versions["etcdctl, etcdutl"] = version
			return version, "-s -w"
		},
		Programs: []localserver.Program{
			{Name: "etcdctl", Package: "go.etcd.io/etcd/etcdctl/v3"},
			{Name: "etcdutl", Package: "go.etcd.io/etcd/etcdutl/v3"},
		},
		Takes: "about 1 minute for both on 2 cores",
	}
	dir, err := velero.Dir(ctx, progress)
	if err != nil {
		return nil, err
	}
	b.velero, b.veleroPlugin = filepath.Join(dir, "velero"), filepath.Join(dir, "velero-plugin-for-aws")
	if dir, err = etcd.Dir(ctx, progress); err != nil {
		return nil, err
	}
	b.etcdctl, b.etcdutl = filepath.Join(dir, "etcdctl"), filepath.Join(dir, "etcdutl")
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	bin := filepath.Join(cache, "tidemark", "peers")
	b.tidemark, b.recorder = filepath.Join(bin, "tidemark"), filepath.Join(bin, "recorder")
	ours := "/cmd/tidemark"
	if profiled {
		ours = "/cmd/internal/profiled"
	}
	for path, pkg := range map[string]string{b.tidemark: modulePath + ours, b.recorder: modulePath + "/bench/peers/recorder"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", path, pkg) // as make build does
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
	}
	b.versions["tidemark"] = "this checkout"
	if out, err := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty").Output(); err == nil {
		b.versions["tidemark"] = strings.TrimSpace(string(out))
	}
	for name, gomod := range map[string]string{"kube-apiserver": "deploy/localcluster/controlplane", "versitygw": "deploy/locals3/server"} {
		folder := localserver.Build{What: name, Module: gomod, Source: filepath.Join(filepath.Dir(source), "..", "..", filepath.Dir(gomod), "x.go")}
		module, err := folder.Folder(ctx)
		if err != nil {
			return nil, err
		}
		text, err := os.ReadFile(filepath.Join(module, "go.mod"))
		if err != nil {
			return nil, err
		}
		path := map[string]string{"kube-apiserver": "k8s.io/kubernetes", "versitygw": "github.com/versity/versitygw"}[name]
		b.versions[name] = required(text, path)
		if name == "kube-apiserver" {
			b.versions["etcd"] = required(text, "go.etcd.io/etcd/server/v3")
		}
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if d.Path == "k8s.io/client-go" {
				b.versions["client-go (recorder)"] = d.Version
			}
		}
	}
	return b, nil
}

// required is the version of a module that a go.mod asks for.
func required(gomod []byte, module string) string {
	m := regexp.MustCompile(`(?m)^(?:require|\s)\s*` + regexp.QuoteMeta(module) + ` (v\S+)`).FindSubmatch(gomod)
	if m == nil {
		return ""
	}
	return string(m[1])
}

func flagsOfTools() map[string]string {
	return map[string]string{
		veleroTool:      "defaults (backups with --snapshot-volumes=false)",
		veleroTunedTool: strings.Join(veleroTuned, " "),
		"tidemark":      "defaults, with the S3 server as --archive",
		"recorder":      "none",
		"etcd":          "snapshot save, snapshot restore; none",
	}
}

// thisMachine describes the machine without naming it.
func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH}
	read := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			return ""
		}
		return string(text)
	}
	for line := range strings.Lines(read("/proc/cpuinfo")) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
		}
	}
	for line := range strings.Lines(read("/proc/meminfo")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemTotal:" {
			kb, _ := strconv.Atoi(f[1])
			m.MemMB = kb >> 10
		}
	}
	m.Kernel = strings.TrimSpace(read("/proc/sys/kernel/osrelease"))
	if f := strings.Fields(read("/proc/loadavg")); len(f) > 2 {
		m.Load = strings.Join(f[:3], " ")
	}
	return m
}
