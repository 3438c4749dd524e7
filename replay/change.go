package replay

import (
	"github.com/tidemark-backup/tidemark/journal"
)

// NewChange describes an event beside the version before it, which is empty when there was
// none or it is not known.
func NewChange(e journal.Event, before []byte) Change {
	c := Change{Event: e, Before: before}
	c.Fields, c.Managers = describe(e, before)
	return c
}

// describe tells which fields an event changed and which managers did it. The bookkeeping of
// the API server (resourceVersion, generation, managedFields) does not count as a change.
// Deletions change nothing; what was there already when recording began was made by nobody
// that the history could name.
func describe(e journal.Event, before []byte) (fields, managers []string) {
	switch {
	case e.Op == journal.Deleted, e.Op == journal.Added && e.Flags&journal.Initial != 0:
		return nil, nil
	case e.Op == journal.Added, len(before) == 0:
		return nil, Managers(nil, e.Object, nil)
	}
	diffs, err := DiffObjects(before, e.Object, DiffOptions{})
	if err != nil {
		return nil, nil // only bytes that no API server sends; the event itself still counts
	}
	for _, d := range diffs {
		fields = append(fields, d.Path)
	}
	return fields, Managers(before, e.Object, fields)
}
