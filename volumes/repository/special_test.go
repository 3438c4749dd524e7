package repository

import (
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Pipes and devices have no content, so Kopia has no entry for them; sockets are not kept, and counted.
func TestFilesThatHaveNoContent(t *testing.T) {
	w := newWorld(t)
	r, dir := w.open(), t.TempDir()
	for _, name := range []string{"b/file", "b/z", "c"} {
		write(t, dir+"/"+name, name)
	}
	for _, name := range []string{"a", "b/pipe", "b/d\xe9"} {
		ok(t, unix.Mkfifo(dir+"/"+name, 0o640))
	}
	ok(t, os.Chmod(dir+"/b/pipe", 0o640))
	t.Chdir(dir) // a socket's path is short
	for _, name := range []string{"s", "b/s"} {
		l, err := net.Listen("unix", name)
		ok(t, err)
		defer l.Close()
	}
	if name := w.back(r, dir).Reserved(); name != "" {
		t.Errorf("%s was left out, as it says", name)
	}
	write(t, dir+"/"+attributesName, "not ours")
	b := w.back(r, dir)
	if b.Reserved() != attributesName {
		t.Errorf("%q was left out, as it says", b.Reserved())
	}
	if n := b.Sockets(); n != 2 {
		t.Errorf("%d sockets were left out, as it says", n)
	}
	all, err := r.List(t.Context())
	ok(t, err)
	if n := all[0].Sockets(); n != 2 {
		t.Errorf("%d sockets were left out, as the list says", n)
	}
	list := func(part string, deep bool) (names []string) {
		t.Helper()
		for f, err := range r.Files(t.Context(), b.ID, part, deep) {
			ok(t, err)
			names = append(names, f.Path)
			if f.Path == "b/pipe" && (f.Mode != "prw-r-----" || f.Modified.IsZero() || f.UID != uint32(os.Getuid())) {
				t.Errorf("%+v", f)
			}
		}
		return names
	}
	for _, c := range []struct {
		part string
		deep bool
		want []string
	}{
		{"", false, []string{"a", "b", "c"}},
		{"", true, []string{"a", "b", "b/.tidemark-name.d%E9", "b/file", "b/pipe", "b/z", "c"}},
		{"b", false, []string{"b/.tidemark-name.d%E9", "b/file", "b/pipe", "b/z"}},
		{"b/pipe", false, []string{"b/pipe"}},
	} {
		if got := list(c.part, c.deep); !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, want %q", c.part, got, c.want)
		}
	}
	const want = "a pipe or a device"
	if err := r.Read(t.Context(), b.ID, "b/pipe", io.Discard); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("read: %v", err)
	}
	if _, err := r.Restore(t.Context(), b.ID, t.TempDir(), RestoreOptions{Path: "b/pipe", KeepOwners: true}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("restored by itself: %v", err)
	}
}

// TestPipesInHiddenDirectories has directories whose names begin with a dot beside others of the same name without.
func TestPipesInHiddenDirectories(t *testing.T) {
	w := newWorld(t)
	r, dir := w.open(), t.TempDir()
	for _, name := range []string{".h", "h", ".h\xe9"} {
		write(t, dir+"/"+name+"/file", name)
		ok(t, unix.Mkfifo(dir+"/"+name+"/pipe", 0o640))
	}
	ok(t, unix.Mkfifo(dir+"/.pipe", 0o640))
	b := w.back(r, dir)
	var names []string
	for f, err := range r.Files(t.Context(), b.ID, "", true) {
		ok(t, err)
		names = append(names, f.Path)
	}
	escaped := ".tidemark-name..h%E9"
	if want := []string{".h", ".h/file", ".h/pipe", ".pipe", escaped, escaped + "/file", escaped + "/pipe", "h", "h/file", "h/pipe"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
	for _, name := range []string{".h/pipe", ".pipe", escaped + "/pipe"} {
		if err := r.Read(t.Context(), b.ID, name, io.Discard); err == nil || !strings.Contains(err.Error(), "a pipe or a device") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestModesAreThoseOfLs(t *testing.T) {
	for _, c := range []struct {
		mode os.FileMode
		want string
	}{
		{0o644, "-rw-r--r--"},
		{0, "----------"},
		{os.ModeDir | 0o755, "drwxr-xr-x"},
		{os.ModeDir | os.ModeSticky | 0o777, "drwxrwxrwt"},
		{os.ModeDir | os.ModeSticky | 0o770, "drwxrwx--T"},
		{os.ModeDir | os.ModeSetgid | 0o750, "drwxr-s---"},
		{os.ModeSetuid | 0o755, "-rwsr-xr-x"},
		{os.ModeSetuid | os.ModeSetgid | os.ModeSticky | 0o644, "-rwSr-Sr-T"},
		{os.ModeSymlink | 0o777, "lrwxrwxrwx"},
		{os.ModeNamedPipe | 0o600, "prw-------"},
		{os.ModeSocket | 0o600, "srw-------"},
		{os.ModeDevice | 0o660, "brw-rw----"},
		{os.ModeDevice | os.ModeCharDevice | 0o666, "crw-rw-rw-"},
	} {
		if have := lsMode(c.mode); have != c.want {
			t.Errorf("%v is %s, want %s", c.mode, have, c.want)
		}
	}
	if f := (&attribute{Path: "p", Special: "fifo", Mode: 0o3750}).file(); f.Mode != "prwxr-s--T" {
		t.Errorf("a pipe is %s", f.Mode)
	}
}
