package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/snapshotfs"
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

// top opens a backup.
func (r *Repository) top(ctx context.Context, id string) (fs.Entry, error) {
	m, err := r.manifest(ctx, id)
	if err != nil {
		return nil, err
	}
	top, err := snapshotfs.SnapshotRoot(r.kopia, m)
	return top, r.failed(err)
}

// ErrNoFile is returned for a path that a backup does not hold.
var ErrNoFile = errors.New("the backup holds no")

// inside is what is at a path of a backup.
func (r *Repository) inside(ctx context.Context, top fs.Entry, part string) (fs.Entry, error) {
	e := top
	for name := range strings.SplitSeq(part, "/") {
		if name == "" {
			continue
		}
		err := fs.ErrEntryNotFound
		if dir, ok := e.(fs.Directory); ok {
			e, err = dir.Child(ctx, name)
		}
		if errors.Is(err, fs.ErrEntryNotFound) {
			return nil, fmt.Errorf("%w %s: 'tidemark volumes files' lists what it holds", ErrNoFile, EscapePath(part))
		}
		if err != nil { // a directory that cannot be read may well hold it
			return nil, r.failed(err)
		}
	}
	return e, nil
}

// noContent says why a pipe or a device cannot be had by itself.
func noContent(part string) error {
	return fmt.Errorf("%s is a pipe or a device, which has no content: it comes back with the directory that it is in", part)
}

// Files yields the files at a path of a backup: what is in a directory, and with deep all below it too.
func (r *Repository) Files(ctx context.Context, id, part string, deep bool) iter.Seq2[File, error] {
	return func(yield func(File, error) bool) {
		top, err := r.top(ctx, id)
		if err != nil {
			yield(File{}, err)
			return
		}
		at := path.Clean("/" + part)[1:]
		besides, unread := r.besides(ctx, top, func(p string) bool {
			return p == at || parent(p) == at || deep && (at == "" || strings.HasPrefix(p, at+"/"))
		})
		e, err := r.inside(ctx, top, at)
		if err != nil {
			if f, is := besides.at(at); is {
				yield(f, nil)
				return
			}
			yield(File{}, errors.Join(err, unread))
			return
		}
		dir, ok := e.(fs.Directory)
		if !ok {
			yield(besides.file(ctx, at, e), nil)
			return
		}
		w := walker{r: r, deep: deep, besides: besides, yield: func(f File) bool { return yield(f, nil) }}
		entries, err := fs.GetAllEntries(ctx, dir)
		if err == nil {
			err = w.walk(ctx, entries, at)
		}
		switch {
		case errors.Is(err, errEnough):
		case err != nil:
			yield(File{}, r.failed(err))
		case len(w.lost) > 0:
			yield(File{}, fmt.Errorf("%w: the list of what is in %s is damaged in the repository, or lost from it; all else is listed (%w)", ErrPartly, listed(w.lost), w.why))
		case unread != nil && ctx.Err() == nil: // the others are of use without
			yield(File{}, fmt.Errorf("%w: pipes and devices are missing in the list, and times of directories are those of what is in them: %w", ErrPartly, unread))
		}
	}
}

// missedNames is how much of what was missed, or lost, is named.
const missedNames = 10

// errEnough ends a walk that nobody listens to any more.
var errEnough = errors.New("enough")

// walker lists files in the order of their names.
type walker struct {
	r       *Repository
	deep    bool
	besides besides
	yield   func(File) bool
	lost    []string // directories that cannot be read
	why     error    // the first one
}

// below lists what is in a directory of a directory. One that cannot be read is noted, and costs no other.
func (w *walker) below(ctx context.Context, dir fs.Directory, at string) error {
	var entries []fs.Entry
	err := w.r.storage.judged(func() (err error) {
		entries, err = fs.GetAllEntries(ctx, dir)
		return err
	})
	if err != nil && (ctx.Err() != nil || errors.Is(err, errUnread)) {
		return err
	}
	if err != nil {
		w.lost, w.why = append(w.lost, at+"/"), cmp.Or(w.why, err)
	}
	return w.walk(ctx, entries, at)
}

// walk lists what is in a directory.
func (w *walker) walk(ctx context.Context, entries []fs.Entry, at string) error {
	fs.Sort(entries)
	rest := w.besides.special[at]
	for _, e := range entries {
		if at == "" && e.Name() == attributesName {
			continue
		}
		p := path.Join(at, e.Name())
		for ; len(rest) > 0 && rest[0].Path < p; rest = rest[1:] {
			if !w.yield(rest[0]) {
				return errEnough
			}
		}
		if !w.yield(w.besides.file(ctx, p, e)) {
			return errEnough
		}
		if sub, ok := e.(fs.Directory); ok && w.deep {
			if err := w.below(ctx, sub, p); err != nil {
				return err
			}
		}
	}
	for _, f := range rest {
		if !w.yield(f) {
			return errEnough
		}
	}
	return nil
}

// listed are the first of some files.
func listed(names []string) string {
	more := ""
	if n := len(names) - missedNames; n > 0 {
		names, more = names[:missedNames], fmt.Sprintf(" and %d more", n)
	}
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = EscapePath(name)
	}
	return strings.Join(all, ", ") + more
}

// file is an entry as a file.
func (b *besides) file(ctx context.Context, p string, e fs.Entry) File {
	f := File{Path: p, Mode: lsMode(e.Mode()), Size: e.Size(), Modified: e.ModTime().UTC(), UID: e.Owner().UserID, GID: e.Owner().GroupID}
	if l, ok := e.(fs.Symlink); ok {
		f.Target, _ = l.Readlink(ctx) // the list is of use without
	}
	if at, ok := b.times[p]; ok {
		f.Modified = at
	}
	return f
}

// Read writes the content of one file of a backup.
func (r *Repository) Read(ctx context.Context, id, part string, to io.Writer) error {
	top, err := r.top(ctx, id)
	if err != nil {
		return err
	}
	at := path.Clean("/" + part)[1:]
	e, err := r.inside(ctx, top, at)
	if err != nil {
		if besides, unread := r.besides(ctx, top, func(p string) bool { return p == at }); unread == nil {
			if _, is := besides.at(at); is {
				return noContent(at)
			}
		}
		return err
	}
	if l, ok := e.(fs.Symlink); ok {
		to, err := l.Readlink(ctx)
		if err != nil {
			return r.failed(err)
		}
		return fmt.Errorf("%s is no file, but a symbolic link to %s", at, EscapePath(to))
	}
	f, ok := e.(fs.File)
	if !ok {
		return fmt.Errorf("%s is no file, but a directory: 'tidemark volumes files' lists what is in it", cmp.Or(at, "/"))
	}
	in, err := f.Open(ctx)
	if err != nil {
		return r.failed(fmt.Errorf("%s: %w", EscapePath(at), err))
	}
	defer in.Close()
	n, err := io.Copy(to, &contextReader{ctx, in})
	if err != nil && isDamage(err) {
		return r.failed(fmt.Errorf("%s, cut off after %d of %d bytes: %w", EscapePath(at), n, f.Size(), err))
	}
	return err
}

// Verified is what Verify found.
type Verified struct {
	Backups int      `json:"backups"`
	Files   int64    `json:"files"` // looked at
	Read    int64    `json:"read"`  // bytes that were read and decrypted
	Errors  []string `json:"errors,omitempty"`
	// Hit are the backups, of those that were looked at, that need what was found to be damaged: what several share is in Errors once.
	Hit []string `json:"hit,omitempty"`
}

// Wanted is a backup that Verify looks at. Name is what it is called in Errors; empty: its ID.
type Wanted struct{ ID, Name string }

// verifyDir is what the directories in Options.CacheDir begin with that verifications use. A process that died has left its.
const verifyDir = "verify-"

// Verify checks that all that backups need is there, and reads percent of their files. Nothing named: all whole backups. It reads what the store
// has, and nothing from a cache: what was read once proves nothing. Damage is in Errors, also where it leaves nothing else to be
// looked at; the error is for what keeps it from looking, and comes with the damage that was found all the same.
func (r *Repository) Verify(ctx context.Context, percent float64, wanted ...Wanted) (*Verified, error) {
	if err := r.storage.behind.settle(); err != nil {
		return nil, r.failed(err)
	}
	dir, err := os.MkdirTemp(r.o.CacheDir, verifyDir)
	if err != nil {
		return nil, fmt.Errorf("make a cache for the verification: %w", err)
	}
	defer os.RemoveAll(dir)
	o := r.o
	o.CacheDir, o.ReadOnly = dir, true
	v, store := &Verified{}, r.storage
	fresh, err := Open(ctx, o)
	if err == nil {
		defer fresh.release()
		store = fresh.storage
		err = errors.Join(fresh.verify(ctx, v, percent, wanted), fresh.kopia.Close(context.WithoutCancel(ctx)))
	}
	switch trouble := store.trouble(); {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case fresh != nil && trouble != nil && len(v.Errors) > 0:
		v.Hit = nil // what could not be read is not known to be damaged
		return v, fmt.Errorf("%w, so that nothing can be said of the rest: %w", errUnread, trouble)
	case fresh != nil && trouble != nil:
		return nil, fmt.Errorf("%w, so that nothing can be said of the backups in it: %w", errUnread, trouble)
	case fresh == nil && !errors.Is(err, ErrBroken):
		return nil, err
	case err != nil: // the store gave what it has, and that is of no use: indexes, or the list of backups
		broken := Broken(len(wanted), err)
		broken.Errors = append(v.Errors, broken.Errors...)
		return broken, nil
	}
	return v, nil
}

// OfAll is what errors of a verification begin with that concern all backups.
const OfAll = "of all backups: "

// Broken is what is to be said of so many backups in a repository that cannot be looked into, because it is damaged.
func Broken(backups int, err error) *Verified {
	return &Verified{Backups: backups, Errors: []string{OfAll + err.Error()}}
}

// errorsToKeep bounds what a verification tells, and ends it when there is more.
const errorsToKeep = 100

// verify looks at backups, and fails with what concerns all of them.
func (r *Repository) verify(ctx context.Context, v *Verified, percent float64, wanted []Wanted) error {
	if err := r.verifyIndexes(ctx, v); err != nil {
		return r.failed(err)
	}
	if len(wanted) == 0 {
		all, err := r.List(ctx)
		if err != nil {
			return err
		}
		for _, b := range all {
			wanted = append(wanted, Wanted{ID: b.ID})
		}
	}
	blobs, err := blob.ReadBlobMap(ctx, r.kopia.BlobReader())
	if err != nil {
		return r.failed(err)
	}
	c := &checker{r: r, blobs: blobs, percent: percent, hits: hits{bad: map[object.ID]bool{}, dirs: map[object.ID]bool{}}}
	w, err := snapshotfs.NewTreeWalker(ctx, snapshotfs.TreeWalkerOptions{
		Parallelism: 4, MaxErrors: errorsToKeep,
		EntryCallback: func(ctx context.Context, e fs.Entry, id object.ID, at string) error {
			if err := r.storage.judged(func() error { return c.check(ctx, e, id) }); err != nil {
				if !errors.Is(err, errUnread) {
					c.hits.add(id)
				}
				return fmt.Errorf("%s: %w", at, err)
			}
			return nil
		},
	})
	if err != nil {
		return r.failed(err)
	}
	defer w.Close(ctx)
	for _, b := range wanted {
		if w.TooManyErrors() || ctx.Err() != nil {
			break
		}
		v.Backups++
		name := cmp.Or(b.Name, b.ID)
		var e fs.Entry
		err := r.storage.judged(func() (err error) {
			e, err = r.top(ctx, b.ID)
			return err
		})
		if err != nil {
			w.ReportError(ctx, name, fmt.Errorf("%s: %w", name, err))
			continue
		}
		_ = w.Process(ctx, e, name) // it is among the errors, and the others are looked at all the same
	}
	found, _ := w.GetErrors()
	for _, err := range found {
		if !errors.Is(err, errUnread) {
			v.Errors = append(v.Errors, err.Error())
		}
	}
	v.Files, v.Read = c.looked.Load(), c.read.Load()
	if len(v.Errors) > 0 {
		v.Hit = c.hits.among(ctx, r, wanted)
	}
	return ctx.Err()
}

// checker checks entries of backups, several at once.
type checker struct {
	r            *Repository
	blobs        map[blob.ID]blob.Metadata
	percent      float64
	looked, read atomic.Int64
	hits         hits
}

func (c *checker) check(ctx context.Context, e fs.Entry, id object.ID) error {
	c.looked.Add(1)
	if dir, ok := e.(fs.Directory); ok {
		_, err := dir.Iterate(ctx) // which reads all of it; it is kept for the walk
		return err
	}
	contents, err := c.r.kopia.VerifyObject(ctx, id)
	if err != nil {
		return err
	}
	for _, content := range contents {
		info, err := c.r.kopia.ContentInfo(ctx, content)
		if err != nil {
			return err
		}
		pack, ok := c.blobs[info.PackBlobID]
		if !ok {
			return fmt.Errorf("its content %s lies in the file %s, which is not there", content, info.PackBlobID)
		}
		if end := int64(info.PackOffset) + int64(info.PackedLength); pack.Length < end {
			return fmt.Errorf("its content %s lies in the file %s up to byte %d, which has only %d", content, info.PackBlobID, end, pack.Length)
		}
	}
	if 100*rand.Float64() >= c.percent {
		return nil
	}
	in, err := c.r.kopia.OpenObject(ctx, id)
	if err != nil {
		return err
	}
	defer in.Close()
	n, err := io.Copy(io.Discard, &contextReader{ctx, in})
	c.read.Add(n)
	return err
}

// Tagged are the IDs of all that a tag was given to, notes of Pin included.
func (r *Repository) Tagged(ctx context.Context, key, value string) (ids []string, err error) {
	if err := r.refresh(ctx); err != nil {
		return nil, err
	}
	found, err := r.kopia.FindManifests(ctx, map[string]string{tagPrefix + key: value})
	if err != nil {
		return nil, r.failed(err)
	}
	for _, e := range found {
		ids = append(ids, string(e.ID))
	}
	return ids, nil
}

// Incomplete are what backups that did not get whole have left for the next try: what they wrote before a moment.
func (r *Repository) Incomplete(ctx context.Context, before time.Time) (all []Backup, err error) {
	if err := r.refresh(ctx); err != nil {
		return nil, err
	}
	found, err := r.kopia.FindManifests(ctx, map[string]string{manifest.TypeLabelKey: snapshot.ManifestType})
	if err != nil {
		return nil, r.failed(err)
	}
	for _, e := range found {
		if !e.ModTime.Before(before) {
			continue
		}
		m, err := snapshot.LoadSnapshot(ctx, r.kopia, e.ID)
		if err != nil {
			return nil, r.failed(err)
		}
		if m.IncompleteReason != "" {
			all = append(all, backupOf(m))
		}
	}
	return all, nil
}
