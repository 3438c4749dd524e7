package locals3

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
	nestedPath = "deploy/locals3/server" // the server's own module, from the root of the checkout
	serverPath = "github.com/versity/versitygw/cmd/versitygw"
	ldflags    = "-s -w"
)

var (
	serverVersion = regexp.MustCompile(`(?m)^(?:require)?\s*github\.com/versity/versitygw (v\S+)`)
	errNoCheckout = errors.New("the S3 server is built from a checkout of " + modulePath + ", and none was found; run this inside one")
)

// Binary returns the path of versitygw in the user's cache directory, in a folder named after
// the version. When it is not there it is built, which takes minutes and is said on progress;
// other processes that want it meanwhile wait. A build that was killed leaves nothing that
// would be taken for a finished one.
func Binary(ctx context.Context, progress io.Writer) (string, error) {
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
		return b.path, nil
	}
	if err := os.MkdirAll(filepath.Dir(b.path), 0o755); err != nil {
		return "", err
	}
	unlock, err := lockFile(ctx, b.path+".lock", func() {
		fmt.Fprintln(progress, "waiting for another process that builds the S3 server ...")
	})
	if err != nil {
		return "", fmt.Errorf("lock the S3 server's cache: %w", err)
	}
	defer unlock()
	if b.done() { // by the process we waited for
		return b.path, nil
	}
	if err := b.run(ctx, progress); err != nil {
		return "", fmt.Errorf("build the S3 server: %w", err)
	}
	return b.path, nil
}

// build is the making of one binary.
type build struct {
	module  string // folder of the server's module
	version string // of versitygw, like "v1.8.0"
	path    string // the file to make
}

// newBuild names the file's directory after everything that decides what is in it.
func newBuild(module string) (*build, error) {
	gomod, err := os.ReadFile(filepath.Join(module, "go.mod"))
	if err != nil {
		return nil, err
	}
	gosum, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return nil, err
	}
	m := serverVersion.FindSubmatch(gomod)
	if m == nil {
		return nil, fmt.Errorf("%s does not require github.com/versity/versitygw", filepath.Join(module, "go.mod"))
	}
	h := sha256.New()
	for _, part := range []string{string(gomod), string(gosum), ldflags, runtime.GOOS, runtime.GOARCH, runtime.Version()} {
		fmt.Fprintf(h, "%d\n%s\n", len(part), part)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find the cache directory for the S3 server: %w", err)
	}
	dir := string(m[1]) + "-" + hex.EncodeToString(h.Sum(nil))[:10]
	return &build{module: module, version: string(m[1]), path: filepath.Join(cache, "tidemark", "s3", dir, "versitygw")}, nil
}

// done reports whether the binary is there: it gets its name only when it is complete.
func (b *build) done() bool {
	_, err := os.Stat(b.path)
	return err == nil
}

// run builds into a file beside the final one and then gives it its name.
func (b *build) run(ctx context.Context, progress io.Writer) error {
	tmp := b.path + ".tmp" // a leftover of a killed build is replaced; we hold the lock
	defer os.Remove(tmp)
	began := time.Now()
	fmt.Fprintf(progress, "building versitygw %s (once per machine, about 3 minutes on 2 cores) ...\n", b.version)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", ldflags, "-o", tmp, serverPath)
	cmd.Dir = b.module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("go build %s in %s: %w\n%s", serverPath, b.module, err, bytes.TrimSpace(output.Bytes()))
	}
	if err := os.Rename(tmp, b.path); err != nil {
		return err
	}
	fmt.Fprintf(progress, "built the S3 server in %s into %s\n", time.Since(began).Round(time.Second), b.path)
	return nil
}

// nestedModule finds the folder of the server's module: beside the source file of this
// package, or, when the program was built with -trimpath and source is no path, in the
// checkout around the working directory.
func nestedModule(ctx context.Context, source string) (string, error) {
	if filepath.IsAbs(source) {
		if dir := filepath.Join(filepath.Dir(source), "server"); isModule(dir) {
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
