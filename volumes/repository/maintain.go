package repository

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/maintenance"
	"github.com/kopia/kopia/snapshot/snapshotmaintenance"
)

// Maintained is what Maintain did.
type Maintained struct {
	// Full says that what no backup needs was looked for; else only indexes were compacted, as far as that was due.
	Full bool `json:"full"`
	// Rescheduled says that the file that tells what is due was damaged, and has been begun anew.
	Rescheduled bool `json:"rescheduled,omitempty"`
	// Accepted are the indexes that are lost, and are not missed from now on.
	Accepted []string `json:"accepted,omitempty"`
	// Freed are the packs that were removed, FreedBytes their sizes; Packs and Bytes what is there then. All are 0 unless Full.
	Freed      int           `json:"freed,omitempty"`
	FreedBytes int64         `json:"freedBytes,omitempty"`
	Packs      int           `json:"packs,omitempty"`
	Bytes      int64         `json:"bytes,omitempty"`
	Took       time.Duration `json:"took"` // nanoseconds
}

// Maintenance says how to maintain.
type Maintenance struct {
	// Now does everything at once, and is right only when nobody else uses the repository.
	Now bool
	// AcceptLost goes on without indexes that are lost from the store: what only they listed is freed.
	AcceptLost bool
}

// Maintain does what is due: compacts indexes every hour, and every day frees what no backup needs, a day after it was
// forgotten, so that backups that are being made lose nothing. One process may do so at a time; of a
// second one, it is ErrMaintained. While an index is lost, it does nothing: ErrLostIndex.
func (r *Repository) Maintain(ctx context.Context, q Maintenance) (*Maintained, error) {
	began := time.Now()
	l, err := takeLease(ctx, r.o.Store, r.o.dir()+"maintenance/")
	if err != nil {
		return nil, err
	}
	held, release := l.hold(ctx)
	did := &Maintained{}
	if did.Accepted, err = r.startIndexes(held, q.AcceptLost); err == nil {
		r.storage.maintaining.Store(true)
		err = r.maintain(held, q.Now, did)
		r.storage.maintaining.Store(false)
		if err != nil && held.Err() == nil {
			err = r.stopped(held, err)
		}
		r.noteIndexes(held)
	}
	if err != nil && held.Err() != nil {
		err = context.Cause(held)
	}
	did.Took = time.Since(began)
	return did, errors.Join(r.failed(err), release())
}

func (r *Repository) maintain(ctx context.Context, now bool, did *Maintained) error {
	if err := r.prepare(ctx); err != nil { // its settings may have been listed in an index that is lost
		return err
	}
	schedule, err := r.schedule(ctx, did)
	if err != nil {
		return err
	}
	// A minute early: Kopia looks a moment later.
	did.Full = now || r.kopia.Time().Add(time.Minute).After(schedule.NextFullMaintenanceTime)
	var before map[blob.ID]int64
	if did.Full { // nothing is freed otherwise, and to list all takes long where there are many
		if before, err = r.packs(ctx); err != nil {
			return err
		}
	}
	mode, safety := maintenance.ModeAuto, maintenance.SafetyFull
	if now {
		mode, safety = maintenance.ModeFull, maintenance.SafetyNone
	}
	err = repo.DirectWriteSession(ctx, r.kopia, repo.WriteSessionOptions{Purpose: "maintain"}, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		return snapshotmaintenance.Run(ctx, w, mode, now, safety)
	})
	if err != nil || !did.Full {
		return err
	}
	after, err := r.packs(ctx)
	if err != nil {
		return err
	}
	did.count(before, after)
	return nil
}

// schedule is when Kopia did what. That file holds nothing else, so one that is damaged is begun anew: what is freed then takes some days longer.
func (r *Repository) schedule(ctx context.Context, did *Maintained) (*maintenance.Schedule, error) {
	var s *maintenance.Schedule
	err := r.storage.judged(func() (err error) {
		s, err = maintenance.GetSchedule(ctx, r.kopia)
		return err
	})
	if err == nil || ctx.Err() != nil || errors.Is(err, errUnread) {
		return s, err
	}
	did.Rescheduled = true
	// Content may just have been moved, so that for an hour somebody reads it where it was.
	moved := maintenance.RunInfo{Start: r.kopia.Time(), End: r.kopia.Time(), Success: true}
	s = &maintenance.Schedule{Runs: map[maintenance.TaskType][]maintenance.RunInfo{maintenance.TaskRewriteContentsFull: {moved}}}
	return s, repo.DirectWriteSession(ctx, r.kopia, repo.WriteSessionOptions{Purpose: "schedule anew"}, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		return maintenance.SetSchedule(ctx, w, s)
	})
}

// packs are those in the store, by name.
func (r *Repository) packs(ctx context.Context) (map[blob.ID]int64, error) {
	all := map[blob.ID]int64{}
	for _, prefix := range content.PackBlobIDPrefixes {
		if err := r.kopia.BlobReader().ListBlobs(ctx, prefix, func(m blob.Metadata) error {
			all[m.BlobID] = m.Length
			return nil
		}); err != nil {
			return nil, fmt.Errorf("list the packs: %w", err)
		}
	}
	return all, nil
}

func (m *Maintained) count(before, after map[blob.ID]int64) {
	for id, size := range before {
		if _, left := after[id]; !left {
			m.Freed++
			m.FreedBytes += size
		}
	}
	m.Packs = len(after)
	for _, size := range after {
		m.Bytes += size
	}
}
