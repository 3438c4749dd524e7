package replay

import (
	"context"
	"errors"
)

// recall takes up what a run of the same plan that was cut off has done.
func (a *applier) recall() {
	if a.o.Record == nil {
		return
	}
	for i, it := range a.plan.Items {
		o := a.o.Record.known(i)
		if o.State != a.o.Record.done[i].State {
			a.cannotRecord(a.o.Record.note(i, o)) // what this run notes may make the progress whole again
		}
		it.prior = o
		switch o.State {
		case "done", "left":
			if o.UID != "" {
				a.uids[it.key()] = o.UID
			}
			if o.Made != "" {
				a.made[it.key()] = o.Made
			}
			a.done++
			if o.State == "done" {
				a.result.Done++
			} else {
				a.result.Skipped++
			}
		case "begin":
			it.unsure = true
		case "failed":
			it.unsure = o.UID != "" // it was made, and what comes after that failed
		}
	}
}

// before reports whether an earlier run has done with the item.
func (a *applier) before(it *Item) bool {
	if a.o.Record == nil {
		return false
	}
	a.o.Record.mu.Lock()
	defer a.o.Record.mu.Unlock()
	s := a.o.Record.done[a.index[it]].State
	return s == "done" || s == "left"
}

// begin notes that the item is about to be written, and what has been made of it by then; false when that cannot be noted.
func (a *applier) begin(it *Item) bool {
	if a.o.Record == nil {
		return true
	}
	o := outcome{State: "begin"}
	if it.makes() {
		o.UID, o.Made = a.madeOf(it)
	}
	return a.cannotRecord(a.o.Record.note(a.index[it], o))
}

// announce notes in the background that the items of a wave may be begun: that must be on the disk before the first of them is written.
func (a *applier) announce(wave []*Item) {
	if a.o.Record != nil {
		a.announcing.Go(func() { a.cannotRecord(a.o.Record.announce(wave[0].Wave)) })
	}
}

// recorded waits until what was noted is on the disk; false when it cannot be.
func (a *applier) recorded() bool { return a.o.Record == nil || a.cannotRecord(a.o.Record.sync()) }

// madeOf is the object that this restore made of the item, in this run or an earlier one.
func (a *applier) madeOf(it *Item) (uid, made string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if uid := a.uids[it.key()]; uid != "" || !it.makes() {
		return uid, a.made[it.key()]
	}
	return it.prior.UID, it.prior.Made // it was not come to again
}

// outcome notes what became of the item.
func (a *applier) outcome(it *Item, err error, left bool) {
	if a.o.Record == nil {
		return
	}
	o := outcome{State: "done"}
	o.UID, o.Made = a.madeOf(it)
	switch {
	case left:
		o.State, o.Why = "left", err.Error()
	case err != nil:
		o.State, o.Why = "failed", err.Error()
	}
	a.cannotRecord(a.o.Record.note(a.index[it], o))
}

// cannotRecord keeps the first failure, which ends Apply; it returns whether there is none.
func (a *applier) cannotRecord(err error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed == nil {
		a.failed = err
	}
	return a.failed == nil
}

// stopped reports whether nothing new is to be begun.
func (a *applier) stopped() bool {
	a.mu.Lock()
	failed := a.failed
	a.mu.Unlock()
	if failed != nil {
		return true
	}
	select {
	case <-a.o.Stop: // nil never ends
		return true
	default:
		return false
	}
}

// madeAs remembers that this restore created an object, and how it was then, for an undo.
func (a *applier) madeAs(it *Item, o object) {
	print := a.plan.fingerprint(it.Resource, o)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.made[it.key()] = print
}

// recreated finishes the deletion and creation of an object that an earlier run began: done when
// the new object is there.
func (a *applier) recreated(ctx context.Context, it *Item) (done bool, err error) {
	u, err := a.target.get(ctx, it.served, it.Namespace, it.Name)
	switch {
	case err != nil:
		return false, err
	case u == nil:
		return true, a.create(ctx, it)
	case u.GetUID() == it.live.uid && object(u.Object).deleting():
		if err := a.awaitGone(ctx, it); err != nil {
			return false, err
		}
		return true, a.create(ctx, it)
	case u.GetUID() == it.live.uid:
		return false, nil
	case a.isAs(ctx, it, it.create.object()):
		a.madeAs(it, u.Object)
		return true, nil
	}
	return false, errors.New("was made anew by somebody else meanwhile: make a new plan")
}
