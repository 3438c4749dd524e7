package locals3

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// fakeGo puts a program named go before the real one: it notes each build in the returned
// file and writes the output file of `go build -o FILE`, or fails when $FAIL is set.
func fakeGo(t *testing.T) (calls string) {
	t.Helper()
	dir := t.TempDir()
	calls = filepath.Join(dir, "calls")
	script := "#!/bin/sh\necho \"$*\" >>" + calls + "\n" +
		"while [ \"$1\" != -o ]; do shift; done\necho half >\"$2\"\n" +
		"if [ -n \"$FAIL\" ]; then echo broken package >&2; exit 1; fi\necho built >\"$2\"\n"
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	t.Setenv("HOME", dir) // where os.UserCacheDir looks, with and without XDG
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	t.Setenv("FAIL", "")
	return calls
}

func TestServerIsBuiltOnceForAllWhoAskAtOnce(t *testing.T) {
	calls := fakeGo(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			path, err := Binary(t.Context(), io.Discard)
			if err != nil {
				t.Error(err)
			} else if b, err := os.ReadFile(path); err != nil || string(b) != "built\n" {
				t.Errorf("binary is %q, %v", b, err)
			}
		})
	}
	wg.Wait()
	data, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(data), "\n"); n != 1 {
		t.Errorf("%d builds, want one:\n%s", n, data)
	}
}

func TestHalfABuildIsNotTakenForAWholeOne(t *testing.T) {
	fakeGo(t)
	t.Setenv("FAIL", "yes")
	var said bytes.Buffer
	_, err := Binary(t.Context(), &said)
	if err == nil || !strings.Contains(err.Error(), "broken package") {
		t.Fatalf("failing build: %v, want the compiler's message", err)
	}
	if !strings.Contains(said.String(), "building versitygw v1.") {
		t.Errorf("the long build was not announced: %q", said.String())
	}
	t.Setenv("FAIL", "")
	path, err := Binary(t.Context(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "built\n" {
		t.Errorf("binary is %q, %v; want that of the second build", b, err)
	}
}

func TestModuleIsFoundWhenPathsAreTrimmedFromTheProgram(t *testing.T) {
	_, source, _, _ := runtime.Caller(0)
	if dir, err := nestedModule(t.Context(), source); filepath.IsAbs(source) && (err != nil || !isModule(dir)) {
		t.Errorf("beside the source: %q, %v", dir, err)
	}
	const trimmed = modulePath + "/deploy/locals3/binary.go"
	dir, err := nestedModule(t.Context(), trimmed) // the working directory is in the checkout
	if err != nil || !isModule(dir) {
		t.Errorf("inside the checkout: %q, %v; want the server's module", dir, err)
	}
	t.Chdir(t.TempDir())
	if _, err = nestedModule(t.Context(), trimmed); !errors.Is(err, errNoCheckout) {
		t.Errorf("outside a checkout: %v, want errNoCheckout", err)
	}
}
