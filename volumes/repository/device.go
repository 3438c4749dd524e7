package repository

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/snapshotfs"
	"golang.org/x/sync/errgroup"
)

// The content of a device is one Kopia object whose index we write ourselves: its entries are pieces of one size, at multiples of it.
// So a backup can take over the entries of pieces that have not changed, without reading the device or the store. Kopia's own
// way to join objects would open every piece to learn its length.

// Blocks say which parts of a device a backup has to read.
type Blocks struct {
	// Base is the backup that has all other parts, as they still are. Empty: they were never written to, and are zero.
	Base string `json:"base,omitempty"`
	// Size is that of the device, in bytes, as whoever made the list knows it.
	Size int64 `json:"size"`
	// Runs are what has to be read, rounded to pieces, in their order.
	Runs []Run `json:"runs,omitempty"`
	// Audit reads all of the device, and finds out whether the list was right.
	Audit bool `json:"audit,omitempty"`

	end int64 // of the last Add
}

// Run is a part of a device: the bytes from Start on, End not included.
type Run struct {
	Start int64 `json:"start"`
	End   int64 `json:"end"`
}

// ErrBlocks is returned for a list of blocks that cannot be right.
var ErrBlocks = errors.New("a list of blocks that cannot be right")

// Add adds a part that has to be read. They come in their order.
func (b *Blocks) Add(offset, length int64) error {
	if offset < b.end || length <= 0 || offset >= b.Size {
		return fmt.Errorf("%w: %d bytes at %d after %d, of %d", ErrBlocks, length, offset, b.end, b.Size)
	}
	b.end = offset + min(length, b.Size-offset) // the last block may be longer than what is left
	piece := pieceSize(b.Size)
	run := Run{offset / piece * piece, min((b.end+piece-1)/piece*piece, b.Size)}
	if n := len(b.Runs); n > 0 && run.Start <= b.Runs[n-1].End {
		b.Runs[n-1].End = run.End
		return nil
	}
	b.Runs = append(b.Runs, run)
	return nil
}

// pieces tells for each piece whether it has to be read.
func (b *Blocks) pieces() ([]bool, error) {
	piece := pieceSize(b.Size)
	all, last := make([]bool, (b.Size+piece-1)/piece), int64(0)
	for _, r := range b.Runs {
		if r.Start < last || r.End <= r.Start || r.End > b.Size {
			return nil, fmt.Errorf("%w: from %d to %d of %d", ErrBlocks, r.Start, r.End, b.Size)
		}
		last = r.End
		for i := r.Start / piece; i*piece < r.End; i++ {
			all[i] = true
		}
	}
	return all, nil
}

// pieceSize is how large the pieces of a device are. Small ones mean that less is read and sent for a small change; large devices have larger
// ones, so that the list of pieces stays small.
func pieceSize(device int64) int64 {
	const smallest, largest, most = 1 << 20, 8 << 20, 1 << 18
	piece := int64(smallest)
	for piece < largest && device/piece > most {
		piece *= 2
	}
	return piece
}

// device is the backup of one.
type device struct {
	*os.File
	size, piece int64
	w           repo.RepositoryWriter
	progress    *counter
	entries     []object.IndirectObjectEntry // of the index; each is written by one goroutine

	read     []bool                       // pieces that have to be read; nil: all
	base     []object.IndirectObjectEntry // what the others are; nil: zero
	audit    bool
	wrong    atomic.Int64
	zeroLock sync.Mutex
	zeroIDs  map[int64]object.ID // by length
}

// backDevice writes the content of a device. whole says why all of it was read though there is a list.
func (r *Repository) backDevice(ctx context.Context, w repo.RepositoryWriter, f *os.File, o *BackupOptions, c *counter) (root *snapshot.DirEntry, whole string, wrong int64, err error) {
	d := &device{File: f, w: w, progress: c, zeroIDs: map[int64]object.ID{}}
	if d.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, "", 0, err
	}
	d.piece = pieceSize(d.size)
	d.entries = make([]object.IndirectObjectEntry, max(1, (d.size+d.piece-1)/d.piece))
	c.total.Store(d.size)
	if o.Blocks != nil {
		if err := r.follow(ctx, d, o.Blocks); err != nil {
			if ctx.Err() != nil {
				return nil, "", 0, context.Cause(ctx)
			}
			whole, d.read, d.base, d.audit = err.Error(), nil, nil, false
		}
	}
	parallel := o.Parallel
	if parallel == 0 {
		parallel = 4
	}
	if err := d.readAll(ctx, parallel); err != nil {
		return nil, "", 0, err
	}
	id, err := d.writeIndex(ctx)
	if err != nil {
		return nil, "", 0, err
	}
	c.files.Add(1)
	root, err = d.directory(ctx, id)
	return root, whole, d.wrong.Load(), err
}

// follow prepares what a list of blocks asks for; the error says why it cannot be followed.
func (r *Repository) follow(ctx context.Context, d *device, b *Blocks) error {
	if b.Size != d.size {
		return fmt.Errorf("the list of blocks is of %d bytes, and the device has %d", b.Size, d.size)
	}
	var err error
	if d.read, err = b.pieces(); err != nil {
		return err
	}
	if d.audit = b.Audit; b.Base != "" {
		d.base, err = r.pieces(ctx, b.Base, d.size)
	}
	return err
}

// pieces are those of the device in a backup, if the repository has all of them.
func (r *Repository) pieces(ctx context.Context, id string, size int64) ([]object.IndirectObjectEntry, error) {
	top, err := r.top(ctx, id)
	if err != nil {
		return nil, err
	}
	e, err := r.inside(ctx, top, deviceName)
	if err != nil {
		return nil, err
	}
	had, ok := e.(snapshot.HasDirEntry)
	if !ok || e.Size() != size {
		return nil, fmt.Errorf("the backup before has %d bytes, and the device %d", e.Size(), size)
	}
	entries := []object.IndirectObjectEntry{{Length: size, Object: had.DirEntry().ObjectID}}
	if at, ok := entries[0].Object.IndexObjectID(); ok {
		in, err := r.kopia.OpenObject(ctx, at)
		if err != nil {
			return nil, r.failed(err)
		}
		defer in.Close()
		var x index
		if err := json.NewDecoder(&contextReader{ctx, in}).Decode(&x); err != nil {
			return nil, fmt.Errorf("read the index of the backup before: %w", err)
		}
		entries = x.Entries
	}
	piece := pieceSize(size)
	for i, e := range entries {
		start := int64(i) * piece
		content, _, direct := e.Object.ContentID()
		if !direct || e.Start != start || e.Length != min(piece, size-start) {
			return nil, errors.New("the backup before was made by an older version, and is not in pieces")
		}
		if info, err := r.kopia.ContentInfo(ctx, content); err != nil || info.Deleted {
			return nil, fmt.Errorf("the repository does not have all of the backup before any more (%w)", err)
		}
	}
	if int64(len(entries)) != (size+piece-1)/piece {
		return nil, errors.New("the backup before is not in pieces")
	}
	return entries, nil
}

// readAll reads the pieces that have to be read, several at once, and takes over the others.
func (d *device) readAll(ctx context.Context, parallel int) error {
	work := make(chan int)
	g, ctx := errgroup.WithContext(ctx)
	for range parallel {
		g.Go(func() error {
			buf := make([]byte, min(d.piece, max(1, d.size)))
			for i := range work {
				if err := d.readPiece(ctx, i, buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(work)
		flushed := time.Now()
		for i := range d.entries {
			start := int64(i) * d.piece
			d.entries[i].Start, d.entries[i].Length = start, min(d.piece, d.size-start)
			if d.read != nil && !d.read[i] && !d.audit {
				id, err := d.unread(ctx, i)
				if err != nil {
					return err
				}
				d.entries[i].Object = id
				d.progress.bytes.Add(d.entries[i].Length)
				continue
			}
			select {
			case work <- i:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if time.Since(flushed) > DefaultCheckpoint { // so that it is not sent again by a mover after this one
				if err := d.w.Flush(ctx); err != nil {
					return err
				}
				flushed = time.Now()
			}
		}
		return nil
	})
	return g.Wait()
}

// unread is a piece that does not have to be read.
func (d *device) unread(ctx context.Context, i int) (object.ID, error) {
	if d.base != nil {
		return d.base[i].Object, nil
	}
	return d.zero(ctx, d.entries[i].Length)
}

func (d *device) readPiece(ctx context.Context, i int, buf []byte) error {
	e := &d.entries[i]
	part := buf[:e.Length]
	if n, err := d.ReadAt(part, e.Start); int64(n) < e.Length {
		return fmt.Errorf("read %d bytes at %d of the device: %w", e.Length, e.Start, err)
	}
	var err error
	if e.Object, err = d.write(ctx, part); err != nil {
		return err
	}
	d.progress.read.Add(e.Length)
	d.progress.bytes.Add(e.Length)
	if d.audit && !d.read[i] {
		said, err := d.unread(ctx, i)
		if err != nil {
			return err
		}
		if said != e.Object {
			d.wrong.Add(e.Length)
		}
	}
	return nil
}

// write writes a piece as one content.
func (d *device) write(ctx context.Context, part []byte) (object.ID, error) {
	out := d.w.NewObjectWriter(ctx, object.WriterOptions{Description: deviceName, Compressor: compressor, Splitter: "FIXED-8M"})
	defer out.Close()
	if _, err := out.Write(part); err != nil {
		return object.EmptyID, err
	}
	return out.Result()
}

// zero is a piece of zeros, which is written once.
func (d *device) zero(ctx context.Context, length int64) (object.ID, error) {
	d.zeroLock.Lock()
	defer d.zeroLock.Unlock()
	if id, ok := d.zeroIDs[length]; ok {
		return id, nil
	}
	id, err := d.write(ctx, make([]byte, length))
	d.zeroIDs[length] = id
	return id, err
}

// index is Kopia's file that says of which contents an object is made.
type index struct {
	Stream  string                       `json:"stream"`
	Entries []object.IndirectObjectEntry `json:"entries"`
}

// writeIndex makes one object of the pieces, as Kopia would.
func (d *device) writeIndex(ctx context.Context) (object.ID, error) {
	if len(d.entries) == 1 {
		return d.entries[0].Object, nil
	}
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(index{"kopia:indirect", d.entries}); err != nil {
		return object.EmptyID, err
	}
	out := d.w.NewObjectWriter(ctx, object.WriterOptions{Description: "index of " + deviceName, Prefix: "x", Compressor: compressor, MetadataCompressor: compressor})
	defer out.Close()
	if _, err := out.Write(b.Bytes()); err != nil {
		return object.EmptyID, err
	}
	id, err := out.Result()
	if err != nil {
		return object.EmptyID, err
	}
	return object.ParseID("I" + id.String())
}

// directory is the root of the backup: a directory with the device as its only file.
func (d *device) directory(ctx context.Context, id object.ID) (*snapshot.DirEntry, error) {
	now := fs.UTCTimestampFromTime(time.Now())
	var dir snapshotfs.DirManifestBuilder
	dir.AddEntry(&snapshot.DirEntry{Name: deviceName, Type: snapshot.EntryTypeFile, Permissions: 0o600, FileSize: d.size, ModTime: now, ObjectID: id})
	m := dir.Build(now, "")
	rootID, err := snapshotfs.WriteDirManifest(ctx, d.w, ".", m, "")
	return &snapshot.DirEntry{Name: ".", Type: snapshot.EntryTypeDirectory, Permissions: 0o700, ModTime: now, ObjectID: rootID, DirSummary: m.Summary}, err
}
