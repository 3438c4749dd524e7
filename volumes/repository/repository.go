package repository

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/format"
	"github.com/kopia/kopia/repo/maintenance"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/policy"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

var (
	// ErrNoRepository is returned by Open where nothing was backed up yet.
	ErrNoRepository = errors.New("there is no content of volumes")
	// ErrBroken is returned for a repository that lacks, or has damaged, what all else needs.
	ErrBroken = errors.New("the repository of volumes is not whole")
	// ErrNoBackup is returned for an id that the repository does not hold.
	ErrNoBackup = errors.New("the repository does not hold this backup")
)

// Options say which repository, and how it is used.
type Options struct {
	// Store is the location, Cluster the id of the cluster whose repository it is.
	Store   archive.Store
	Cluster string
	// Identities open the repository's password, which Recipients is encrypted for when it is made. Password, when it is
	// known, makes both unnecessary.
	Identities []age.Identity
	Recipients []age.Recipient
	Password   string
	// CacheDir keeps indexes and directories that were read, up to CacheBytes (default: 512 MiB), and a little of the content. Default:
	// a new directory, which Close removes.
	CacheDir   string
	CacheBytes int64
	// ReadOnly refuses everything that writes.
	ReadOnly bool
	// Lock keeps what is written from being removed for that long, in a bucket with object lock. It counts when the repository
	// is made.
	Lock       time.Duration
	Compliance bool
}

func (o *Options) dir() string { return archive.VolumesDir + "/" + o.Cluster + "/" }

// Clusters are those that have content of volumes in a store.
func Clusters(ctx context.Context, store archive.Store) ([]string, error) {
	var all []string
	for after := ""; ; {
		found := ""
		for f, err := range store.List(ctx, archive.VolumesDir+"/", after) {
			if err != nil {
				return nil, fmt.Errorf("look into %s: %w", store, err)
			}
			found = f.Name
			break
		}
		if found == "" {
			return all, nil
		}
		cluster, _, ok := strings.Cut(found[len(archive.VolumesDir)+1:], "/")
		if after = found; ok {
			all = append(all, cluster)
			after = archive.VolumesDir + "/" + cluster + "/\xff"
		}
	}
}

// Files is what the names of all files of a cluster's repository begin with, its password's excepted.
func Files(cluster string) string { return archive.VolumesDir + "/" + cluster + "/kopia/" }

// Repository is an open repository. Its methods may be called from several goroutines.
type Repository struct {
	o       Options
	storage *storage
	kopia   repo.DirectRepository
	temp    string // holds the cache; done removes it
	done    func()
	lock    string // of Kopia's maintenance, to be removed
	fatal   chan error
}

// userName is who writes, as Kopia sees it; all of a cluster's are one, so that one of them may maintain.
const userName = "tidemark"

// Open opens the repository of a cluster. ErrNoRepository: nothing was ever backed up there.
func Open(ctx context.Context, o Options) (*Repository, error) { return open(ctx, o, false) }

// Create opens the repository of a cluster, and makes it when there is none.
func Create(ctx context.Context, o Options) (*Repository, error) { return open(ctx, o, true) }

func open(ctx context.Context, o Options, create bool) (_ *Repository, err error) {
	if o.CacheBytes == 0 {
		o.CacheBytes = 512 << 20
	}
	if o.Cluster == "" || strings.ContainsAny(o.Cluster, "/\x00") {
		return nil, fmt.Errorf("%q cannot be a cluster's id", o.Cluster)
	}
	r := &Repository{o: o, fatal: make(chan error, 1)}
	if o.Password == "" {
		if r.o.Password, err = password(ctx, o.Store, o.dir(), &o, create); err != nil {
			return nil, err
		}
	}
	dir := o.CacheDir
	if dir == "" {
		if r.temp, r.done, err = newTemporary(); err != nil {
			return nil, err
		}
		dir = r.temp
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the repository's cache: %w", err)
	}
	r.storage = newStorage(o.Store, Files(o.Cluster), o.ReadOnly)
	defer func() {
		if err != nil {
			r.release()
		}
	}()
	if create {
		if err := r.initialize(ctx); err != nil {
			return nil, r.explain(err)
		}
	}
	if err := r.connect(ctx, dir); err != nil {
		if _, missing := r.storage.GetMetadata(ctx, format.KopiaRepositoryBlobID); errors.Is(missing, blob.ErrBlobNotFound) {
			err = cmp.Or(r.headless(ctx), repo.ErrRepositoryNotInitialized)
		}
		return nil, r.explain(r.damage(ctx, err))
	}
	if create {
		if err := r.prepare(ctx); err != nil {
			return nil, errors.Join(r.explain(err), r.kopia.Close(ctx))
		}
	}
	return r, nil
}

// CleanCache removes from Options.CacheDir what a process that died may have left, before any repository is opened with it. Kopia neither syncs nor checks the
// indexes there, so that after a power cut they may be empty; it makes them again, out of the cache of files beside them, which it checks.
func CleanCache(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, verifyDir+"*"))
	for _, d := range append(left, filepath.Join(dir, cacheDir, "indexes")) {
		err = errors.Join(err, os.RemoveAll(d))
	}
	return err
}

// cacheDir is where Kopia's cache is in Options.CacheDir.
const cacheDir = "cache"

// contentCacheBytes bounds the content that was read and is kept on disk. Kopia keeps all of it, however little is read twice; the less there is,
// the sooner its pages are used again. The limits besides the sizes matter: without them, what was read in the last ten minutes stays,
// which is as much as a volume has.
const contentCacheBytes = 16 << 20

// connect opens it. Kopia wants a file to keep its settings in.
func (r *Repository) connect(ctx context.Context, dir string) error {
	// Kopia's command line is told by it where to cache, and the library obeys too: repositories would share one cache, which stays.
	if err := os.Unsetenv("KOPIA_CACHE_DIRECTORY"); err != nil {
		return err
	}
	// Of what is deleted and lost, nothing is missed; a maintenance that cannot rewrite it is not to fail. There is no other way to tell it so.
	if err := os.Setenv("KOPIA_IGNORE_MAINTENANCE_REWRITE_ERROR", "true"); err != nil {
		return err
	}
	config := filepath.Join(dir, fmt.Sprintf("repository-%d-%d.config", os.Getpid(), r.storage.number))
	defer os.Remove(config)
	r.lock = config + ".mlock"
	settings := repo.LocalConfig{
		Storage: new(r.storage.ConnectionInfo()),
		Caching: &content.CachingOptions{
			CacheDirectory: filepath.Join(dir, cacheDir), MetadataCacheSizeBytes: r.o.CacheBytes, MetadataCacheSizeLimitBytes: r.o.CacheBytes,
			ContentCacheSizeBytes: contentCacheBytes, ContentCacheSizeLimitBytes: contentCacheBytes,
		},
		ClientOptions: repo.ClientOptions{Hostname: r.o.Cluster, Username: userName, ReadOnly: r.o.ReadOnly, Description: "volumes of Tidemark"},
	}
	b, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	if err := os.WriteFile(config, b, 0o600); err != nil {
		return err
	}
	open, err := repo.Open(ctx, config, r.o.Password, &repo.Options{
		DisableRepositoryLog: true,
		OnFatalError: func(err error) { // Kopia's own way ends the process
			select {
			case r.fatal <- err:
			default:
			}
		},
	})
	if err != nil {
		return err
	}
	direct, ok := open.(repo.DirectRepository)
	if !ok {
		return errors.Join(errors.New("the repository cannot be written to directly"), open.Close(ctx))
	}
	r.kopia = direct
	return nil
}

// prepare sets, once, what the repository is to do by itself: nothing is to expire but what Forget forgets.
func (r *Repository) prepare(ctx context.Context) error {
	if has, err := maintenance.HasParams(ctx, r.kopia); err != nil || has {
		return err
	}
	return repo.WriteSession(ctx, r.kopia, repo.WriteSessionOptions{Purpose: "prepare"}, func(ctx context.Context, w repo.RepositoryWriter) error {
		if err := policy.SetPolicy(ctx, w, policy.GlobalPolicySourceInfo, keepAll()); err != nil {
			return err
		}
		p := maintenance.DefaultParams()
		p.Owner = r.kopia.ClientOptions().UsernameAtHost()
		return maintenance.SetParams(ctx, w, &p)
	})
}

func keepAll() *policy.Policy {
	all := new(policy.OptionalInt(math.MaxInt32))
	return &policy.Policy{
		RetentionPolicy:   policy.RetentionPolicy{KeepLatest: all, KeepHourly: all, KeepDaily: all, KeepWeekly: all, KeepMonthly: all, KeepAnnual: all},
		CompressionPolicy: policy.CompressionPolicy{CompressorName: compressor},
		SchedulingPolicy:  policy.SchedulingPolicy{Manual: true},
	}
}

// compressor is fast and good; what does not shrink is stored as it is.
const compressor = "zstd-fastest"

// Close lets go of it.
func (r *Repository) Close(ctx context.Context) error {
	err := r.kopia.Close(ctx)
	r.release()
	return err
}

func (r *Repository) release() {
	r.storage.forget()
	_ = os.Remove(r.lock)
	if r.done != nil {
		r.done()
	}
}

// Password is the repository's password, for a mover that is to open it.
func (r *Repository) Password() string { return r.o.Password }

// Cluster is the id of the cluster whose repository it is.
func (r *Repository) Cluster() string { return r.o.Cluster }

// Store is where it is.
func (r *Repository) Store() archive.Store { return r.o.Store }

// Location is the URL of its store.
func (r *Repository) Location() string { return r.o.Store.String() }

// Traffic tells how many bytes went to the store and came from it.
func (r *Repository) Traffic() (sent, loaded int64) {
	return r.storage.sent.Load(), r.storage.loaded.Load()
}

// explain adds what helps.
func (r *Repository) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrBroken), errors.Is(err, ErrIncomplete):
		return err
	case errors.Is(err, archive.ErrDenied):
		for inner := err; errors.Is(inner, archive.ErrDenied); inner = errors.Unwrap(inner) {
			err = inner // without all that Kopia was about to do, twice
		}
	case errors.Is(err, repo.ErrRepositoryNotInitialized):
		return fmt.Errorf("%w in %s", ErrNoRepository, r.o.Store)
	}
	if isDamage(err) && r.storage.trouble() == nil {
		if strings.Contains(err.Error(), "manifest") {
			return r.brokenFile(err)
		}
		return fmt.Errorf("what the backup has there is damaged in the repository, or lost from it: use another backup, and 'tidemark volumes verify' to see what else is hit (repository of volumes in %s: %w)", r.o.Store, err)
	}
	return fmt.Errorf("repository of volumes in %s: %w", r.o.Store, err)
}

// isDamage reports whether content is not what was written, or gone from the store. Kopia has no error of its own for the first.
func isDamage(err error) bool {
	return strings.Contains(err.Error(), "invalid checksum") || errors.Is(err, blob.ErrBlobNotFound)
}

// damage marks an error as ErrBroken when the store gave all that it was asked for, and that is of no use.
func (r *Repository) damage(ctx context.Context, err error) error {
	var file *iofs.PathError // of the cache
	switch {
	case err == nil, ctx.Err() != nil, r.storage.trouble() != nil, errors.Is(err, ErrBroken), errors.Is(err, repo.ErrRepositoryNotInitialized):
		return err
	case errors.As(err, &file) && !errors.Is(err, iofs.ErrNotExist):
		return err
	}
	if head := r.headDamage(ctx, err); head != nil {
		return head
	}
	if errors.Is(err, repo.ErrInvalidPassword) {
		return fmt.Errorf("%w: that in %s has another password than the one in its keys: was it copied in part? Bring both back from a copy or an older version (%w)", ErrBroken, r.o.Store, err)
	}
	return r.brokenFile(err)
}

// failed is the error that made the repository useless, if there was one.
func (r *Repository) failed(err error) error {
	select {
	case fatal := <-r.fatal:
		return r.explain(errors.Join(fatal, err))
	default:
		return r.explain(err)
	}
}

// Backup is one backup in the repository.
type Backup struct {
	ID     string // Kopia's manifest
	Source Source
	Tags   map[string]string
	Began  time.Time
	Ended  time.Time
	Files  int64 // regular files; of a device 1
	Dirs   int64
	Bytes  int64 // of all files
	// Incomplete says why it is not whole: it was cancelled, or is a checkpoint of one that was cut off.
	Incomplete string
}

// Source is what was backed up.
type Source struct {
	Namespace, Name string // a claim; without a namespace, Name is a path
}

func (s Source) info(cluster string) snapshot.SourceInfo {
	if s.Namespace == "" {
		return snapshot.SourceInfo{Host: cluster, UserName: "path", Path: "/" + strings.TrimPrefix(EscapePath(s.Name), "/")}
	}
	return snapshot.SourceInfo{Host: cluster, UserName: s.Namespace, Path: "/" + s.Name}
}

func sourceOf(i snapshot.SourceInfo) Source {
	if i.UserName == "path" {
		return Source{Name: i.Path}
	}
	return Source{Namespace: i.UserName, Name: strings.TrimPrefix(i.Path, "/")}
}

// tagPrefix is Kopia's: its command line shows and finds tags with it.
const tagPrefix = "tag:"

func backupOf(m *snapshot.Manifest) Backup {
	b := Backup{
		ID: string(m.ID), Source: sourceOf(m.Source), Tags: map[string]string{}, Began: m.StartTime.ToTime(), Ended: m.EndTime.ToTime(), Incomplete: m.IncompleteReason,
	}
	for k, v := range m.Tags {
		b.Tags[strings.TrimPrefix(k, tagPrefix)] = v
	}
	if m.RootEntry != nil && m.RootEntry.DirSummary != nil {
		s := m.RootEntry.DirSummary
		b.Files, b.Dirs, b.Bytes = s.TotalFileCount, s.TotalDirCount, s.TotalFileSize
	}
	return b
}

// refresh sees what others have written since the repository was opened.
func (r *Repository) refresh(ctx context.Context) error {
	return r.failed(r.damage(ctx, r.kopia.Refresh(ctx)))
}

// List lists the backups that are whole, oldest first.
func (r *Repository) List(ctx context.Context) ([]Backup, error) {
	if err := r.refresh(ctx); err != nil {
		return nil, err
	}
	ids, err := snapshot.ListSnapshotManifests(ctx, r.kopia, nil, nil)
	if err != nil {
		return nil, r.failed(r.damage(ctx, err))
	}
	manifests, err := snapshot.LoadSnapshots(ctx, r.kopia, ids)
	if err != nil {
		return nil, r.failed(r.damage(ctx, err))
	}
	var all []Backup
	for _, m := range manifests {
		if m.IncompleteReason == "" {
			all = append(all, backupOf(m))
		}
	}
	slices.SortFunc(all, func(a, b Backup) int { return a.Began.Compare(b.Began) })
	return all, nil
}

// manifest loads one.
func (r *Repository) manifest(ctx context.Context, id string) (*snapshot.Manifest, error) {
	m, err := snapshot.LoadSnapshot(ctx, r.kopia, manifest.ID(id))
	if errors.Is(err, snapshot.ErrSnapshotNotFound) { // it may be a new one
		if err := r.refresh(ctx); err != nil {
			return nil, err
		}
		m, err = snapshot.LoadSnapshot(ctx, r.kopia, manifest.ID(id))
	}
	if errors.Is(err, snapshot.ErrSnapshotNotFound) {
		return nil, fmt.Errorf("%w: %s in %s", ErrNoBackup, id, r.o.Store)
	}
	if err != nil {
		return nil, r.failed(err)
	}
	return m, nil
}

// Get is one backup.
func (r *Repository) Get(ctx context.Context, id string) (Backup, error) {
	m, err := r.manifest(ctx, id)
	if err != nil {
		return Backup{}, err
	}
	return backupOf(m), nil
}

// Forget removes backups. Those that are gone already are no error. Their content is freed by Maintain, a day later.
func (r *Repository) Forget(ctx context.Context, ids ...string) error {
	return r.failed(repo.WriteSession(ctx, r.kopia, repo.WriteSessionOptions{Purpose: "forget"}, func(ctx context.Context, w repo.RepositoryWriter) error {
		for _, id := range ids {
			if err := w.DeleteManifest(ctx, manifest.ID(id)); err != nil && !errors.Is(err, manifest.ErrNotFound) {
				return err
			}
		}
		return nil
	}))
}
