package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/snapshot/snapshotfs"
)

// RestoreOptions are what a restore can be given.
type RestoreOptions struct {
	// Path within the backup is what comes back, with all below it. Default: everything. A file comes back under
	// its own name in the target.
	Path string
	// DeleteExtra removes what is in the target and not in the backup.
	DeleteExtra bool
	// KeepOwners leaves files to the user of this process.
	KeepOwners bool
	// Parallel files are written at once. Default: 4.
	Parallel int
	Progress func(Progress)
}

// ErrPartly is returned when something that a backup has could not be had, and all else could.
var ErrPartly = errors.New("not everything could be had")

// Restore writes a backup into the directory, or over the block device, target. Files that are there are replaced, also those
// that are newer; symbolic links in the target are replaced and never followed. Made again after it was cut off,
// it writes what is missing. What cannot be read costs nothing else: it is named in the outcome, which comes with ErrPartly. What the target, or this user, cannot have besides content, such as owners, is counted, and no error.
func (r *Repository) Restore(ctx context.Context, id, target string, o RestoreOptions) (Progress, error) {
	m, err := r.manifest(ctx, id)
	if err != nil {
		return Progress{}, err
	}
	entry, err := snapshotfs.SnapshotRoot(r.kopia, m)
	if err != nil {
		return Progress{}, r.failed(err)
	}
	root, ok := entry.(fs.Directory)
	if !ok {
		return Progress{}, errors.New("this backup holds no directory: 'kopia' restores it")
	}
	if at, err := url.Parse(r.o.Store.String()); err == nil && at.Scheme == "dir" {
		if one, err := oneInTheOther(target, at.Path); err != nil || one {
			return Progress{}, cmp.Or(err, fmt.Errorf("%s and the archive in %s lie one in the other, and a restore would write into the archive, or remove it: restore to a directory that is apart from it", target, at.Path))
		}
	}
	if info, err := os.Stat(target); err == nil && info.Mode()&os.ModeDevice != 0 {
		return r.restoreDevice(ctx, root, target, o)
	}
	return r.restoreTree(withReadAhead(ctx), root, target, o)
}

// attributes reads the file of attributes of a backup.
func (r *Repository) attributes(ctx context.Context, root fs.Directory) (map[string]*attribute, error) {
	in, err := r.openAttributes(ctx, root)
	if in == nil || err != nil {
		return nil, err
	}
	defer in.Close()
	return decodeAttributes(in)
}

// openAttributes opens the file of attributes of a backup; nil: it has none.
func (r *Repository) openAttributes(ctx context.Context, root fs.Directory) (fs.Reader, error) {
	e, err := root.Child(ctx, attributesName)
	if errors.Is(err, fs.ErrEntryNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, r.failed(err)
	}
	f, ok := e.(fs.File)
	if !ok {
		return nil, nil
	}
	in, err := f.Open(ctx)
	return in, r.failed(err)
}

// restoreDevice writes the content of a device back.
func (r *Repository) restoreDevice(ctx context.Context, root fs.Directory, target string, o RestoreOptions) (p Progress, err error) {
	e, err := root.Child(ctx, deviceName)
	f, ok := e.(fs.File)
	if err != nil || !ok {
		return p, fmt.Errorf("%s is a block device, and the backup is one of files: give a directory", target)
	}
	in, err := f.Open(ctx)
	if err != nil {
		return p, r.failed(err)
	}
	defer in.Close()
	out, err := os.OpenFile(target, os.O_WRONLY, 0)
	if err != nil {
		return p, fmt.Errorf("restore: %w", err)
	}
	defer out.Close()
	if size, err := out.Seek(0, io.SeekEnd); err != nil || size < f.Size() {
		return p, errors.Join(err, fmt.Errorf("%s has %d bytes, and the backup %d: make the volume larger", target, size, f.Size()))
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return p, err
	}
	buf, last := make([]byte, 1<<20), time.Now()
	for {
		if ctx.Err() != nil {
			return p, context.Cause(ctx)
		}
		n, err := io.ReadFull(in, buf)
		if _, err := out.Write(buf[:n]); err != nil {
			return p, fmt.Errorf("restore: %w", err)
		}
		p.Bytes += int64(n)
		if o.Progress != nil && time.Since(last) > reportEvery {
			last = time.Now()
			o.Progress(Progress{Bytes: p.Bytes, Total: f.Size()})
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return p, r.failed(err)
		}
	}
	p.Files = 1
	return p, out.Sync()
}

// contextReader ends a copy with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
