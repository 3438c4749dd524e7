package repository

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A directory that is damaged costs what is in it, and no more; nothing that is there in its place is deleted.
func TestADamagedDirectoryCostsNoOthers(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	for _, name := range []string{"a/a", "b/b", "c/d/e"} {
		write(t, dir+"/"+name, name)
	}
	b := w.back(w.open(), dir)
	w.flips(b.ID, "b")[0]()
	write(t, to+"/b/newer", "newer")
	write(t, to+"/c/extra", "extra")
	p, err := w.open().Restore(t.Context(), b.ID, to, RestoreOptions{DeleteExtra: true})
	if !errors.Is(err, ErrPartly) || !strings.Contains(err.Error(), "the content of b/ is damaged") || p.Lost != 1 || len(p.LostFirst) != 1 || !strings.HasPrefix(p.LostFirst[0], "b/: ") {
		t.Errorf("%+v, %v", p, err)
	}
	for name, want := range map[string]string{"a/a": "a/a", "c/d/e": "c/d/e", "b/newer": "newer"} {
		if have, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(have) != want {
			t.Errorf("%s: %q, %v", name, have, err)
		}
	}
	if _, err := os.Stat(to + "/c/extra"); !os.IsNotExist(err) {
		t.Errorf("what is extra elsewhere: %v", err)
	}
}

// A file that is there in the place of a damaged one does not get the other names of that.
func TestLinksIntoADamagedDirectory(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	write(t, dir+"/a/name", "backup's")
	write(t, dir+"/b/more", "or they are one to the repository")
	ok(t, os.Link(dir+"/a/name", dir+"/b/name"))
	r := w.open()
	b := w.back(r, dir)
	w.flips(b.ID, "a")[0]()
	write(t, to+"/a/name", "another")
	p, err := w.open().Restore(t.Context(), b.ID, to, RestoreOptions{})
	if !errors.Is(err, ErrPartly) || p.Lost != 1 || !strings.HasPrefix(p.LostFirst[0], "a/: ") {
		t.Errorf("%+v, %v", p, err)
	}
	for name, want := range map[string]string{"/a/name": "another", "/b/name": "backup's"} {
		if have, err := os.ReadFile(to + name); err != nil || string(have) != want {
			t.Errorf("%s: %q, %v; want %q", name, have, err, want)
		}
	}
}

// A file whose content is damaged is lost under each of its names.
func TestDamagedFileWithTwoNames(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	write(t, dir+"/a/name", "backup's")
	ok(t, os.Mkdir(dir+"/b", 0o700))
	ok(t, os.Link(dir+"/a/name", dir+"/b/name"))
	b := w.back(w.open(), dir)
	w.flips(b.ID, "a/name")[0]()
	p, err := w.open().Restore(t.Context(), b.ID, to, RestoreOptions{})
	if !errors.Is(err, ErrPartly) || p.Lost != 2 || !strings.HasPrefix(p.LostFirst[0], "a/name: ") || !strings.HasPrefix(p.LostFirst[1], "b/name: ") {
		t.Errorf("%+v, %v", p, err)
	}
}

// A directory that is damaged is named, and all else is listed.
func TestADamagedDirectoryCostsNoOthersInAList(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	for _, name := range []string{"a/a", "b/b", "c/d/e"} {
		write(t, dir+"/"+name, name)
	}
	b := w.back(w.open(), dir)
	w.flips(b.ID, "b")[0]()
	r := w.open()
	for at, want := range map[string]string{"": "a a/a b c c/d c/d/e", "c": "c/d c/d/e"} {
		var have []string
		var failed error
		for f, err := range r.Files(t.Context(), b.ID, at, true) {
			if failed = err; err == nil {
				have = append(have, f.Path)
			}
		}
		if strings.Join(have, " ") != want {
			t.Errorf("%q: %q", at, have)
		}
		if at == "" && (!errors.Is(failed, ErrPartly) || !strings.Contains(failed.Error(), "what is in b/ is damaged")) || at != "" && failed != nil {
			t.Errorf("%q: %v", at, failed)
		}
	}
}

// Files come back without what is kept of them besides.
func TestDamagedAttributesCostNoFiles(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	noise := make([]byte, 1000)
	_, _ = rand.Read(noise)
	write(t, dir+"/a", string(noise))
	ok(t, os.Link(dir+"/a", dir+"/b"))
	b := w.back(w.open(), dir)
	w.flips(b.ID, attributesName)[0]()
	ok(t, unix.Mkfifo(to+"/pipe", 0o600))
	_, err := w.open().Restore(t.Context(), b.ID, to, RestoreOptions{DeleteExtra: true})
	if err == nil || !strings.Contains(err.Error(), "the content of "+attributesName+" (which has extended attributes") {
		t.Errorf("%v", err)
	}
	for _, name := range []string{"a", "b"} {
		if have, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(have) != string(noise) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(to + "/pipe"); err != nil {
		t.Errorf("the pipe: %v", err)
	}
}

// A directory that is there has the backup's extended attributes afterwards, and no others; unless nobody knows those of the backup.
func TestNoOtherExtendedAttributesStay(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	write(t, dir+"/deep/file", "s")
	write(t, to+"/deep/file", "older")
	set := func(at, key, value string) {
		t.Helper()
		if err := unix.Setxattr(at, key, []byte(value), 0); errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
			t.Skipf("this file system, or user, has no extended attributes: %v", err)
		} else {
			ok(t, err)
		}
	}
	set(dir+"/deep", "user.both", "backup's")
	for _, at := range []string{to, to + "/deep", to + "/deep/file"} {
		set(at, "user.extra", "x")
		set(at, "user."+strings.Repeat("long", 50), "x")
		set(at, "trusted.extra", "x")
		set(at, "user.both", "target's")
	}
	set(to+"/deep", "security.tidemark", "the system's")
	r := w.open()
	b := w.back(r, dir)
	_, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{})
	ok(t, err)
	value := make([]byte, 100)
	if n, err := unix.Getxattr(to+"/deep", "security.tidemark", value); err != nil || string(value[:n]) != "the system's" {
		t.Errorf("what the system has set: %q, %v", value[:max(n, 0)], err)
	}
	ok(t, unix.Removexattr(to+"/deep", "security.tidemark"))
	same(t, described(t, to), described(t, dir))

	w.flips(b.ID, attributesName)[0]()
	set(to+"/deep", "user.extra", "x")
	if _, err := w.open().Restore(t.Context(), b.ID, to, RestoreOptions{}); !errors.Is(err, ErrPartly) {
		t.Errorf("%v", err)
	}
	if _, err := unix.Getxattr(to+"/deep", "user.extra", value); err != nil {
		t.Errorf("without the attributes of the backup: %v", err)
	}
}

// The target's rights are not those of the backup: what a directory hands down to new files would let others read them.
func TestInheritedRightsDoNotStay(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	write(t, dir+"/deep/secret", "s")
	ok(t, unix.Mkfifo(dir+"/deep/pipe", 0o640))
	ok(t, unix.Mkfifo(dir+"/deep/shared", 0o640))
	// Version 2; the owner, user 33 and group, mask and others: all may do everything.
	acl := []byte("\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\x21\x00\x00\x00" + "\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x05\x00\xff\xff\xff\xff")
	if err := unix.Setxattr(to, "system.posix_acl_default", acl, 0); err != nil {
		t.Skipf("this file system has no ACLs: %v", err)
	}
	ok(t, unix.Setxattr(dir+"/deep/shared", "system.posix_acl_access", acl, 0)) // which comes back
	r := w.open()
	b := w.back(r, dir)
	_, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{})
	ok(t, err)
	for _, name := range []string{"", "/deep", "/deep/secret", "/deep/pipe"} {
		for _, key := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
			if n, err := unix.Getxattr(to+name, key, nil); err == nil {
				t.Errorf("%q has %d bytes of %s", name, n, key)
			}
		}
	}
	same(t, described(t, to), described(t, dir))
}
