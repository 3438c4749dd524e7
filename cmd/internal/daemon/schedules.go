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
}

// lookAgain is how often schedules are looked at at least: the wall clock can be set.
const lookAgain = 30 * time.Second

// schedules runs the schedules until the context ends. The time that each ran for last is kept
// in the journal, so that a restart neither repeats nor forgets a run.
type schedules struct {
	d       *daemon
	log     *zap.Logger
	changed chan struct{}

	mu      sync.Mutex // guards what follows
	all     []Schedule
	running map[string]int
}

func newSchedules(d *daemon, all []Schedule) *schedules {
	return &schedules{d: d, log: d.o.Logger.Named("schedules"), changed: make(chan struct{}, 1), all: all, running: map[string]int{}}
}

// set puts other schedules in place of those there are.
func (s *schedules) set(all []Schedule) {
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
func (s *schedules) look(ctx context.Context, sc Schedule, runs *sync.WaitGroup) (time.Time, error) {
	parsed, err := schedule.Parse(sc.Spec)
	if err != nil {
		return time.Time{}, err
	}
	note := "schedule/" + sc.Name
	last, err := s.last(ctx, note)
	if err != nil {
		return time.Time{}, err
	}
	s.mu.Lock()
	busy := s.running[sc.Name] > 0
	s.mu.Unlock()
	now := s.d.o.Clock()
	due := parsed.Due(last, now, busy)
	log := s.log.With(zap.String("schedule", sc.Name), zap.Time("due", due.At))
	switch due.Kind {
	case schedule.TooLate:
		log.Warn("a scheduled snapshot is left out: it is past its starting deadline", zap.Int("missedBefore", due.Missed))
		return due.Again, s.keep(ctx, note, due.At)
	case schedule.Blocked:
		log.Info("a scheduled snapshot waits for the one before it")
	case schedule.Run:
		if err := s.keep(ctx, note, due.At); err != nil {
			return time.Time{}, err
		}
		if due.Missed > 0 {
			log.Warn("scheduled snapshots were missed; the newest one is taken now", zap.Int("missed", due.Missed))
		}
		s.mu.Lock()
		s.running[sc.Name]++
		s.mu.Unlock()
		runs.Go(func() {
			s.take(ctx, sc, due.At)
			s.mu.Lock()
			s.running[sc.Name]--
			s.mu.Unlock()
			s.wake()
		})
	}
	return due.Again, nil
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
			d.schedules.set(r.Schedules)
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
