package daemon

import (
	"context"
	"errors"
	"iter"
	"path/filepath"
	"sync"
	"time"

	"filippo.io/age"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
	"github.com/tidemark-backup/tidemark/volumes"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// volumesCache is the directory in the data directory that keeps indexes of the repository.
const volumesCache = "volumes.cache"

// maintainEvery is how often the repository of volumes is asked what is due.
const maintainEvery = time.Hour

// newKeeper keeps the content of volumes beside an archive, with the archive's keys.
func (d *daemon) newKeeper(l Archive, recipients []age.Recipient, identities []age.Identity) *volumes.Keeper {
	lock, compliance := l.Lock, l.Compliance
	open := sync.OnceValues(func() (archive.Store, error) { return archive.OpenStore(context.Background(), l.URL, l.Store) })
	return volumes.New(volumes.Options{
		Open: func(ctx context.Context, create bool) (*repository.Repository, error) {
			store, err := open()
			if err != nil {
				return nil, err
			}
			id := d.journal.ClusterID()
			if id == "" {
				return nil, errors.New("the daemon has not reached its cluster yet: see 'tidemark status'")
			}
			o := repository.Options{
				Store: store, Cluster: id, Identities: identities, Recipients: recipients, Lock: lock, Compliance: compliance,
				CacheDir: filepath.Join(d.o.DataDir, volumesCache),
			}
			if create {
				return repository.Create(ctx, o)
			}
			return repository.Open(ctx, o)
		},
		Record: func(ctx context.Context, e journal.Event) error { return d.journal.Record(ctx, volumes.Info, e) },
		Recorded: func(ctx context.Context) iter.Seq2[journal.Event, error] {
			now := journal.Cut{Revision: d.journal.Newest().Revision, Time: d.o.Clock().Add(time.Hour)} // the journal's clock may be a little ahead
			return d.local.Fold(ctx, now, replay.Scope{Resources: []schema.GroupResource{volumes.Info.GroupResource()}})
		},
		Fence: d.capture.Fence, Clock: d.o.Clock, Logger: d.o.Logger,
	})
}

// keepVolumes ends what a daemon before this one left, and lets the repository do what is due.
func (d *daemon) keepVolumes(ctx context.Context) error {
	tick := time.NewTicker(maintainEvery)
	defer tick.Stop()
	for settled := false; ; {
		if !settled {
			err := d.volumes.Settle(ctx)
			if settled = err == nil; err != nil && ctx.Err() == nil {
				d.o.Logger.Warn("volume backups that were cut off cannot be looked at; it will be tried again", zap.Error(err), zap.Duration("in", maintainEvery))
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if err := d.volumes.Maintain(ctx, false); err != nil && ctx.Err() == nil {
			d.o.Logger.Warn("the repository of volumes could not be maintained; it will be tried again", zap.Error(err), zap.Duration("in", maintainEvery))
		}
	}
}
