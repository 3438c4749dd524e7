package repository

import (
	"errors"
	"io/fs"
	"os"
	"testing"
	"time"
)

// What a killed process left is removed by the next one; nothing that is in use, new, or another user's.
func TestTemporaryDirectoriesOfTheDeadGo(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	old := time.Now().Add(-time.Hour)
	left := func(name string, uid int) string {
		dir := os.TempDir() + "/" + name
		write(t, dir+"/cache/x", "x")
		ok(t, os.Lchown(dir, uid, -1))
		ok(t, os.Chtimes(dir, old, old))
		return dir
	}
	used, done, err := newTemporary()
	ok(t, err)
	ok(t, os.Chtimes(used, old, old))
	dead := left(temporary+"dead", os.Geteuid())
	kept := []string{used, left("tidemark-volumes-of-before", os.Geteuid()), os.TempDir() + "/" + temporary + "new"}
	ok(t, os.Mkdir(kept[2], 0o700))
	if os.Geteuid() == 0 {
		kept = append(kept, left(temporary+"other", 1234))
	}
	outside := t.TempDir()
	ok(t, os.Symlink(outside, os.TempDir()+"/"+temporary+"link"))
	kept = append(kept, outside)

	w, dir := newWorld(t), t.TempDir()
	write(t, dir+"/a", "a")
	w.back(w.open(), dir)
	if _, err := os.Stat(dead); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", dead, err)
	}
	for _, dir := range kept {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
	done()
	if _, err := os.Stat(used); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", used, err)
	}
}
