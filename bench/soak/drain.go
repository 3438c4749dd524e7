package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidemark-backup/tidemark/bench/soak/checker"
)

// drainLimit is how long each of the last comparisons may take to be possible, once nothing goes wrong any more.
const drainLimit = 8 * time.Minute

// drain compares all that is left, with nothing going wrong any more. What has no answer now never had one: that is an error.
func (j *judge) drain(ctx context.Context, length time.Duration) error {
	if err := j.last(ctx); err != nil {
		return err
	}
	if err := j.follow(); err != nil {
		return err
	}
	clear(j.verified) // from the beginning
	if err := j.patiently(ctx, "compare whole histories", j.histories); err != nil {
		return err
	}
	for i, t := range j.past {
		if i < len(j.past)-1 && j.random.IntN(4) != 0 {
			continue
		}
		if err := j.patiently(ctx, fmt.Sprintf("compare rv:%d once more", t.RV), func(ctx context.Context) error { return j.again(ctx, t) }); err != nil {
			return err
		}
	}
	for range 10 { // a namespace may be empty
		if err := j.restore(ctx); err != nil {
			return err
		}
		if min(j.counts.Restores, j.counts.RestoredObjects) >= least(length) {
			break
		}
	}
	return j.review(0)
}

// patiently does something until it no longer says that it is not possible yet.
func (j *judge) patiently(ctx context.Context, what string, do func(context.Context) error) error {
	for end := time.Now().Add(drainLimit); ; hold(ctx, 2*time.Second) {
		err := do(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, checker.ErrNotYet) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s without faults, and it was not possible to %s: %w", drainLimit, what, err)
		}
	}
}

// settled compares until no moment and no gap is left.
func (j *judge) settled(ctx context.Context) error {
	if err := errors.Join(j.compareAll(ctx), j.ledgered(ctx)); err != nil {
		return err
	}
	switch {
	case len(j.gaps) > 0:
		return fmt.Errorf("%w: %d gaps made on purpose are not in the ledger", checker.ErrNotYet, len(j.gaps))
	case len(j.pending) > 0:
		return fmt.Errorf("%w about rv:%d: %s", checker.ErrNotYet, j.pending[0].RV, j.pending[0].waits)
	}
	return nil
}

// last takes a moment of the cluster at rest and compares it with both sources, and all that is left with it. It is of use
// when no gap lies over it, which the first after a storm may have: then there is another one.
func (j *judge) last(ctx context.Context) error {
	for range 3 {
		var t *trial
		if err := j.patiently(ctx, "take a last moment", func(ctx context.Context) error {
			if t = j.take(ctx, 0); t == nil {
				return fmt.Errorf("%w: see actions.jsonl", checker.ErrNotYet)
			}
			return nil
		}); err != nil {
			return err
		}
		// What nobody records, such as leases, moves the cluster on as well. Only a change after the moment tells that it is past.
		if err := j.patiently(ctx, "change something after the last moment", func(ctx context.Context) error {
			if err := j.breaker.writer.put(ctx, "configmaps", "default", "rest", map[string]any{"data": map[string]any{"after": fmt.Sprint(t.RV, " ", time.Now().UnixNano())}}); err != nil {
				return fmt.Errorf("%w: %w", checker.ErrNotYet, err)
			}
			return nil
		}); err != nil {
			return err
		}
		if err := j.patiently(ctx, "compare the moments that are left", j.settled); err != nil {
			return err
		}
		if t.byDaemon && t.byArchive && t.whole {
			return nil
		}
	}
	return errors.New("three moments of the cluster at rest, and none that daemon and archive vouch for")
}

// least is how often everything must have been compared in a run: seldom, for the machine may be busy with other things.
func least(length time.Duration) int { return 1 + int(length/(10*time.Minute)) }

// floor is what a run must have compared to mean something.
func floor(c *counts, length time.Duration, storms int) error {
	least := least(length)
	var errs []error
	want := func(what string, n int) {
		if n < least {
			errs = append(errs, fmt.Errorf("%s: %d, want at least %d in %s", what, n, least, length))
		}
	}
	want("moments compared with the daemon", c.Daemon.Moments)
	want("moments compared with the archive", c.Archive.Moments)
	want("histories compared with the daemon", c.Daemon.Histories)
	want("histories compared with the archive", c.Archive.Histories)
	want("versions found in the daemon's histories", c.Daemon.Versions)
	want("versions found in the archive's histories", c.Archive.Versions)
	want("restores compared", c.Restores)
	want("objects of restores compared", c.RestoredObjects)
	if c.Gaps != storms || c.Ledgered != c.Gaps {
		errs = append(errs, fmt.Errorf("gaps: %d storms, %d seen by the checker, %d in the ledger", storms, c.Gaps, c.Ledgered))
	}
	if len(errs) > 0 {
		return fmt.Errorf("too little was compared to say that all is well: %w", errors.Join(errs...))
	}
	return nil
}
