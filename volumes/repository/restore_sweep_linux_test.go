package repository

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What a restore that was killed left beside a file is not backed up, and the next restore removes it, unless another one is writing it.
func TestUnfinishedFiles(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	write(t, dir+"/a", "a")
	left := dir + "/" + unfinished + strings.Repeat("A", randomLength)
	busy := dir + "/" + unfinished + strings.Repeat("B", randomLength)
	write(t, left, "half")
	write(t, busy, "half")
	r := w.open()
	b := w.back(r, dir)
	if filesOf(t, r, b) != "a" {
		t.Errorf("%s are backed up", filesOf(t, r, b))
	}
	f, err := os.Open(busy)
	ok(t, err)
	defer f.Close()
	ok(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	_, err = r.Restore(t.Context(), b.ID, dir, RestoreOptions{})
	ok(t, err)
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("what was left is there: %v", err)
	}
	if _, err := os.Stat(busy); err != nil {
		t.Errorf("what is being written: %v", err)
	}
}

// What has the name of a link, a pipe or another name of a file stays until that is there. What a killed restore left of it is removed.
func TestLinksAreReplacedAtOnce(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	write(t, dir+"/file", "f")
	ok(t, os.Symlink("file", dir+"/symbolic"))
	ok(t, os.Link(dir+"/file", dir+"/hard"))
	ok(t, unix.Mkfifo(dir+"/pipe", 0o600))
	r := w.open()
	b := w.back(r, dir)
	for range 2 {
		p, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{})
		ok(t, err)
		if p.Files != b.Backup.Files || p.Bytes != b.Backup.Bytes {
			t.Errorf("%d files and %d bytes are restored, and %d and %d were backed up", p.Files, p.Bytes, b.Backup.Files, b.Backup.Bytes)
		}
	}
	left := []string{unfinished + strings.Repeat("A", randomLength), unfinished + strings.Repeat("B", randomLength), unfinished + strings.Repeat("C", randomLength)}
	ok(t, os.Symlink("file", to+"/"+left[0]))
	ok(t, os.Link(to+"/file", to+"/"+left[1]))
	ok(t, unix.Mkfifo(to+"/"+left[2], 0o600))
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK)
	ok(t, err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, to, unix.IN_DELETE)
	ok(t, err)
	_, err = r.Restore(t.Context(), b.ID, to, RestoreOptions{})
	ok(t, err)
	events := make([]byte, 64<<10)
	n, err := unix.Read(fd, events)
	ok(t, err)
	for _, name := range []string{"file", "symbolic", "hard", "pipe"} {
		if strings.Contains(string(events[:n]), "\x00"+name+"\x00") {
			t.Errorf("%s was removed before it was made anew", name)
		}
	}
	same(t, described(t, to), described(t, dir))
}

func filesOf(t *testing.T, r *Repository, b *Result) string {
	t.Helper()
	var all []string
	for f, err := range r.Files(t.Context(), b.ID, "", true) {
		ok(t, err)
		all = append(all, f.Path)
	}
	return strings.Join(all, " ")
}
