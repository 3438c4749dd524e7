package repository

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/policy"
	"github.com/kopia/kopia/snapshot/snapshotfs"
	"github.com/kopia/kopia/snapshot/upload"
)

// ErrIncomplete is returned for a backup that could not read all that it should.
var ErrIncomplete = errors.New("the backup is not whole")

// Progress is how far a backup or a restore is.
type Progress struct {
	Files  int64 `json:"files"`            // regular ones that are done, by each of their names; unchanged ones included
	Bytes  int64 `json:"bytes"`            // of those
	Cached int64 `json:"cached,omitempty"` // files that are as in the backup before, and were not read
	Read   int64 `json:"read,omitempty"`   // bytes read
	Sent   int64 `json:"sent,omitempty"`   // bytes sent to the store
	Total  int64 `json:"total,omitempty"`  // bytes, where it is known
	// Removed counts what a restore has removed because the backup does not have it, with all that was in directories.
	Removed int64 `json:"removed,omitempty"`
	// Missed counts what a restore could not give to files besides their content, such as owners and extended attributes. MissedFirst
	// names the first of them.
	Missed      int64    `json:"missed,omitempty"`
	MissedFirst []string `json:"missedFirst,omitempty"`
	// Lost counts what a restore that ended could not bring back: files, and directories with what is in them. LostFirst names the first of
	// them, and says why. Restore's error is ErrPartly then.
	Lost      int64    `json:"lost,omitempty"`
	LostFirst []string `json:"lostFirst,omitempty"`
	// Mounts are mount points in the target, the first of them, in which a restore that removes what is extra has removed nothing.
	Mounts []string `json:"mounts,omitempty"`
	// Step says what is being done, for people, where there is more to it than files.
	Step string `json:"step,omitempty"`
	// Waiting says what keeps it from going on, for people.
	Waiting string `json:"waiting,omitempty"`
}

// BackupOptions are what a backup can be given.
type BackupOptions struct {
	// Tags is called once all content is read; an error fails the backup.
	Tags func() (map[string]string, error)
	// Description is shown by Kopia's command line.
	Description string
	// Parallel files, or pieces of a device, are read at once. Default: 4.
	Parallel int
	// Checkpoint is how often what was read so far is made whole, so that a try after one that was killed does not read it
	// again. Zero: DefaultCheckpoint.
	Checkpoint time.Duration
	// Blocks of a device are read, and no others. Nil: all.
	Blocks *Blocks
	// ReadAll reads files that look as they did in the backup before, too: one whose content changed with neither its size nor its time did. And it reads the
	// directories of all backups, and has those written anew that are damaged in the repository.
	ReadAll bool
	// OneFileSystem leaves out what is in directories that another file system is mounted at; they come back empty.
	OneFileSystem bool
	// Progress is called now and then, by one goroutine at a time.
	Progress func(Progress)

	image bool // an ordinary file is as good as a device: for tests
}

// Result is what a backup became.
type Result struct {
	Backup
	Progress
	// Whole says why all of a device was read although there is a list of blocks.
	Whole string `json:"whole,omitempty"`
	// Wrong is how much an audit found that was not in the list and should have been, in bytes.
	Wrong int64 `json:"wrong,omitempty"`
}

// deviceName is the file that holds the content of a block device.
const deviceName = "device"

// Back backs up a directory, or a block device, at path. A backup that is cut off goes on from what it has sent when it is made
// again. A file that cannot be read fails it with ErrIncomplete, and what was read stays for the next try.
func (r *Repository) Back(ctx context.Context, source Source, path string, o BackupOptions) (*Result, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("back up: %w", err)
	}
	if err := r.apart(path); err != nil {
		return nil, err
	}
	if info.Mode().Type() == os.ModeDevice || info.Mode().IsRegular() && o.image {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("back up: %w", err)
		}
		defer f.Close()
		var whole string
		var wrong int64
		res, err := r.write(ctx, source.info(r.o.Cluster), o, func(s *session) (m *snapshot.Manifest, err error) {
			m = &snapshot.Manifest{Source: source.info(r.o.Cluster), StartTime: fs.UTCTimestampFromTime(r.kopia.Time())}
			o := o
			if whole = ""; s.again && o.Blocks != nil {
				o.Blocks, whole = nil, "content that it shares with earlier backups is lost from the store"
			}
			var why string
			m.RootEntry, why, wrong, err = r.backDevice(s.ctx, s.w, f, &o, s.progress)
			whole += why
			m.EndTime = fs.UTCTimestampFromTime(r.kopia.Time())
			return m, err
		})
		if err != nil {
			return nil, err
		}
		res.Whole, res.Wrong = whole, wrong
		return res, nil
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is neither a directory nor a block device: back up a directory that it is in, such as %s", path, filepath.Dir(path))
	}
	return r.write(ctx, source.info(r.o.Cluster), o, func(s *session) (*snapshot.Manifest, error) {
		root, kept, done, err := openTree(path, o.OneFileSystem)
		if err != nil {
			return nil, fmt.Errorf("back up %s: %w", path, err)
		}
		defer done()
		return r.upload(s, root, kept, o)
	})
}

// apart returns an error if the repository lies in the path, or the path in it: each backup would read what the one before has written.
func (r *Repository) apart(path string) error {
	at, err := url.Parse(r.o.Store.String())
	if err != nil || at.Scheme != "dir" {
		return nil
	}
	own := filepath.Join(at.Path, r.o.dir())
	one, err := oneInTheOther(path, own)
	if err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	if one {
		return fmt.Errorf("back up %s: the repository is in %s, and would hold its own files, more with each backup: name a path without it, or keep the archive elsewhere", path, own)
	}
	return nil
}

// oneInTheOther reports whether one of two paths lies in the other, or is it, whatever links lead there.
func oneInTheOther(a, b string) (bool, error) {
	var err error
	if a, err = resolved(a); err != nil {
		return false, err
	}
	if b, err = resolved(b); err != nil {
		return false, err
	}
	for _, pair := range [][2]string{{a, b}, {b, a}} {
		if rel, err := filepath.Rel(pair[0], pair[1]); err == nil && filepath.IsLocal(rel) {
			return true, nil
		}
	}
	return false, nil
}

// resolved follows the links of a path, of which the end may not be there yet.
func resolved(path string) (string, error) {
	there, err := filepath.EvalSymlinks(path)
	if !errors.Is(err, iofs.ErrNotExist) || filepath.Dir(path) == path {
		return there, err
	}
	above, err := resolved(filepath.Dir(path))
	return filepath.Join(above, filepath.Base(path)), err
}

// session is the writing of one backup.
type session struct {
	ctx      context.Context // ends when no more is to be read
	whole    context.Context // ends some time after that, so that what was read can be sent
	w        repo.RepositoryWriter
	source   snapshot.SourceInfo
	before   []*snapshot.Manifest
	progress *counter
	again    bool        // everything is to be read, whatever was before
	sockets  int         // that were left out
	reserved bool        // a file was left out whose name is ours
	damage   atomic.Bool // a directory of the backup before is damaged
}

// write makes a backup of what content writes: with its tags, and recorded last.
func (r *Repository) write(ctx context.Context, source snapshot.SourceInfo, o BackupOptions, content func(*session) (*snapshot.Manifest, error)) (*Result, error) {
	if err := r.refresh(ctx); err != nil {
		return nil, err
	}
	gone, err := r.lookForLost(ctx)
	if err == nil && o.ReadAll {
		err = gone.readMetadata(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	defer r.storage.whenItFails(func(err error) { giveUp(r.failed(err)) })()
	progress := &counter{report: o.Progress, done: make(chan struct{})}
	var m *snapshot.Manifest
	whole, flushed := stretch(ctx, flushTime)
	defer flushed()
	err = repo.WriteSession(whole, r.kopia, repo.WriteSessionOptions{
		Purpose: "backup", OnUpload: func(n int64) { progress.sent.Add(n) }, FlushOnFailure: true,
	}, func(whole context.Context, w repo.RepositoryWriter) error {
		before, err := snapshot.FindPreviousManifests(whole, w, source, nil)
		if err != nil {
			return err
		}
		go progress.run()
		s := &session{ctx: ctx, whole: whole, w: w, source: source, before: before, progress: progress}
		m, err = gone.make(whole, r, s, content)
		progress.stop()
		if err != nil {
			return err
		}
		m.Description, m.Tags = o.Description, map[string]string{}
		if o.Tags != nil && m.IncompleteReason == "" {
			tags, err := o.Tags()
			if err != nil {
				return err
			}
			for k, v := range tags {
				m.Tags[tagPrefix+k] = v
			}
		}
		if s.sockets > 0 {
			m.Tags[tagPrefix+tagSockets] = strconv.Itoa(s.sockets)
		}
		if s.reserved {
			m.Tags[tagPrefix+tagReserved] = "true"
		}
		if failed := unread(m); failed != nil {
			m.IncompleteReason = "unreadable files" // its content is kept for the next try
			m.Tags = nil
			_, err := snapshot.SaveSnapshot(whole, w, m)
			return errors.Join(failed, err)
		}
		_, err = snapshot.SaveSnapshot(whole, w, m)
		if err == nil && m.IncompleteReason == "" {
			err = dropIncomplete(whole, w, before)
		}
		return err
	})
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, r.failed(err)
	case m.IncompleteReason != "":
		return nil, fmt.Errorf("%w: %s", ErrIncomplete, m.IncompleteReason)
	}
	r.noteIndexes(ctx)
	return &Result{Backup: backupOf(m), Progress: progress.now()}, nil
}

// upload has Kopia read a directory.
func (r *Repository) upload(s *session, root fs.Directory, kept *attributes, o BackupOptions) (*snapshot.Manifest, error) {
	from := s.w
	if direct, ok := s.w.(repo.DirectRepositoryWriter); ok {
		from = &noticing{direct, &s.damage}
	}
	u := upload.NewUploader(from)
	u.Progress, u.ParallelUploads, u.DisableIgnoreRules, u.EnableActions = s.progress, o.Parallel, true, false
	u.CheckpointInterval = min(cmp.Or(o.Checkpoint, DefaultCheckpoint), upload.DefaultCheckpointInterval) // no more is accepted
	if u.ParallelUploads == 0 {
		u.ParallelUploads = 4
	}
	stop := context.AfterFunc(s.ctx, u.Cancel)
	defer stop()
	before := s.before
	if s.again || o.ReadAll {
		before = nil
	}
	m, err := u.Upload(s.whole, root, policy.BuildTree(nil, uploadPolicy(u.ParallelUploads)), s.source, before...)
	if err == nil && s.ctx.Err() == nil && m.IncompleteReason == "" {
		if sum := m.RootEntry.DirSummary; sum != nil { // Kopia counts symbolic links among those that it has not read
			s.progress.cached.Store(max(0, sum.TotalFileCount-int64(m.Stats.NonCachedFiles)))
		}
		err, s.sockets, s.reserved = addAttributes(s.whole, s.w, m, kept), len(kept.sockets), kept.reserved.Load()
	}
	return m, err
}

// DefaultCheckpoint is how often a backup is made whole while it goes on.
const DefaultCheckpoint = 5 * time.Minute

// flushTime is how long a cancelled backup may take to send what it has read; a Pod is given 30 s to end.
const flushTime = 20 * time.Second

// stretch is a context that ends some time after ctx.
func stretch(ctx context.Context, by time.Duration) (context.Context, func()) {
	whole, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(by, cancel) })
	return whole, func() {
		stop()
		cancel()
	}
}

// uploadPolicy is given with every upload, so that nobody who can write policies into the repository can leave data out.
func uploadPolicy(parallel int) *policy.Policy {
	p := keepAll()
	p.UploadPolicy = policy.UploadPolicy{
		MaxParallelFileReads: new(policy.OptionalInt(parallel)),
		// A large file is read by all readers at once.
		ParallelUploadAboveSize: new(policy.OptionalInt64(256 << 20)),
	}
	return p
}

// unread is the error of a backup that could not read some files.
func unread(m *snapshot.Manifest) error {
	if m.RootEntry == nil || m.RootEntry.DirSummary == nil {
		return nil
	}
	s := m.RootEntry.DirSummary
	if s.FatalErrorCount+s.IgnoredErrorCount == 0 {
		return nil
	}
	var names []string
	for _, f := range s.FailedEntries {
		names = append(names, f.EntryPath+" ("+f.Error+")")
	}
	return fmt.Errorf("%w, and none is kept: %d files or directories could not be read, such as %s: make them readable to this user, or leave them out of the path", ErrIncomplete, s.FatalErrorCount+s.IgnoredErrorCount, strings.Join(names[:min(len(names), 3)], ", "))
}

// dropIncomplete forgets checkpoints that a whole backup makes superfluous.
func dropIncomplete(ctx context.Context, w repo.RepositoryWriter, before []*snapshot.Manifest) error {
	for _, b := range before {
		if b.IncompleteReason != "" {
			if err := w.DeleteManifest(ctx, b.ID); err != nil && !errors.Is(err, manifest.ErrNotFound) {
				return err
			}
		}
	}
	return nil
}

// addAttributes puts the file of attributes into the root of an uploaded tree.
func addAttributes(ctx context.Context, w repo.RepositoryWriter, m *snapshot.Manifest, kept *attributes) error {
	id, size, err := writeAttributes(ctx, w, kept)
	if err != nil || size == 0 {
		return err
	}
	root := snapshotfs.DirectoryEntry(w, m.RootEntry.ObjectID, nil)
	entries, err := fs.GetAllEntries(ctx, root)
	if err != nil {
		return err
	}
	var dir snapshotfs.DirManifestBuilder
	for _, e := range entries {
		if had, ok := e.(snapshot.HasDirEntry); ok && e.Name() != attributesName {
			dir.AddEntry(had.DirEntry())
		}
	}
	dir.AddEntry(&snapshot.DirEntry{
		Name: attributesName, Type: snapshot.EntryTypeFile, Permissions: 0o600, FileSize: size, ModTime: fs.UTCTimestampFromTime(time.Now()), ObjectID: id,
	})
	if m.RootEntry.ObjectID, err = snapshotfs.WriteDirManifest(ctx, w, ".", dir.Build(m.RootEntry.ModTime, ""), ""); err != nil {
		return err
	}
	return nil
}

func writeAttributes(ctx context.Context, w repo.RepositoryWriter, kept *attributes) (id object.ID, size int64, err error) {
	out := w.NewObjectWriter(ctx, object.WriterOptions{Description: attributesName, Compressor: compressor})
	defer out.Close()
	b := bufio.NewWriterSize(counted{out, &size}, 256<<10)
	if err := errors.Join(kept.encode(b), b.Flush()); err != nil {
		return object.EmptyID, 0, err
	}
	id, err = out.Result()
	return id, size, err
}

// counted counts what is written.
type counted struct {
	io.Writer
	n *int64
}

// Write implements io.Writer.
func (c counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	*c.n += int64(n)
	return n, err
}

// counter is Kopia's view of progress.
type counter struct {
	upload.NullUploadProgress
	report                           func(Progress)
	done                             chan struct{}
	files, cached, bytes, read, sent atomic.Int64
	total                            atomic.Int64 // of a device
}

// Enabled implements upload.Progress. It would only make Kopia read everything once more for an estimate.
func (c *counter) Enabled() bool { return false }

// CachedFile implements upload.Progress.
func (c *counter) CachedFile(_ string, n int64) {
	c.files.Add(1)
	c.cached.Add(1)
	c.bytes.Add(n)
}

// FinishedHashingFile implements upload.Progress.
func (c *counter) FinishedHashingFile(_ string, n int64) {
	c.files.Add(1)
	c.bytes.Add(n)
}

// HashedBytes implements upload.Progress.
func (c *counter) HashedBytes(n int64) { c.read.Add(n) }

// restart counts anew, for what is read once more.
func (c *counter) restart() {
	for _, n := range []*atomic.Int64{&c.files, &c.cached, &c.bytes, &c.read} {
		n.Store(0)
	}
}

func (c *counter) now() Progress {
	return Progress{Files: c.files.Load(), Cached: c.cached.Load(), Bytes: c.bytes.Load(), Read: c.read.Load(), Sent: c.sent.Load(), Total: c.total.Load()}
}

// reportEvery is how often progress is told.
const reportEvery = time.Second

func (c *counter) run() {
	if c.report == nil {
		return
	}
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.report(c.now())
		case <-c.done:
			return
		}
	}
}

func (c *counter) stop() { close(c.done) }
