package archive_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

func TestDirStoreIsForItsUserOnly(t *testing.T) {
	root := filepath.Join(t.TempDir(), "archive")
	s := openStore(t, "dir://"+root, archive.StoreOptions{})
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening for reading makes the directory: %v", err)
	}
	if err := s.Create(t.Context(), "a/b/c", strings.NewReader("x"), 1, archive.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"": 0o700, ".tmp": 0o700, "a": 0o700, "a/b": 0o700, "a/b/c": 0o600} {
		info, err := os.Stat(filepath.Join(root, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%q has mode %v, %v; want %v", name, info.Mode(), err, want)
		}
	}
}

// endless is content whose reader loses its patience.
type endless struct{ cancel context.CancelFunc }

func (e endless) ReadAt(p []byte, off int64) (int, error) {
	if off > 1<<20 {
		e.cancel()
	}
	return len(p), nil
}

func TestDirStoreLeavesNothingOfAFailedCreate(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, "dir://"+root, archive.StoreOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	if err := s.Create(ctx, "file", endless{cancel}, 1<<40, archive.CreateOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Create: %v, want that it ends with its context", err)
	}
	if err := s.Create(t.Context(), "file", strings.NewReader("short"), 6, archive.CreateOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Create of a short body: %v", err)
	}
	if err := s.Create(t.Context(), "file", strings.NewReader("x"), 1, archive.CreateOptions{}); err != nil {
		t.Error(err)
	}
	if err := s.Create(t.Context(), "file", strings.NewReader("y"), 1, archive.CreateOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(root, ".tmp")); err != nil || len(left) > 0 {
		t.Errorf("left in .tmp: %v, %v", left, err)
	}
}

func TestDirStoreSweepsWhatDeadProcessesLeft(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, ".tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{"young": time.Hour, "old": 25 * time.Hour} {
		path := filepath.Join(root, ".tmp", name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	s := openStore(t, "dir://"+root, archive.StoreOptions{})
	if _, err := os.Stat(filepath.Join(root, ".tmp/old")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("old file: %v, want that it was removed", err)
	}
	if _, err := os.Stat(filepath.Join(root, ".tmp/young")); err != nil {
		t.Errorf("file that may be in the making: %v", err)
	}
	for info, err := range s.List(t.Context(), "", "") {
		t.Errorf("List gives %v, %v", info, err)
	}
}

func TestDirStoreTellsOfMissingRights(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may do everything")
	}
	root := t.TempDir()
	if err := os.Chmod(root, 0o500); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, "dir://"+root, archive.StoreOptions{})
	if err := s.Create(t.Context(), "a", strings.NewReader("x"), 1, archive.CreateOptions{}); !errors.Is(err, archive.ErrDenied) {
		t.Errorf("Create: %v, want ErrDenied", err)
	}
}

func TestDirStoreStagesFiles(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, "dir://"+root, archive.StoreOptions{})
	stage := func(name, text string, o archive.CreateOptions) func() error {
		t.Helper()
		body := []byte(text)
		publish, err := archive.Stage(t.Context(), s, name, bytes.NewReader(body), int64(len(body)), o)
		if err != nil || publish == nil {
			t.Fatalf("Stage %s: %v", name, err)
		}
		clear(body) // the caller may use it for something else
		return publish
	}
	holds := func(name, want string) {
		t.Helper()
		b := make([]byte, len(want))
		if err := s.ReadAt(t.Context(), name, b, 0); err != nil || string(b) != want {
			t.Errorf("%s holds %q, %v; want %q", name, b, err, want)
		}
	}
	first, second := stage("a/file", "first", archive.CreateOptions{}), stage("a/file", "second", archive.CreateOptions{})
	third := stage("a/file", "third", archive.CreateOptions{Replace: true})
	if _, err := s.Stat(t.Context(), "a/file"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file is there before it is published: %v", err)
	}
	for info, err := range s.List(t.Context(), "", "") {
		t.Errorf("List gives %v, %v", info, err)
	}
	if err := first(); err != nil {
		t.Error(err)
	}
	if err := second(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("publish under a name that is taken: %v, want ErrExist", err)
	}
	holds("a/file", "first")
	if err := third(); err != nil {
		t.Error(err)
	}
	holds("a/file", "third")
	if _, err := archive.Stage(t.Context(), s, "short", strings.NewReader("short"), 6, archive.CreateOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Stage of a short body: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(root, ".tmp")); err != nil || len(left) > 0 {
		t.Errorf("left in .tmp: %v, %v", left, err)
	}
}
