package compactor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/journal"
)

var (
	// ErrForeign is returned for an archive that takes the history of another journal.
	ErrForeign = errors.New("the archive takes the history of another journal")
	// ErrRolledBack is returned when the archive knows more of the journal than the journal itself.
	ErrRolledBack = errors.New("the journal is older than its archive")
)

// Options configure a Shipper. Journal, Open and Options.Recipients must be set.
type Options struct {
	// Name is the location's name in the configuration. Default: "main".
	Name    string
	Journal *journal.Journal
	// Open opens the store. It is called again after it failed.
	Open func(context.Context) (archive.Store, error)
	// Archive are the archive's options; Cluster and Journal are filled in.
	Archive archive.Options
	// Dir is where copies and large files are made. Default: a directory of the system's.
	Dir string
	// SealInterval is how long a change waits at most to be archived. Zero: 5 s.
	SealInterval time.Duration
	// SealBytes is how much may wait, in bytes. Zero: 8 MiB.
	SealBytes int64
	// SnapshotEvery is how long one snapshot of the compactor's own serves at most. Zero: a day.
	SnapshotEvery time.Duration
	// Retention says what is kept. The zero Policy keeps everything.
	Retention retention.Policy
	// Grace is how long a file that went out of the archive is still kept for readers who know
	// of it. Zero: 15 min.
	Grace  time.Duration
	Clock  func() time.Time // default: time.Now
	Logger *zap.Logger      // nil: none
}

func (o Options) withDefaults() Options {
	o.Name = cmp.Or(o.Name, "main")
	o.SealInterval = cmp.Or(o.SealInterval, 5*time.Second)
	o.SealBytes = cmp.Or(o.SealBytes, 8<<20)
	o.SnapshotEvery = cmp.Or(o.SnapshotEvery, 24*time.Hour)
	o.Grace = cmp.Or(o.Grace, 15*time.Minute)
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	return o
}

// Shipper keeps one archive of one journal. Its methods may be called from any goroutine.
type Shipper struct {
	o      Options
	log    *zap.Logger
	copies *archive.Copies // nil: none

	working sync.Mutex // held while the position moves
	// These two take long, and must not hold up sealing: a round of Merge, and a snapshot. Who needs several locks begins with imaging,
	// and ends with working.
	merging, imaging sync.Mutex

	mu     sync.Mutex // guards what follows
	a      *archive.Archive
	status Status
	policy retention.Policy
}

// Status is how a location fares.
type Status struct {
	Name string `json:"name"`
	URL  string `json:"url,omitempty"`
	// ArchivedTo is up to where events are in the archive.
	ArchivedTo journal.Position `json:"archivedTo"`
	// From is the beginning of what can be restored from the archive alone; zero: nothing yet.
	From journal.Cut `json:"from"`
	// Pending events, and about how many bytes they are, wait to be archived.
	PendingEvents uint64 `json:"pendingEvents"`
	PendingBytes  int64  `json:"pendingBytes"`
	// Error is what the newest step failed with; empty when it worked. Since is when that began.
	Error string    `json:"error,omitempty"`
	Since time.Time `json:"since,omitzero"`
	// Tidying is what the newest round of merging, or the compactor's own snapshot, failed with; empty
	// when it worked. Nothing is lost by it, but restores read more files.
	Tidying string `json:"tidying,omitempty"`
	// Stopped is set when the location is not written any more until the daemon is started anew.
	Stopped   bool  `json:"stopped,omitempty"`
	Segments  int   `json:"segments"`
	Snapshots int   `json:"snapshots"`
	Bytes     int64 `json:"bytes"` // of all files
	// Waiting is since when the oldest pending event waits; zero when none does.
	Waiting time.Time `json:"waiting,omitzero"`
	// RecipientsOnly is set when the daemon has no identity: it cannot read what it archives.
	RecipientsOnly bool `json:"recipientsOnly,omitempty"`
	// Damage are files of the chain that were found damaged when it was opened.
	Damage []string `json:"damage,omitempty"`
}

// NewShipper makes a Shipper; nothing is opened yet.
func NewShipper(o Options) (*Shipper, error) {
	o = o.withDefaults()
	s := &Shipper{o: o, log: o.Logger.Named("archive").With(zap.String("location", o.Name)), policy: o.Retention}
	s.status.Name = o.Name
	s.status.RecipientsOnly = len(o.Archive.Identities) == 0
	if o.Dir != "" {
		var err error
		if s.copies, err = archive.NewCopies(filepath.Join(o.Dir, "segments-"+o.Name)); err != nil {
			return nil, err
		}
		s.o.Archive.SpoolDir = o.Dir
	}
	return s, nil
}

// permanent reports whether trying again cannot help.
func permanent(err error) bool {
	for _, e := range []error{ErrForeign, ErrRolledBack, archive.ErrFenced, archive.ErrOtherCluster, archive.ErrFormat, archive.ErrNotExclusive} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Connect opens the archive, makes it when there is none, and checks that this journal is the
// one it takes. It does nothing once that was done.
func (s *Shipper) Connect(ctx context.Context) (*archive.Archive, error) {
	if a := s.Archive(); a != nil {
		return a, nil
	}
	s.working.Lock()
	defer s.working.Unlock()
	if a := s.Archive(); a != nil {
		return a, nil
	}
	o := s.o.Archive
	o.Cluster, o.Journal, o.Clock, o.Logger = s.o.Journal.ClusterID(), s.o.Journal.ID(), s.o.Clock, s.o.Logger
	if o.Cluster == "" {
		return nil, errors.New("the journal does not know its cluster yet")
	}
	store, err := s.o.Open(ctx)
	if err != nil {
		return nil, err
	}
	a, err := archive.Create(ctx, store, o)
	if err != nil {
		return nil, err
	}
	if err := s.begin(ctx, a); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.a, s.status.URL = a, store.String()
	return a, nil
}

// Archive is the open archive; nil before Connect.
func (s *Shipper) Archive() *archive.Archive {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.a
}

// begin makes sure that the archive goes on where the journal can.
func (s *Shipper) begin(ctx context.Context, a *archive.Archive) error {
	j, state := s.o.Journal, a.State()
	if err := s.foreign(state); err != nil {
		return err
	}
	at := state.Known.Position
	if known, err := j.Knows(at); err != nil {
		return err
	} else if !known {
		return fmt.Errorf("%w: this data directory was put back from a copy, or is of another life: use 'tidemark recover' with a new data directory", ErrRolledBack)
	}
	beginning, err := j.Beginning()
	if err != nil {
		return err
	}
	if state.Journal == "" && beginning.Time.IsZero() { // nothing was trimmed: the archive has it all
		return a.Commit(ctx, func(now *archive.State) (*archive.Change, error) {
			return &archive.Change{Step: "begin", TakeOver: true}, s.foreign(now)
		})
	}
	if state.Journal != "" && !at.Time.Before(beginning.Time) {
		return nil
	}
	// What comes next does not follow what the archive has: it begins with a state.
	base, err := s.writeSnapshot(ctx, a, beginning, SnapshotRequest{Origin: "begin"})
	if err != nil {
		return err
	}
	return a.Commit(ctx, func(now *archive.State) (*archive.Change, error) {
		return &archive.Change{Step: "begin", TakeOver: true, Snapshots: []archive.Snapshot{*base}, Known: &archive.Known{Position: &beginning}}, s.foreign(now)
	})
}

// foreign refuses an archive that takes the history of another journal, also one that was faster just now.
func (s *Shipper) foreign(state *archive.State) error {
	if state.Journal == "" || state.Journal == s.o.Journal.ID() {
		return nil
	}
	return fmt.Errorf("%w: that of %s, up to %s; if that daemon is gone for good, 'tidemark recover' makes a new data directory from the archive that goes on with it, and if it is not, give this daemon an archive of its own",
		ErrForeign, state.Writer, state.Known.Position.Cut)
}

// Run keeps the archive until the context ends. The location being away stops nothing else:
// what fails is told in the Status and tried again.
func (s *Shipper) Run(ctx context.Context) error {
	for s.o.Journal.ClusterID() == "" { // it was never connected to its cluster, and has nothing to archive
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
	}
	due := make(chan struct{}, 1)
	var tidying sync.WaitGroup
	defer tidying.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tidying.Go(func() { s.tidy(ctx, due) })
	for wait := time.Duration(0); ; {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		_, err := s.Connect(ctx)
		if err == nil {
			err = s.Seal(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		s.report(err)
		if err == nil {
			select {
			case due <- struct{}{}:
			default:
			}
		}
		switch {
		case err == nil:
			if !s.await(ctx) {
				return nil
			}
			wait = 0
		case permanent(err):
			s.log.Error("the location is not written any more", zap.Error(err))
			s.mu.Lock()
			s.status.Stopped = true
			s.mu.Unlock()
			return nil
		default:
			wait = min(max(2*wait, time.Second), 30*time.Second)
			s.log.Warn("archiving failed; it is tried again", zap.Error(err), zap.Duration("in", wait))
		}
	}
}

// tidy merges and takes snapshots after each seal, beside it, until the context ends.
func (s *Shipper) tidy(ctx context.Context, due <-chan struct{}) {
	for {
		select {
		case <-due:
		case <-ctx.Done():
			return
		}
		err := s.Merge(ctx)
		if err == nil {
			err = s.keepFast(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		text := ""
		if err != nil {
			text = err.Error()
			s.log.Warn("merging failed; it is tried again, and restores read more files until then", zap.Error(err))
		}
		s.mu.Lock()
		s.status.Tidying = text
		s.mu.Unlock()
	}
}

// Round does what is due: it connects, seals, merges, and takes a snapshot when restores want one.
func (s *Shipper) Round(ctx context.Context) error {
	if _, err := s.Connect(ctx); err != nil {
		return err
	}
	if err := s.Seal(ctx); err != nil {
		return err
	}
	if err := s.Merge(ctx); err != nil {
		return err
	}
	return s.keepFast(ctx)
}

// await waits until there is something to seal: for the interval while there are events, or
// less when they are many, or when the first lists are complete: from then on the archive can be restored from.
func (s *Shipper) await(ctx context.Context) bool {
	idle := time.After(time.Minute) // watermarks move without events
	learn := time.NewTicker(s.o.SealInterval)
	defer learn.Stop()
	for {
		advanced := s.o.Journal.Advanced()
		if s.pending() > 0 {
			break
		}
		select {
		case <-advanced:
		case <-learn.C: // a name that was given to a moment, a gap that was noted
			if now, err := s.o.Journal.State(); err == nil && told(s.Archive().State().Learn(now)) {
				return true
			}
		case <-idle:
			return true
		case <-ctx.Done():
			return false
		}
	}
	due := time.After(s.o.SealInterval)
	look := time.NewTicker(min(250*time.Millisecond, s.o.SealInterval))
	defer look.Stop()
	for {
		select {
		case <-due:
			return true
		case <-look.C:
			if _, bytes := s.backlog(); bytes >= s.o.SealBytes || s.begins() {
				return true
			}
		case <-ctx.Done():
			return false
		}
	}
}

func (s *Shipper) pending() uint64 {
	a := s.Archive()
	if a == nil {
		return 0
	}
	return s.o.Journal.Position().Count - min(a.State().Known.Position.Count, s.o.Journal.Position().Count)
}

// begins reports whether the first lists are complete, and not all of them are archived.
func (s *Shipper) begins() bool {
	began, a := s.o.Journal.Began().Time, s.Archive()
	return a != nil && !began.IsZero() && a.State().Known.Position.Time.Before(began)
}

// backlog tells how many events wait, and about how many bytes they are.
func (s *Shipper) backlog() (events uint64, bytes int64) {
	events = s.pending()
	return events, int64(events) * s.o.Journal.MeanSize()
}

func (s *Shipper) report(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.status.Error, s.status.Since = "", time.Time{}
		return
	}
	if s.status.Error == "" {
		s.status.Since = s.o.Clock().UTC()
	}
	s.status.Error = err.Error()
}

// Status tells how the location fares.
func (s *Shipper) Status() Status {
	events, bytes := s.backlog()
	s.mu.Lock()
	st, a := s.status, s.a
	s.mu.Unlock()
	if a == nil {
		st.Waiting = s.o.Journal.Began().Time
		st.PendingEvents = s.o.Journal.Position().Count
		st.PendingBytes = int64(st.PendingEvents) * s.o.Journal.MeanSize()
		return st
	}
	state := a.State()
	st.ArchivedTo, st.PendingEvents, st.PendingBytes = state.Known.Position, events, bytes
	if events > 0 {
		st.Waiting, _ = s.o.Journal.FirstAfter(state.Known.Position.Time) // a journal that cannot be read has said so
	}
	st.Segments, st.Snapshots = len(state.Segments), len(state.Snapshots)
	for _, f := range state.Files() {
		st.Bytes += f.Size
	}
	if ranges := state.Ranges(); len(ranges) > 0 {
		st.From = ranges[len(ranges)-1].From.Cut
	}
	for _, d := range a.Damage() {
		st.Damage = append(st.Damage, d.File)
	}
	return st
}

// Keep is the time after which the journal must keep everything for this location.
func (s *Shipper) Keep() time.Time {
	if a := s.Archive(); a != nil {
		return a.State().Known.Position.Time
	}
	return time.Time{}
}

// SetRetention changes what is kept.
func (s *Shipper) SetRetention(p retention.Policy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policy = p
}

// Name is the location's name.
func (s *Shipper) Name() string { return s.o.Name }

// newest is the newest full snapshot, nil when there is none.
func newest(state *archive.State) *archive.Snapshot {
	for i := len(state.Snapshots) - 1; i >= 0; i-- {
		if state.Snapshots[i].Scope == nil {
			return &state.Snapshots[i]
		}
	}
	return nil
}
