package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kopia/kopia/repo/object"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// A pack that is gone must not be relied on by what is backed up later, and comes back by it as far as the volume still has its content.
func TestWhatIsLostIsWrittenAnew(t *testing.T) {
	for _, kind := range []string{"directories", "files", "the end of files"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			r, dir, other := w.open(), t.TempDir(), t.TempDir()
			large := make([]byte, 12<<20)
			_, _ = rand.NewChaCha8([32]byte{1}).Read(large)
			write(t, dir+"/a/large", string(large)) // of several contents
			for i := range 10 {
				write(t, fmt.Sprintf("%s/d%d/f%d", dir, i%3, i), strings.Repeat("x", 1000+i))
			}
			write(t, other+"/same", strings.Repeat("x", 1001))
			before := w.files("q")
			failed := errors.New("failed")
			if _, err := r.Back(t.Context(), Source{"shop", "data"}, dir, BackupOptions{Tags: func() (map[string]string, error) { return nil, failed }}); !errors.Is(err, failed) {
				t.Fatal(err) // so that manifests are in other packs than directories
			}
			lost := w.files("p")
			if kind == "directories" {
				lost = slices.DeleteFunc(w.files("q"), func(name string) bool { return slices.Contains(before, name) })
			}
			w.back(r, dir)
			_, err := r.Back(t.Context(), Source{"shop", "other"}, other, BackupOptions{})
			ok(t, err)
			if len(lost) == 0 {
				t.Fatal("nothing is lost")
			}
			for _, name := range lost {
				name = strings.TrimPrefix(w.store.String(), "dir://") + "/" + name
				if kind == "the end of files" {
					ok(t, os.Truncate(name, 1000))
				} else {
					ok(t, os.Remove(name))
				}
			}

			r = w.open() // without what is in the cache
			if v, err := r.Verify(t.Context(), 100); err == nil && len(v.Errors) == 0 {
				t.Error("nothing is damaged")
			}
			b := w.back(r, dir)
			if b.Cached != 0 || b.Backup.Files != 11 || b.Progress.Files != 11 {
				t.Errorf("%+v", b)
			}
			_, err = r.Back(t.Context(), Source{"shop", "other"}, other, BackupOptions{})
			ok(t, err)
			v, err := r.Verify(t.Context(), 100)
			ok(t, err)
			if len(v.Errors) > 0 {
				t.Errorf("damaged: %v", v.Errors)
			}
			to := t.TempDir()
			_, err = r.Restore(t.Context(), b.ID, to, RestoreOptions{})
			ok(t, err)
			same(t, described(t, to), described(t, dir))
			if c := w.back(r, dir); c.Cached != 11 {
				t.Errorf("of a backup that is whole, %d files were taken over", c.Cached)
			}
			maintain(t, r, true)
		})
	}
}

// flips are, for each piece of an entry of a backup, what flips a bit of it in the store, and flips it back.
func (w *world) flips(id, name string) (all []func()) {
	w.Helper()
	r := w.open()
	top, err := r.top(w.Context(), id)
	ok(w.T, err)
	e, err := r.inside(w.Context(), top, name)
	ok(w.T, err)
	contents, err := r.kopia.VerifyObject(w.Context(), e.(object.HasObjectID).ObjectID())
	ok(w.T, err)
	for _, c := range contents {
		info, err := r.kopia.ContentInfo(w.Context(), c)
		ok(w.T, err)
		var pack string
		for _, f := range append(w.files("p"), w.files("q")...) {
			if strings.Contains(f, string(info.PackBlobID)) {
				pack = w.path(f)
			}
		}
		all = append(all, func() {
			b, err := os.ReadFile(pack)
			ok(w.T, err)
			b[int(info.PackOffset)+int(info.PackedLength)/2] ^= 1
			ok(w.T, os.Chmod(pack, 0o600))
			ok(w.T, os.WriteFile(pack, b, 0o600))
		})
	}
	return all
}

// A damaged directory is in a pack that has backups as well, which cannot be moved away: a backup that reads all writes it anew.
func TestDamagedDirectoriesAreWrittenAnew(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	for i := range 10 {
		write(t, fmt.Sprintf("%s/d%d/f%d", dir, i%3, i), strings.Repeat("x", 1000+i))
	}
	first := w.back(w.open(), dir)
	other := t.TempDir()
	write(t, other+"/a", "a")
	_, err := w.open().Back(t.Context(), Source{"shop", "other"}, other, BackupOptions{})
	ok(t, err)

	// The next backup meets it.
	w.flips(first.ID, "d1")[0]()
	if v, err := w.open().Verify(t.Context(), 100); err != nil || !slices.Equal(v.Hit, []string{first.ID}) {
		t.Errorf("found %v, which hits %v, %v", v.Errors, v.Hit, err)
	}
	if b := w.back(w.open(), dir); b.Progress.Files != 10 {
		t.Errorf("%+v", b.Progress)
	}
	if v, err := w.open().Verify(t.Context(), 100); err != nil || len(v.Errors) > 0 {
		t.Errorf("damaged after the next backup: %v, %v", v.Errors, err)
	}

	// A backup that has none before it does not, unless it is to read all.
	w.flips(first.ID, "d1")[0]()
	second, err := w.open().Back(t.Context(), Source{"shop", "copy"}, dir, BackupOptions{})
	ok(t, err)
	v, err := w.open().Verify(t.Context(), 100)
	ok(t, err)
	if want := []string{first.ID, second.ID}; len(v.Errors) != 1 || !slices.Contains(v.Hit, want[0]) || !slices.Contains(v.Hit, want[1]) || len(v.Hit) != 3 {
		t.Errorf("found %v, which hits %v, want %v", v.Errors, v.Hit, want)
	}
	b, err := w.open().Back(t.Context(), Source{"shop", "data"}, dir, BackupOptions{ReadAll: true})
	ok(t, err)
	if v, err := w.open().Verify(t.Context(), 100); err != nil || len(v.Errors) > 0 {
		t.Errorf("damaged: %v, %v", v.Errors, err)
	}
	for _, id := range []string{first.ID, b.ID} {
		to := t.TempDir()
		_, err = w.open().Restore(t.Context(), id, to, RestoreOptions{})
		ok(t, err)
		same(t, described(t, to), described(t, dir))
	}
	maintain(t, w.open(), true)
	if c := w.back(w.open(), dir); c.Cached != 10 {
		t.Errorf("of a backup that is whole, %d files were taken over", c.Cached)
	}
}

// What is missing of a repository is not made anew: that would hide what is there.
func TestAMissingFileIsNotMadeAnew(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	write(t, dir+"/a", "a")
	b := w.back(w.open(), dir)
	for _, name := range []string{"keys/00000001.age", "kopia/kopia.repository"} {
		path := strings.TrimPrefix(w.store.String(), "dir://") + "/volumes/c1/" + name
		ok(t, os.Rename(path, filepath.Join(dir, "gone")))
		for _, open := range []func(context.Context, Options) (*Repository, error){Open, Create} {
			if _, err := open(t.Context(), w.options()); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), filepath.Dir(name)) {
				t.Errorf("without %s: %v", name, err)
			}
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was made anew", name)
		}
		ok(t, os.Rename(filepath.Join(dir, "gone"), path))
	}
	_, err := w.open().Restore(t.Context(), b.ID, t.TempDir(), RestoreOptions{KeepOwners: true})
	ok(t, err)
	if all, err := Clusters(t.Context(), w.store); err != nil || !slices.Equal(all, []string{"c1"}) {
		t.Errorf("clusters %v, %v", all, err)
	}
}

// Damage of the files that all else needs is told from a wrong key, with the file that it is.
func TestDamagedFirstFilesAreNoWrongKey(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	write(t, dir+"/a", "a")
	w.back(w.open(), dir)
	cut := func(b []byte) []byte { return b[:len(b)/2] }
	flip := func(after string) func(b []byte) []byte {
		return func(b []byte) []byte {
			i := bytes.Index(b, []byte(after)) + len(after) + 20
			if b[i]++; b[i] > 'z' || b[i] == '[' || b[i] == ':' {
				b[i] = 'A' // of base64
			}
			return b
		}
	}
	for what, c := range map[string]struct {
		name   string
		damage func([]byte) []byte
		kind   error
	}{
		"password cut":       {"keys/00000001.age", cut, ErrBroken},
		"password's end cut": {"keys/00000001.age", func(b []byte) []byte { return b[:len(b)-1] }, ErrBroken},
		"password empty":     {"keys/00000001.age", func([]byte) []byte { return nil }, ErrBroken},
		"password's MAC":     {"keys/00000001.age", flip("--- "), ErrBroken},
		"format cut":         {"kopia/kopia.repository", cut, ErrBroken},
		"format empty":       {"kopia/kopia.repository", func([]byte) []byte { return nil }, ErrBroken},
		"format flipped":     {"kopia/kopia.repository", flip(`"encryptedBlockFormat": "`), ErrBroken},
		"another's password": {"keys/00000001.age", func([]byte) []byte { return nil }, archive.ErrKey},
	} {
		path := w.path("volumes/c1/" + c.name)
		had, err := os.ReadFile(path)
		ok(t, err)
		o := w.options()
		broken := errors.Is(c.kind, ErrBroken)
		if broken {
			ok(t, os.WriteFile(path, c.damage(bytes.Clone(had)), 0o600))
		} else {
			o.Identities = newWorld(t).options().Identities
		}
		for _, open := range []func(context.Context, Options) (*Repository, error){Open, Create} {
			if _, err := open(t.Context(), o); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.name) || broken && !strings.Contains(err.Error(), "is damaged") {
				t.Errorf("%s: %v", what, err)
			}
		}
		ok(t, os.WriteFile(path, had, 0o600))
	}
}

// deniedStore can be read only.
type deniedStore struct{ archive.Store }

func (d deniedStore) Create(context.Context, string, io.ReaderAt, int64, archive.CreateOptions) error {
	return fmt.Errorf("write: %w: %w: ask who owns it", archive.ErrDenied, fs.ErrPermission)
}

func TestADeniedWriteIsToldOnce(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	write(t, dir+"/a", "a")
	w.open()
	o := w.options()
	o.Store = deniedStore{o.Store}
	r, err := Create(t.Context(), o)
	ok(t, err)
	defer r.Close(context.Background())
	_, err = r.Back(t.Context(), Source{"shop", "data"}, dir, BackupOptions{})
	if want := "repository of volumes in " + w.store.String() + ": write: the store denies access: permission denied: ask who owns it"; err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
}
