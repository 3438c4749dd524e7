package api

import (
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// Record is one change as JSON, in the API's streams and in what people's scripts read.
type Record struct {
	Observed  time.Time  `json:"observed"`
	Op        journal.Op `json:"op"`
	Resource  string     `json:"resource"` // "deployments.apps"
	Namespace string     `json:"namespace,omitempty"`
	Name      string     `json:"name"`
	UID       string     `json:"uid,omitempty"`
	Epoch     uint32     `json:"epoch"`
	Revision  uint64     `json:"revision"`
	Fields    []string   `json:"fields,omitempty"`
	Managers  []string   `json:"managers,omitempty"`
	// Initial: the object was there already when recording began.
	Initial bool `json:"initial,omitempty"`
	// Inferred: found by a comparison after a gap, not seen on the wire.
	Inferred bool `json:"inferred,omitempty"`
}

// RecordOf gives the change's record, without the object.
func RecordOf(c *replay.Change) Record {
	return Record{
		Observed: c.Observed.UTC(), Op: c.Op, Resource: c.Resource.String(), Namespace: c.Namespace, Name: c.Name,
		UID: c.UID, Epoch: c.Revision.Epoch, Revision: c.Revision.RV, Fields: c.Fields, Managers: c.Managers,
		Initial: c.Flags&journal.Initial != 0, Inferred: c.Flags&journal.Inferred != 0,
	}
}

// Change is the inverse of RecordOf.
func (r *Record) Change() replay.Change {
	c := replay.Change{
		Event: journal.Event{
			Resource: schema.ParseGroupResource(r.Resource), Namespace: r.Namespace, Name: r.Name, UID: r.UID,
			Op: r.Op, Revision: journal.Revision{Epoch: r.Epoch, RV: r.Revision}, Observed: r.Observed,
		},
		Fields: r.Fields, Managers: r.Managers,
	}
	if r.Initial {
		c.Flags |= journal.Initial
	}
	if r.Inferred {
		c.Flags |= journal.Inferred
	}
	return c
}
