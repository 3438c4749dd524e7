package api

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// OpenArchive is an archive that is open here, with no daemon: the Archives of --archive.
type OpenArchive struct {
	Archive *archive.Archive
	Policy  retention.Policy
}

var _ Archives = (*OpenArchive)(nil)

// Snapshots implements Archives.
func (o *OpenArchive) Snapshots(context.Context) ([]Location, error) {
	return []Location{LocationOf("-", o.Archive)}, nil
}

// LocationOf lists an archive's snapshots.
func LocationOf(name string, a *archive.Archive) Location {
	return Location{Archive: name, URL: a.Store().String(), Snapshots: a.State().Snapshots}
}

// TakeSnapshot implements Archives: it cannot.
func (*OpenArchive) TakeSnapshot(context.Context, SnapshotRequest) ([]Location, error) {
	return nil, fmt.Errorf("%w, and a snapshot is taken of what a daemon records: leave out --archive", replay.ErrReadOnly)
}

// EditSnapshot implements Archives.
func (o *OpenArchive) EditSnapshot(ctx context.Context, q EditRequest) ([]Location, error) {
	p, err := EditIn(ctx, o.Archive, q)
	if err != nil {
		return nil, err
	}
	return []Location{{Archive: "-", URL: o.Archive.Store().String(), Snapshots: []archive.Snapshot{*p}}}, nil
}

// EditIn does what the request asks for in one archive.
func EditIn(ctx context.Context, a *archive.Archive, q EditRequest) (*archive.Snapshot, error) {
	switch q.Action {
	case EditDelete:
		return compactor.Delete(ctx, a, q.Snapshot)
	case EditHold, EditRelease:
		return compactor.Hold(ctx, a, q.Snapshot, q.Action == EditHold)
	case EditPin, EditUnpin:
		return compactor.Edit(ctx, a, q.Snapshot, func(p *archive.Snapshot) error {
			p.Pinned = q.Action == EditPin
			return nil
		})
	}
	return nil, &requestError{fmt.Errorf("unknown action %q", q.Action)}
}

// Objects implements Archives.
func (o *OpenArchive) Objects(ctx context.Context, snapshot string) iter.Seq2[journal.Event, error] {
	return ObjectsIn(ctx, o.Archive, snapshot)
}

// ObjectsIn yields what is in a snapshot's file.
func ObjectsIn(ctx context.Context, a *archive.Archive, snapshot string) iter.Seq2[journal.Event, error] {
	return func(yield func(journal.Event, error) bool) {
		p := a.State().Snapshot(snapshot)
		if p == nil {
			yield(journal.Event{}, fmt.Errorf("%w: %s: 'tidemark snapshot list' shows what there is", compactor.ErrUnknown, snapshot))
			return
		}
		t, err := a.Tables(ctx, nil, p)
		if err != nil {
			yield(journal.Event{}, err)
			return
		}
		v, err := t.View()
		if err != nil {
			yield(journal.Event{}, err)
			return
		}
		stopped := false
		for ok := v.First(); ok && !stopped && err == nil; ok = v.NextObject() {
			var e journal.Event
			if e, err = v.Event(); err == nil {
				stopped = !yield(e, nil)
			}
		}
		if err = errors.Join(err, v.Close()); err != nil && !stopped {
			yield(journal.Event{}, err)
		}
	}
}

// Retain implements Archives.
func (o *OpenArchive) Retain(ctx context.Context, dryRun bool) ([]LocationRetained, error) {
	r, err := compactor.Retain(ctx, o.Archive, o.Policy, 15*time.Minute, dryRun)
	if err != nil {
		return nil, err
	}
	return []LocationRetained{{Archive: "-", Retained: r}}, nil
}

// Repair implements Archives.
func (o *OpenArchive) Repair(ctx context.Context, dryRun bool) ([]LocationRepaired, error) {
	r, err := compactor.Repair(ctx, o.Archive, dryRun)
	if err != nil {
		return nil, err
	}
	return []LocationRepaired{{Archive: "-", Repaired: r}}, nil
}
