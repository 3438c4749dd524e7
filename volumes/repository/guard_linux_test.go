package repository

import (
	"bytes"
	"crypto/rand"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
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

// mountAt mounts an empty file system of a size at a directory, for the time of a test.
func mountAt(t *testing.T, dir, size string) {
	t.Helper()
	ok(t, os.MkdirAll(dir, 0o700))
	if err := unix.Mount("none", dir, "tmpfs", 0, "size="+size); errors.Is(err, unix.EPERM) {
		t.Skip("mounting needs root")
	} else {
		ok(t, err)
	}
	t.Cleanup(func() { ok(t, unix.Unmount(dir, 0)) })
}

// What is mounted below the target is not emptied; the rest comes back.
func TestMountsBelowATargetStay(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	write(t, dir+"/a", "a")
	ok(t, os.MkdirAll(dir+"/known/mount/below", 0o755)) // as a backup of one file system has it
	r := w.open()
	b := w.back(r, dir)
	mounts := []string{to + "/deep/mount", to + "/known/mount"}
	for _, mount := range mounts {
		mountAt(t, mount, "1m")
		write(t, mount+"/precious", "p")
		write(t, mount+"/below/precious", "p")
	}
	mountFile(t, to+"/file")
	ok(t, os.Mkdir(to+"/bound", 0o700)) // of the same file system as the target
	bound := t.TempDir()
	ok(t, unix.Mount(bound, to+"/bound", "", unix.MS_BIND, ""))
	t.Cleanup(func() { ok(t, unix.Unmount(to+"/bound", 0)) })
	write(t, bound+"/precious", "p")
	mounts = append(mounts, to+"/bound", to+"/known/mount/below")
	write(t, to+"/deep/extra", "e")
	write(t, to+"/more/extra", "e")
	p, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{DeleteExtra: true})
	ok(t, err)
	if p.Removed != 3 || p.Missed != 0 || p.Lost != 0 || !slices.Equal(p.Mounts, []string{"bound", "deep/mount", "file", "known/mount"}) {
		t.Errorf("%+v", p)
	}
	for _, mount := range mounts {
		if b, err := os.ReadFile(mount + "/precious"); err != nil || string(b) != "p" {
			t.Errorf("what is mounted at %s has %q, %v", mount, b, err)
		}
	}
	if b, err := os.ReadFile(to + "/a"); err != nil || string(b) != "a" {
		t.Errorf("restored %q, %v", b, err)
	}
}

// mountFile makes a file that cannot be replaced, as it is a mount point.
func mountFile(t *testing.T, at string) {
	t.Helper()
	precious := t.TempDir() + "/precious"
	write(t, precious, "precious")
	write(t, at, "below")
	if err := unix.Mount(precious, at, "", unix.MS_BIND, ""); errors.Is(err, unix.EPERM) {
		t.Skip("mounting needs root")
	} else {
		ok(t, err)
	}
	t.Cleanup(func() { ok(t, unix.Unmount(at, 0)) })
}

// What the target does not let go of costs no other, and is told.
func TestWhatCannotBeReplacedCostsNoOthers(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	for _, name := range []string{"file", "dir/below", "dir/deep/below", "first", "x/y", "z"} {
		write(t, dir+"/"+name, name)
	}
	ok(t, os.Symlink("z", dir+"/link"))
	ok(t, os.Link(dir+"/first", dir+"/hard"))
	ok(t, os.Link(dir+"/dir/below", dir+"/x/hard"))
	ok(t, os.Link(dir+"/z", dir+"/dir/hard"))
	ok(t, unix.Mkfifo(dir+"/pipe", 0o600))
	r := w.open()
	b := w.back(r, dir)
	stays := []string{"file", "dir", "link", "hard", "pipe"}
	for _, name := range stays {
		mountFile(t, to+"/"+name)
	}
	p, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{})
	if !errors.Is(err, ErrPartly) || p.Lost != 5 || !strings.Contains(err.Error(), "the target keeps dir/, ") || strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "all else is back") {
		t.Errorf("%+v, %v", p, err)
	}
	for _, name := range stays {
		if have, err := os.ReadFile(to + "/" + name); err != nil || string(have) != "precious" {
			t.Errorf("%s has %q, %v", name, have, err)
		}
	}
	for _, name := range []string{"first", "x/y", "x/hard", "z"} {
		want := name
		if name == "x/hard" {
			want = "dir/below" // whose first name cannot be made
		}
		if have, err := os.ReadFile(to + "/" + name); err != nil || string(have) != want {
			t.Errorf("%s: %q, %v", name, have, err)
		}
	}
	if names, err := filepath.Glob(to + "/*"); err != nil || len(names) != 8 {
		t.Errorf("the target has %q, %v", names, err)
	}
}

// What is mounted below a path is backed up with it, unless one file system is all that is wanted: then its directory comes back empty.
func TestMountsBelowAPath(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	mountAt(t, dir+"/a/mount", "1m")
	write(t, dir+"/a/here", "h")
	write(t, dir+"/a/mount/there", "t")
	write(t, dir+"/a/mount/deep/there", "t")
	r := w.open()
	for _, one := range []bool{false, true, false} { // the last one has to look again
		b, err := r.Back(t.Context(), Source{"shop", "data"}, dir, BackupOptions{OneFileSystem: one})
		ok(t, err)
		var have []string
		for f, err := range r.Files(t.Context(), b.ID, "", true) {
			ok(t, err)
			have = append(have, f.Path)
		}
		want := []string{"a", "a/here", "a/mount"}
		if !one {
			want = append(want, "a/mount/deep", "a/mount/deep/there", "a/mount/there")
		}
		if !slices.Equal(have, want) {
			t.Errorf("one file system: %v: %v, want %v", one, have, want)
		}
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
	for _, name := range []string{"a/rotten", "z-linked"} { // it is read for one of the two only
		write(t, to+"/"+name, "newer")
	}
	p, err := w.open().Restore(t.Context(), b.ID, to, RestoreOptions{})
	if err == nil || !strings.Contains(err.Error(), "a/rotten, z-linked is damaged") {
		t.Errorf("%v, %+v", err, p)
	}
	for name, want := range map[string]string{"a/a": "a/a", "a/z": "a/z", "b": "b", "a/rotten": "newer", "z-linked": "newer"} {
		if have, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(have) != want {
			t.Errorf("%s: %.20q, %v", name, have, err)
		}
	}
}

// Damage that is found when much of a file is written already costs nothing that is there, neither the file nor its other names.
func TestWhatIsThereStaysUntilTheNewIsRead(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	noise := make([]byte, 24<<20) // some pieces
	_, _ = rand.Read(noise)
	ok(t, os.WriteFile(dir+"/large", noise, 0o600))
	write(t, dir+"/small", "small")
	b := w.back(w.open(), dir)
	mend := w.spoilLate(b.ID, "large")
	write(t, to+"/large", "newer")
	write(t, to+"/small", "newer")
	ok(t, os.Link(to+"/large", to+"/mine"))
	if _, err := w.open().Restore(t.Context(), b.ID, to, RestoreOptions{}); err == nil || !strings.Contains(err.Error(), "content of large is damaged") {
		t.Errorf("%v", err)
	}
	has := func(when string, want map[string]string) {
		t.Helper()
		all, err := os.ReadDir(to)
		ok(t, err)
		if len(all) != len(want) {
			t.Errorf("%s: the target has %v", when, all)
		}
		for name, text := range want {
			if have, err := os.ReadFile(to + "/" + name); err != nil || string(have) != text {
				t.Errorf("%s: %s: %.20q, %v", when, name, have, err)
			}
		}
	}
	has("damaged", map[string]string{"large": "newer", "mine": "newer", "small": "small"})
	mend()
	write(t, to+"/"+unfinished+strings.Repeat("A", 26), "of a restore that was killed")
	_, err := w.open().Restore(t.Context(), b.ID, to, RestoreOptions{})
	ok(t, err)
	has("mended", map[string]string{"large": string(noise), "mine": "newer", "small": "small"})
}

// A file that is there stays when there is no room for it and its new content, and the error says what to do.
func TestNoRoomForBothIsTold(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	mountAt(t, to, "5m")
	noise := make([]byte, 3<<20)
	_, _ = rand.Read(noise)
	ok(t, os.WriteFile(dir+"/large", noise, 0o600))
	r := w.open()
	b := w.back(r, dir)
	old := strings.Repeat("old", 1<<20)
	write(t, to+"/large", old)
	if _, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{}); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "takes room for both: make room or remove that file") {
		t.Errorf("%v", err)
	}
	if have, err := os.ReadFile(to + "/large"); err != nil || string(have) != old {
		t.Errorf("%.20q, %v", have, err)
	}
	ok(t, os.Remove(to+"/large"))
	filler := strings.Repeat("f", 3<<20)
	write(t, to+"/filler", filler)
	if _, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{}); !errors.Is(err, unix.ENOSPC) || !strings.HasSuffix(err.Error(), "make room, and run the same command again, which goes on where this one ended") {
		t.Errorf("%v", err)
	}
	ok(t, os.Remove(to+"/filler"))
	_, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{})
	ok(t, err)
}

// Kopia holds times as nanoseconds since 1970 in 64 bits.
func TestTimesFarAwayComeBack(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	mountAt(t, dir, "1m") // which keeps any
	mountAt(t, to, "1m")
	ok(t, os.Mkdir(dir+"/d", 0o700))
	write(t, dir+"/d/late", "x")
	write(t, dir+"/d/never", "x")
	ok(t, os.Link(dir+"/d/late", dir+"/d/linked"))
	ok(t, os.Symlink("late", dir+"/d/link"))
	ok(t, unix.Mkfifo(dir+"/d/pipe", 0o600))
	want := map[string]int64{"d/late": 20_000_000_000, "d/linked": 20_000_000_000, "d/link": -20_000_000_000, "d/pipe": 30_000_000_000, "d/never": 1 << 40, "d": 20_000_000_001}
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(want))) {
		at := []unix.Timespec{{Sec: want[name], Nsec: 5}, {Sec: want[name], Nsec: 5}}
		ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/"+name, at, unix.AT_SYMLINK_NOFOLLOW))
	}
	want["d/never"] = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC).Unix()
	r := w.open()
	for range 2 { // the second one has one to compare with
		b := w.back(r, dir)
		_, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{})
		ok(t, err)
		for name, at := range want {
			var st unix.Stat_t
			ok(t, unix.Lstat(to+"/"+name, &st))
			if st.Mtim.Sec != at || name != "d/never" && st.Mtim.Nsec != 5 {
				t.Errorf("%s has the time %d.%d, want %d.5", name, st.Mtim.Sec, st.Mtim.Nsec, at)
			}
		}
		for f, err := range r.Files(t.Context(), b.ID, "", true) {
			ok(t, err)
			if f.Modified.Unix() != want[f.Path] {
				t.Errorf("%s is listed with %s, want %s", f.Path, f.Modified, time.Unix(want[f.Path], 0).UTC())
			}
		}
	}
}

// spoilLate damages a large file in the repository at a place that is read after its beginning was. mend takes that back.
func (w *world) spoilLate(id, name string) (mend func()) {
	w.Helper()
	for _, flip := range w.flips(id, name) {
		flip()
		var read bytes.Buffer
		if err := w.open().Read(w.Context(), id, name, &read); err != nil && read.Len() > 2*copySize {
			return flip
		}
		flip()
	}
	w.Fatal("no piece of it comes late")
	return nil
}
