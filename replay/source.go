package replay

import (
	"context"
	"iter"
	"time"

	"github.com/tidemark-backup/tidemark/journal"
)

// Source answers questions about history. The journal of a running daemon (through its API)
// is one; what reads from it cannot tell where the answers come from.
type Source interface {
	// Ledgers tells what is recorded, a ledger per resource, and the restorable range.
	Ledgers(ctx context.Context) (*Catalog, error)
	// Resolve turns what a person means by "at" into the exact cut it stands for. It
	// returns a *RangeError when the journal cannot tell the state at that moment.
	Resolve(ctx context.Context, at At) (journal.Cut, error)
	// Fold yields the newest version, at or before the cut, of every object in scope that
	// existed at the cut, ordered by namespace, resource and name. The events are valid
	// until the next iteration.
	Fold(ctx context.Context, cut journal.Cut, scope Scope) iter.Seq2[journal.Event, error]
	// Changes yields what happened in scope after from and up to to, oldest first. With
	// follow it does not end at to but goes on with what is recorded from then on.
	Changes(ctx context.Context, q ChangeQuery) iter.Seq2[Change, error]
	// Mark gives the moment a name, so that At can find it again. The zero cut is now.
	// It returns the marked cut.
	Mark(ctx context.Context, name string, cut journal.Cut) (journal.Cut, error)
}

// ChangeQuery selects changes. The zero From is the beginning, the zero To is now.
type ChangeQuery struct {
	From, To time.Time
	Scope    Scope
	Follow   bool
	// Objects asks for the object before and after each change as well.
	Objects bool
}

// Catalog is what a source knows about itself.
type Catalog struct {
	ClusterID string           `json:"clusterID"`
	Resources []journal.Ledger `json:"resources"`
	// LeftOut is what the cluster has and is not recorded.
	LeftOut []journal.LeftOut `json:"leftOut,omitempty"`
	// Outages are spans whose changes are known, but not when in them they happened.
	Outages []journal.Outage `json:"outages,omitempty"`
	// Marks are the named moments, newest first; at most 100.
	Marks []journal.Mark `json:"marks,omitempty"`
	// From and To bound the restorable range; From is zero while the first lists run.
	From journal.Cut `json:"from"`
	To   journal.Cut `json:"to"`
}

// Change is one event with what it changed.
type Change struct {
	journal.Event
	// Fields are the paths that differ from the version before, such as
	// ".spec.template.spec.containers[name=web].image"; nil for added and deleted objects.
	Fields []string `json:"fields,omitempty"`
	// Managers are the field managers that made the change, as managedFields tell it.
	Managers []string `json:"managers,omitempty"`
	// Before is the version before, when ChangeQuery.Objects asked for it.
	Before []byte `json:"-"`
}
