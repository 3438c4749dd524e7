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
	// Recovered are packs that no index named, and one does again.
	Recovered int `json:"recovered,omitempty"`
	// Rescheduled says that the file that tells what is due was damaged, and has been begun anew.
	Rescheduled bool `json:"rescheduled,omitempty"`
	// Freed are the packs that were removed, FreedBytes their sizes; Packs and Bytes what is there now.
	Freed      int           `json:"freed"`
	FreedBytes int64         `json:"freedBytes"`
	Packs      int           `json:"packs"`
	Bytes      int64         `json:"bytes"`
	Took       time.Duration `json:"took"`
}

// Maintain does what is due: compacts indexes every hour, and every day frees what no backup needs, a day after it was
// forgotten, so that backups that are being made lose nothing. Before that it indexes anew what an index was lost of. One process may do so at a time;
// of a second one, it is ErrMaintained. Now does everything at once, and is right only when nobody else uses the repository.
func (r *Repository) Maintain(ctx context.Context, now bool) (*Maintained, error) {
	began := time.Now()
	l, err := takeLease(ctx, r.o.Store, r.o.dir()+"maintenance/")
	if err != nil {
		return nil, err
	}
	held, release := l.hold(ctx)
	did := &Maintained{}
	err = r.maintain(held, now, did)
	if err != nil && held.Err() != nil {
		err = context.Cause(held)
	}
	did.Took = time.Since(began)
	return did, errors.Join(r.failed(err), release())
}

func (r *Repository) maintain(ctx context.Context, now bool, did *Maintained) error {
	schedule, err := r.schedule(ctx, did)
	if err != nil {
		return err
	}
	released, err := r.released(ctx, len(schedule.Runs) > 0)
	if err != nil {
		return err
	}
	age := unindexedAge
	if now {
		age = 0
	}
	if did.Recovered, err = r.indexAnew(ctx, released, age); err != nil {
		return err
	}
	before, err := r.packs(ctx)
	if err != nil {
		return err
	}
	// A minute early: Kopia looks a moment later.
	did.Full = now || r.kopia.Time().Add(time.Minute).After(schedule.NextFullMaintenanceTime)
	if did.Full {
		released = released.and(before.named)
		if err := r.putReleased(ctx, released); err != nil {
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
	after, lookErr := r.packs(ctx) // also after a failure, or all that is named would count as released until there is none
	if lookErr != nil {
		return errors.Join(err, lookErr)
	}
	did.count(before, after)
	if did.Full {
		err = errors.Join(err, r.putReleased(ctx, after.unnamed(released)))
	}
	return err
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

// packs are those that indexes name and those that are there.
type packs struct {
	named packSet
	there map[blob.ID]blob.Metadata
}

type packSet map[blob.ID]bool

// and is what is in either.
func (s packSet) and(o packSet) packSet {
	all := make(packSet, len(s)+len(o))
	for _, from := range []packSet{s, o} {
		for id := range from {
			all[id] = true
		}
	}
	return all
}

// packs looks for both; what is there first, so that of a backup that becomes whole meanwhile nothing is without an index.
func (r *Repository) packs(ctx context.Context) (*packs, error) {
	p := &packs{named: packSet{}, there: map[blob.ID]blob.Metadata{}}
	for _, prefix := range content.PackBlobIDPrefixes {
		if err := r.kopia.BlobReader().ListBlobs(ctx, prefix, func(m blob.Metadata) error {
			p.there[m.BlobID] = m
			return nil
		}); err != nil {
			return nil, fmt.Errorf("list the packs: %w", err)
		}
	}
	if err := r.refresh(ctx); err != nil {
		return nil, err
	}
	return p, r.kopia.ContentReader().IterateContents(ctx, content.IterateOptions{IncludeDeleted: true}, func(i content.Info) error {
		p.named[i.PackBlobID] = true
		return nil
	})
}

// unnamed are those of some that are there, though no index names them.
func (p *packs) unnamed(of packSet) packSet {
	left := packSet{}
	for id := range p.there {
		if of[id] && !p.named[id] {
			left[id] = true
		}
	}
	return left
}

func (m *Maintained) count(before, after *packs) {
	for id, b := range before.there {
		if _, left := after.there[id]; !left {
			m.Freed++
			m.FreedBytes += b.Length
		}
	}
	m.Packs = len(after.there)
	for _, b := range after.there {
		m.Bytes += b.Length
	}
}
