package repository

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

// A maintenance that cannot go on for lost content says whose it is, and what to do.
func TestMaintenanceNamesBackupsThatLostContent(t *testing.T) {
	w, dir, other := newWorld(t), t.TempDir(), t.TempDir()
	write(t, dir+"/d/a", "a")
	write(t, other+"/d/b", "b")
	r := w.open()
	tagged := func(name string) BackupOptions {
		return BackupOptions{Tags: func() (map[string]string, error) { return map[string]string{"backup": name}, nil }}
	}
	before := w.files("q")
	failed := errors.New("failed")
	if _, err := r.Back(t.Context(), Source{"shop", "data"}, dir, BackupOptions{Tags: func() (map[string]string, error) { return nil, failed }}); !errors.Is(err, failed) {
		t.Fatal(err) // so that manifests are in other packs than directories
	}
	lost := slices.DeleteFunc(w.files("q"), func(name string) bool { return slices.Contains(before, name) })
	_, err := r.Back(t.Context(), Source{"shop", "data"}, dir, tagged("hit"))
	ok(t, err)
	_, err = r.Back(t.Context(), Source{"shop", "other"}, other, tagged("whole"))
	ok(t, err)
	for _, name := range lost {
		ok(t, os.Remove(w.path(name)))
	}
	r = w.open()
	_, err = r.Maintain(t.Context(), Maintenance{Now: true})
	if err == nil || !strings.Contains(err.Error(), "of hit. 'tidemark volumes verify") || !strings.Contains(err.Error(), "volumes delete") {
		t.Errorf("%v", err)
	}
	w.back(r, dir)
	all, err := r.List(t.Context())
	ok(t, err)
	for _, b := range all {
		if b.Tags["backup"] == "hit" {
			ok(t, r.Forget(t.Context(), b.ID))
		}
	}
	maintain(t, r, true) // what the error says is enough
}

// Damage of an index, and a lost list of backups, are told by their file, with what can be done.
func TestDamagedIndexesAreNamed(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	write(t, dir+"/a", "a")
	r := w.open()
	w.back(r, dir)
	name := w.files("xn")[0]
	had, err := os.ReadFile(w.path(name))
	ok(t, err)
	damaged := slices.Clone(had)
	damaged[len(had)/2] ^= 1
	ok(t, os.WriteFile(w.path(name), damaged, 0o600))
	if _, err := Open(t.Context(), w.options()); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), name+" in ") || !strings.Contains(err.Error(), "move it out of kopia/") || strings.Contains(err.Error(), "cipher") {
		t.Errorf("%v", err)
	}
	ok(t, os.WriteFile(w.path(name), had, 0o600))
	for _, name := range w.files("q") {
		ok(t, os.Remove(w.path(name)))
	}
	r, err = Open(t.Context(), w.options())
	ok(t, err)
	t.Cleanup(func() { ok(t, r.Close(w.Context())) })
	_, err = r.Maintain(t.Context(), Maintenance{Now: true})
	if !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "is missing, without which nothing can be found") {
		t.Errorf("%v", err)
	}
}

// Damage that ends a command is told with what to do about it.
func TestDamageIsToldWithTheNextStep(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	large := make([]byte, 12<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(large)
	write(t, dir+"/a/large", string(large)) // of several contents
	b := w.back(w.open(), dir)
	cut := 0
	for _, flip := range w.flips(b.ID, "a/large") { // its pieces, and what lists them
		flip()
		var out bytes.Buffer
		err := w.open().Read(t.Context(), b.ID, "a/large", &out)
		if err == nil || !strings.Contains(err.Error(), "use another backup") || !strings.Contains(err.Error(), "a/large") {
			t.Error(err)
		} else if strings.Contains(err.Error(), fmt.Sprintf("a/large, cut off after %d of %d bytes", out.Len(), len(large))) {
			cut++
		}
		flip()
	}
	if cut < 2 {
		t.Errorf("%d times it is told where it was cut off", cut)
	}
	for _, d := range []string{"", "a"} {
		flip := w.flips(b.ID, d)[0]
		flip()
		for f, err := range w.open().Files(t.Context(), b.ID, d, false) {
			if err == nil || !strings.Contains(err.Error(), "use another backup") {
				t.Errorf("files of a damaged %q: %v, %v", d, f, err)
			}
		}
		if _, err := w.open().Restore(t.Context(), b.ID, t.TempDir(), RestoreOptions{}); err == nil || !strings.Contains(err.Error(), "another backup") {
			t.Errorf("restore of a damaged %q: %v", d, err)
		}
		flip()
	}
}
