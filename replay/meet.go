package replay

import (
	"context"
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// errAppeared is why an object that the plan creates was not written over another.
var errAppeared = errors.New("appeared since the plan was made, and differs: run the restore again to see the new plan")

// meet deals with an object that was not there when the plan was made: the answer to our own
// create was lost, or a controller or a person was faster.
func (a *applier) meet(ctx context.Context, it *Item, body object, unsure bool) error {
	for range maxRebases {
		u, err := a.target.get(ctx, it.served, it.Namespace, it.Name)
		if err != nil {
			return err
		}
		if u == nil {
			return errors.New("appeared and vanished while it was restored: run the restore again")
		}
		live := object(u.Object)
		if live.deleting() {
			if err := a.awaitGone(ctx, it); err != nil {
				return err
			}
			return a.create(ctx, it)
		}
		req, past := &a.plan.req, a.plan.past
		have, want := normal(req, past, it.Resource, live), normal(req, past, it.Resource, body)
		same := equalObjects(have, want) // as it should be
		if unsure && !same {             // ours, whose answer was lost, and perhaps more since
			same = equalObjects(have, normal(req, past, it.Resource, merge(live, have, want, req.Exact)))
		}
		if it.Volume != nil && it.prior.Made != "" && it.prior.UID == string(u.GetUID()) {
			same = true // what somebody changed in the claim does not fill it
		}
		switch {
		case same:
			a.restored(it.key(), string(u.GetUID()))
			if unsure {
				a.madeAs(it, live)
				return a.putStatus(ctx, it)
			}
			return nil
		case it.Resource == accounts: // a controller makes them, and the plan promised what they had
		case req.Existing == ExistingNone && (!unsure || it.Volume == nil): // a claim that may be ours may lack its content
			a.restored(it.key(), string(u.GetUID()))
			return &leftAlone{"was made by somebody else meanwhile, and differs: left alone; --existing update makes it as it was"}
		default:
			return errAppeared
		}
		u, err = a.put(ctx, it, addMissing(live, want))
		if apierrors.IsConflict(err) {
			continue
		}
		if err == nil {
			a.restored(it.key(), string(u.GetUID()))
		}
		return err
	}
	return errors.New("is being changed by somebody else all the time: run the restore again")
}

func equalObjects(a, b object) bool {
	diff, err := diffBodies(a, b)
	return err == nil && len(diff) == 0
}

// isAs reports whether the object is live as the body has it.
func (a *applier) isAs(ctx context.Context, it *Item, body object) bool {
	u, err := a.target.get(ctx, it.served, it.Namespace, it.Name)
	if err != nil || u == nil {
		return false
	}
	req, past := &a.plan.req, a.plan.past
	if !equalObjects(normal(req, past, it.Resource, u.Object), normal(req, past, it.Resource, body)) {
		return false
	}
	a.restored(it.key(), string(u.GetUID()))
	return true
}
