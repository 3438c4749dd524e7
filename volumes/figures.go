package volumes

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidemark-backup/tidemark/journal"
)

// Figures say how the backups of one policy and one driver fare.
type Figures struct {
	// Policy is the one whose schedule made them; empty: they were asked for.
	Policy string `json:"policy,omitempty"`
	Driver string `json:"driver,omitempty"` // of CSI; empty: none
	// Running are being made.
	Running int `json:"running"`
	// Done and Failed count those that ended since this process began, and Sent is what the store got for them, in bytes.
	Done   uint64 `json:"done"`
	Failed uint64 `json:"failed"`
	Sent   int64  `json:"sent"`
	// LastDone and LastFailed are when the newest ones ended that are still recorded.
	LastDone   time.Time `json:"lastDone,omitzero"`
	LastFailed time.Time `json:"lastFailed,omitzero"`
	// LastDuration is from the begin of the run of the one that is LastDone to its end.
	LastDuration time.Duration `json:"lastDuration"`
	// Claims are those that the policy's newest run was for, and Failing those of them whose newest backup failed.
	Claims  int `json:"claims"`
	Failing int `json:"failing"`
	// Newest is the moment of a claim's newest whole backup, of the claim for which that is the longest ago. A claim that has none counts from when
	// one was first wanted.
	Newest time.Time `json:"newest,omitzero"`
}

// Scheduled is the origin of the backups that the schedule of a policy makes.
func Scheduled(policy string) string { return scheduled + policy }

const scheduled = "schedule/"

// share says whose figures a backup counts in.
type share struct{ policy, driver string }

// entry is what is kept of a backup's record.
type entry struct {
	share
	volume, run               string
	phase                     Phase
	created, finished, moment time.Time
}

func entryOf(b *Backup) entry {
	e := entry{volume: b.Volume(), run: b.Spec.Run, phase: b.Status.Phase, created: b.Metadata.Created, finished: b.Status.Finished, moment: b.Moment()}
	if name, ok := strings.CutPrefix(b.Spec.Origin, scheduled); ok {
		e.policy = name
	}
	if b.Spec.Source != nil {
		e.driver = b.Spec.Source.Driver
	}
	return e
}

// covered is a claim that a policy is for.
type covered struct {
	volume, driver string
	since          time.Time
}

// tally keeps in memory what Figures are made of: they are asked for often, and reading all records each time would cost more than
// everything else that is asked for.
type tally struct {
	mu      sync.Mutex
	loaded  bool
	backups map[string]entry     // by name
	ended   map[share]*Figures   // only what is counted
	covered map[string][]covered // by policy, as the newest run found them
}

// load reads the records once. It has to come before the first one that this process writes.
func (a *tally) load(ctx context.Context, list func(context.Context) ([]*Backup, error)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.loaded {
		return nil
	}
	all, err := list(ctx)
	if err != nil {
		return err
	}
	a.backups, a.ended = map[string]entry{}, map[share]*Figures{}
	for _, b := range all {
		a.backups[b.Metadata.Name] = entryOf(b)
	}
	a.loaded = true
	return nil
}

// note takes a record over that was written.
func (a *tally) note(b *Backup, op journal.Op) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.loaded {
		return
	}
	if op == journal.Deleted {
		delete(a.backups, b.Metadata.Name)
		return
	}
	e, was := entryOf(b), a.backups[b.Metadata.Name]
	a.backups[b.Metadata.Name] = e
	if was.phase != Running || e.phase == Running {
		return // it has not ended now
	}
	f := a.ended[e.share]
	if f == nil {
		f = &Figures{}
		a.ended[e.share] = f
	}
	if e.phase == Done {
		f.Done++
	} else {
		f.Failed++
	}
	if b.Status.Content != nil {
		f.Sent += b.Status.Content.Sent
	}
}

// cover takes over for which claims a run of a policy is.
func (a *tally) cover(policy string, units []*unit, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := []covered{}
	for _, u := range units {
		for _, t := range u.tasks {
			list = append(list, covered{t.key(), t.Driver(), now})
		}
	}
	if a.covered == nil {
		a.covered = map[string][]covered{}
	}
	a.covered[policy] = list
}

// Figures tell how the backups fare, by policy and driver.
func (k *Keeper) Figures(ctx context.Context) ([]Figures, error) {
	if err := k.tally.load(ctx, k.List); err != nil {
		return nil, err
	}
	var policies []string
	for _, p := range k.policies.Load().Policies {
		policies = append(policies, p.Name)
	}
	return k.tally.sum(policies), nil
}

func (a *tally) sum(policies []string) []Figures {
	a.mu.Lock()
	defer a.mu.Unlock()
	by := map[share]*Figures{}
	at := func(s share) *Figures {
		if by[s] == nil {
			by[s] = &Figures{Policy: s.policy, Driver: s.driver}
		}
		return by[s]
	}
	for s, f := range a.ended {
		to := at(s)
		to.Done, to.Failed, to.Sent = f.Done, f.Failed, f.Sent
	}
	for _, e := range a.backups {
		f := at(e.share)
		switch e.phase {
		case Running:
			f.Running++
		case Done:
			if e.finished.After(f.LastDone) {
				f.LastDone, f.LastDuration = e.finished, e.finished.Sub(e.created)
			}
		case Failed:
			if e.finished.After(f.LastFailed) {
				f.LastFailed = e.finished
			}
		}
	}
	for _, name := range policies {
		a.sumClaims(name, at)
	}
	all := make([]Figures, 0, len(by))
	for _, f := range by {
		all = append(all, *f)
	}
	slices.SortFunc(all, func(a, b Figures) int {
		return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Driver, b.Driver))
	})
	return all
}

// sumClaims tells of the claims that a policy is for. The policy's own backups count, and no others: they are what it promises.
func (a *tally) sumClaims(policy string, at func(share) *Figures) {
	type state struct {
		first, ended, moment time.Time
		failed               bool
	}
	claims := map[string]*state{}
	for _, e := range a.backups {
		if e.policy != policy {
			continue
		}
		s := claims[e.volume]
		if s == nil {
			s = &state{}
			claims[e.volume] = s
		}
		if s.first.IsZero() || e.created.Before(s.first) {
			s.first = e.created
		}
		if e.phase != Running && e.finished.After(s.ended) {
			s.ended, s.failed = e.finished, e.phase == Failed
		}
		if e.phase == Done && e.moment.After(s.moment) {
			s.moment = e.moment
		}
	}
	list, known := a.covered[policy]
	if !known {
		list = a.lastCovered(policy)
	}
	for _, c := range list {
		f, s := at(share{policy, c.driver}), claims[c.volume]
		if s == nil {
			s = &state{first: c.since}
		}
		f.Claims++
		if s.failed {
			f.Failing++
		}
		newest := s.moment
		if newest.IsZero() {
			newest = s.first
		}
		if f.Newest.IsZero() || newest.Before(f.Newest) {
			f.Newest = newest
		}
	}
}

// lastCovered tells by the records for which claims a policy is, until this process has made a run of it. The newest run may have been cut off before it had
// a record of each, so the one before it counts as well.
func (a *tally) lastCovered(policy string) []covered {
	runs := map[string]time.Time{}
	for _, e := range a.backups {
		if e.policy == policy && e.created.After(runs[e.run]) {
			runs[e.run] = e.created
		}
	}
	newest := slices.SortedFunc(maps.Keys(runs), func(x, y string) int { return runs[y].Compare(runs[x]) })
	newest = newest[:min(2, len(newest))]
	found := map[string]covered{}
	for _, e := range a.backups {
		if e.policy == policy && slices.Contains(newest, e.run) && !e.created.Before(found[e.volume].since) {
			found[e.volume] = covered{e.volume, e.driver, e.created}
		}
	}
	return slices.Collect(maps.Values(found))
}
