package repository

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A restore into the archive that it reads from, or around it, would write into it, and with DeleteExtra remove it.
func TestNothingIsRestoredIntoTheArchive(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	write(t, dir+"/a", "a")
	r := w.open()
	b := w.back(r, dir)
	at := strings.TrimPrefix(w.store.String(), "dir://")
	before := w.files("")
	link := t.TempDir() + "/link"
	ok(t, os.Symlink(at, link))
	for _, to := range []string{at, filepath.Dir(at), at + "/volumes/c1/kopia", at + "/new/below", link, link + "/new"} {
		for _, extra := range []bool{false, true} {
			if _, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{DeleteExtra: extra}); err == nil || !strings.Contains(err.Error(), "apart from it") {
				t.Errorf("into %s: %v", to, err)
			}
		}
	}
	if after := w.files(""); len(after) != len(before) {
		t.Errorf("the archive had %d files, and has %d", len(before), len(after))
	}
	to := t.TempDir() + "/new/below"
	_, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{DeleteExtra: true})
	ok(t, err)
	if b, err := os.ReadFile(to + "/a"); err != nil || string(b) != "a" {
		t.Errorf("restored %q, %v", b, err)
	}
}

// What is mounted below the target is not emptied; the rest comes back.
func TestMountsBelowATargetStay(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	write(t, dir+"/a", "a")
	r := w.open()
	b := w.back(r, dir)
	mount := to + "/deep/mount"
	ok(t, os.MkdirAll(mount, 0o700))
	if err := unix.Mount("none", mount, "tmpfs", 0, "size=1m"); errors.Is(err, unix.EPERM) {
		t.Skip("mounting needs root")
	} else {
		ok(t, err)
	}
	defer func() { ok(t, unix.Unmount(mount, 0)) }()
	write(t, mount+"/precious", "p")
	write(t, to+"/deep/extra", "e")
	write(t, to+"/more/extra", "e")
	p, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{DeleteExtra: true})
	ok(t, err)
	if p.Removed != 3 || p.Missed != 1 || !strings.Contains(p.MissedFirst[0], "deep/mount: is another file system") {
		t.Errorf("%+v", p)
	}
	if b, err := os.ReadFile(mount + "/precious"); err != nil || string(b) != "p" {
		t.Errorf("what is mounted has %q, %v", b, err)
	}
	if b, err := os.ReadFile(to + "/a"); err != nil || string(b) != "a" {
		t.Errorf("restored %q, %v", b, err)
	}
}

// A file whose content changed, and neither its size nor its time, is only seen when all is read.
func TestReadAllSeesWhatLooksTheSame(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	long := time.Now().Add(-time.Hour)
	put := func(text string) {
		write(t, dir+"/a", text)
		ok(t, os.Chtimes(dir+"/a", long, long))
	}
	put("one")
	r := w.open()
	w.back(r, dir)
	put("two")
	for _, c := range []struct {
		all  bool
		want string
	}{{false, "one"}, {true, "two"}} {
		b, err := r.Back(t.Context(), Source{"shop", "data"}, dir, BackupOptions{ReadAll: c.all})
		ok(t, err)
		to := t.TempDir()
		_, err = r.Restore(t.Context(), b.ID, to, RestoreOptions{})
		ok(t, err)
		if have, err := os.ReadFile(to + "/a"); err != nil || string(have) != c.want {
			t.Errorf("read all: %v: %q, %v", c.all, have, err)
		}
	}
}

// A file whose content is damaged costs no other, and nothing that is there in its place.
func TestDamagedFilesCostNoOthers(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	noise := make([]byte, 200<<10)
	_, _ = rand.Read(noise)
	write(t, dir+"/a/rotten", string(noise))
	ok(t, os.Link(dir+"/a/rotten", dir+"/z-linked"))
	for _, good := range []string{"a/a", "a/z", "b"} {
		write(t, dir+"/"+good, good)
	}
	r := w.open()
	b := w.back(r, dir)
	at := strings.TrimPrefix(w.store.String(), "dir://")
	rotted := false
	for _, name := range w.files("p") {
		pack, err := os.ReadFile(filepath.Join(at, name))
		ok(t, err)
		if len(pack) > len(noise) {
			pack[len(pack)/2] ^= 1
			ok(t, os.Chmod(filepath.Join(at, name), 0o600))
			ok(t, os.WriteFile(filepath.Join(at, name), pack, 0o600))
			rotted = true
		}
	}
	if !rotted {
		t.Fatal("no pack to spoil")
	}
	write(t, to+"/a/rotten", "newer")
	p, err := w.open().Restore(t.Context(), b.ID, to, RestoreOptions{})
	if err == nil || !strings.Contains(err.Error(), "a/rotten, z-linked is damaged") {
		t.Errorf("%v, %+v", err, p)
	}
	for name, want := range map[string]string{"a/a": "a/a", "a/z": "a/z", "b": "b", "a/rotten": "newer"} {
		if have, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(have) != want {
			t.Errorf("%s: %.20q, %v", name, have, err)
		}
	}
}
