package capture

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/tidemark-backup/tidemark/journal"
)

// witnesses is how many of the newest recorded events are asked about at start.
const witnesses = 8

// recheckHistory makes sure, before a watch is resumed, that the server's history is still the
// one that was recorded: a server whose etcd was restored resumes a watch from a revision that
// it has not reached yet without a word. ended is when the watch before broke off; one check
// after that serves all the watches that broke off together.
func (c *Capture) recheckHistory(ctx context.Context, ended time.Time) error {
	c.checking.Lock()
	defer c.checking.Unlock()
	if c.checkedAt.After(ended) {
		return nil
	}
	began := time.Now()
	newest := c.opts.Journal.Newest() // before the probe: what comes in meanwhile is newer than its answer
	now, err := c.probe(ctx, mainPath)
	if err != nil && !apierrors.IsForbidden(err) {
		return err
	}
	if err == nil && now.rv < newest.RV {
		c.log.Warn(backwards, zap.Stringer("recorded", newest.Revision), zap.Uint64("server", now.rv))
		err = c.opts.Journal.NewEpoch(ctx)
	} else {
		err = c.checkWitnesses(ctx)
	}
	if err == nil {
		c.checkedAt = began
	}
	return err
}

const backwards = "the server's history went backwards (etcd was restored?): a new epoch begins"

// checkWitnesses looks for proof that the server's history went backwards (an etcd that was
// restored, and has perhaps overtaken our watermarks since): an object that is older now than
// it was recorded, or alive with the uid of a recorded deletion. Then a new epoch begins. One
// object that still is as recorded proves the contrary. It lists nothing.
func (c *Capture) checkWitnesses(ctx context.Context) error {
	recent, err := c.opts.Journal.Recent(witnesses)
	if err != nil {
		return err
	}
	for _, e := range recent {
		l := c.opts.Journal.Ledger(e.Resource)
		if l == nil || l.OwnCounter || e.Inferred() || e.Revision.Epoch != c.opts.Journal.Newest().Epoch {
			continue
		}
		now, err := c.get(ctx, l.ResourceInfo, e)
		if saysNothing(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("compare history with the server: %w", plain(err))
		}
		// An object that only left the label selector was recorded as deleted and lives on; it
		// is not older than that, as one is that a restored etcd brought back.
		if now.rv < e.Revision.RV && (e.Op != journal.Deleted || now.uid == e.UID) {
			c.log.Warn(backwards, zap.Stringer("resource", e.Resource), zap.Stringer("recorded", e.Revision), zap.Uint64("server", now.rv))
			return c.opts.Journal.NewEpoch(ctx)
		}
		if e.Op != journal.Deleted && now.rv == e.Revision.RV {
			return nil
		}
	}
	return nil
}

// saysNothing reports whether a failed question about a witness is about that witness only: gone,
// forbidden, its conversion webhook broken. Trouble of the whole server is another matter.
func saysNothing(err error) bool {
	if !isAnswer(err) {
		return errors.Is(err, errMetadata) || errors.Is(err, errNotNumeric)
	}
	return !apierrors.IsTooManyRequests(err) && !apierrors.IsUnauthorized(err) && !apierrors.IsServiceUnavailable(err)
}

func (c *Capture) get(ctx context.Context, info journal.ResourceInfo, e journal.Event) (*rawObject, error) {
	body, err := c.client.Get().AbsPath(collectionPath(info, e.Namespace), e.Name).
		SetHeader("Accept", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json").Do(ctx).Raw()
	if err != nil {
		return nil, err
	}
	return scanObject(body)
}
