package replay

import (
	"errors"
	"fmt"
	"slices"

	"github.com/tidemark-backup/tidemark/journal"
)

// Errors of planning and applying.
var (
	// ErrPartly is returned by Apply when some objects could not be restored; the others were.
	ErrPartly = errors.New("partly restored")
	// ErrTooManyDeletes is returned by NewPlan when pruning would delete more than allowed.
	ErrTooManyDeletes = errors.New("too many deletions")
	// ErrNothing is returned by NewPlan when nothing in scope existed at the cut.
	ErrNothing = errors.New("nothing to restore")
)

// DefaultMaxDeletes is how many objects a restore may delete when nothing else is said.
const DefaultMaxDeletes = 50

// ExistingPolicy says what happens to objects that are there already.
type ExistingPolicy uint8

const (
	// ExistingNone leaves them as they are, and shows how they differ.
	ExistingNone ExistingPolicy = iota
	// ExistingUpdate makes their fields as they were at the cut.
	ExistingUpdate
	// ExistingRecreate does as ExistingUpdate, and deletes and creates anew what has
	// fields that differ and cannot be changed.
	ExistingRecreate
)

var existingNames = []string{"none", "update", "recreate"}

// String gives the form that ParseExistingPolicy reads.
func (p ExistingPolicy) String() string {
	if int(p) < len(existingNames) {
		return existingNames[p]
	}
	return fmt.Sprintf("ExistingPolicy(%d)", p)
}

// ParseExistingPolicy reads none, update or recreate; nothing is none.
func ParseExistingPolicy(s string) (ExistingPolicy, error) {
	if s == "" {
		return ExistingNone, nil
	}
	if i := slices.Index(existingNames, s); i >= 0 {
		return ExistingPolicy(i), nil
	}
	return 0, fmt.Errorf("%q is no way to treat existing objects: use --existing none, update or recreate", s)
}

// MarshalText writes the policy's name.
func (p ExistingPolicy) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (p *ExistingPolicy) UnmarshalText(b []byte) (err error) {
	*p, err = ParseExistingPolicy(string(b))
	return err
}

// RestoreRequest says what to put back, as it was at the cut.
type RestoreRequest struct {
	Cut   journal.Cut
	Scope Scope
	// NamespaceMappings restores a namespace under another name: old name to new name.
	NamespaceMappings map[string]string
	// Existing says what happens to objects that are there already; default ExistingNone.
	Existing ExistingPolicy
	// Exact also removes fields that existing objects did not have at the cut.
	Exact bool
	// Prune deletes what is in scope, is there now, and was not there at the cut.
	Prune bool
	// MaxDeletes is how many objects Prune may delete; 0 means DefaultMaxDeletes.
	MaxDeletes int
	// Owned brings back objects as well that a restored controller would make anew, such as
	// the Pods of a ReplicaSet.
	Owned bool
}

// namespace is the name a namespace is restored under.
func (r *RestoreRequest) namespace(ns string) string {
	if to, ok := r.NamespaceMappings[ns]; ok {
		return to
	}
	return ns
}

// whole reports whether all objects of some namespaces, or of the cluster, are asked for.
func (r *RestoreRequest) whole() bool { return r.Scope.Names == nil && r.Scope.Resources == nil }

func (r *RestoreRequest) validate() error {
	if r.Cut.Time.IsZero() {
		return errors.New("a restore needs a moment: use --at, as in --at 15m")
	}
	targets := map[string]string{}
	for from, to := range r.NamespaceMappings {
		if from == "" || to == "" {
			return errors.New("a namespace mapping needs two names: use --namespace-mappings old:new")
		}
		if other, taken := targets[to]; taken {
			return fmt.Errorf("namespaces %s and %s are both mapped to %s: use one restore for each", min(from, other), max(from, other), to)
		}
		targets[to] = from
		if r.Scope.Namespaces != nil && !slices.Contains(r.Scope.Namespaces, from) {
			return fmt.Errorf("namespace %s is mapped to %s but not asked for: add -n %s", from, to, from)
		}
		if r.Scope.Namespaces != nil && slices.Contains(r.Scope.Namespaces, to) && r.NamespaceMappings[to] == "" {
			return fmt.Errorf("namespace %s is mapped to %s, which is restored under its own name as well: map both, or use one restore for each", from, to)
		}
	}
	return nil
}

func (r *RestoreRequest) maxDeletes() int {
	if r.MaxDeletes == 0 {
		return DefaultMaxDeletes
	}
	return r.MaxDeletes
}
