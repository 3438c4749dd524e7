package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"strings"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/maintenance"
	"github.com/kopia/kopia/snapshot/snapshotfs"
	"github.com/kopia/kopia/snapshot/snapshotmaintenance"
)

// File is one file of a backup.
type File struct {
	Path     string    `json:"path"`
	Mode     string    `json:"mode"` // as ls shows it
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
	UID      uint32    `json:"uid"`
	GID      uint32    `json:"gid"`
	Target   string    `json:"target,omitempty"` // of a symbolic link
}

// root opens what is at a path of a backup.
func (r *Repository) root(ctx context.Context, id, part string) (fs.Entry, string, error) {
	m, err := r.manifest(ctx, id)
	if err != nil {
		return nil, "", err
	}
	root, err := snapshotfs.SnapshotRoot(r.kopia, m)
	if err != nil {
		return nil, "", r.failed(err)
	}
	if part = path.Clean("/" + part)[1:]; part == "" {
		return root, "", nil
	}
	e, err := snapshotfs.GetNestedEntry(ctx, root, strings.Split(part, "/"))
	if err != nil {
		return nil, "", fmt.Errorf("backup %s holds no %s: 'tidemark volumes files' lists what it holds", id, part)
	}
	return e, part, nil
}

// Files yields the files at a path of a backup: what is in a directory, and with deep all below it too.
func (r *Repository) Files(ctx context.Context, id, part string, deep bool) iter.Seq2[File, error] {
	return func(yield func(File, error) bool) {
		e, at, err := r.root(ctx, id, part)
		if err != nil {
			yield(File{}, err)
			return
		}
		dir, ok := e.(fs.Directory)
		if !ok {
			yield(fileOf(ctx, at, e), nil)
			return
		}
		err = r.walk(ctx, dir, at, deep, func(f File) bool { return yield(f, nil) })
		if err != nil && !errors.Is(err, errEnough) {
			yield(File{}, r.failed(err))
		}
	}
}

// errEnough ends a walk that nobody listens to any more.
var errEnough = errors.New("enough")

func (r *Repository) walk(ctx context.Context, dir fs.Directory, at string, deep bool, yield func(File) bool) error {
	entries, err := fs.GetAllEntries(ctx, dir)
	if err != nil {
		return err
	}
	fs.Sort(entries)
	for _, e := range entries {
		if at == "" && e.Name() == attributesName {
			continue
		}
		p := path.Join(at, e.Name())
		if !yield(fileOf(ctx, p, e)) {
			return errEnough
		}
		if sub, ok := e.(fs.Directory); ok && deep {
			if err := r.walk(ctx, sub, p, deep, yield); err != nil {
				return err
			}
		}
	}
	return nil
}

func fileOf(ctx context.Context, p string, e fs.Entry) File {
	f := File{Path: p, Mode: e.Mode().String(), Size: e.Size(), Modified: e.ModTime().UTC(), UID: e.Owner().UserID, GID: e.Owner().GroupID}
	if l, ok := e.(fs.Symlink); ok {
		f.Target, _ = l.Readlink(ctx) // the list is of use without
	}
	return f
}

// Read writes the content of one file of a backup.
func (r *Repository) Read(ctx context.Context, id, part string, to io.Writer) error {
	e, at, err := r.root(ctx, id, part)
	if err != nil {
		return err
	}
	f, ok := e.(fs.File)
	if !ok {
		return fmt.Errorf("%s of backup %s is no file", at, id)
	}
	in, err := f.Open(ctx)
	if err != nil {
		return r.failed(err)
	}
	defer in.Close()
	_, err = io.Copy(to, &contextReader{ctx, in})
	return err
}

// Verified is what Verify found.
type Verified struct {
	Backups int      `json:"backups"`
	Files   int64    `json:"files"` // looked at
	Read    int64    `json:"read"`  // bytes that were read and decrypted
	Errors  []string `json:"errors,omitempty"`
}

// Verify checks that all that backups need is there, and reads percent of their files. Without ids: all whole backups.
func (r *Repository) Verify(ctx context.Context, percent float64, ids ...string) (*Verified, error) {
	if len(ids) == 0 {
		all, err := r.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, b := range all {
			ids = append(ids, b.ID)
		}
	}
	blobs, err := blob.ReadBlobMap(ctx, r.kopia.BlobReader())
	if err != nil {
		return nil, r.failed(err)
	}
	const errorsToKeep = 100
	v := snapshotfs.NewVerifier(ctx, r.kopia, snapshotfs.VerifierOptions{VerifyFilesPercent: percent, Parallelism: 4, MaxErrors: errorsToKeep, BlobMap: blobs})
	found, err := v.InParallel(ctx, func(w *snapshotfs.TreeWalker) error {
		for _, id := range ids {
			e, _, err := r.root(ctx, id, "")
			if err != nil {
				return err
			}
			if err := w.Process(ctx, e, id); err != nil {
				return err
			}
		}
		return nil
	})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil && found.ErrorCount == 0 {
		return nil, r.failed(err)
	}
	return &Verified{Backups: len(ids), Files: found.Stats.ProcessedObjectCount, Read: found.Stats.ReadBytes, Errors: found.ErrorStrings}, nil
}

// Maintain does what is due: compacts indexes every hour, and every day frees what no backup needs, a day after it was
// forgotten, so that backups that are being made lose nothing. Only one process may do so at a time.
// Now does everything at once, and is right only when nobody else uses the repository.
func (r *Repository) Maintain(ctx context.Context, now bool) error {
	mode, safety := maintenance.ModeAuto, maintenance.SafetyFull
	if now {
		mode, safety = maintenance.ModeFull, maintenance.SafetyNone
	}
	return r.failed(repo.DirectWriteSession(ctx, r.kopia, repo.WriteSessionOptions{Purpose: "maintain"}, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		return snapshotmaintenance.Run(ctx, w, mode, now, safety)
	}))
}
