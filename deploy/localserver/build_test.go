package localserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
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
		"while [ \"$1\" != -o ]; do shift; done\necho half >\"$2\"\n" +
		"case \"$last\" in *\"$FAIL\") echo broken package >&2; exit 1;; esac\necho built >\"$2\"\n"
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	t.Setenv("HOME", dir) // where os.UserCacheDir looks, with and without XDG
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	t.Setenv("FAIL", "nothing")
	return calls
}

// testBuild is a build of two programs of a module that lies beside its source.
func testBuild(t *testing.T) *Build {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "servers"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"go.mod", "go.sum"} {
		if err := os.WriteFile(filepath.Join(dir, "servers", f), []byte("module x\nv1.2.3\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &Build{
		What: "the servers", Module: "deploy/x/servers", Source: filepath.Join(dir, "x.go"), Cache: "x", Takes: "no time",
		Version:  func([]byte) (string, string) { return "v1.2.3", "-s" },
		Programs: []Program{{"one", "example.com/one"}, {"two", "example.com/two"}},
	}
}

func TestProgramsAreBuiltOnceForAllWhoAskAtOnce(t *testing.T) {
	calls := fakeGo(t)
	b := testBuild(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			dir, err := b.Dir(t.Context(), io.Discard)
			if err != nil {
				t.Error(err)
				return
			}
			for _, p := range b.Programs {
				if text, err := os.ReadFile(filepath.Join(dir, p.Name)); err != nil || string(text) != "built\n" {
					t.Errorf("%s is %q, %v", p.Name, text, err)
				}
			}
		})
	}
	wg.Wait()
	data, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(data), "\n"); n != len(b.Programs) {
		t.Errorf("%d builds, want %d:\n%s", n, len(b.Programs), data)
	}
}

func TestHalfABuildIsNotTakenForAWholeOne(t *testing.T) {
	fakeGo(t)
	b := testBuild(t)
	t.Setenv("FAIL", "two")
	var said bytes.Buffer
	_, err := b.Dir(t.Context(), &said)
	if err == nil || !strings.Contains(err.Error(), "broken package") {
		t.Fatalf("failing build: %v, want the compiler's message", err)
	}
	if !strings.Contains(said.String(), "building one of the servers v1.2.3 (1 of 2") {
		t.Errorf("the long build was not announced: %q", said.String())
	}
	// What killed builds would leave behind: of today, and a directory without all programs.
	j, err := b.job(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	leftover := j.dir + ".tmp-123"
	for _, dir := range []string{leftover, j.dir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("FAIL", "nothing")
	dir, err := b.Dir(t.Context(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "two")); err != nil || string(text) != "built\n" {
		t.Errorf("two is %q, %v; want that of the second build", text, err)
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

func TestModuleIsFoundWhenPathsAreTrimmedFromTheProgram(t *testing.T) {
	b := testBuild(t)
	if dir, err := b.Folder(t.Context()); err != nil || !isModule(dir) {
		t.Errorf("beside the source: %q, %v", dir, err)
	}
	b.Module, b.Source = "deploy/locals3/server", modulePath+"/deploy/locals3/binary.go"
	dir, err := b.Folder(t.Context()) // the working directory is in the checkout
	if err != nil || !isModule(dir) {
		t.Errorf("inside the checkout: %q, %v; want the servers' module", dir, err)
	}
	t.Chdir(t.TempDir())
	if _, err = b.Folder(t.Context()); !errors.Is(err, ErrNoCheckout) {
		t.Errorf("outside a checkout: %v, want ErrNoCheckout", err)
	}
}
