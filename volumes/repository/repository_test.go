package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a location with its key.
type world struct {
	*testing.T
	store archive.Store
	id    *age.X25519Identity
}

func newWorld(t *testing.T) *world {
	id, err := age.GenerateX25519Identity()
	ok(t, err)
	store, err := archive.NewDirStore(t.TempDir())
	ok(t, err)
	return &world{t, store, id}
}

func (w *world) options() Options {
	return Options{Store: w.store, Cluster: "c1", Identities: []age.Identity{w.id}, Recipients: []age.Recipient{w.id.Recipient()}, CacheBytes: 16 << 20}
}

func (w *world) open() *Repository {
	w.Helper()
	r, err := Create(w.Context(), w.options())
	ok(w.T, err)
	w.Cleanup(func() { ok(w.T, r.Close(context.Background())) })
	return r
}

func (w *world) back(r *Repository, dir string) *Result {
	w.Helper()
	res, err := r.Back(w.Context(), Source{"shop", "data"}, dir, BackupOptions{Tags: func() (map[string]string, error) { return map[string]string{"backup": "x"}, nil }, image: true})
	ok(w.T, err)
	return res
}

func write(t *testing.T, path, text string) {
	t.Helper()
	ok(t, os.MkdirAll(filepath.Dir(path), 0o755))
	ok(t, os.WriteFile(path, []byte(text), 0o644))
}

// odd makes a tree with all that a volume can hold.
func odd(t *testing.T, dir string) {
	t.Helper()
	write(t, dir+"/a/plain", "hello")
	write(t, dir+"/a/.kopiaignore", "*")
	write(t, dir+"/empty", "")
	ok(t, os.MkdirAll(dir+"/a/none", 0o700))
	ok(t, os.Symlink("/etc/passwd", dir+"/outside"))
	ok(t, os.Symlink("nowhere", dir+"/a/dangling"))
	ok(t, os.Symlink("/", dir+"/a/root"))
	ok(t, os.Link(dir+"/a/plain", dir+"/z-linked"))
	ok(t, os.Link(dir+"/a/plain", dir+"/a/also"))
	write(t, dir+"/bin/run", "#!")
	ok(t, os.Chown(dir+"/bin/run", 1234, 4321))
	ok(t, os.Chmod(dir+"/bin/run", 0o755|os.ModeSetuid))
	ok(t, os.Chmod(dir+"/bin", 0o1777|os.ModeSticky))
	ok(t, os.Chmod(dir+"/empty", 0))
	ok(t, unix.Mkfifo(dir+"/a/pipe", 0o640))
	ok(t, unix.Mknod(dir+"/a/zero", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	for _, name := range []string{"bad\xff", "bad\xfe", "d\xe9/in\xe9side", "d\xe9/100%\xff", ".tidemark-name.bad%FF", ".tidemark-name.x", "d\ufffd"} {
		write(t, dir+"/a/"+name, name)
	}
	ok(t, os.Link(dir+"/a/bad\xff", dir+"/a/d\xe9/linked\xff"))
	ok(t, os.Symlink("bad\xff", dir+"/a/link\xff"))
	ok(t, unix.Mkfifo(dir+"/a/d\xe9/pipe\xff", 0o600))
	f, err := os.Create(dir + "/holes")
	ok(t, err)
	_, err = f.WriteAt([]byte("end"), 10<<20)
	ok(t, err)
	ok(t, f.Close())
	if err := unix.Setxattr(dir+"/a/plain", "user.colour", []byte("blue\x00"), 0); errors.Is(err, unix.ENOTSUP) {
		t.Skip("the directory for temporary files has no extended attributes: set TMPDIR to one that has")
	}
	ok(t, unix.Setxattr(dir+"/a/plain", "user.colour", []byte("blue\x00"), 0))
	ok(t, unix.Setxattr(dir+"/a/bad\xfe", "user.\xff", []byte("key"), 0))
	ok(t, unix.Setxattr(dir+"/a", "user.dir", []byte("yes"), 0))
	ok(t, unix.Setxattr(dir, "user.root", []byte("yes"), 0))
	ok(t, unix.Lsetxattr(dir+"/outside", "trusted.link", []byte("yes"), 0))
	old := time.Date(2020, 2, 29, 1, 2, 3, 123456789, time.UTC)
	for _, p := range []string{"/a/plain", "/a/none", "/a", "/holes", "/bin", ""} {
		ok(t, os.Chtimes(dir+p, old, old))
	}
}

// described lists a tree with all that is to come back.
func described(t *testing.T, dir string) map[string]string {
	t.Helper()
	all, inodes := map[string]string{}, map[uint64]string{}
	ok(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		var st unix.Stat_t
		ok(t, unix.Lstat(p, &st))
		text := fmt.Sprintf("mode %o owner %d:%d rdev %d", st.Mode, st.Uid, st.Gid, st.Rdev)
		text += fmt.Sprintf(" time %d", st.Mtim.Nano())
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			ok(t, err)
			text += fmt.Sprintf(" %d bytes %x sparse %t", len(b), b[max(0, len(b)-64):], st.Blocks*512 < st.Size)
			if st.Nlink > 1 {
				if inodes[st.Ino] == "" {
					inodes[st.Ino] = rel
				}
				text += " same as " + inodes[st.Ino]
			}
		case unix.S_IFLNK:
			to, err := os.Readlink(p)
			ok(t, err)
			text += " to " + to
		}
		buf := make([]byte, 4096)
		n, err := unix.Llistxattr(p, buf)
		ok(t, err)
		keys := strings.Split(string(buf[:n]), "\x00")
		slices.Sort(keys)
		for _, k := range keys {
			if k != "" {
				value := make([]byte, 4096)
				n, err := unix.Lgetxattr(p, k, value)
				ok(t, err)
				text += fmt.Sprintf(" %s=%q", k, value[:n])
			}
		}
		all[rel] = text
		return nil
	}))
	return all
}

func same(t *testing.T, got, want map[string]string) {
	t.Helper()
	for p, w := range want {
		if got[p] != w {
			t.Errorf("%q came back as\n  %s\nwant\n  %s", p, got[p], w)
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%q is there and should not be", p)
		}
	}
}

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners, devices and trusted attributes need root")
	}
}

func TestAllOfAFileComesBack(t *testing.T) {
	needRoot(t)
	w := newWorld(t)
	r, dir, to := w.open(), t.TempDir(), t.TempDir()
	odd(t, dir)
	want := described(t, dir)
	b := w.back(r, dir)
	_, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{})
	ok(t, err)
	same(t, described(t, to), want)

	// Over itself, and over other things that have its names.
	_, err = r.Restore(t.Context(), b.ID, to, RestoreOptions{DeleteExtra: true})
	ok(t, err)
	same(t, described(t, to), want)
	ok(t, os.RemoveAll(to+"/a"))
	victim := t.TempDir()
	write(t, victim+"/plain", "do not touch")
	ok(t, os.Symlink(victim, to+"/a"))
	ok(t, os.Remove(to+"/empty"))
	ok(t, os.Mkdir(to+"/empty", 0o755))
	write(t, to+"/extra/file", "more")
	write(t, to+"/holes", "other")
	ok(t, os.Remove(to+"/z-linked"))
	ok(t, os.Link(victim+"/plain", to+"/z-linked"))
	_, err = r.Restore(t.Context(), b.ID, to, RestoreOptions{DeleteExtra: true})
	ok(t, err)
	same(t, described(t, to), want)
	if text, err := os.ReadFile(victim + "/plain"); err != nil || string(text) != "do not touch" {
		t.Errorf("a restore wrote outside its target: %q, %v", text, err)
	}
}

func TestPartsComeBack(t *testing.T) {
	needRoot(t)
	w := newWorld(t)
	r, dir := w.open(), t.TempDir()
	odd(t, dir)
	b := w.back(r, dir)
	to := t.TempDir()
	_, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{Path: "/a"})
	ok(t, err)
	want := map[string]string{}
	for p, text := range described(t, dir) {
		if rest, found := strings.CutPrefix(p, "a/"); found {
			want[rest] = strings.ReplaceAll(text, "same as a/", "same as ")
		} else if p == "a" {
			want[""] = text
		}
	}
	same(t, described(t, to), want)

	to = t.TempDir()
	_, err = r.Restore(t.Context(), b.ID, to, RestoreOptions{Path: "z-linked"})
	ok(t, err)
	if text, err := os.ReadFile(to + "/z-linked"); err != nil || string(text) != "hello" {
		t.Errorf("one file came back as %q, %v", text, err)
	}
	var out bytes.Buffer
	ok(t, r.Read(t.Context(), b.ID, "a/plain", &out))
	if out.String() != "hello" {
		t.Errorf("read %q", out.String())
	}
	var names []string
	for f, err := range r.Files(t.Context(), b.ID, "a", true) {
		ok(t, err)
		names = append(names, f.Path)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return strings.Contains(name, escapedPrefix) || name == "a/d\ufffd" })
	if want := []string{"a/.kopiaignore", "a/also", "a/dangling", "a/none", "a/pipe", "a/plain", "a/root", "a/zero"}; !reflect.DeepEqual(names, want) {
		t.Errorf("files %v, want %v", names, want)
	}
	for path, want := range map[string]string{"a/.tidemark-name.d%E9/.tidemark-name.100%25%FF": "d\xe9/100%\xff", EscapePath("a/bad\xff"): "bad\xff"} {
		out.Reset()
		ok(t, r.Read(t.Context(), b.ID, path, &out))
		if out.String() != want {
			t.Errorf("%s reads as %q", path, out.String())
		}
	}
	if err := r.Read(t.Context(), b.ID, "outside", &out); err == nil || err.Error() != "outside is no file, but a symbolic link to /etc/passwd" {
		t.Error(err)
	}
	to = t.TempDir()
	_, err = r.Restore(t.Context(), b.ID, to, RestoreOptions{Path: EscapePath("a/d\xe9"), DeleteExtra: true})
	ok(t, err)
	if text, err := os.ReadFile(to + "/linked\xff"); err != nil || string(text) != "bad\xff" {
		t.Errorf("%q, %v", text, err)
	}
	for _, bad := range []string{"missing", "a/missing"} {
		if _, err := r.Restore(t.Context(), b.ID, to, RestoreOptions{Path: bad}); err == nil {
			t.Errorf("%s was restored", bad)
		}
	}
}

func TestUnchangedFilesAreNotReadAgain(t *testing.T) {
	w := newWorld(t)
	r, dir := w.open(), t.TempDir()
	for i := range 50 {
		write(t, fmt.Sprintf("%s/d%d/f%d", dir, i%7, i), strings.Repeat("x", i))
	}
	for i := range 5 { // are no files, neither when they are counted nor when they are unchanged
		ok(t, os.Symlink("x", fmt.Sprintf("%s/link%d", dir, i)))
		ok(t, unix.Mkfifo(fmt.Sprintf("%s/pipe%d", dir, i), 0o600))
	}
	if b := w.back(r, dir); b.Cached != 0 || b.Backup.Files != 50 {
		t.Errorf("first %+v", b)
	}
	write(t, dir+"/d1/new", "new")
	b := w.back(r, dir)
	if b.Cached != 50 || b.Backup.Files != 51 || b.Read > 10 {
		t.Errorf("second %+v", b)
	}
	all, err := r.List(t.Context())
	ok(t, err)
	if len(all) != 2 || all[1].ID != b.ID || all[1].Tags["backup"] != "x" || all[1].Source != (Source{"shop", "data"}) {
		t.Errorf("list %+v", all)
	}
}

func TestWhatCannotBeReadFailsTheBackup(t *testing.T) {
	w := newWorld(t)
	r, dir := w.open(), t.TempDir()
	write(t, dir+"/a", "a")
	// A setting that can only be written.
	if _, err := r.Back(t.Context(), Source{"shop", "data"}, "/proc/sys/net/ipv4/route", BackupOptions{}); !errors.Is(err, ErrIncomplete) || !strings.HasPrefix(err.Error(), ErrIncomplete.Error()) || !strings.Contains(err.Error(), "such as flush (") {
		t.Errorf("reading what cannot be read: %v", err)
	}
	if all, err := r.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("listed %v, %v", all, err)
	}
	if _, err := r.Back(t.Context(), Source{"shop", "data"}, dir+"/missing", BackupOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path that is not there: %v", err)
	}
}

func TestWhatIsNotBackedUp(t *testing.T) {
	w := newWorld(t)
	r, dir := w.open(), t.TempDir()
	write(t, dir+"/a", "a")
	own := strings.TrimPrefix(w.store.String(), "dir://")
	ok(t, os.Symlink(own, dir+"/link"))
	for path, want := range map[string]string{
		dir + "/a": "such as " + dir, "/dev/null": "neither a directory nor a block device",
		own: "its own files", filepath.Dir(own): "its own files", own + "/volumes": "its own files", own + "/volumes/c1/kopia": "its own files", dir + "/link": "its own files",
	} {
		if _, err := r.Back(t.Context(), Source{Name: path}, path, BackupOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestALockOfMaintenanceDoesNotStay(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	o.CacheDir = t.TempDir()
	r, err := Create(t.Context(), o)
	ok(t, err)
	maintain(t, r, true)
	ok(t, r.Close(t.Context()))
	if left, err := filepath.Glob(o.CacheDir + "/repository*"); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestCancelledBackupGoesOn(t *testing.T) {
	w := newWorld(t)
	r, dir := w.open(), t.TempDir()
	random := rand.NewChaCha8([32]byte{1})
	for i := range 40 {
		b := make([]byte, 1<<20)
		_, _ = random.Read(b)
		ok(t, os.WriteFile(fmt.Sprintf("%s/%02d", dir, i), b, 0o644))
	}
	ctx, cancel := context.WithCancel(t.Context())
	slow := w.options()
	slow.Store = Limited(slow.Store, 8<<20, 0)
	s, err := Create(t.Context(), slow)
	ok(t, err)
	time.AfterFunc(2*time.Second, cancel)
	if _, err := s.Back(ctx, Source{"shop", "data"}, dir, BackupOptions{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("a cancelled backup gave %v", err)
	}
	ok(t, s.Close(t.Context()))
	sent, _ := s.Traffic()
	b := w.back(r, dir)
	if sent < 4<<20 || b.Sent > 41<<20-sent/2 {
		t.Errorf("%d bytes were sent before it was cancelled, and %d after", sent, b.Sent)
	}
}

func TestUploadLimit(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	b := make([]byte, 12<<20)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(b)
	ok(t, os.WriteFile(dir+"/f", b, 0o644))
	o := w.options()
	o.Store = Limited(o.Store, 4<<20, 0)
	r, err := Create(t.Context(), o)
	ok(t, err)
	defer r.Close(context.Background())
	began := time.Now()
	w.back(r, dir)
	if took := time.Since(began); took < 2500*time.Millisecond {
		t.Errorf("12 MiB went out at 4 MiB/s in %s", took)
	}
}

// What a restore reads must not pile up on the disk that is for temporary files.
func TestARestoreKeepsLittleOfWhatItReads(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	content := make([]byte, 5*contentCacheBytes)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	ok(t, os.WriteFile(dir+"/large", content, 0o600))
	res := w.back(w.open(), dir)
	o := w.options()
	o.CacheDir = t.TempDir()
	r, err := Open(t.Context(), o)
	ok(t, err)
	defer func() { ok(t, r.Close(context.Background())) }()
	_, err = r.Restore(t.Context(), res.ID, t.TempDir(), RestoreOptions{})
	ok(t, err)
	var kept int64
	ok(t, filepath.Walk(o.CacheDir+"/cache/contents", func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			kept += info.Size()
		}
		return err
	}))
	if kept == 0 || kept > contentCacheBytes+8<<20 { // and one piece
		t.Errorf("%d bytes of content are kept, of %d", kept, len(content))
	}
}

func TestDevice(t *testing.T) {
	w := newWorld(t)
	r, dir := w.open(), t.TempDir()
	content := make([]byte, 5<<20)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(content[1<<20 : 3<<20])
	ok(t, os.WriteFile(dir+"/image", content, 0o644))
	b := w.back(r, dir+"/image")
	if b.Backup.Bytes != int64(len(content)) {
		t.Errorf("backed up %+v", b)
	}
	var out bytes.Buffer
	ok(t, r.Read(t.Context(), b.ID, deviceName, &out))
	if !bytes.Equal(out.Bytes(), content) {
		t.Error("the device's content is another one")
	}
}

func TestKeys(t *testing.T) {
	w := newWorld(t)
	if _, err := Open(t.Context(), w.options()); !errors.Is(err, ErrNoRepository) {
		t.Errorf("opened what is not there: %v", err)
	}
	var all sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs { // who comes first makes it
		all.Go(func() {
			r, err := Create(t.Context(), w.options())
			if err == nil {
				err = r.Close(t.Context())
			}
			errs[i] = err
		})
	}
	all.Wait()
	ok(t, errors.Join(errs...))

	other, err := age.GenerateX25519Identity()
	ok(t, err)
	o := w.options()
	o.Identities = []age.Identity{other}
	if _, err := Open(t.Context(), o); !errors.Is(err, archive.ErrKey) {
		t.Errorf("opened with another identity: %v", err)
	}
	rotated := w.options()
	rotated.Recipients = []age.Recipient{other.Recipient()}
	kept, err := w.store.Stat(t.Context(), "volumes/c1/keys/00000001.age")
	ok(t, err)
	text := make([]byte, kept.Size)
	ok(t, w.store.ReadAt(t.Context(), kept.Name, text, 0))
	for try := range 3 {
		if there, err := Rewrap(t.Context(), rotated); !there || (err == nil) != (try < 2) || err != nil && !errors.Is(err, archive.ErrKey) {
			t.Errorf("try %d: %v, %v", try, there, err)
		}
		if try == 0 { // it was cut off before the old one was removed
			ok(t, w.store.Create(t.Context(), "volumes/c1/keys/00000001.age", bytes.NewReader(text), kept.Size, archive.CreateOptions{}))
		}
	}
	r, err := Open(t.Context(), o)
	ok(t, err)
	ok(t, r.Close(t.Context()))
	if _, err := Open(t.Context(), w.options()); !errors.Is(err, archive.ErrKey) {
		t.Errorf("opened with the identity of before: %v", err)
	}
}

// files are the names in the location that hold content.
func (w *world) files(prefix string) (all []string) {
	w.Helper()
	for f, err := range w.store.List(w.Context(), "volumes/c1/kopia/"+prefix, "") {
		ok(w.T, err)
		all = append(all, f.Name)
	}
	return all
}

func TestForgottenContentIsFreed(t *testing.T) {
	w := newWorld(t)
	r, dir := w.open(), t.TempDir()
	b := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{4}).Read(b)
	ok(t, os.WriteFile(dir+"/f", b, 0o644))
	first := w.back(r, dir)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(b)
	ok(t, os.WriteFile(dir+"/f", b, 0o644))
	second := w.back(r, dir)
	before := len(w.files("p"))
	ok(t, r.Forget(t.Context(), first.ID, "0123456789abcdef0123456789abcdef"))
	maintain(t, r, false)
	if n := len(w.files("p")); n < before {
		t.Errorf("content was freed at once: %d packs of %d are left", n, before)
	}
	for try := 0; len(w.files("p")) >= before; try++ { // Kopia tells times to the second only, and is careful
		if try == 5 {
			t.Fatalf("%d packs of %d are left", len(w.files("p")), before)
		}
		time.Sleep(1100 * time.Millisecond)
		maintain(t, r, true)
	}
	if _, err := r.Get(t.Context(), first.ID); !errors.Is(err, ErrNoBackup) {
		t.Errorf("the forgotten one: %v", err)
	}
	to := t.TempDir()
	_, err := r.Restore(t.Context(), second.ID, to, RestoreOptions{})
	ok(t, err)
	if got, err := os.ReadFile(to + "/f"); err != nil || !bytes.Equal(got, b) {
		t.Errorf("the other one came back with %d bytes, %v", len(got), err)
	}
}

func TestDamageIsFound(t *testing.T) {
	w := newWorld(t)
	r, dir := w.open(), t.TempDir()
	random := rand.New(rand.NewPCG(6, 6))
	for i := range 20 {
		b := make([]byte, 100<<10)
		for j := range b {
			b[j] = byte(random.Uint32())
		}
		ok(t, os.WriteFile(fmt.Sprintf("%s/%02d", dir, i), b, 0o644))
	}
	w.back(r, dir)
	v, err := r.Verify(t.Context(), 100)
	ok(t, err)
	if len(v.Errors) > 0 || v.Read < 20*100<<10 {
		t.Errorf("whole, and verified as %+v", v)
	}
	ok(t, r.Close(t.Context()))
	packs := w.files("p")
	name := strings.TrimPrefix(w.store.String(), "dir://") + "/" + packs[0]
	pack, err := os.ReadFile(name)
	ok(t, err)
	for try := range 5 {
		damaged := bytes.Clone(pack)
		at := random.IntN(len(damaged) * 9 / 10) // its end is an index that Kopia has twice
		damaged[at] ^= 1 << random.IntN(8)
		ok(t, os.WriteFile(name, damaged, 0o600))
		r, err := Open(t.Context(), w.options())
		ok(t, err)
		v, err := r.Verify(t.Context(), 100)
		ok(t, err)
		if len(v.Errors) == 0 {
			t.Errorf("try %d: the flipped bit at %d of %d was not found: %+v", try, at, len(pack), v)
		}
		ok(t, r.Close(t.Context()))
	}
	ok(t, os.Remove(name))
	r, err = Open(t.Context(), w.options())
	ok(t, err)
	defer r.Close(context.Background())
	if v, err := r.Verify(t.Context(), 0); err != nil || len(v.Errors) == 0 {
		t.Errorf("a missing pack was not found: %+v, %v", v, err)
	}
}

// Who uses Kopia's command line too may have told it where to cache. That is not for us: two repositories would share the cache.
func TestCacheOfKopiasCommandLineIsNotUsed(t *testing.T) {
	theirs, data := t.TempDir(), t.TempDir()
	write(t, data+"/file", "hello")
	for range 2 { // each with a password of its own
		t.Setenv("KOPIA_CACHE_DIRECTORY", theirs)
		w := newWorld(t)
		w.back(w.open(), data)
	}
	entries, err := os.ReadDir(theirs)
	ok(t, err)
	if len(entries) > 0 {
		t.Errorf("%d files are in the cache of Kopia's command line", len(entries))
	}
}
