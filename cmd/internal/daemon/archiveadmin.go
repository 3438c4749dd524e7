package daemon

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
)

// archives is the daemon as api.Archives.
type archives struct{ d *daemon }

var _ api.Archives = archives{}

// Snapshots implements api.Archives.
func (a archives) Snapshots(context.Context) ([]api.Location, error) {
	all := []api.Location{}
	for _, s := range a.d.shippers {
		if open := s.Archive(); open != nil {
			all = append(all, api.LocationOf(s.Name(), open))
		} else {
			all = append(all, api.Location{Archive: s.Name(), Error: "not reached yet: see 'tidemark status'"})
		}
	}
	return all, nil
}

// pick are the shippers of those names; no names: all.
func (a archives) pick(names []string) ([]*compactor.Shipper, error) {
	if len(names) == 0 {
		return a.d.shippers, nil
	}
	var all []*compactor.Shipper
	for _, n := range names {
		i := slices.IndexFunc(a.d.shippers, func(s *compactor.Shipper) bool { return s.Name() == n })
		if i < 0 {
			return nil, fmt.Errorf("there is no archive %q: 'tidemark status' shows them", n)
		}
		all = append(all, a.d.shippers[i])
	}
	return all, nil
}

// TakeSnapshot implements api.Archives. One location that fails does not keep the others from it.
func (a archives) TakeSnapshot(ctx context.Context, q api.SnapshotRequest) ([]api.Location, error) {
	if err := a.unmarked(q.Name); err != nil {
		return nil, err
	}
	return a.take(ctx, q, "manual")
}

// unmarked refuses a name that a mark has: --at NAME would go on to find the mark's moment, and not the snapshot's.
func (a archives) unmarked(name string) error {
	if name == "" {
		return nil
	}
	_, err := a.d.journal.MarkedCut(name)
	switch {
	case errors.Is(err, journal.ErrNoMark):
		return nil
	case err != nil:
		return fmt.Errorf("look for a mark of that name: %w", err)
	}
	return api.Refuse("the name %s is taken by a mark: choose another; 'tidemark mark' lists all names", name)
}

func (a archives) take(ctx context.Context, q api.SnapshotRequest, origin string) ([]api.Location, error) {
	scope, keep, err := a.d.scoped(ctx, q.Scope)
	if err != nil {
		return nil, err
	}
	shippers, err := a.pick(q.Archives)
	if err != nil {
		return nil, err
	}
	var all []api.Location
	var errs []error
	for _, s := range shippers {
		l := api.Location{Archive: s.Name()}
		p, err := s.Snapshot(ctx, compactor.SnapshotRequest{Name: q.Name, Scope: scope, Keep: keep, Origin: origin, TTL: q.TTL, Pinned: q.Pinned})
		if errors.Is(err, compactor.ErrTaken) && origin != "manual" { // by this very run, before it was cut off
			if have := s.Archive().State().Snapshot(q.Name); have != nil && have.Origin == origin {
				p, err = have, nil
			}
		}
		if err != nil {
			l.Error = err.Error()
			errs = append(errs, fmt.Errorf("archive %s: %w", s.Name(), err))
		} else {
			l.URL, l.Snapshots = s.Archive().Store().String(), []archive.Snapshot{*p}
		}
		all = append(all, l)
	}
	if len(errs) == len(shippers) {
		return nil, errors.Join(errs...)
	}
	if q.Name != "" {
		for _, l := range all {
			if len(l.Snapshots) > 0 {
				return all, a.d.journal.SetMark(ctx, "backup/"+q.Name, l.Snapshots[0].Position.Cut)
			}
		}
	}
	return all, nil
}

// EditSnapshot implements api.Archives.
func (a archives) EditSnapshot(ctx context.Context, q api.EditRequest) ([]api.Location, error) {
	var all []api.Location
	var errs []error
	for _, s := range a.d.shippers {
		open, err := s.Connect(ctx)
		if err == nil {
			var p *archive.Snapshot
			if p, err = api.EditIn(ctx, open, q); err == nil {
				all = append(all, api.Location{Archive: s.Name(), URL: open.Store().String(), Snapshots: []archive.Snapshot{*p}})
				continue
			}
		}
		if !errors.Is(err, compactor.ErrUnknown) {
			all = append(all, api.Location{Archive: s.Name(), Error: err.Error()})
		}
		errs = append(errs, err)
	}
	if len(errs) == len(a.d.shippers) {
		return nil, errs[0]
	}
	return all, nil
}

// Objects implements api.Archives.
func (a archives) Objects(ctx context.Context, snapshot string) iter.Seq2[journal.Event, error] {
	for _, s := range a.d.shippers {
		if open := s.Archive(); open != nil && open.CanRead() && open.State().Snapshot(snapshot) != nil {
			return api.ObjectsIn(ctx, open, snapshot)
		}
	}
	return func(yield func(journal.Event, error) bool) {
		yield(journal.Event{}, fmt.Errorf("%w that this daemon can read: %s: 'tidemark snapshot list' shows what there is; with the key, export it with --archive URL --identity FILE", compactor.ErrUnknown, snapshot))
	}
}

// Retain implements api.Archives.
func (a archives) Retain(ctx context.Context, dryRun bool) ([]api.LocationRetained, error) {
	var all []api.LocationRetained
	for _, s := range a.d.shippers {
		l := api.LocationRetained{Archive: s.Name()}
		var err error
		if l.Retained, err = s.Retain(ctx, dryRun); err != nil {
			l.Error = err.Error()
		}
		all = append(all, l)
	}
	return all, nil
}

// Repair implements api.Archives.
func (a archives) Repair(ctx context.Context, dryRun bool) ([]api.LocationRepaired, error) {
	var all []api.LocationRepaired
	for _, s := range a.d.shippers {
		l := api.LocationRepaired{Archive: s.Name()}
		var err error
		if l.Repaired, err = s.Repair(ctx, dryRun); err != nil {
			l.Error = err.Error()
		}
		all = append(all, l)
	}
	return all, nil
}
