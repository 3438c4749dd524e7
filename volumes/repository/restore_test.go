package repository

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/kopia/kopia/snapshot"
)

// What a file system or a user cannot have is told, and keeps nothing from coming back.
func TestWhatTheTargetCannotHave(t *testing.T) {
	w := newWorld(t)
	r, dir, to := w.open(), t.TempDir(), t.TempDir()
	for i := range 15 {
		write(t, fmt.Sprintf("%s/f%02d", dir, i), "content")
	}
	source := Source{"shop", "data"}
	b, err := r.write(t.Context(), source.info("c1"), BackupOptions{}, func(s *session) (*snapshot.Manifest, error) {
		root, kept, done, err := openTree(dir, false)
		ok(t, err)
		defer func() { ok(t, done()) }()
		m, err := r.upload(s, root, kept, BackupOptions{})
		ok(t, err)
		for i := range 15 {
			name := fmt.Sprintf("f%02d", i)
			ok(t, kept.keep(attribute{Path: name, Xattrs: map[string][]byte{"unknown.here": []byte("x")}}, inode{}))
		}
		return m, addAttributes(t.Context(), s.w, m, kept)
	})
	ok(t, err)
	p, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{})
	ok(t, err)
	if p.Files != 15 || p.Missed != 15 || len(p.MissedFirst) != missedNames || !strings.Contains(p.MissedFirst[0], "extended attribute unknown.here: operation not supported") {
		t.Errorf("%+v", p)
	}
	same(t, described(t, to), described(t, dir))
}

// What is in the target and not in the backup stays, unless it is to go.
func TestDirectoriesAreNotReplacedByFiles(t *testing.T) {
	w := newWorld(t)
	r, dir, to := w.open(), t.TempDir(), t.TempDir()
	write(t, dir+"/a", "file")
	ok(t, os.Symlink("x", dir+"/b"))
	b := w.back(r, dir)
	for _, name := range []string{"a", "b"} {
		ok(t, os.RemoveAll(to))
		write(t, to+"/"+name+"/inner", "mine")
		if _, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{}); err == nil || !strings.Contains(err.Error(), name+" is a directory with files in the target, and none in the backup: --delete-extra replaces it") {
			t.Errorf("%v", err)
		}
		if text, err := os.ReadFile(to + "/" + name + "/inner"); err != nil || string(text) != "mine" {
			t.Errorf("%q, %v", text, err)
		}
	}
	write(t, to+"/more", "x")
	if p, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{DeleteExtra: true}); err != nil || p.Removed != 3 {
		t.Errorf("%+v, %v", p, err)
	}
	same(t, described(t, to), described(t, dir))
	to += "/new"
	if _, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{Path: "misspelt"}); err == nil || strings.Contains(err.Error(), b.ID) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(to); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a restore of nothing made its target: %v", err)
	}
}
