package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"go.uber.org/zap"
)

var (
	// ErrNoArchive is returned by Open when there is no archive under the URL.
	ErrNoArchive = errors.New("there is no archive")
	// ErrOtherCluster is returned for an archive, or a file in it, of another cluster.
	ErrOtherCluster = errors.New("it belongs to another cluster")
	// ErrFenced is returned to a writer whose journal is not the archive's any more: another
	// daemon has taken over.
	ErrFenced = errors.New("another daemon writes this archive now")
	// ErrNoIdentity is returned when files are to be read without an identity that can.
	ErrNoIdentity = errors.New("no identity that can decrypt the archive")
)

const (
	// checkpointEvery is how many manifests a reader has to read at most, besides a checkpoint.
	checkpointEvery = 64
	// maxManifest bounds what a manifest or checkpoint may have, in bytes.
	maxManifest = 256 << 20
	// maxLeap is by how much the archive gets older between two looks at the clock, at most.
	maxLeap = time.Hour
)

// Options say how an archive is opened. The zero Options read manifests, and no file.
type Options struct {
	// Cluster is the cluster's id. Empty: the only one under the URL.
	Cluster string
	// Identities decrypt files; Recipients are whom new files are encrypted for.
	Identities []age.Identity
	Recipients []age.Recipient
	// Journal is the ID of the journal that is archived; empty: changes are made by hand.
	Journal string
	// Lock keeps new files from being removed for this long; zero: not locked. Compliance
	// makes it a lock that nobody can lift.
	Lock       time.Duration
	Compliance bool
	// CacheBytes bounds what of files is kept in memory. Zero: 32 MiB.
	CacheBytes int64
	// SpoolDir is where large files are made before they are uploaded. Default: the system's.
	SpoolDir string
	// Shared allows archives of other clusters under the same URL.
	Shared bool
	Clock  func() time.Time // default: time.Now
	Logger *zap.Logger      // nil: none
}

// Archive is the archive of one cluster in one store. Its methods may be called from any goroutine.
type Archive struct {
	o     Options
	store Store
	dir   string // the cluster's directory, with a slash
	cache *pages
	log   *zap.Logger

	committing sync.Mutex // held while a manifest is being written

	mu     sync.Mutex // guards what follows
	state  *State
	last   *Manifest       // number State.Seq; nil: not known
	tried  map[string]bool // IDs of manifests that were sent, since the newest one that was heard to be there
	check  *Link           // newest checkpoint
	age    time.Duration
	looked time.Time // when age was counted
	damage map[string]*DamageError

	unheard bool // one of those tried was found, and Unheard has not told so yet
}

func newArchive(store Store, o Options) *Archive {
	if o.CacheBytes == 0 {
		o.CacheBytes = 32 << 20
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	return &Archive{o: o, store: store, cache: newPages(o.CacheBytes), log: o.Logger.Named("archive"), state: &State{Format: checkpointVersion}, damage: map[string]*DamageError{}}
}

// Open opens an archive to read it, or to change what is in it. It returns ErrNoArchive when
// there is none, ErrOtherCluster, ErrFormat or a *DamageError.
func Open(ctx context.Context, store Store, o Options) (*Archive, error) {
	a := newArchive(store, o)
	clusters, err := clustersIn(ctx, store)
	if err != nil {
		return nil, err
	}
	switch {
	case len(clusters) == 1 && o.Cluster == "":
		a.o.Cluster = clusters[0]
	case o.Cluster == "" || !slices.Contains(clusters, o.Cluster):
		return nil, noArchive(ctx, store, o.Cluster, clusters)
	}
	a.dir = a.o.Cluster + "/"
	format, err := a.readFormat(ctx)
	if err != nil {
		return nil, err
	}
	return a, a.load(ctx, format)
}

// Create opens the archive of the cluster o.Cluster, and makes it when there is none. A prefix
// that another cluster's archive lies under is ErrOtherCluster, unless o.Shared.
func Create(ctx context.Context, store Store, o Options) (*Archive, error) {
	a := newArchive(store, o)
	if o.Cluster == "" || strings.ContainsAny(o.Cluster, "/\x00") {
		return nil, fmt.Errorf("%q cannot be a cluster's id", o.Cluster)
	}
	if len(o.Recipients) == 0 {
		return nil, errors.New("an archive needs at least one recipient to encrypt for: make a key with 'tidemark key generate', and give its recipient with --recipient")
	}
	a.dir = o.Cluster + "/"
	clusters, err := clustersIn(ctx, store)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(clusters, func(c string) bool { return c != o.Cluster }); i >= 0 && !o.Shared {
		return nil, fmt.Errorf("%s: %w, %s, and this one is %s: give each cluster a prefix of its own, or allow both under this one with --archive-shared",
			store, ErrOtherCluster, clusters[i], o.Cluster)
	}
	if !slices.Contains(clusters, o.Cluster) {
		if err := Probe(ctx, store, a.dir); err != nil {
			return nil, err
		}
		b, err := wrap(formatFile{Format: formatVersion, Cluster: o.Cluster, Created: a.o.Clock().UTC()})
		if err != nil {
			return nil, err
		}
		if err := a.create(ctx, "format", b); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make the archive in %s: %w", store, err)
		}
	}
	format, err := a.readFormat(ctx)
	if err != nil {
		return nil, err
	}
	return a, a.load(ctx, format)
}

// noArchive says what is in the store instead of the archive of a cluster; an empty cluster was not named.
func noArchive(ctx context.Context, store Store, cluster string, clusters []string) error {
	if _, err := store.Stat(ctx, "format"); err == nil {
		return fmt.Errorf("%w in %s: that is the directory of one cluster; leave its name off the end, and give it with --cluster", ErrNoArchive, store)
	}
	of := ""
	if cluster != "" {
		of = " of cluster " + cluster
	}
	var volumes []string
	for found, err := range firstFiles(ctx, store, VolumesDir+"/") {
		if err != nil {
			return err
		}
		volumes = append(volumes, strings.Split(found, "/")[1])
	}
	switch {
	case len(clusters) > 0 && cluster == "":
		return fmt.Errorf("%s holds the archives of several clusters: choose one with --cluster: %s", store, strings.Join(clusters, ", "))
	case len(clusters) > 0:
		return fmt.Errorf("%w%s in %s: it holds %s", ErrNoArchive, of, store, strings.Join(clusters, ", "))
	case len(volumes) > 0:
		return fmt.Errorf("%w%s in %s, only volumes, of %s: 'tidemark volumes' has list, verify and maintain for them", ErrNoArchive, of, store, strings.Join(volumes, ", "))
	}
	return fmt.Errorf("%w%s in %s: 'tidemark run --archive %s' makes one", ErrNoArchive, of, store, store)
}

// VolumesDir is the directory of a location that holds the content of volumes, and no archive.
const VolumesDir = "volumes"

// clustersIn are the clusters whose archives lie in the store.
func clustersIn(ctx context.Context, store Store) (all []string, err error) {
	for found, err := range firstFiles(ctx, store, "") {
		if err != nil {
			return nil, err
		}
		cluster, rest, _ := strings.Cut(found, "/")
		if cluster == VolumesDir {
			continue
		}
		if !strings.HasPrefix(rest, "probe/") || cluster == "" {
			all = append(all, cluster)
		} else if _, err := store.Stat(ctx, cluster+"/format"); err == nil {
			all = append(all, cluster)
		}
	}
	return all, nil
}

// firstFiles yields the first file of each directory below a prefix.
func firstFiles(ctx context.Context, store Store, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for after := ""; ; {
			found := ""
			for f, err := range store.List(ctx, prefix, after) {
				if err != nil {
					yield("", fmt.Errorf("look into %s: %w", store, err))
					return
				}
				found = f.Name
				break
			}
			if found == "" {
				return
			}
			dir, _, ok := strings.Cut(strings.TrimPrefix(found, prefix), "/")
			if !ok { // a file of somebody else's
				after = found
				continue
			}
			if !yield(found, nil) {
				return
			}
			after = prefix + dir + "/\xff"
		}
	}
}

// Cluster is the id of the archive's cluster.
func (a *Archive) Cluster() string { return a.o.Cluster }

// Store is where the archive lies.
func (a *Archive) Store() Store { return a.store }

// State is the newest state that is known. It must not be changed.
func (a *Archive) State() *State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state
}

// Traffic tells how many requests were made to read files, and how many bytes they asked for.
func (a *Archive) Traffic() (requests, bytes int64) {
	return a.cache.requests.Load(), a.cache.bytes.Load()
}

// Age is how old the archive is, counted so that a clock that jumps cannot make it older.
// It must be asked for at least once an hour to count on.
func (a *Archive) Age() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.o.Clock()
	if !a.looked.IsZero() {
		a.age += min(max(now.Sub(a.looked), 0), maxLeap)
	}
	a.looked = now
	return a.age
}

// Refresh reads what was committed since by others.
func (a *Archive) Refresh(ctx context.Context) error {
	a.committing.Lock()
	defer a.committing.Unlock()
	return a.refresh(ctx)
}

func (a *Archive) refresh(ctx context.Context) error {
	s, err := a.readOn(ctx, a.State(), 0)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state = s
	a.age = max(a.age, s.Age)
	return nil
}

// Commit makes one step of the archive: change is asked what to do on top of the state, and the
// manifest that says so is written. When another writer was faster, change is asked again on top
// of what that one did; a nil change ends Commit without a step. It returns ErrFenced when the
// archive takes the events of another journal by now.
//
// What the change names must have been uploaded before.
func (a *Archive) Commit(ctx context.Context, change func(*State) (*Change, error)) error {
	a.committing.Lock()
	defer a.committing.Unlock()
	for try := 0; ; try++ {
		s := a.State()
		c, err := change(s)
		if err != nil || c == nil {
			return err
		}
		if err := a.fenced(s, c); err != nil {
			return err
		}
		if try > 0 { // the other may have swept what nobody had committed for an hour
			if err := a.mustBeThere(ctx, c); err != nil {
				return err
			}
		}
		c.Follows = s.Newest()
		done, err := a.commit(ctx, s, c)
		if err != nil || done {
			return err
		}
		if err := a.refresh(ctx); err != nil {
			return err
		}
	}
}

// mustBeThere checks that the files which a change brings are still in the store.
func (a *Archive) mustBeThere(ctx context.Context, c *Change) error {
	var names []string
	for _, g := range c.Segments {
		names = append(names, g.Name)
	}
	for _, p := range c.Snapshots {
		names = append(names, p.Name)
	}
	for _, name := range names {
		if _, err := a.store.Stat(ctx, a.dir+name); err != nil {
			return fmt.Errorf("commit %s: %w", name, err)
		}
	}
	return nil
}

// fenced refuses a change that only the archive's own journal may make.
func (a *Archive) fenced(s *State, c *Change) error {
	if a.o.Journal == "" || c.TakeOver {
		return nil
	}
	if s.Journal == a.o.Journal {
		// What cannot be read may have been a take-over. Who claims the archive anew makes sure that
		// of two writers one loses.
		c.TakeOver = s.Broken
		return nil
	}
	return fmt.Errorf("%w: %s took over (archived up to %s): stop this daemon if that one is to go on; if this one is, stop that one, and give this one another --archive", ErrFenced, s.Writer, s.Known.Position.Cut)
}

// commit writes one manifest; done is false when the number was taken.
func (a *Archive) commit(ctx context.Context, s *State, c *Change) (done bool, err error) {
	m := &Manifest{
		Format: manifestVersion, Cluster: a.o.Cluster, Seq: s.Seq + 1, Prev: s.Hash, Checkpoint: a.check, ID: randomHex(16),
		Journal: a.o.Journal, Writer: writer(), Time: a.o.Clock().UTC(), Age: a.Age(), Change: *c, Before: a.before(),
	}
	b, err := wrap(m)
	if err != nil {
		return false, err
	}
	next := s.apply(m, hashOf(b))
	if s.Seq > 0 { // numbers behind a chain that was shortened are free again
		if _, err := a.store.Stat(ctx, a.dir+manifestName(s.Seq)); errors.Is(err, fs.ErrNotExist) && !s.Broken {
			return false, fmt.Errorf("%w: its chain has gone on without this one", ErrFenced)
		}
	}
	name := manifestName(m.Seq)
	a.mu.Lock()
	if a.tried == nil {
		a.tried = map[string]bool{}
	}
	a.tried[m.ID] = true
	a.mu.Unlock()
	if err := a.create(ctx, name, b); errors.Is(err, fs.ErrExist) {
		// It may be our own: the answer to an earlier try can be lost.
		there, err := a.readAll(ctx, name)
		if err != nil {
			return false, err
		}
		if !bytes.Equal(there, b) {
			return false, nil
		}
	} else if err != nil {
		return false, fmt.Errorf("commit to the archive: %w", err)
	}
	a.mu.Lock()
	a.state, a.last, a.tried = next, m, nil
	a.mu.Unlock()
	if next.Seq%checkpointEvery == 0 {
		a.checkpoint(ctx, next)
	}
	return true, nil
}

// Unheard reports whether manifests of this writer's own were found, since it was last asked, of which it
// never heard that they were written: the answer was lost.
func (a *Archive) Unheard() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	found := a.unheard
	a.unheard = false
	return found
}

// before is the newest manifest, as the next one repeats it.
func (a *Archive) before() *Manifest {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last == nil {
		return nil
	}
	m := *a.last
	m.Before = nil
	return &m
}

// checkpoint writes the state down, so that readers need not begin with the first manifest. The
// archive works without, so trouble is only told.
func (a *Archive) checkpoint(ctx context.Context, s *State) {
	b, err := wrap(s)
	if err == nil {
		err = a.create(ctx, checkpointName(s.Seq), b)
	}
	if err != nil {
		a.log.Warn("a checkpoint could not be written; reading takes longer until the next one", zap.Error(err))
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.check = &Link{Seq: s.Seq, SHA256: hashOf(b)}
}

// writer names this process for people.
func writer() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return fmt.Sprintf("%s (process %d)", host, os.Getpid())
}

func (a *Archive) create(ctx context.Context, name string, b []byte) error {
	return a.store.Create(ctx, a.dir+name, bytes.NewReader(b), int64(len(b)), a.createOptions())
}

func (a *Archive) createOptions() CreateOptions {
	if a.o.Lock == 0 {
		return CreateOptions{}
	}
	return CreateOptions{Lock: a.o.Clock().Add(a.o.Lock), Compliance: a.o.Compliance}
}

// upload stores a file whose name is new. A name that is taken is the file of an earlier try
// whose answer was lost.
func (a *Archive) upload(ctx context.Context, f File, body io.ReaderAt) error {
	err := a.store.Create(ctx, a.dir+f.Name, body, f.Size, a.createOptions())
	if errors.Is(err, fs.ErrExist) {
		info, err := a.store.Stat(ctx, a.dir+f.Name)
		if err == nil && info.Size != f.Size {
			err = fmt.Errorf("upload %s: %w", f.Name, fs.ErrExist)
		}
		return err
	}
	if err != nil {
		return fmt.Errorf("upload %s: %w", f.Name, err)
	}
	return nil
}

// readAll reads a small file.
func (a *Archive) readAll(ctx context.Context, name string) ([]byte, error) {
	info, err := a.store.Stat(ctx, a.dir+name)
	if err != nil {
		return nil, fmt.Errorf("read archive file %s: %w", name, err)
	}
	if info.Size > maxManifest {
		return nil, &DamageError{File: name, Err: fmt.Errorf("%d bytes is more than such a file can have", info.Size)}
	}
	b := make([]byte, info.Size)
	if len(b) == 0 {
		return b, nil
	}
	if err := a.store.ReadAt(ctx, a.dir+name, b, 0); err != nil {
		return nil, fmt.Errorf("read archive file %s: %w", name, err)
	}
	return b, nil
}
