package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize/english"
	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

var (
	// ErrUnknown is returned for a backup that neither history nor the repository knows.
	ErrUnknown = errors.New("no such volume backup")
	// ErrAmbiguous is returned for what several backups may be meant by.
	ErrAmbiguous = errors.New("it is not clear which volume backup is meant")
	// ErrNoContent is returned for a backup whose content the repository does not have.
	ErrNoContent = errors.New("this backup has no content in the repository")
	// ErrRequest is returned for what cannot be meant.
	ErrRequest = errors.New("cannot be done")
)

// Options are what a Keeper works with.
type Options struct {
	// Open opens the repository; with create it is made when it is not there.
	Open func(ctx context.Context, create bool) (*repository.Repository, error)
	// Record writes a backup into history, and Recorded yields what is there now. Both nil: only the repository
	// tells of backups.
	Record   func(ctx context.Context, e journal.Event) error
	Recorded func(ctx context.Context) iter.Seq2[journal.Event, error]
	// Fence is the cut of the cluster's state right now. Nil: there is no cluster to ask.
	Fence func(ctx context.Context) (journal.Cut, error)
	// Cluster is where claims are; nil: only paths are backed up.
	Cluster *Cluster
	Clock   func() time.Time // default: time.Now
	Logger  *zap.Logger      // default: none
	// Age is how old the archive beside is, counted so that a clock that jumps makes nothing old. Nil: the clock says how old backups are.
	Age func() (time.Duration, error)
}

// Keeper makes backups, finds them, and writes their content back. Its methods may be called from several goroutines.
type Keeper struct {
	o        Options
	began    time.Time
	policies atomic.Pointer[Policies]
	slots    *slots
	settled  chan struct{} // closed when what a process before this one left is put right
	tally    tally
	once     sync.Once
	mu       sync.Mutex // held while the content of backups is removed
}

// New makes a Keeper.
func New(o Options) *Keeper {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Fence == nil {
		o.Fence = func(context.Context) (journal.Cut, error) { return journal.Cut{}, nil }
	}
	o.Logger = o.Logger.Named("volumes")
	k := &Keeper{o: o, began: o.Clock(), slots: newSlots(o.Cluster), settled: make(chan struct{})}
	if o.Record == nil { // it has no history to settle
		close(k.settled)
	}
	k.policies.Store(&Policies{})
	return k
}

// SetPolicies says what is done with claims from now on.
func (k *Keeper) SetPolicies(p Policies) { k.policies.Store(&p) }

// Tags of a backup in the repository.
const (
	tagName   = "backup" // its name
	tagRecord = "record" // its record as JSON, so that the bucket alone is enough
)

// BackRequest asks for a backup of a path on the machine of the Keeper.
type BackRequest struct {
	Path string `json:"path"`
	// Namespace and Claim say whose volume the path is; empty: nobody's.
	Namespace string `json:"namespace,omitempty"`
	Claim     string `json:"claim,omitempty"`
	Run       string `json:"run,omitempty"` // default: the backup's name
	// ReadAll is that of repository.BackupOptions.
	ReadAll bool `json:"readAll,omitempty"`
	// OneFileSystem is that of repository.BackupOptions.
	OneFileSystem bool `json:"oneFileSystem,omitempty"`
	// TTL and Pinned are those of Spec.
	TTL    time.Duration `json:"ttl,omitempty"`
	Pinned bool          `json:"pinned,omitempty"`
}

func (q *BackRequest) check() error {
	switch {
	case !filepath.IsAbs(q.Path) || filepath.Clean(q.Path) != q.Path:
		return fmt.Errorf("%w: %q is not the whole path of a directory or a block device", ErrRequest, q.Path)
	case (q.Namespace == "") != (q.Claim == ""):
		return fmt.Errorf("%w: a namespace and a claim belong together", ErrRequest)
	}
	return checkTTL(q.TTL)
}

// Back backs a path up. The backup is recorded when it begins and when it ends, whatever its end; one that failed is
// returned with the error. Files are read one after another, so for files that are being written to, it is no better than
// a copy; a snapshot that is mounted at the path is.
func (k *Keeper) Back(ctx context.Context, q BackRequest, progress func(repository.Progress)) (*Backup, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	b := k.newBackup(q.Namespace, Spec{Claim: q.Claim, Path: q.Path, Run: q.Run, Origin: "manual", TTL: q.TTL, Pinned: q.Pinned})
	if b.Spec.Run == "" {
		b.Spec.Run = b.Metadata.Name
	}
	r, err := k.o.Open(ctx, true)
	if err != nil {
		return nil, err
	}
	defer k.close(ctx, r)
	b.Status.Before = k.fence(ctx, b)
	b.Status.Consistency, b.Status.Taken = Live, k.o.Clock().UTC()
	if q.Run != "" { // now that there is a repository to look in
		if err := k.checkName(ctx, q.Run); err != nil {
			return nil, err
		}
	}
	if err := k.record(ctx, b, journal.Added); err != nil {
		return nil, err
	}
	err = k.back(ctx, r, b, &q, progress)
	b.Status.Finished = k.o.Clock().UTC()
	b.Status.Phase = Done
	if err != nil {
		b.Status.Phase, b.Status.Error = Failed, err.Error()
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	return b, errors.Join(err, k.record(last, b, journal.Modified))
}

// recordTime bounds the last record of a backup that was cancelled.
const recordTime = 10 * time.Second

func (k *Keeper) back(ctx context.Context, r *repository.Repository, b *Backup, q *BackRequest, progress func(repository.Progress)) error {
	res, err := r.Back(ctx, sourceOf(b), b.Spec.Path, repository.BackupOptions{
		Description: "tidemark " + b.Metadata.Name, Progress: progress, ReadAll: q.ReadAll, OneFileSystem: q.OneFileSystem,
		Tags: func() (map[string]string, error) {
			b.Status.After = k.fence(ctx, b)
			return tagsOf(b)
		},
	})
	if err != nil {
		return err
	}
	b.keep(r.Location(), &res.Backup)
	b.Status.Content.Unchanged, b.Status.Content.Sent = res.Cached, res.Sent
	return nil
}

func tagsOf(b *Backup) (map[string]string, error) {
	record, err := json.Marshal(b)
	return map[string]string{tagName: b.Metadata.Name, tagRecord: string(record)}, err
}

// fence is the cut of now. A cluster that does not answer is no reason not to back up: only its revision is missing then.
func (k *Keeper) fence(ctx context.Context, b *Backup) journal.Cut {
	c, err := k.o.Fence(ctx)
	if err != nil {
		k.o.Logger.Warn("the cluster's revision cannot be read, so that a volume backup is placed by its time only", zap.String("backup", b.Metadata.Name), zap.Error(err))
		c = journal.Cut{}
	}
	if c.Time.IsZero() {
		c.Time = k.o.Clock().UTC()
	}
	return c
}

func sourceOf(b *Backup) repository.Source {
	if b.Spec.Claim == "" {
		return repository.Source{Name: b.Spec.Path}
	}
	return repository.Source{Namespace: b.Metadata.Namespace, Name: b.Spec.Claim}
}

// keep takes down where the repository has the content, and what it does not have.
func (b *Backup) keep(location string, c *repository.Backup) {
	b.Status.Content = &Content{Location: location, ID: c.ID, Files: c.Files, Bytes: c.Bytes}
	if n := c.Sockets(); n > 0 {
		b.note("left out, as who listens makes them anew: %s", english.Plural(n, "socket", ""))
	}
	if name := c.Reserved(); name != "" {
		b.note("left out: the file %s in its root, as backups keep something of their own under that name: rename it if it is yours", name)
	}
}

func (k *Keeper) close(ctx context.Context, r *repository.Repository) {
	if err := r.Close(context.WithoutCancel(ctx)); err != nil {
		k.o.Logger.Warn("closing the repository failed", zap.Error(err))
	}
}

func (k *Keeper) record(ctx context.Context, b *Backup, op journal.Op) error {
	if k.o.Record == nil {
		return nil
	}
	if err := k.tally.load(ctx, k.List); err != nil {
		k.o.Logger.Warn("the records of volume backups cannot be read, so that the figures lack one", zap.String("backup", b.Metadata.Name), zap.Error(err))
	}
	e, err := b.Event(op)
	if err == nil {
		err = k.o.Record(ctx, e)
	}
	if err != nil {
		return fmt.Errorf("record volume backup %s: %w", b.Metadata.Name, err)
	}
	k.tally.note(b, op)
	return nil
}

// List lists what history has of backups, and what only the repository has, oldest first.
func (k *Keeper) List(ctx context.Context) ([]*Backup, error) {
	var all []*Backup
	known := map[string]bool{}
	if k.o.Recorded != nil {
		for e, err := range k.o.Recorded(ctx) {
			if err != nil {
				return nil, fmt.Errorf("read the records of volume backups: %w", err)
			}
			b, err := Parse(e.Object)
			if err != nil {
				return nil, err
			}
			all = append(all, b)
			known[b.Metadata.Name] = true
		}
	}
	if k.o.Record == nil { // who has no history to write has to look
		held, err := k.held(ctx)
		if err != nil {
			return nil, err
		}
		for _, b := range held {
			if !known[b.Metadata.Name] {
				all = append(all, b)
			}
		}
	}
	Sort(all)
	return all, nil
}

// held are the backups in the repository. Of several with one name, the newest: a mover that died before it could tell has left the others.
func (k *Keeper) held(ctx context.Context) ([]*Backup, error) {
	r, err := k.o.Open(ctx, false)
	if errors.Is(err, repository.ErrNoRepository) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer k.close(ctx, r)
	stored, err := r.List(ctx)
	if err != nil {
		return nil, err
	}
	pins, err := r.Pins(ctx, tagName)
	if err != nil {
		return nil, err
	}
	var all []*Backup
	named := map[string]int{}
	for _, s := range stored { // oldest first
		b, err := Parse([]byte(s.Tags[tagRecord]))
		if err != nil { // made by somebody else with the kopia command line
			b = newBackup(s.Source.Namespace, Spec{Origin: "kopia"}, s.Began)
			if b.Spec.Claim = s.Source.Name; s.Source.Namespace == "" {
				b.Spec.Claim, b.Spec.Path = "", s.Source.Name
			}
			b.Metadata.Name, b.Spec.Run = s.ID, s.ID
			b.Status.Consistency, b.Status.Taken = Live, s.Began.UTC()
		}
		if pinned, told := pins[b.Metadata.Name]; told {
			b.Spec.Pinned = pinned
		}
		b.Status.Phase, b.Status.Finished = Done, s.Ended.UTC()
		b.keep(r.Location(), &s)
		if i, again := named[b.Metadata.Name]; again {
			all[i] = b
			continue
		}
		named[b.Metadata.Name] = len(all)
		all = append(all, b)
	}
	return all, nil
}

// Find is the backup of a name, of the run that it was made in, or of a part of its name that no other has.
func (k *Keeper) Find(ctx context.Context, name string) (*Backup, error) {
	all, err := k.List(ctx)
	if err != nil {
		return nil, err
	}
	return find(all, name)
}

func find(all []*Backup, name string) (*Backup, error) {
	for _, is := range []func(*Backup) bool{
		func(b *Backup) bool { return b.Metadata.Name == name },
		func(b *Backup) bool { return name != "" && b.Spec.Run == name },
		func(b *Backup) bool { return name != "" && strings.HasPrefix(b.Metadata.Name, name) },
		func(b *Backup) bool { return name != "" && strings.Contains(b.Metadata.Name, name) },
	} {
		var found []*Backup
		for _, b := range all {
			if is(b) {
				found = append(found, b)
			}
		}
		switch len(found) {
		case 0:
			continue
		case 1:
			return found[0], nil
		}
		return nil, fmt.Errorf("%w: %d backups have %q in their names, or were made as it, such as %s: give more of the name", ErrAmbiguous, len(found), name, found[len(found)-1].Metadata.Name)
	}
	return nil, fmt.Errorf("%w: %q: 'tidemark volumes list' shows what there is", ErrUnknown, name)
}

// content opens the repository for the content of a backup. The caller closes it.
func (k *Keeper) content(ctx context.Context, name string) (*repository.Repository, string, error) {
	b, err := k.Find(ctx, name)
	if err != nil {
		return nil, "", err
	}
	if b.Status.Content == nil || b.Status.Phase == Deleting {
		why := string(b.Status.Phase)
		if b.Status.Error != "" {
			why += ": " + b.Status.Error
		}
		return nil, "", fmt.Errorf("%w (%s): %s", ErrNoContent, why, b.Metadata.Name)
	}
	r, err := k.o.Open(ctx, false)
	if err != nil {
		return nil, "", err
	}
	return r, b.Status.Content.ID, nil
}

// Files yields the files of a backup at a path; with deep all below it too.
func (k *Keeper) Files(ctx context.Context, name, path string, deep bool) iter.Seq2[repository.File, error] {
	return func(yield func(repository.File, error) bool) {
		r, id, err := k.content(ctx, name)
		if err != nil {
			yield(repository.File{}, err)
			return
		}
		defer k.close(ctx, r)
		r.Files(ctx, id, path, deep)(yield)
	}
}

// Read writes the content of one file of a backup.
func (k *Keeper) Read(ctx context.Context, name, path string, to io.Writer) error {
	r, id, err := k.content(ctx, name)
	if err != nil {
		return err
	}
	defer k.close(ctx, r)
	return r.Read(ctx, id, path, to)
}

// RestoreRequest asks for the content of a backup in a directory, or on a block device, of the Keeper's machine.
type RestoreRequest struct {
	Backup string `json:"backup"`
	To     string `json:"to"`
	// Path within the backup is what comes back; empty: everything.
	Path        string `json:"path,omitempty"`
	DeleteExtra bool   `json:"deleteExtra,omitempty"`
	KeepOwners  bool   `json:"keepOwners,omitempty"`
}

// Restore writes the content of a backup.
func (k *Keeper) Restore(ctx context.Context, q RestoreRequest, progress func(repository.Progress)) (repository.Progress, error) {
	if !filepath.IsAbs(q.To) || filepath.Clean(q.To) == "/" {
		return repository.Progress{}, fmt.Errorf("%w: %q is not the whole path of a directory to restore into", ErrRequest, q.To)
	}
	r, id, err := k.content(ctx, q.Backup)
	if err != nil {
		return repository.Progress{}, err
	}
	defer k.close(ctx, r)
	return r.Restore(ctx, id, q.To, repository.RestoreOptions{Path: q.Path, DeleteExtra: q.DeleteExtra, KeepOwners: q.KeepOwners, Progress: progress})
}

// Verify checks that the repository has all that backups need, and reads percent of their files. No names: all backups. What keeps it from looking at
// all of it is returned with the damage that was found, if there was any.
func (k *Keeper) Verify(ctx context.Context, percent float64, names ...string) (*repository.Verified, error) {
	if percent < 0 || percent > 100 {
		return nil, fmt.Errorf("%w: %g%% of the files cannot be read: want 0 to 100", ErrRequest, percent)
	}
	all, err := k.List(ctx)
	if errors.Is(err, repository.ErrBroken) {
		return repository.Broken(0, err), nil
	}
	if err != nil {
		return nil, err
	}
	if len(names) > 0 {
		named := all[:0:0]
		for _, name := range names {
			b, err := find(all, name)
			if err != nil {
				return nil, err
			}
			if b.Status.Content == nil || b.Status.Phase == Deleting {
				return nil, fmt.Errorf("%w (%s): %s", ErrNoContent, b.Status.Phase, b.Metadata.Name)
			}
			named = append(named, b)
		}
		all = named
	}
	var wanted []repository.Wanted
	for _, b := range all {
		if b.Status.Content != nil && b.Status.Phase != Deleting {
			wanted = append(wanted, repository.Wanted{ID: b.Status.Content.ID, Name: b.Metadata.Name})
		}
	}
	if len(wanted) == 0 && len(names) > 0 {
		return &repository.Verified{}, nil
	}
	r, err := k.o.Open(ctx, false) // also where there are none: they may be listed in an index that is lost
	if errors.Is(err, repository.ErrNoRepository) && len(wanted) == 0 {
		return &repository.Verified{}, nil
	}
	if errors.Is(err, repository.ErrBroken) {
		return repository.Broken(len(wanted), err), nil
	}
	if err != nil {
		return nil, err
	}
	defer k.close(ctx, r)
	return r.Verify(ctx, percent, wanted...)
}

// leftFor is how long what a backup that did not get whole has left is kept for the next try. Each try that gets whole forgets what those before
// it left, so this is for claims that are not backed up any more.
const leftFor = 14 * 24 * time.Hour

// Maintain lets the repository do what is due; see repository.Maintain. It is nil where there is nothing to maintain.
func (k *Keeper) Maintain(ctx context.Context, q repository.Maintenance) (*repository.Maintained, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, err := k.existing(ctx)
	if r == nil {
		return nil, err
	}
	defer k.close(ctx, r)
	if k.o.Record != nil { // otherwise nobody knows what is being made
		if err := k.forgetLeft(ctx, r); err != nil {
			return nil, err
		}
	}
	return r.Maintain(ctx, q)
}

// forgetLeft forgets what backups that did not get whole have left, unless the volume is being backed up.
func (k *Keeper) forgetLeft(ctx context.Context, r *repository.Repository) error {
	all, err := k.List(ctx)
	if err != nil {
		return err
	}
	busy := map[repository.Source]bool{}
	for _, b := range all {
		if b.Status.Phase == Running {
			busy[sourceOf(b)] = true
		}
	}
	left, err := r.Incomplete(ctx, k.o.Clock().Add(-leftFor))
	if err != nil {
		return err
	}
	var ids []string
	for _, b := range left {
		if !busy[b.Source] {
			ids = append(ids, b.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	k.o.Logger.Info("what backups that did not get whole have left is too old to go on from", zap.Int("manifests", len(ids)))
	return r.Forget(ctx, ids...)
}
