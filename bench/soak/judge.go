package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tidemark-backup/tidemark/bench/soak/checker"
)

const (
	keepMoments = 60               // with their objects; of older ones only the hashes stay
	historyPace = 40 * time.Second // between two comparisons of whole histories
	restorePace = 20 * time.Second
)

// trial is one moment on its way through all comparisons.
type trial struct {
	*checker.Moment
	model, daemon, archive bool            // compared, or known to be past comparing
	byDaemon, byArchive    bool            // compared, and not all of it in gaps
	unsure                 map[string]bool // resources for which no ledger vouches at this moment
	whole                  bool            // what restores stand on is sure: it can be restored from
	waits                  string
}

func (t *trial) done() bool { return t.model && t.daemon && t.archive }

// counts is what the summary tells.
type counts struct {
	Moments, Again, Objects, ModelObjects, InGap, Warned, Skipped, TooOld int
	Restores, RestoredObjects, RestoresDisturbed                          int
	Missed, Bodies                                                        int
	Gaps, Ledgered, Reasoned                                              int
	Manifests, Files                                                      int
	Events                                                                uint64

	Daemon, Archive answered
}

// answered is what was compared with one source.
type answered struct{ Moments, Histories, Versions int }

// judge has the checker look, at random moments.
type judge struct {
	*rig
	breaker         *breaker
	model           *checker.Model
	live, target    *checker.Client
	daemon, archive *checker.Source
	chain           *checker.Chain
	random          *rand.Rand
	counts          counts                 // of run's goroutine
	told            atomic.Pointer[counts] // a copy of them, for everybody

	first         uint64 // where recording began
	pending, past []*trial
	times         []observed
	verified      map[*checker.Source]uint64 // up to where histories were compared
	gaps          []injectedGap
	reviewed      map[checker.Gap]time.Time // gaps of a ledger: when they were seen first; zero: they have a reason
	failed        map[string]int            // answers that failed in a row, by what was asked
	lastHistory   time.Time
	lastRestore   time.Time
	restored      int
}

// clockSlack is how far the times of changes may lie behind the clock of this process: a fault sets the daemon's clock back for 10 seconds at most, and
// while it is, the journal's times stand still.
const clockSlack = 30 * time.Second

// observed is a time by which the cluster had not got past a revision.
type observed struct {
	rv uint64
	at time.Time
}

// run looks until ctx ends.
func (j *judge) run(ctx context.Context) error {
	for {
		hold(ctx, time.Duration(3000+j.random.IntN(5000))*time.Millisecond)
		if ctx.Err() != nil {
			return nil
		}
		err := j.round(ctx)
		now := j.counts
		j.told.Store(&now)
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// round takes a moment and does whatever is due.
func (j *judge) round(ctx context.Context) error {
	back := uint64(j.random.IntN(300))
	if j.random.IntN(3) == 0 {
		back = 0
	}
	j.take(ctx, back)
	if err := j.compareAll(ctx); err != nil {
		return err
	}
	if len(j.past) > 0 && j.random.IntN(2) == 0 { // merged, trimmed and sealed since, and still the same
		if err := j.again(ctx, j.past[j.random.IntN(len(j.past))]); err != nil && !errors.Is(err, checker.ErrNotYet) {
			return err
		}
	}
	if err := j.follow(); err != nil {
		return err
	}
	if err := errors.Join(j.ledgered(ctx), j.review(reasonLimit)); err != nil {
		return err
	}
	if time.Since(j.lastHistory) > historyPace {
		if err := j.histories(ctx); err != nil && !errors.Is(err, checker.ErrNotYet) {
			return err
		}
	}
	if time.Since(j.lastRestore) > restorePace {
		return j.restore(ctx)
	}
	return nil
}

// take takes a moment, so many revisions ago. While the API server is away there is none: nil.
func (j *judge) take(ctx context.Context, back uint64) *trial {
	at := time.Now().Add(-clockSlack) // before the request: when its answer is here, the cluster may have gone on
	rv, err := j.live.Revision(ctx)
	if err != nil {
		j.log.note("check", 0, "no moment", nil, err)
		return nil
	}
	j.times = append(j.times, observed{rv, at})
	mo, err := j.model.TakeMoment(ctx, max(rv-min(back, rv), j.first), j.dir)
	if err != nil {
		j.log.note("check", 0, "no moment", nil, err)
		return nil
	}
	t := &trial{Moment: mo, whole: true, unsure: map[string]bool{}}
	j.pending = append(j.pending, t)
	j.log.note("check", 0, "moment", map[string]any{"rv": mo.RV, "objects": mo.Objects()}, nil)
	return t
}

// compareAll asks about every moment that is not through.
func (j *judge) compareAll(ctx context.Context) error {
	for _, t := range j.pending {
		if err := j.compare(ctx, t); err != nil {
			return err
		}
	}
	for _, t := range j.pending {
		if t.done() {
			j.past = append(j.past, t)
			if n := len(j.past) - keepMoments; n > 0 {
				j.past[n-1].Forget()
			}
			j.counts.Moments++
			j.log.note("check", 0, "compared", map[string]any{"rv": t.RV, "after": t.Age().Seconds(), "whole": t.whole}, nil)
		}
	}
	j.pending = slices.DeleteFunc(j.pending, (*trial).done)
	if len(j.past) > 1000 {
		j.past = slices.Delete(j.past, 0, 500)
	}
	return nil
}

func (j *judge) compare(ctx context.Context, t *trial) error {
	if !t.model && t.Age() > 70*time.Second { // by then a bookmark has told that nothing else came
		n, err := j.model.CompareModel(t.Moment)
		if err != nil {
			return err
		}
		t.model = true
		j.counts.ModelObjects += n
	}
	t.waits = ""
	for _, one := range []struct {
		source *checker.Source
		done   *bool
		by     *bool
	}{{j.daemon, &t.daemon, &t.byDaemon}, {j.archive, &t.archive, &t.byArchive}} {
		if *one.done {
			continue
		}
		var n checker.Counted
		err := j.asked(ctx, one.source, fmt.Sprintf("rv:%d", t.RV), func() (err error) {
			n, err = one.source.Compare(ctx, t.Moment)
			return err
		})
		switch {
		case errors.Is(err, checker.ErrNotYet):
			t.waits += err.Error() + "; "
			continue
		case errors.Is(err, checker.ErrTooOld) && one.source == j.daemon: // trimmed
			j.counts.TooOld++
			t.whole = false
		case err != nil:
			return err
		}
		*one.done = true
		if *one.by = n.Resources > 0; *one.by {
			j.of(one.source).Moments++
		}
		for _, name := range n.Unsure {
			t.unsure[name] = true
		}
		t.whole = t.whole && !t.unsure["namespaces"] && !t.unsure["customresourcedefinitions.apiextensions.k8s.io"]
		j.counts.Objects += n.Objects
		j.counts.InGap += n.InGap
		j.counts.Warned += n.Warned
		j.counts.Skipped += n.Skipped
	}
	return nil
}

// again compares a moment once more with the archive, which has been merged since.
func (j *judge) again(ctx context.Context, t *trial) error {
	var n checker.Counted
	if err := j.asked(ctx, j.archive, fmt.Sprintf("rv:%d once more", t.RV), func() (err error) {
		n, err = j.archive.Compare(ctx, t.Moment)
		return err
	}); err != nil {
		return err
	}
	j.counts.Again++
	j.counts.Objects += n.Objects
	return nil
}

const (
	failures  = 3               // of one question in a row, before things stop going wrong to find out why
	insistFor = 2 * time.Minute // and that is how long it may go on failing then
)

// asked asks one question. What fails again and again is asked until there is an answer, with nothing going wrong
// meanwhile: when there is none then either, that is a difference.
func (j *judge) asked(ctx context.Context, who *checker.Source, what string, ask func() error) error {
	err := ask()
	key := who.Name + ", " + what
	if !errors.Is(err, checker.ErrFailed) || ctx.Err() != nil {
		delete(j.failed, key)
		return err
	}
	if j.failed[key]++; j.failed[key] < failures {
		return err
	}
	j.log.note("check", 0, "insist", key, err)
	j.breaker.turn.Lock()
	defer j.breaker.turn.Unlock()
	for n, end := 0, time.Now().Add(insistFor); n < failures || time.Now().Before(end); n++ {
		hold(ctx, insistFor/24)
		if err = ask(); !errors.Is(err, checker.ErrFailed) || ctx.Err() != nil {
			delete(j.failed, key)
			return err
		}
	}
	return &checker.Difference{Resource: "answer", Key: what, Who: who.Name, Want: "an answer, for nothing goes wrong", Have: err.Error()}
}

// of is what was compared with a source.
func (j *judge) of(s *checker.Source) *answered {
	if s == j.archive {
		return &j.counts.Archive
	}
	return &j.counts.Daemon
}

// follow reads what is new in the archive's chain.
func (j *judge) follow() error {
	_, err := j.chain.Follow()
	j.counts.Manifests, j.counts.Files, j.counts.Events = j.chain.Checked()
	return err
}

// histories compares every version, from both sources, from where it was done last. ErrNotYet: one of them had no answer.
func (j *judge) histories(ctx context.Context) error {
	var waits error
	for _, s := range []*checker.Source{j.daemon, j.archive} {
		err := j.history(ctx, s)
		if errors.Is(err, checker.ErrNotYet) {
			j.log.note("check", 0, "no history", s.Name, err)
			waits = errors.Join(waits, err)
			continue
		}
		if err != nil {
			return err
		}
	}
	j.lastHistory = time.Now()
	return waits
}

func (j *judge) history(ctx context.Context, s *checker.Source) error {
	from := observed{}
	for _, o := range j.times { // the newest time at which the cluster had not got past what is compared
		if o.rv <= j.verified[s] {
			from = o
		}
	}
	var n checker.Heard
	var upTo uint64
	if err := j.asked(ctx, s, "its log", func() (err error) {
		n, upTo, err = s.CompareHistory(ctx, j.model, from.rv, from.at)
		return err
	}); err != nil {
		return err
	}
	j.verified[s] = upTo
	j.of(s).Histories++
	j.of(s).Versions += n.Versions
	j.counts.Missed += n.Missed
	j.counts.Bodies += n.Bodies
	j.log.note("check", 0, "history compared", map[string]any{"source": s.Name, "from": from.rv, "to": upTo, "versions": n.Versions, "in gaps": n.Missed}, nil)
	return nil
}

// restore puts a random namespace of a random moment back, somewhere else.
func (j *judge) restore(ctx context.Context) error {
	var fit []*trial
	for _, t := range j.past[max(0, len(j.past)-keepMoments):] {
		if t.whole {
			fit = append(fit, t)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	t, source := fit[j.random.IntN(len(fit))], j.daemon
	if j.random.IntN(2) == 0 || t.Age() > 2*time.Minute { // the journal is trimmed soon
		source = j.archive
	}
	all, err := t.Namespaces("soak-")
	if err != nil || len(all) == 0 {
		return err
	}
	namespace := all[j.random.IntN(len(all))]
	j.restored++
	as := fmt.Sprintf("restored-%d", j.restored)
	before, calm := j.breaker.quiet()
	n, err := source.Restore(ctx, t.Moment, namespace, as, j.scratch.Kubeconfig(), j.target, t.unsure)
	after, still := j.breaker.quiet()
	j.log.note("check", 0, "restore", map[string]any{"rv": t.RV, "namespace": namespace, "as": as, "from": source.Name, "objects": n}, err)
	_, differs := errors.AsType[*checker.Difference](err)
	switch {
	case differs:
		return err
	case err != nil && (!calm || !still || before != after):
		j.counts.RestoresDisturbed++ // the source was killed under it
	case err != nil:
		return err
	default:
		j.counts.Restores++
		j.counts.RestoredObjects += n
		j.lastRestore = time.Now()
	}
	return j.target.Empty(ctx, as)
}
