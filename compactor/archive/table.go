package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"filippo.io/age"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/journal"
)

const (
	// blockSize is large because versions of one object lie side by side; see docs/design.md.
	blockSize      = 256 << 10
	indexBlockSize = 64 << 10
	// freshBlockSize is for small segments, which are merged into others within a minute. Above 128 KiB the encoder of zstd
	// keeps a history, and makes 16 MiB for it anew for each table: as much as all else that the daemon has in memory.
	freshBlockSize = 120 << 10
	// spoolMemory is how much of a new file is held in memory before it goes to the disk.
	spoolMemory = 4 << 20
)

// tableOptions are those of Pebble for tables of an archive. The format of tables is part of
// the archive's format.
func tableOptions() *pebble.Options {
	o := &pebble.Options{FormatMajorVersion: pebble.FormatNewest, Logger: quiet{}}
	o.EnsureDefaults()
	return o
}

// quiet is a logger that says nothing: what goes wrong is returned.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

// tableWriter writes a table, encrypts it, and keeps it until it is uploaded. It must be closed.
type tableWriter struct {
	w       *sstable.Writer
	sealed  io.WriteCloser // age
	copy    *copyWriter    // nil: no copy is kept
	spool   spool
	content *ContentHash
	keys    int
}

func newTableWriter(dir string, recipients []age.Recipient, c *copyWriter, fresh bool) (*tableWriter, error) {
	t := &tableWriter{spool: spool{dir: dir, sum: sha256.New()}, content: NewContentHash(), copy: c}
	var err error
	if t.sealed, err = age.Encrypt(&t.spool, recipients...); err != nil {
		return nil, fmt.Errorf("encrypt for the archive's recipients: %w", err)
	}
	o := tableOptions()
	compression := *sstable.GoodCompression
	compression.AdaptiveReductionCutoffPercent = 0
	w := o.MakeWriterOptions(0, sstable.TableFormatPebblev5)
	w.BlockSize, w.IndexBlockSize, w.Compression, w.DisableValueBlocks = blockSize, indexBlockSize, &compression, true
	if fresh {
		w.BlockSize = freshBlockSize
		compression.OtherBlocks = sstable.NoCompression.OtherBlocks // an index of some lines, and an encoder of 2.6 MiB
	} else {
		compression.OtherBlocks = compression.DataBlocks
	}
	out := io.Writer(t.sealed)
	if c != nil {
		out = io.MultiWriter(t.sealed, c)
	}
	t.w = sstable.NewWriter(writable{out}, w)
	return t, nil
}

// put adds a key, which must come after the one before.
func (t *tableWriter) put(k, v []byte) error {
	t.content.Add(k, v)
	t.keys++
	return t.w.Set(k, v)
}

// finish completes the file.
func (t *tableWriter) finish() (File, error) {
	if err := errors.Join(t.w.Close(), t.sealed.Close()); err != nil {
		return File{}, fmt.Errorf("write a table: %w", err)
	}
	t.w = nil
	return File{Size: t.spool.size, SHA256: hex.EncodeToString(t.spool.sum.Sum(nil))}, nil
}

func (t *tableWriter) close() {
	if t.w != nil {
		_ = t.w.Close()
	}
	t.spool.close()
}

// writable lets Pebble write a table into a stream.
type writable struct{ w io.Writer }

func (w writable) Write(p []byte) error { _, err := w.w.Write(p); return err }
func (writable) Finish() error          { return nil }
func (writable) Abort()                 {}

// spool holds what is written: in memory at first, then in a file that no directory names.
type spool struct {
	dir  string
	sum  hash.Hash
	mem  bytes.Buffer
	file *os.File
	size int64
}

func (s *spool) Write(p []byte) (int, error) {
	s.sum.Write(p)
	s.size += int64(len(p))
	if s.file == nil {
		if s.mem.Len()+len(p) <= spoolMemory {
			return s.mem.Write(p)
		}
		f, err := os.CreateTemp(s.dir, "spool-")
		if err != nil {
			return 0, err
		}
		s.file = f
		_ = os.Remove(f.Name()) // it lives as long as it is open, and no crash leaves it behind
		if _, err := f.Write(s.mem.Bytes()); err != nil {
			return 0, err
		}
		s.mem = bytes.Buffer{}
	}
	return s.file.Write(p)
}

// ReadAt implements io.ReaderAt.
func (s *spool) ReadAt(p []byte, off int64) (int, error) {
	if s.file != nil {
		return s.file.ReadAt(p, off)
	}
	return bytes.NewReader(s.mem.Bytes()).ReadAt(p, off)
}

func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close()
	}
}

// Written is what Write tells of a new file.
type Written struct {
	File
	Content string // hash of its keys and values
	Keys    int
}

// write makes a file of what fill gives, in the order of the keys, and uploads it under the name.
func (a *Archive) write(ctx context.Context, name string, keep *Copies, fresh bool, fill func(put func(k, v []byte) error) error) (w Written, err error) {
	c, err := keep.create(name)
	if err != nil {
		a.log.Warn("no local copy of a segment is kept; merging reads it from the archive", zap.Error(err))
	}
	t, err := newTableWriter(a.o.SpoolDir, a.o.Recipients, c, fresh)
	if err != nil {
		return w, errors.Join(err, c.abort())
	}
	defer t.close()
	if err := fill(t.put); err != nil {
		return w, errors.Join(err, c.abort())
	}
	if w.File, err = t.finish(); err != nil {
		return w, errors.Join(err, c.abort())
	}
	w.Name, w.Content, w.Keys = name, t.content.String(), t.keys
	if err := a.upload(ctx, w.File, &t.spool); err != nil {
		return w, errors.Join(err, c.abort())
	}
	c.done()
	return w, nil
}

// WriteSegment uploads a new segment of that level; the caller commits it. keep, when not nil,
// gets a copy. fresh says that it is small and will soon be merged: that counts more than how small its file is.
func (a *Archive) WriteSegment(ctx context.Context, level int, to journal.Position, keep *Copies, fresh bool, fill func(put func(k, v []byte) error) error) (Written, error) {
	return a.write(ctx, segmentName(level, to), keep, fresh, fill)
}

// WriteSnapshot uploads a new snapshot; the caller commits it.
func (a *Archive) WriteSnapshot(ctx context.Context, at journal.Position, fill func(put func(k, v []byte) error) error) (Written, error) {
	return a.write(ctx, snapshotName(at), nil, false, fill)
}
