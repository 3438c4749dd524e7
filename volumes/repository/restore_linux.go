package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/restore"
	"golang.org/x/sys/unix"
)

// restoreTree writes a backup of files into a directory.
func (r *Repository) restoreTree(ctx context.Context, root fs.Directory, target string, o RestoreOptions) (Progress, error) {
	out := &output{special: map[string][]attribute{}, o: &o, trouble: r.storage.trouble, lost: map[string]error{}, mounts: map[string]bool{}}
	kept, err := r.attributes(ctx, root)
	if err != nil {
		if _, unread := root.Iterate(ctx); unread != nil || ctx.Err() != nil || out.trouble() != nil {
			return Progress{}, err
		}
		out.lose(attributesName, err) // files can be had without
		o.DeleteExtra = false         // nothing tells which pipes and devices the backup has
	}
	out.kept = kept
	for p, at := range kept {
		if at.Special != "" {
			out.special[path.Dir(p)] = append(out.special[path.Dir(p)], *at)
		}
	}
	names := &namedDirectory{root, root.Name()}
	from, err := out.choose(ctx, r, names, o.Path)
	if err != nil {
		return Progress{}, err
	}
	if err := os.MkdirAll(target, 0o700); err != nil {
		return Progress{}, fmt.Errorf("restore: %w", err)
	}
	if out.root, err = os.OpenRoot(target); err != nil {
		return Progress{}, fmt.Errorf("restore: %w", err)
	}
	defer out.root.Close()
	info, err := out.root.Stat(".")
	if err != nil {
		return Progress{}, fmt.Errorf("restore: %w", err)
	}
	if err := unix.Access(target, unix.W_OK|unix.X_OK); err != nil { // or else each file would say it
		return Progress{}, fmt.Errorf("restore: nothing can be written into %s: %w", target, err)
	}
	out.device = fileSystemOf(info)
	defer out.disks.close()
	if err := out.disks.add(out.root, ".", out.device); err != nil {
		return Progress{}, fmt.Errorf("restore: %w", err)
	}
	if d, is := from.(fs.Directory); is {
		from = &wary{d, out, ""}
	}
	relink(kept, out.prefix)
	cancel := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { close(cancel) })
	defer stop()
	parallel := o.Parallel
	if parallel == 0 {
		parallel = 4
	}
	_, err = restore.Entry(ctx, r.kopia, out, from, restore.Options{
		Parallel: parallel, RestoreDirEntryAtDepth: math.MaxInt32, // its zero value restores placeholders
		Cancel: cancel, ProgressCallback: out.progress,
	})
	switch {
	case ctx.Err() != nil:
		return out.now(), context.Cause(ctx)
	case (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) && !strings.Contains(err.Error(), "make room"):
		return out.now(), fmt.Errorf("%w: there is no room left: make room, and run the same command again, which goes on where this one ended", r.failed(err))
	case err != nil:
		return out.now(), r.failed(err)
	}
	if err := out.finish(ctx, func(ctx context.Context, p string) (fs.Entry, error) { return r.inside(ctx, names, p) }); err != nil {
		return out.now(), fmt.Errorf("restore: %w", err)
	}
	if err := out.disks.sync(); err != nil {
		return out.now(), fmt.Errorf("restore: %w", err)
	}
	return out.outcome()
}

// output writes into a directory, and nowhere else.
type output struct {
	root    *os.Root
	kept    map[string]*attribute
	special map[string][]attribute // pipes and devices, by their directory
	o       *RestoreOptions
	prefix  string       // of the chosen part, in the backup: "" or "a/b/"
	single  bool         // one file was chosen
	device  uint64       // the file system that is written to
	disks   disks        // that, and those that are mounted in it
	trouble func() error // of the store

	files, bytes, removed atomic.Int64
	reported              atomic.Int64 // unix nanoseconds

	mu     sync.Mutex // guards what follows
	missed int64
	first  []string         // of what was missed
	mounts map[string]bool  // in which nothing is removed
	lost   map[string]error // why files do not come back, or directories, which have a slash at their end
}

// miss is for something that a file could not be given besides its content. It is counted, and the restore goes on, when that is because the target's
// file system, or this user, cannot have it at all.
func (w *output) miss(rel, what string, err error) error {
	if err == nil {
		return nil
	}
	for _, cannot := range []error{unix.EPERM, unix.EACCES, unix.ENOTSUP, unix.ENOSYS, unix.EINVAL, unix.E2BIG, unix.ENOSPC} {
		if errors.Is(err, cannot) {
			w.noteMissed(rel, what, err)
			return nil
		}
	}
	return fmt.Errorf("set the %s of %s: %w", what, EscapePath(cmpDot(rel)), err)
}

func (w *output) noteMissed(rel, what string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.missed++; len(w.first) < missedNames {
		w.first = append(w.first, fmt.Sprintf("%s: %s: %v", EscapePath(cmpDot(rel)), what, err))
	}
}

var _ restore.Output = (*output)(nil)

// attribute is what a file of the backup has besides.
func (w *output) attribute(p string) attribute {
	if at := w.kept[p]; at != nil {
		return *at
	}
	return attribute{}
}

// choose finds the part that is to come back.
func (w *output) choose(ctx context.Context, r *Repository, root fs.Directory, part string) (fs.Entry, error) {
	part = partOf(part)
	if part == "" {
		return root, nil
	}
	e, err := r.inside(ctx, root, part)
	if w.attribute(part).Special != "" {
		return nil, noContent(EscapePath(part))
	}
	if err != nil {
		return nil, err
	}
	if e.IsDir() {
		w.prefix = part + "/"
		return e, nil
	}
	w.single = true
	if dir := path.Dir(part); dir != "." {
		w.prefix = dir + "/"
	}
	return &onlyFile{root, e}, nil
}

// onlyFile is a directory with one file.
type onlyFile struct {
	fs.Directory
	e fs.Entry
}

// Iterate implements fs.Directory.
func (d *onlyFile) Iterate(context.Context) (fs.DirectoryIterator, error) {
	return fs.StaticIterator([]fs.Entry{d.e}, nil), nil
}

// Parallelizable implements restore.Output.
func (w *output) Parallelizable() bool { return true }

// Close implements restore.Output.
func (w *output) Close(context.Context) error { return nil }

// WriteDirEntry implements restore.Output; only placeholders would need it.
func (w *output) WriteDirEntry(context.Context, string, *snapshot.DirEntry, fs.Directory) error {
	return errors.ErrUnsupported
}

// FileExists and SymlinkExists implement restore.Output; only incremental restores ask, and this is none.
func (w *output) FileExists(context.Context, string, fs.File) bool { return false }

// SymlinkExists implements restore.Output.
func (w *output) SymlinkExists(context.Context, string, fs.Symlink) bool { return false }

// BeginDirectory implements restore.Output.
func (w *output) BeginDirectory(ctx context.Context, rel string, e fs.Directory) error {
	err := w.beginDirectory(ctx, rel, e)
	if err == nil || rel == "" {
		return err
	}
	return w.settle(ctx, rel+"/", err) // and what is in it is left out
}

func (w *output) beginDirectory(ctx context.Context, rel string, e fs.Directory) error {
	there := true
	if rel != "" {
		info, err := w.root.Lstat(rel)
		switch {
		case errors.Is(err, iofs.ErrNotExist):
		case err != nil:
			return err
		case !info.IsDir():
			if err := w.root.Remove(rel); err != nil {
				return err
			}
			err = iofs.ErrNotExist
		default:
			if err := w.disks.add(w.root, rel, fileSystemOf(info)); err != nil {
				return err
			}
		}
		if err != nil {
			there = false
			if err := w.root.Mkdir(rel, 0o700); err != nil {
				return err
			}
		}
	}
	if there {
		if err := w.sweep(rel); err != nil {
			return err
		}
	}
	if w.o.DeleteExtra {
		return w.deleteExtra(ctx, rel, e)
	}
	return nil
}

func cmpDot(rel string) string {
	if rel == "" {
		return "."
	}
	return rel
}

// WriteFile implements restore.Output.
func (w *output) WriteFile(ctx context.Context, rel string, e fs.File, report restore.FileWriteProgress) error {
	if rel == attributesName && w.prefix == "" {
		return nil
	}
	if at := w.attribute(w.prefix + rel); w.linked(&at) {
		return nil // finish links it
	}
	return w.settle(ctx, rel, w.writeFile(ctx, rel, e, report))
}

func (w *output) writeFile(ctx context.Context, rel string, e fs.File, report restore.FileWriteProgress) error {
	at := w.attribute(w.prefix + rel)
	in, err := e.Open(ctx)
	if err != nil {
		return &noRead{err}
	}
	defer in.Close()
	content := &reportingReader{&contextReader{ctx, in}, report}
	buf := buffers.Get().(*[copySize]byte)
	defer buffers.Put(buf)
	n, err := io.ReadFull(content, buf[:]) // before anything is made
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	start := buf[:n]
	f, name, err := w.create(rel)
	if err != nil {
		return err
	}
	size, err := w.fill(f, start, content, &at)
	if err == nil {
		err = w.setFile(int(f.Fd()), rel, e, &at)
	}
	if err == nil && name != rel {
		err = f.Sync() // what is there goes only for what is on the disk
	}
	err = errors.Join(err, f.Close()) // where a network's file system tells that it is full
	if err == nil && name != rel {
		err = w.replace(ctx, name, rel)
	}
	if err != nil {
		_ = w.root.Remove(name) // a part of a file is taken for the file
		return noRoom(err, name != rel)
	}
	w.files.Add(1)
	w.bytes.Add(size)
	return nil
}

// fill writes the content of a file: its start, which was read already, and the rest. The start's memory is used for that. It returns its size.
func (w *output) fill(f *os.File, start []byte, rest io.Reader, at *attribute) (int64, error) {
	to := io.Writer(struct{ io.Writer }{f}) // without *os.File's own way of copying, which would not use the buffer
	if at.Sparse {
		to = &sparseWriter{f: f}
	}
	_, err := to.Write(start)
	n := int64(len(start))
	if err == nil && len(start) == copySize {
		var more int64
		more, err = io.CopyBuffer(to, rest, start)
		n += more
	}
	if err == nil && at.Sparse {
		err = f.Truncate(n)
	}
	return n, err
}

// reportingReader tells what is read as it is read: who moves a file that takes hours, with holes that take no request, must be heard of.
type reportingReader struct {
	io.Reader
	report restore.FileWriteProgress
}

// Read implements io.Reader.
func (r *reportingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.report(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		err = &noRead{err}
	}
	return n, err
}

// copySize is how much of a file is copied at once, in bytes.
const copySize = 256 << 10

// buffers are used again: most files are small.
var buffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// linked reports whether a file comes back as another name of one that comes back too.
func (w *output) linked(at *attribute) bool {
	return at.Link != "" && strings.HasPrefix(at.Link, w.prefix) && !w.single
}

// sparseWriter leaves holes for blocks of zeros.
type sparseWriter struct {
	f   *os.File
	off int64
}

const sparseBlock = 4096

var zeros [sparseBlock]byte

// Write implements io.Writer.
func (s *sparseWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), sparseBlock-int(s.off%sparseBlock))
		if !slices.Equal(rest[:n], zeros[:n]) {
			if _, err := s.f.WriteAt(rest[:n], s.off); err != nil {
				return 0, err
			}
		}
		s.off += int64(n)
		rest = rest[n:]
	}
	return len(p), nil
}

// setFile gives an open file its owner, attributes, mode and time; in this order, as each may change the next.
func (w *output) setFile(fd int, rel string, e fs.Entry, at *attribute) error {
	mode := unixMode(e.Mode())
	if !w.o.KeepOwners {
		err := unix.Fchown(fd, int(e.Owner().UserID), int(e.Owner().GroupID))
		if err != nil && !e.IsDir() {
			mode &^= unix.S_ISUID | unix.S_ISGID // they would lend the rights of somebody else
		}
		if err := w.miss(rel, "owner", err); err != nil {
			return err
		}
	}
	if err := w.removeXattrs(fd, rel, at); err != nil {
		return err
	}
	if err := w.miss(rel, "mode", unix.Fchmod(fd, mode)); err != nil {
		return err
	}
	for key, value := range at.Xattrs {
		if err := unix.Fsetxattr(fd, key, value, 0); err != nil && !w.mayMiss(key, err) {
			if err := w.miss(rel, "extended attribute "+escapeName(key), err); err != nil {
				return err
			}
		}
	}
	t, err := unix.TimeToTimespec(modified(e, at))
	if err != nil {
		return err
	}
	return w.miss(rel, "time", unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), []unix.Timespec{t, t}, 0))
}

// removeXattrs takes from a file the extended attributes that the backup does not have: those of a directory that was there, and the ACL of the one that it
// was made in. What the system sets by itself, such as security.selinux, stays, and without the backup's attributes all do but ACLs.
func (w *output) removeXattrs(fd int, rel string, at *attribute) error {
	var small [1024]byte
	list := small[:]
	n, err := unix.Flistxattr(fd, list)
	for errors.Is(err, unix.ERANGE) {
		list = make([]byte, 2*len(list))
		n, err = unix.Flistxattr(fd, list)
	}
	if err != nil || n == 0 {
		return nil //nolint:nilerr // this file system has none, then
	}
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		acl := isACL(key)
		_, keeps := at.Xattrs[key]
		if keeps || !acl && (w.kept == nil || !strings.HasPrefix(key, "user.") && !strings.HasPrefix(key, "trusted.")) {
			continue
		}
		err := unix.Fremovexattr(fd, key)
		if err == nil || errors.Is(err, unix.ENODATA) || w.mayMiss(key, err) {
			continue
		}
		if err := w.miss(rel, "removal of the extended attribute "+escapeName(key), err); err != nil {
			return err
		}
	}
	return nil
}

// isACL reports whether an extended attribute is an ACL.
func isACL(key string) bool {
	return key == "system.posix_acl_access" || key == "system.posix_acl_default"
}

// modified is the time of a file.
func modified(e fs.Entry, at *attribute) time.Time {
	if at.Modified.IsZero() {
		return e.ModTime()
	}
	return at.Modified
}

// mayMiss reports whether an attribute is one that the target's system sets by itself.
func (w *output) mayMiss(key string, err error) bool {
	return strings.HasPrefix(key, "security.selinux") || w.o.KeepOwners && errors.Is(err, unix.EPERM)
}

func unixMode(m os.FileMode) uint32 {
	mode := uint32(m.Perm())
	for _, s := range special {
		if m&s.flag != 0 {
			mode |= s.bit
		}
	}
	return mode
}

// FinishDirectory implements restore.Output.
func (w *output) FinishDirectory(ctx context.Context, rel string, e fs.Directory) error {
	if w.single {
		return nil // the target is not the directory that the file was in
	}
	if d, is := e.(*wary); is && errors.As(d.why(), new(*refusal)) {
		return nil
	}
	for _, at := range w.special[path.Join(w.prefix, cmpDot(rel))] {
		rel := strings.TrimPrefix(at.Path, w.prefix)
		if err := w.settle(ctx, rel, w.makeSpecial(ctx, rel, at)); err != nil {
			return err
		}
	}
	return w.settle(ctx, cmpDot(rel)+"/", w.finishDirectory(rel, e))
}

func (w *output) finishDirectory(rel string, e fs.Directory) error {
	f, err := w.root.OpenFile(cmpDot(rel), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	at := w.attribute(path.Join(w.prefix, cmpDot(rel)))
	return w.setFile(int(f.Fd()), rel, e, &at)
}

func (w *output) now() Progress {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Progress{Files: w.files.Load(), Bytes: w.bytes.Load(), Removed: w.removed.Load(), Missed: w.missed, MissedFirst: slices.Clone(w.first)}
}

// progress is Kopia's callback, from all its goroutines.
func (w *output) progress(_ context.Context, s restore.Stats) {
	last, now := w.reported.Load(), time.Now().UnixNano()
	if w.o.Progress == nil || now-last < int64(reportEvery) || !w.reported.CompareAndSwap(last, now) {
		return
	}
	p := w.now()
	p.Bytes, p.Total = s.RestoredTotalFileSize, s.EnqueuedTotalFileSize
	w.o.Progress(p)
}

// parentOf opens the directory that holds a path, and gives the last part of it.
func parentOf(root *os.Root, p string) (*os.File, string, error) {
	f, err := root.OpenFile(path.Dir(p), os.O_RDONLY|unix.O_DIRECTORY, 0)
	return f, path.Base(p), err
}
