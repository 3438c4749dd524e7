package repository

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	kopiafs "github.com/kopia/kopia/fs"
	"golang.org/x/sys/unix"
)

// looked is a directory of which something happens when one of its directories is looked into.
type looked struct {
	kopiafs.Directory
	name string
	do   func() error
}

func (l *looked) Iterate(ctx context.Context) (kopiafs.DirectoryIterator, error) {
	var all []kopiafs.Entry
	err := kopiafs.IterateEntries(ctx, l.Directory, func(_ context.Context, e kopiafs.Entry) error {
		if e.Name() == l.name {
			e = &looked{e.(kopiafs.Directory), "", l.do}
		}
		all = append(all, e)
		return nil
	})
	if err == nil && l.name == "" {
		err = l.do()
	}
	return kopiafs.StaticIterator(all, nil), err
}

// A file system that can no longer be written to, as after an error of its disk, fails the restore: it is no matter of single files.
func TestTargetThatTurnsReadOnly(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	mountAt(t, to, "1m")
	for _, name := range []string{"a", "b", "c"} {
		write(t, dir+"/"+name+"/name", name)
	}
	r := w.open()
	b := w.back(r, dir)
	top, err := r.top(t.Context(), b.ID)
	ok(t, err)
	root := &looked{top.(kopiafs.Directory), "b", func() error { return unix.Mount("tmpfs", to, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, "") }}
	if p, err := r.restoreTree(t.Context(), root, to, RestoreOptions{Parallel: 1}); !errors.Is(err, unix.EROFS) || errors.Is(err, ErrPartly) {
		t.Errorf("%+v, %v", p, err)
	}
}

// What the store refuses is not taken for something that the target does.
func TestStoreThatRefusesIsNoTarget(t *testing.T) {
	for _, extra := range []bool{false, true} {
		w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
		write(t, dir+"/a/name", "a")
		write(t, dir+"/b/name", "b")
		r := w.open()
		b := w.back(r, dir)
		top, err := r.top(t.Context(), b.ID)
		ok(t, err)
		root := &looked{top.(kopiafs.Directory), "a", func() error {
			return r.storage.note(t.Context(), &fs.PathError{Op: "read", Path: "kopia/q1", Err: unix.EACCES})
		}}
		if p, err := r.restoreTree(t.Context(), root, to, RestoreOptions{DeleteExtra: extra}); err == nil || errors.Is(err, ErrPartly) {
			t.Errorf("delete extra %v: %+v, %v", extra, p, err)
		}
	}
}

// A name that can be no hard link has the content itself.
func TestLinkIntoAnotherFileSystem(t *testing.T) {
	w, dir, to := newWorld(t), t.TempDir(), t.TempDir()
	write(t, dir+"/a/name", "one file")
	ok(t, os.Mkdir(dir+"/b", 0o700))
	ok(t, os.Link(dir+"/a/name", dir+"/b/name"))
	mountAt(t, to+"/b", "1m")
	r := w.open()
	p, err := r.Restore(t.Context(), w.back(r, dir).ID, to, RestoreOptions{})
	if err != nil || p.Missed != 1 || p.Lost != 0 {
		t.Errorf("%+v, %v", p, err)
	}
	if have, err := os.ReadFile(to + "/b/name"); string(have) != "one file" {
		t.Errorf("%q, %v", have, err)
	}
}

// Nothing that is put in the place of a pipe has its mode changed, and no link there is followed.
func TestModeOfAPipeFollowsNoLink(t *testing.T) {
	to := t.TempDir()
	write(t, to+"/secret", "s")
	ok(t, os.Chmod(to+"/secret", 0o600))
	ok(t, os.Symlink("secret", to+"/pipe"))
	dir, err := os.Open(to)
	ok(t, err)
	defer dir.Close()
	if err := chmodSpecial(dir, "pipe", unix.S_IFIFO, 0o666); !errors.As(err, new(*refusal)) || !strings.Contains(err.Error(), "something else") {
		t.Error(err)
	}
	if info, err := os.Stat(to + "/secret"); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
