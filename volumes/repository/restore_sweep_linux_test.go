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

func filesOf(t *testing.T, r *Repository, b *Result) string {
	t.Helper()
	var all []string
	for f, err := range r.Files(t.Context(), b.ID, "", true) {
		ok(t, err)
		all = append(all, f.Path)
	}
	return strings.Join(all, " ")
}
