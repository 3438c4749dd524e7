package volumes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/journal"
)

// errPinned is why a backup is not deleted.
var errPinned = fmt.Errorf("%w: it is pinned", ErrRequest)

// Pin has a backup kept whatever retention says, or lets retention decide about it again. The repository has a note of it, for those who have
// nothing else; it is written first, so that what is cut off leaves a backup that is pinned.
func (k *Keeper) Pin(ctx context.Context, name string, pinned bool) (*Backup, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	b, err := k.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	switch b.Status.Phase {
	case Running: // who makes it would write its record over this one
		return nil, fmt.Errorf("%w: %s is being made: pin it when it is done", ErrRequest, b.Metadata.Name)
	case Deleting:
		return nil, fmt.Errorf("%w: %s is being deleted", ErrRequest, b.Metadata.Name)
	}
	if b.Status.Content != nil {
		r, err := k.o.Open(ctx, false)
		if err != nil {
			return nil, err
		}
		defer k.close(ctx, r)
		if err := r.Pin(ctx, tagName, b.Metadata.Name, pinned); err != nil {
			return nil, err
		}
	}
	b.Spec.Pinned = pinned
	return b, k.record(ctx, b, journal.Modified)
}

// mayGo returns an error for a backup that is pinned. One that was pinned in the repository alone, with --archive, is taken over.
func (k *Keeper) mayGo(ctx context.Context, b *Backup) error {
	if !b.Spec.Pinned && b.Status.Content != nil {
		r, err := k.existing(ctx)
		if err != nil {
			return err
		}
		if r != nil {
			defer k.close(ctx, r)
			pins, err := r.Pins(ctx, tagName)
			if err != nil {
				return err
			}
			b.Spec.Pinned = pins[b.Metadata.Name]
		}
		if b.Spec.Pinned {
			if err := k.record(ctx, b, journal.Modified); err != nil {
				return err
			}
		}
	}
	if b.Spec.Pinned {
		return fmt.Errorf("%w: 'tidemark volumes unpin %s' first", errPinned, b.Metadata.Name)
	}
	return nil
}

// checkTTL refuses what cannot be meant.
func checkTTL(ttl time.Duration) error {
	if ttl < 0 {
		return fmt.Errorf("%w: nothing can be kept for %s", ErrRequest, ttl)
	}
	return nil
}

// Retain deletes what is not to be kept any longer, and tells what and why: backups whose TTL is over, and those of schedules that the rules, by
// the name of their policy, do not keep. What is pinned stays, and the newest backup of a volume that is whole. Told with Keep is what would go, and
// cannot from here.
func (k *Keeper) Retain(ctx context.Context, rules map[string]retention.Policy) (told []retention.Verdict, err error) {
	all, err := k.List(ctx)
	if err != nil {
		return nil, err
	}
	age, err := k.ages()
	if err != nil {
		return nil, err
	}
	elsewhere := map[string]bool{}
	for _, b := range all {
		elsewhere[b.Metadata.Name] = k.elsewhere(b)
	}
	for _, v := range expired(all, rules, age) {
		if ctx.Err() != nil {
			break
		}
		if elsewhere[v.Name] {
			v.Keep, v.Reason = true, "it "+hasSnapshot
			told = append(told, v)
			continue
		}
		_, deleteErr := k.Delete(ctx, v.Name)
		switch {
		case errors.Is(deleteErr, errPinned): // by somebody else, as was found only now
		case deleteErr != nil:
			err = errors.Join(err, deleteErr)
		default:
			k.o.Logger.Info("an old volume backup was deleted", zap.String("backup", v.Name), zap.String("why", v.Reason))
			told = append(told, v)
		}
	}
	return told, err
}

// clockSlack is how far clocks may be apart.
const clockSlack = 5 * time.Minute

// ages tells how old backups are: by the count that a clock which jumps cannot change, if they were made with it, and by the clock else.
func (k *Keeper) ages() (age func(*Backup) time.Duration, err error) {
	now, counted := k.o.Clock(), time.Duration(0)
	if k.o.Age != nil {
		if counted, err = k.o.Age(); err != nil {
			return nil, fmt.Errorf("how old volume backups are cannot be told, so none is deleted: %w", err)
		}
	}
	return func(b *Backup) time.Duration {
		if made := b.Status.Age; made > 0 && made <= counted { // otherwise the archive was begun anew
			return counted - made
		}
		return now.Sub(b.Metadata.Created)
	}, nil
}

// expired are the backups that are not to be kept any longer.
func expired(all []*Backup, rules map[string]retention.Policy, age func(*Backup) time.Duration) (gone []retention.Verdict) {
	newest := map[string]*Backup{}
	for _, b := range all { // oldest first
		if b.Status.Phase != Done || age(b) < -clockSlack { // a clock that was ahead would make it the newest for ever
			continue
		}
		if n := newest[b.Volume()]; n == nil || age(b) <= age(n) {
			newest[b.Volume()] = b
		}
	}
	items := map[string][]retention.Item{} // by policy; "": those of none
	for _, b := range all {
		if b.Status.Phase == Running || b.Status.Phase == Deleting {
			continue
		}
		policy, ofSchedule := strings.CutPrefix(b.Spec.Origin, scheduled)
		if !ofSchedule {
			policy = ""
		}
		items[policy] = append(items[policy], retention.Item{
			ID: b.Metadata.Name, Name: b.Metadata.Name, Time: b.Metadata.Created, Age: age(b), TTL: b.Spec.TTL,
			Group: b.Volume() + "/" + string(b.Status.Phase), Manual: !ofSchedule,
			Pinned: b.Spec.Pinned || newest[b.Volume()] == b,
		})
	}
	for _, policy := range slices.Sorted(maps.Keys(items)) {
		p := rules[policy]
		if p.Window == 0 && !p.IsZero() {
			p.Window = time.Minute // without one, the counts alone say what is kept
		}
		for _, v := range retention.Decide(items[policy], p) {
			if !v.Keep {
				gone = append(gone, v)
			}
		}
	}
	return gone
}
