package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
)

// bound makes a journal that has reached its cluster.
func bound(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	j, err := journal.Open(dir, journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.Bind(t.Context(), "the-cluster"), j.Close()); err != nil {
		t.Fatal(err)
	}
	fill(t, dir, 3)
	return dir
}

// archiveOnce runs a daemon until the archive has what the journal has.
func archiveOnce(t *testing.T, o Options) {
	t.Helper()
	c, stop := start(t, o)
	status(t, c, func(s *api.Status) bool {
		return len(s.Archives) == 1 && s.Archives[0].PendingEvents == 0 && !s.Archives[0].ArchivedTo.Time.IsZero()
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// refused is why a daemon does not start; nil when it does.
func refused(t *testing.T, o Options) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return Run(ctx, o)
}

func TestLostArchiveKeyIsNotReplaced(t *testing.T) {
	dir := bound(t)
	o := Options{Kubeconfig: kubeconfig(t, nobody(t)), DataDir: dir, Archives: []Archive{{URL: "dir://" + t.TempDir(), SealInterval: time.Millisecond}}}
	archiveOnce(t, o)
	key := filepath.Join(dir, ArchiveKeyName)
	text := read(t, key)
	ids, err := archive.LoadIdentities(key)
	if err != nil {
		t.Fatal(err)
	}
	_, recipients := archive.RecipientsOf(ids)

	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it must not be there at the second start either
		err := refused(t, o)
		if err == nil || !strings.Contains(err.Error(), "put it back") || !strings.Contains(err.Error(), recipients[0]) {
			t.Fatalf("got %v, want a refusal that names the lost key's recipient", err)
		}
	}
	if err := os.WriteFile(key, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	archiveOnce(t, o)
}

func TestKeyIsNotMadeForAnArchiveOfOthers(t *testing.T) {
	dir := bound(t)
	recipient, err := archive.GenerateIdentity(filepath.Join(t.TempDir(), "key"), false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Kubeconfig: kubeconfig(t, nobody(t)), DataDir: dir, Archives: []Archive{{
		URL: "dir://" + t.TempDir(), SealInterval: time.Millisecond, Recipients: []string{recipient},
	}}}
	archiveOnce(t, o)
	archiveOnce(t, o) // a daemon with recipients only has no key, and misses none
	o.Archives[0].Recipients = nil
	if err := refused(t, o); err == nil || !strings.Contains(err.Error(), "--identity FILE") {
		t.Fatalf("got %v, want no key made for an archive that it cannot read", err)
	}
	if _, err := os.Stat(filepath.Join(dir, ArchiveKeyName)); err == nil {
		t.Error("a key was made")
	}
	o.Archives[0].URL = "dir://" + t.TempDir() // a new place needs a new key
	archiveOnce(t, o)
}

func TestWarningLooksAtWhichKeyWasSaved(t *testing.T) {
	path := filepath.Join(t.TempDir(), ArchiveKeyName)
	own, err := archive.GenerateIdentity(path, false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{ownKeyPath: path}
	for text, want := range map[string]int{
		"said to be in a safe place at 2026-01-01T00:00:00Z\n":                              0, // by an older version
		"said to be in a safe place at 2026-01-01T00:00:00Z\n" + own + "\n":                 0,
		"said to be in a safe place at 2026-01-01T00:00:00Z\nage1another" + own[10:] + "\n": 1,
	} {
		if err := os.WriteFile(path+SavedSuffix, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := len(d.keyWarnings()); got != want {
			t.Errorf("%q: %d warnings, want %d", text, got, want)
		}
	}
}
