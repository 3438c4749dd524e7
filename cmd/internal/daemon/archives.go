package daemon

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"filippo.io/age"
	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/compactor"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/replay"
)

// retainEvery is how often retention looks.
const retainEvery = time.Hour

// Archive is a location that the daemon archives to.
type Archive struct {
	Name string // default: "main"
	URL  string
	// Recipients are whom files are encrypted for (age1...), RecipientFiles hold some.
	Recipients, RecipientFiles []string
	// IdentityFile lets the daemon read what it archives. Without recipients, files are encrypted for
	// it alone. Without either, DATA-DIR/archive.key is made.
	IdentityFile string
	Store        archive.StoreOptions
	SealInterval time.Duration // zero: 5 s
	SealBytes    int64         // zero: 8 MiB
	Lock         time.Duration // object lock; zero: none
	Compliance   bool
	Shared       bool
}

// keys reads the location's keys. Without any, it is the daemon's own.
func (d *daemon) keys(ctx context.Context, l *Archive) ([]age.Recipient, []age.Identity, error) {
	recipients, identities, err := l.given()
	if err != nil || len(recipients) > 0 {
		return recipients, identities, err
	}
	path, err := d.ownKey(ctx, l)
	if err != nil {
		return nil, nil, err
	}
	d.ownKeyPath = path
	identities, recipients, err = withIdentity(path, nil)
	return recipients, identities, err
}

// openArchives makes a shipper for each location.
func (d *daemon) openArchives(ctx context.Context) error {
	for _, l := range d.o.Archives {
		l.Name = l.name()
		recipients, identities, err := d.keys(ctx, &l)
		if err != nil {
			return fmt.Errorf("archive %s: %w", l.Name, err)
		}
		s, err := compactor.NewShipper(compactor.Options{
			Name: l.Name, Journal: d.journal, Dir: filepath.Join(d.o.DataDir, "spool"),
			Open: func(ctx context.Context) (archive.Store, error) { return archive.OpenStore(ctx, l.URL, l.Store) },
			Archive: archive.Options{
				Recipients: recipients, Identities: identities, Lock: l.Lock, Compliance: l.Compliance, Shared: l.Shared, CacheBytes: 8 << 20,
			},
			SealInterval: l.SealInterval, SealBytes: l.SealBytes, Retention: d.o.Retention, Clock: d.o.Clock, Logger: d.o.Logger,
		})
		if err != nil {
			return fmt.Errorf("archive %s: %w", l.Name, err)
		}
		d.shippers = append(d.shippers, s)
		if d.volumes == nil && len(identities) > 0 {
			if d.volumes, err = d.newKeeper(l, s, recipients, identities); err != nil {
				return err
			}
		}
	}
	d.source = replay.NewTiered(d.local, d.older)
	d.keepUnarchived()
	return nil
}

// older is the archive to read what the journal has trimmed from.
func (d *daemon) older(context.Context) (*replay.Archived, error) {
	for _, s := range d.shippers {
		if a := s.Archive(); a != nil && a.CanRead() {
			return replay.NewArchived(a.History()), nil
		}
	}
	return nil, nil
}

// keepUnarchived keeps the journal from trimming what some location does not have yet.
func (d *daemon) keepUnarchived() {
	if len(d.shippers) == 0 {
		return
	}
	oldest := time.Now().Add(1 << 62)
	for _, s := range d.shippers {
		if t := s.Keep(); t.Before(oldest) {
			oldest = t
		}
	}
	d.journal.KeepAfter(oldest)
}

// ship runs one location until the context ends.
func (d *daemon) ship(ctx context.Context, s *compactor.Shipper) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.retain(ctx, s)
	}()
	err := s.Run(ctx)
	<-done
	return err
}

// retain takes rounds of retention.
func (d *daemon) retain(ctx context.Context, s *compactor.Shipper) {
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-d.retainNow:
		case <-ctx.Done():
			return
		}
		if s.Archive() == nil || s.Status().Stopped {
			continue
		}
		if _, err := s.Retain(ctx, false); err != nil && ctx.Err() == nil {
			d.o.Logger.Warn("retention failed; it will be tried again", zap.String("location", s.Name()), zap.Error(err))
		}
	}
}
