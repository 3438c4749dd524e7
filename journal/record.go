package journal

import (
	"context"
	"fmt"
)

// OwnGroup is the API group of what Tidemark itself records into history, beside what the cluster has.
const OwnGroup = "tidemark.dev"

// Record writes an event of one of Tidemark's own resources, whose group is OwnGroup, and returns when it is durable.
// Such a resource has a counter of its own, so its cuts go by observed time. Op, Namespace, Name, UID and Object
// of the event count; the rest is set.
func (j *Journal) Record(ctx context.Context, info ResourceInfo, e Event) error {
	e.Resource = info.GroupResource()
	if info.Group != OwnGroup {
		return fmt.Errorf("%s is not a resource of Tidemark's own", e.Resource)
	}
	if err := checkName(&e); err != nil {
		return err
	}
	return j.do(ctx, entry{exec: func(w *writer) error {
		now := w.j.opts.Clock()
		l := w.ledgers[e.Resource]
		if l == nil {
			here := Cut{Revision: Revision{Epoch: 1}, Time: w.tickClock(now)}
			l = &Ledger{First: here, Since: here, Watermark: here}
			w.ledgers[e.Resource] = l
			if err := w.index(&indexEntry{}); err != nil {
				return err
			}
		}
		l.ResourceInfo, l.OwnCounter = info, true
		w.round.changed[e.Resource] = true
		e.Revision.RV = l.Watermark.RV + 1
		return w.addEvent(&e, now, false)
	}})
}
