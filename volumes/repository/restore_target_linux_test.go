package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	kopiafs "github.com/kopia/kopia/fs"
	"golang.org/x/sys/unix"

	"github.com/tidemark-backup/tidemark/deploy/localdisk"
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

func TestMain(m *testing.M) {
	if again, code := localdisk.Isolate(); again {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// What a restore has written is there after a power cut, also where another disk is mounted in the target: a database that was begun on it would find nothing else.
func TestARestoreOutlivesAPowerCut(t *testing.T) {
	if !localdisk.Possible() {
		t.Skip(localdisk.Needs)
	}
	w, dir, base := newWorld(t), t.TempDir(), t.TempDir()
	for i := range 20 {
		write(t, fmt.Sprint(dir, "/data/", i), strings.Repeat("x", 10_000*i))
		write(t, fmt.Sprint(dir, "/log/", i), strings.Repeat("y", 1000*i))
	}
	r := w.open()
	b := w.back(r, dir)
	var disks []*localdisk.Disk
	for _, at := range []string{base + "/disk", base + "/disk/log"} {
		disk, err := localdisk.New(t.Context(), fmt.Sprint(base, "/", len(disks), ".img"), at)
		ok(t, err)
		defer func() { ok(t, disk.Close()) }()
		disks = append(disks, disk)
	}
	outer, err := os.Open(base + "/disk")
	ok(t, err)
	ok(t, errors.Join(outer.Sync(), outer.Close())) // it has the directory that the other is mounted at
	if p, err := r.Restore(t.Context(), b.ID, base+"/disk", RestoreOptions{}); err != nil || p.Files != 40 {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, disk := range disks {
		ok(t, disk.CutPower())
	}
	ok(t, disks[1].Unmount())
	ok(t, disks[0].Mount())
	ok(t, disks[1].Mount())
	for i := range 20 {
		for name, want := range map[string]int{fmt.Sprint("/data/", i): 10_000 * i, fmt.Sprint("/log/", i): 1000 * i} {
			if have, err := os.ReadFile(base + "/disk" + name); err != nil || len(have) != want || strings.Trim(string(have), "xy") != "" {
				t.Errorf("%s has %d bytes, want %d; %v", name, len(have), want, err)
			}
		}
	}
}

// Kopia's cache has files of no length then, and never looks at them again.
func TestACacheOutlivesAPowerCut(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	write(t, dir+"/name", "content")
	o := w.options()
	o.CacheDir = t.TempDir()
	r, err := Create(t.Context(), o)
	ok(t, err)
	b := w.back(r, dir)
	ok(t, r.Close(t.Context()))
	r, err = Open(t.Context(), o)
	ok(t, err)
	ok(t, r.Close(t.Context()))
	all, err := filepath.Glob(o.CacheDir + "/cache/indexes/*")
	if err != nil || len(all) == 0 {
		t.Fatalf("no indexes are cached: %v", err)
	}
	for _, name := range all {
		ok(t, os.Truncate(name, 0))
	}
	ok(t, CleanCache(o.CacheDir))
	r, err = Open(t.Context(), o)
	ok(t, err)
	defer func() { ok(t, r.Close(t.Context())) }()
	if p, err := r.Restore(t.Context(), b.ID, t.TempDir(), RestoreOptions{}); err != nil || p.Files != 1 {
		t.Errorf("%+v, %v", p, err)
	}
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
