package localcluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeGo puts a program named go before the real one: it notes each build in the returned
// file and writes the output file of `go build -o FILE`, or fails for the package $FAIL names.
func fakeGo(t *testing.T) (calls string) {
	t.Helper()
	dir := t.TempDir()
	calls = filepath.Join(dir, "calls")
	script := "#!/bin/sh\nfor last; do :; done\necho \"$last\" >>" + calls + "\n" +
		"case \"$last\" in *\"$FAIL\") echo broken package >&2; exit 1;; esac\n" +
		"while [ \"$1\" != -o ]; do shift; done\necho built >\"$2\"\n"
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	t.Setenv("KUBEBUILDER_ASSETS", "")
	t.Setenv("HOME", dir) // where os.UserCacheDir looks, with and without XDG
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	t.Setenv("FAIL", "nothing")
	return calls
}

func TestBinariesAreBuiltOnceForAllWhoAskAtOnce(t *testing.T) {
	calls := fakeGo(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			dir, err := Binaries(t.Context(), io.Discard)
			if err != nil {
				t.Error(err)
				return
			}
			for _, s := range servers {
				if _, err := os.Stat(filepath.Join(dir, s[0])); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	data, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(data), "\n"); n != len(servers) {
		t.Errorf("%d builds, want %d:\n%s", n, len(servers), data)
	}
}

func TestHalfABuildIsNotTakenForAWholeOne(t *testing.T) {
	fakeGo(t)
	t.Setenv("FAIL", "kube-controller-manager")
	var said bytes.Buffer
	_, err := Binaries(t.Context(), &said)
	if err == nil || !strings.Contains(err.Error(), "broken package") {
		t.Fatalf("failing build: %v, want the compiler's message", err)
	}
	if !strings.Contains(said.String(), "building kube-apiserver v1.") {
		t.Errorf("the long build was not announced: %q", said.String())
	}
	// What a killed build would leave behind.
	_, source, _, _ := runtime.Caller(0)
	module, err := nestedModule(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newBuild(module)
	if err != nil {
		t.Fatal(err)
	}
	leftover := b.dir + ".tmp-123"
	if err := os.MkdirAll(leftover, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FAIL", "nothing")
	dir, err := Binaries(t.Context(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "kube-controller-manager")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(leftover); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("leftover of a killed build: %v, want none", err)
	}
}

func TestWaitingForAnothersBuildEndsWithTheContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(t.Context(), path, func() { t.Error("waits for a free lock") })
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	waited := 0
	if _, err := lockFile(ctx, path, func() { waited++ }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second lock: %v, want the context's end", err)
	}
	if waited != 1 {
		t.Errorf("said %d times that it waits, want once", waited)
	}
}

func TestAssetsOfKubebuilderAreUsedWhenNamed(t *testing.T) {
	calls := fakeGo(t)
	t.Setenv("KUBEBUILDER_ASSETS", "/somewhere")
	dir, err := Binaries(t.Context(), io.Discard)
	if err != nil || dir != "/somewhere" {
		t.Errorf("Binaries = %q, %v; want KUBEBUILDER_ASSETS", dir, err)
	}
	if _, err := os.Stat(calls); !errors.Is(err, os.ErrNotExist) {
		t.Error("something was built all the same")
	}
}

func TestModuleIsFoundWhenPathsAreTrimmedFromTheProgram(t *testing.T) {
	const trimmed = modulePath + "/deploy/localcluster/binaries.go"
	dir, err := nestedModule(t.Context(), trimmed) // the working directory is in the checkout
	if err != nil || !isModule(dir) {
		t.Errorf("inside the checkout: %q, %v; want the servers' module", dir, err)
	}
	t.Chdir(t.TempDir())
	_, err = nestedModule(t.Context(), trimmed)
	if !errors.Is(err, errNoCheckout) || !strings.Contains(err.Error(), "KUBEBUILDER_ASSETS") {
		t.Errorf("outside a checkout: %v, want an error that names the way out", err)
	}
}
