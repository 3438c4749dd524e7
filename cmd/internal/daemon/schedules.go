package daemon

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/compactor/schedule"
)

// Schedule is a snapshot that is taken at times.
type Schedule struct {
	schedule.Spec
	Scope    *archive.SnapshotScope // nil: everything
	TTL      time.Duration          // zero: retention decides
	Archives []string               // names of locations; empty: all
}

// Reloadable is what a running daemon takes over when its configuration was changed.
type Reloadable struct {
	Schedules []Schedule
	Retention retention.Policy
	Volumes   VolumesReload
}

// job is what is done at times.
type job struct {
	schedule.Spec
	note string // under which the journal keeps the time that it ran for last
	what string // for people
	do   func(ctx context.Context, at time.Time)
	// again says that a run that was cut off with the daemon is made again by the next one. What came of a volume backup is recorded, and it is not.
	again bool
}

// lookAgain is how often schedules are looked at at least: the wall clock can be set.
const lookAgain = 30 * time.Second

// schedules runs the schedules until the context ends. The time that each ran for last is kept
// in the journal, and what is running, so that a restart neither repeats nor forgets a run.
type schedules struct {
	d       *daemon
	log     *zap.Logger
	changed chan struct{}

	mu      sync.Mutex // guards what follows
	all     []job
	running map[string]int  // by note
	looked  map[string]bool // by note: whether a daemon before this one left a run
}

func newSchedules(d *daemon) *schedules {
	s := &schedules{d: d, log: d.o.Logger.Named("schedules"), changed: make(chan struct{}, 1), running: map[string]int{}, looked: map[string]bool{}}
	s.set(d.o.Schedules, d.o.Volumes.Policies)
	return s
}

// set puts other schedules in place of those there are.
func (s *schedules) set(snapshots []Schedule, policies []VolumePolicy) {
	var all []job
	for _, sc := range snapshots {
		all = append(all, job{sc.Spec, "schedule/" + sc.Name, "snapshot", func(ctx context.Context, at time.Time) { s.take(ctx, sc, at) }, true})
	}
	for _, p := range policies {
		if p.Spec.Cron != "" {
			all = append(all, job{p.Spec, "volumes/" + p.Name, "volume backup", func(ctx context.Context, at time.Time) { s.d.backVolumes(ctx, p.Name, at) }, false})
		}
	}
	s.mu.Lock()
	s.all = all
	s.mu.Unlock()
	s.wake()
}

func (s *schedules) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *schedules) run(ctx context.Context) error {
	var runs sync.WaitGroup
	defer runs.Wait()
	for {
		wait := lookAgain
		s.mu.Lock()
		all := s.all
		s.mu.Unlock()
		for _, sc := range all {
			again, err := s.look(ctx, sc, &runs)
			if err != nil && ctx.Err() == nil {
				s.log.Warn("a schedule cannot be followed; it is tried again", zap.String("schedule", sc.Name), zap.Error(err))
			}
			if !again.IsZero() {
				wait = min(wait, max(again.Sub(s.d.o.Clock()), 10*time.Millisecond))
			}
		}
		select {
		case <-time.After(wait):
		case <-s.changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// look starts the run of a schedule that is due, and tells when to look again.
func (s *schedules) look(ctx context.Context, sc job, runs *sync.WaitGroup) (time.Time, error) {
	parsed, err := schedule.Parse(sc.Spec)
	if err != nil {
		return time.Time{}, err
	}
	last, err := s.last(ctx, sc.note)
	if err != nil {
		return time.Time{}, err
	}
	s.mu.Lock()
	busy := s.running[sc.note] > 0
	s.mu.Unlock()
	now := s.d.o.Clock()
	due := parsed.Due(last, now, busy)
	log := s.log.With(zap.String("schedule", sc.Name), zap.Time("due", due.At))
	switch due.Kind {
	case schedule.TooLate:
		log.Warn("a scheduled "+sc.what+" is left out: it is past its starting deadline", zap.Int("missedBefore", due.Missed))
		return due.Again, s.keep(ctx, sc.note, due.At)
	case schedule.Blocked:
		log.Info("a scheduled " + sc.what + " waits for the one before it")
	case schedule.Run:
		if err := s.keep(ctx, sc.note, due.At); err != nil {
			return time.Time{}, err
		}
		if due.Missed > 0 {
			log.Warn("runs of a scheduled "+sc.what+" were missed; the newest one is made up for now", zap.Int("missed", due.Missed))
		}
		return due.Again, s.start(ctx, sc, due.At, runs)
	case schedule.Suspended:
	default:
		at, err := s.cutOff(sc)
		if err != nil || at.IsZero() {
			return due.Again, err
		}
		log.Warn("a scheduled "+sc.what+" was cut off with the daemon; it is made now", zap.Time("at", at))
		return due.Again, s.start(ctx, sc, at, runs)
	}
	return due.Again, nil
}

// begun is under which note the journal keeps the time of a run that has not ended.
func (j *job) begun() string { return j.note + "/begun" }

// cutOff is the time of a run that a daemon before this one did not end; zero: there is none, or it was asked before.
func (s *schedules) cutOff(sc job) (at time.Time, err error) {
	s.mu.Lock()
	looked := s.looked[sc.note]
	s.looked[sc.note] = true
	s.mu.Unlock()
	if looked || !sc.again {
		return at, nil
	}
	b, err := s.d.journal.Note(sc.begun())
	if err == nil && b != nil {
		err = at.UnmarshalText(b)
	}
	if sc.StartingDeadline > 0 && s.d.o.Clock().Sub(at) > sc.StartingDeadline {
		return time.Time{}, err
	}
	return at, err
}

// ended forgets a run, unless another has begun since.
func (s *schedules) ended(ctx context.Context, sc job, at time.Time) error {
	var last time.Time
	b, err := s.d.journal.Note(sc.begun())
	if err != nil || last.UnmarshalText(b) != nil || !last.Equal(at) {
		return err
	}
	return s.d.journal.SetNote(ctx, sc.begun(), nil)
}

func (s *schedules) start(ctx context.Context, sc job, at time.Time, runs *sync.WaitGroup) error {
	if sc.again {
		if err := s.keep(ctx, sc.begun(), at); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.running[sc.note]++
	s.looked[sc.note] = true
	s.mu.Unlock()
	runs.Go(func() {
		sc.do(ctx, at)
		if sc.again && ctx.Err() == nil {
			if err := s.ended(ctx, sc, at); err != nil && ctx.Err() == nil {
				s.log.Warn("the end of a scheduled run cannot be noted; it is made once more at the next start", zap.String("schedule", sc.Name), zap.Error(err))
			}
		}
		s.mu.Lock()
		s.running[sc.note]--
		s.mu.Unlock()
		s.wake()
	})
	return nil
}

// take takes the snapshot of one run. A location that is away is tried again while the run lasts.
func (s *schedules) take(ctx context.Context, sc Schedule, at time.Time) {
	q := api.SnapshotRequest{Name: fmt.Sprintf("%s-%s", sc.Name, at.UTC().Format("20060102150405")), Scope: sc.Scope, TTL: sc.TTL, Archives: sc.Archives}
	for try, wait := 0, time.Second; ; try++ {
		done, err := archives{s.d}.take(ctx, q, "schedule/"+sc.Name)
		if ctx.Err() != nil {
			return
		}
		for _, l := range done {
			if l.Error != "" {
				s.log.Warn("a scheduled snapshot failed in one archive", zap.String("schedule", sc.Name), zap.String("location", l.Archive), zap.String("error", l.Error))
			}
		}
		if err == nil {
			return
		}
		if try == 5 {
			s.log.Error("a scheduled snapshot failed; the next run takes another", zap.String("schedule", sc.Name), zap.Error(err))
			return
		}
		s.log.Warn("a scheduled snapshot failed; it is tried again", zap.String("schedule", sc.Name), zap.Error(err), zap.Duration("in", wait))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait *= 3
	}
}

// last is the time that the schedule ran for last; for a new one, now.
func (s *schedules) last(ctx context.Context, note string) (time.Time, error) {
	b, err := s.d.journal.Note(note)
	if err != nil {
		return time.Time{}, err
	}
	if b == nil {
		now := s.d.o.Clock().UTC()
		return now, s.keep(ctx, note, now)
	}
	var t time.Time
	return t, t.UnmarshalText(b)
}

func (s *schedules) keep(ctx context.Context, note string, at time.Time) error {
	b, err := at.UTC().MarshalText()
	if err != nil {
		return err
	}
	return s.d.journal.SetNote(ctx, note, b)
}

// reload takes over what a running daemon can of a changed configuration.
func (d *daemon) reload(ctx context.Context) error {
	for {
		select {
		case r := <-d.o.Reload:
			d.schedules.set(r.Schedules, r.Volumes.Policies)
			d.setPolicies(r.Volumes)
			for _, s := range d.shippers {
				s.SetRetention(r.Retention)
			}
			select {
			case d.retainNow <- struct{}{}:
			default:
			}
			d.o.Logger.Info("the configuration was read again", zap.Int("schedules", len(r.Schedules)))
		case <-ctx.Done():
			return nil
		}
	}
}
