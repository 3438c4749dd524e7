package localserver

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
	"runtime"
	"strings"
	"syscall"
	"time"
)

const modulePath = "github.com/tidemark-backup/tidemark"

// ErrNoCheckout is returned when the module that the servers are built from cannot be found. Its text
// follows the name of what is built.
var ErrNoCheckout = errors.New("is built from a checkout of " + modulePath + ", and none was found; run this inside one")

// Build says how the programs of one module are built.
type Build struct {
	// What it is, for people: "the control plane".
	What string
	// Module is the folder of the servers' own module, from the root of the checkout. Source is the
	// source file of the package that uses it, from runtime.Caller: the module lies beside it.
	Module, Source string
	// Cache is the folder below tidemark in the user's cache directory.
	Cache string
	// Version finds in the module's go.mod what the servers are called by, such as "v1.36.3", and
	// what the linker is to be told; no version is an error.
	Version func(gomod []byte) (version, ldflags string)
	// Own says that the programs' own source lies in the module: then it, too, decides what is built.
	Own bool
	// Programs are built in this order.
	Programs []Program
	// Takes says how long it takes, such as "about 5 minutes on 2 cores".
	Takes string
}

// Program is one program of a module: the name of its file and the path of its main package.
type Program struct {
	Name, Package string
}

// Dir returns the directory that holds the programs: one in the user's cache directory, named after all
// that decides what is in it. When they are not there they are built, which takes minutes and is said
// on progress; other processes that want them meanwhile wait. A build that was killed leaves nothing
// that would be taken for a finished one.
func (b *Build) Dir(ctx context.Context, progress io.Writer) (string, error) {
	j, err := b.job(ctx)
	if err != nil {
		return "", err
	}
	if j.done() {
		return j.dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(j.dir), 0o755); err != nil {
		return "", err
	}
	unlock, err := lockFile(ctx, j.dir+".lock", func() {
		fmt.Fprintf(progress, "waiting for another process that builds %s ...\n", b.What)
	})
	if err != nil {
		return "", fmt.Errorf("lock the cache of %s: %w", b.What, err)
	}
	defer unlock()
	if j.done() { // by the process we waited for
		return j.dir, nil
	}
	if err := j.run(ctx, progress); err != nil {
		return "", fmt.Errorf("build %s: %w", b.What, err)
	}
	return j.dir, nil
}

// job is the making of one cache directory.
type job struct {
	*Build
	module           string // its folder
	version, ldflags string
	dir              string // the directory to make
}

func (b *Build) job(ctx context.Context) (*job, error) {
	module, err := b.Folder(ctx)
	if err != nil {
		return nil, err
	}
	gomod, err := os.ReadFile(filepath.Join(module, "go.mod"))
	if err != nil {
		return nil, err
	}
	gosum, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return nil, err
	}
	j := &job{Build: b, module: module}
	if j.version, j.ldflags = b.Version(gomod); j.version == "" {
		return nil, fmt.Errorf("%s does not require the module of %s", filepath.Join(module, "go.mod"), b.What)
	}
	parts := []string{string(gomod), string(gosum), j.ldflags, runtime.GOOS, runtime.GOARCH, runtime.Version()}
	if b.Own {
		names, err := filepath.Glob(filepath.Join(module, "*.go"))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				return nil, err
			}
			parts = append(parts, string(text))
		}
	}
	h := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(h, "%d\n%s\n", len(part), part)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find the cache directory for %s: %w", b.What, err)
	}
	j.dir = filepath.Join(cache, "tidemark", b.Cache, j.version+"-"+hex.EncodeToString(h.Sum(nil))[:10])
	return j, nil
}

// done reports whether all programs are there; the directory gets its name only when they are.
func (j *job) done() bool {
	for _, p := range j.Programs {
		if _, err := os.Stat(filepath.Join(j.dir, p.Name)); err != nil {
			return false
		}
	}
	return true
}

// run builds all programs into a directory beside the final one and then gives it its name.
func (j *job) run(ctx context.Context, progress io.Writer) error {
	leftovers, err := filepath.Glob(j.dir + ".tmp-*") // of builds that were killed; we hold the lock
	if err != nil {
		return err
	}
	for _, dir := range append(leftovers, j.dir) {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	tmp, err := os.MkdirTemp(filepath.Dir(j.dir), filepath.Base(j.dir)+".tmp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	began := time.Now()
	for i, p := range j.Programs {
		fmt.Fprintf(progress, "building %s of %s %s (%d of %d; once per machine, %s) ...\n", p.Name, j.What, j.version, i+1, len(j.Programs), j.Takes)
		if err := j.compile(ctx, filepath.Join(tmp, p.Name), p.Package); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp, j.dir); err != nil {
		return err
	}
	fmt.Fprintf(progress, "built %s in %s into %s\n", j.What, time.Since(began).Round(time.Second), j.dir)
	return nil
}

// compile builds one program.
func (j *job) compile(ctx context.Context, to, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", j.ldflags, "-o", to, pkg)
	cmd.Dir = j.module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("go build %s in %s: %w\n%s", pkg, j.module, err, bytes.TrimSpace(output.Bytes()))
	}
	return nil
}

// Folder finds the folder of the servers' module: beside the source file of the package that
// uses it, or, when the program was built with -trimpath and that is no path, in the checkout
// around the working directory.
func (b *Build) Folder(ctx context.Context) (string, error) {
	if filepath.IsAbs(b.Source) {
		if dir := filepath.Join(filepath.Dir(b.Source), filepath.Base(b.Module)); isModule(dir) {
			return dir, nil
		}
	}
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", modulePath).Output()
	if err == nil {
		if dir := filepath.Join(strings.TrimSpace(string(out)), b.Module); isModule(dir) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("%s %w", b.What, ErrNoCheckout)
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
