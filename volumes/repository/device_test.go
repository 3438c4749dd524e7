package repository

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/fs/virtualfs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"pgregory.net/rapid"
)

const mib = 1 << 20

// image is a device, and what a driver would know of it.
type image struct {
	path    string
	content []byte
	written []Run // since the last backup, in no order
}

func (d *image) write(rng *rand.ChaCha8, offset, length int64) {
	length = min(length, int64(len(d.content))-offset)
	_, _ = rng.Read(d.content[offset : offset+length])
	d.written = append(d.written, Run{offset, offset + length})
}

// list is the driver's list of blocks of 64 KiB that were written to.
func (d *image) list(t fataler, base string) *Blocks {
	const block = 64 << 10
	b := &Blocks{Base: base, Size: int64(len(d.content))}
	for at := int64(0); at < b.Size; at += block {
		for _, w := range d.written {
			if w.Start < at+block && at < w.End {
				if err := b.Add(at, block); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
	}
	d.written = nil
	return b
}

type fataler interface{ Fatal(args ...any) }

func (w *world) device(r *Repository, d *image, b *Blocks) *Result {
	w.Helper()
	ok(w.T, os.WriteFile(d.path, d.content, 0o600))
	res, err := r.Back(w.Context(), Source{"shop", "raw"}, d.path, BackupOptions{Blocks: b, image: true})
	ok(w.T, err)
	return res
}

// holds fails unless a backup has just this content.
func (w *world) holds(r *Repository, id string, want []byte) {
	w.Helper()
	var have bytes.Buffer
	ok(w.T, r.Read(w.Context(), id, deviceName, &have))
	if !bytes.Equal(have.Bytes(), want) {
		w.Fatalf("backup %s holds other bytes", id)
	}
}

// TestBlocks backs up what a list says has changed: what was not in the list is taken over, and not read.
func TestBlocks(t *testing.T) {
	w := newWorld(t)
	r, rng := w.open(), rand.NewChaCha8([32]byte{7})
	d := &image{path: filepath.Join(t.TempDir(), "image"), content: make([]byte, 20*mib+12345)}
	d.write(rng, 3*mib+5, 2*mib)
	d.write(rng, 20*mib+12000, 345)
	first := w.device(r, d, d.list(t, ""))
	if first.Read != 3*mib+12345 || first.Progress.Bytes != int64(len(d.content)) || first.Backup.Bytes != int64(len(d.content)) || first.Backup.Files != 1 {
		t.Errorf("the first backup: %+v", first)
	}
	w.holds(r, first.ID, d.content)
	before := bytes.Clone(d.content)

	d.write(rng, 9*mib-1, 2)
	second := w.device(r, d, d.list(t, first.ID))
	if second.Read != 2*mib || second.Whole != "" || second.Sent > 3*mib {
		t.Errorf("the second backup: %+v", second)
	}
	w.holds(r, second.ID, d.content)
	w.holds(r, first.ID, before)

	d.written = nil
	third := w.device(r, d, d.list(t, second.ID))
	if third.Read != 0 {
		t.Errorf("nothing has changed, and %d bytes were read", third.Read)
	}
	w.holds(r, third.ID, d.content)
	found, err := r.Verify(t.Context(), 100)
	if ok(t, err); len(found.Errors) > 0 || found.Read != 2*int64(len(d.content)) { // the third is the same object as the second
		t.Errorf("%+v", found)
	}
	// The one that the others were made from is deleted, and its content freed: theirs stays.
	ok(t, r.Forget(t.Context(), first.ID))
	maintain(t, r, true)
	w.holds(r, third.ID, d.content)
	out := filepath.Join(t.TempDir(), "out")
	_, err = r.Restore(t.Context(), third.ID, out, RestoreOptions{KeepOwners: true})
	ok(t, err)
	if have, err := os.ReadFile(filepath.Join(out, deviceName)); err != nil || !bytes.Equal(have, d.content) {
		t.Errorf("it is restored as something else (%v)", err)
	}
}

// TestBlocksAudit has a list leave out what has changed: an audit finds it, and the backup is right all the same.
func TestBlocksAudit(t *testing.T) {
	w := newWorld(t)
	r, rng := w.open(), rand.NewChaCha8([32]byte{8})
	d := &image{path: filepath.Join(t.TempDir(), "image"), content: make([]byte, 8*mib)}
	d.write(rng, 0, 5*mib)
	first := w.device(r, d, d.list(t, ""))
	d.write(rng, 2*mib, 100)
	b := d.list(t, first.ID)
	b.Audit = true
	if right := w.device(r, d, b); right.Wrong != 0 || right.Read != 8*mib {
		t.Errorf("a list that is right: %+v", right)
	}
	d.write(rng, 3*mib, 100)
	d.write(rng, 6*mib, 1)
	b.Runs = b.Runs[:1]
	lie := w.device(r, d, b)
	if lie.Wrong != 2*mib {
		t.Errorf("a list that leaves two pieces out: %+v", lie)
	}
	w.holds(r, lie.ID, d.content)
}

// What a device shares with a backup that is damaged is read and written anew, though its list says that it has not changed.
func TestBlocksThatAreLost(t *testing.T) {
	w := newWorld(t)
	r, rng := w.open(), rand.NewChaCha8([32]byte{10})
	d := &image{path: filepath.Join(t.TempDir(), "image"), content: make([]byte, 6*mib)}
	d.write(rng, 0, 5*mib)
	first := w.device(r, d, d.list(t, ""))
	for _, name := range w.files("p") {
		ok(t, os.Remove(strings.TrimPrefix(w.store.String(), "dir://")+"/"+name))
	}
	d.written = nil
	d.write(rng, mib, 10)
	r = w.open()
	second := w.device(r, d, d.list(t, first.ID))
	if second.Whole == "" || second.Read != 6*mib || second.Progress.Bytes != 6*mib {
		t.Errorf("%+v", second)
	}
	w.holds(r, second.ID, d.content)
}

// TestBlocksThatCannotBeUsed: all is read, and the result says why.
func TestBlocksThatCannotBeUsed(t *testing.T) {
	w := newWorld(t)
	r, rng := w.open(), rand.NewChaCha8([32]byte{9})
	d := &image{path: filepath.Join(t.TempDir(), "image"), content: make([]byte, 4*mib)}
	d.write(rng, 0, 4*mib)
	stream := w.stream(r, d.content)
	good := w.device(r, d, nil)
	grown := &image{path: d.path, content: append(bytes.Clone(d.content), make([]byte, mib)...)}
	forgotten := w.device(r, d, nil)
	ok(t, r.Forget(t.Context(), forgotten.ID))
	for name, c := range map[string]struct {
		d    *image
		b    Blocks
		want string
	}{
		"another size":        {d, Blocks{Base: good.ID, Size: 5 * mib}, "5242880 bytes"},
		"a base of less":      {grown, Blocks{Base: good.ID, Size: 5 * mib}, "has 4194304 bytes"},
		"a base that is gone": {d, Blocks{Base: forgotten.ID, Size: 4 * mib}, ErrNoBackup.Error()},
		"a base of before":    {d, Blocks{Base: stream, Size: 4 * mib}, "older version"},
		"no order":            {d, Blocks{Base: good.ID, Size: 4 * mib, Runs: []Run{{2 * mib, 3 * mib}, {0, mib}}}, ErrBlocks.Error()},
		"outside":             {d, Blocks{Base: good.ID, Size: 4 * mib, Runs: []Run{{3 * mib, 5 * mib}}}, ErrBlocks.Error()},
	} {
		res := w.device(r, c.d, &c.b)
		if !strings.Contains(res.Whole, c.want) || res.Read != int64(len(c.d.content)) {
			t.Errorf("%s: %q, %d bytes read", name, res.Whole, res.Read)
		}
		w.holds(r, res.ID, c.d.content)
	}
	w.holds(r, stream, d.content)
}

// stream backs a device up as versions before pieces did.
func (w *world) stream(r *Repository, content []byte) string {
	w.Helper()
	root := virtualfs.NewStaticDirectory(".", []fs.Entry{virtualfs.StreamingFileFromReader(deviceName, io.NopCloser(bytes.NewReader(content)))})
	res, err := r.write(w.Context(), Source{"shop", "raw"}.info("c1"), BackupOptions{}, func(s *session) (*snapshot.Manifest, error) {
		return r.upload(s, root, &attributes{}, BackupOptions{})
	})
	ok(w.T, err)
	return res.ID
}

func TestBlocksAdd(t *testing.T) {
	b := &Blocks{Size: 10*mib + 10}
	for _, c := range []struct {
		offset, length int64
		good           bool
	}{
		{0, 1, true},
		{mib - 1, 1, true},
		{mib - 1, 1, false}, // again
		{3 * mib, 0, false},
		{4*mib + 1, 2 * mib, true},
		{10*mib + 5, 64 << 10, true}, // the last block is as long as the others
		{10*mib + 10, 1, false},
	} {
		if err := b.Add(c.offset, c.length); (err == nil) != c.good {
			t.Errorf("%d bytes at %d: %v", c.length, c.offset, err)
		}
	}
	want := []Run{{0, mib}, {4 * mib, 7 * mib}, {10 * mib, 10*mib + 10}}
	if len(b.Runs) != 3 || b.Runs[0] != want[0] || b.Runs[1] != want[1] || b.Runs[2] != want[2] {
		t.Errorf("%v", b.Runs)
	}
	for size, want := range map[int64]int64{0: mib, 256 << 30: mib, 257 << 30: 2 * mib, 1 << 40: 4 * mib, 16 << 40: 8 * mib} {
		if piece := pieceSize(size); piece != want {
			t.Errorf("pieces of a device of %d bytes: %d, want %d", size, piece, want)
		}
	}
}

// TestIndexIsKopias compares our index with the one that Kopia makes when it joins the pieces.
func TestIndexIsKopias(t *testing.T) {
	w := newWorld(t)
	r, rng := w.open(), rand.NewChaCha8([32]byte{10})
	d := &image{path: filepath.Join(t.TempDir(), "image"), content: make([]byte, 3*mib+7)}
	d.write(rng, 0, 4*mib)
	pieces, err := r.pieces(t.Context(), w.device(r, d, nil).ID, int64(len(d.content)))
	ok(t, err)
	ok(t, repo.WriteSession(t.Context(), r.kopia, repo.WriteSessionOptions{}, func(ctx context.Context, rw repo.RepositoryWriter) error {
		var ids []object.ID
		for _, p := range pieces {
			ids = append(ids, p.Object)
		}
		want, err := rw.ConcatenateObjects(ctx, ids, repo.ConcatenateOptions{Compressor: compressor})
		ok(t, err)
		have, err := (&device{w: rw, entries: pieces}).writeIndex(ctx)
		if ok(t, err); have != want {
			t.Errorf("our index is %s, Kopia's %s", have, want)
		}
		return nil
	}))
}

// TestBlocksModel writes at random, and backs up with lists that are right: whatever is read or taken over, every backup holds what the device held.
func TestBlocksModel(t *testing.T) {
	w := newWorld(t)
	r, dir := w.open(), t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		rng := rand.NewChaCha8([32]byte{byte(rapid.IntRange(0, 255).Draw(rt, "seed"))})
		d := &image{path: filepath.Join(dir, "image"), content: make([]byte, rapid.Int64Range(1, 6*mib).Draw(rt, "size"))}
		held, base := map[string][]byte{}, ""
		for range rapid.IntRange(1, 4).Draw(rt, "backups") {
			for range rapid.IntRange(0, 5).Draw(rt, "writes") {
				d.write(rng, rapid.Int64Range(0, int64(len(d.content))-1).Draw(rt, "offset"), rapid.Int64Range(1, 2*mib).Draw(rt, "length"))
			}
			b := d.list(rt, base)
			b.Audit = rapid.IntRange(0, 4).Draw(rt, "audit") == 0
			res := w.device(r, d, b)
			if res.Whole != "" || res.Wrong != 0 {
				rt.Fatalf("%+v", res)
			}
			base = res.ID
			held[base] = bytes.Clone(d.content)
		}
		for id, content := range held {
			w.holds(r, id, content)
		}
	})
}
