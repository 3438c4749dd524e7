package audit

import (
	"cmp"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// Kind says how history and the cluster differ over an object.
type Kind string

// The kinds of difference.
const (
	Missing    Kind = "missing"    // the cluster had it, history does not
	Extra      Kind = "extra"      // history has it, the cluster did not
	Differs    Kind = "differs"    // both have it, in different states
	Unreadable Kind = "unreadable" // the journal cannot read what it has of it
)

// mostKept is how many differences of a resource are kept by name; all are counted.
const mostKept = 20

// Difference is one object over which history and the cluster differ. It holds nothing of the object.
type Difference struct {
	Namespace string           `json:"namespace,omitempty"`
	Name      string           `json:"name"`
	Kind      Kind             `json:"kind"`
	At        journal.Revision `json:"at"` // where they differ
}

// Proof says that the fold of a resource was what the cluster held.
type Proof struct {
	Time    time.Time        `json:"time"` // when the last page had been compared
	At      journal.Revision `json:"at"`   // the revision that was compared
	Objects int              `json:"objects"`
	// Reshaped counts objects that the server gives in another form than it did when they were recorded
	// (it was upgraded, or their definition was changed): of those, only what no such change touches was compared.
	Reshaped int `json:"reshaped,omitempty"`
}

// Record is what is known of one resource. It is kept in the journal.
type Record struct {
	Resource string `json:"resource"` // "deployments.apps"
	// Since is when the resource was first to be audited.
	Since time.Time `json:"since"`
	// Proof is the newest one; nil: there was none yet.
	Proof *Proof `json:"proof,omitempty"`
	// Tried is when the newest try ended, and Trouble why it told nothing; empty when it did.
	Tried   time.Time `json:"tried,omitzero"`
	Trouble string    `json:"trouble,omitempty"`
	// NotAudited says why the resource cannot be audited at all; empty when it can.
	NotAudited string `json:"notAudited,omitempty"`
	// Different counts what the newest try that told something found; the first of it is in Differences.
	Different   int          `json:"different,omitempty"`
	Differences []Difference `json:"differences,omitempty"`
	FoundAt     time.Time    `json:"foundAt,omitzero"`
	// Found counts all differences that were ever found, also those that are gone.
	Found uint64 `json:"found,omitempty"`
	// Form names the form in which the server gives the objects, and FormSince when it was first seen;
	// zero for the one that was there at the first audit.
	Form      string    `json:"form,omitempty"`
	FormSince time.Time `json:"formSince,omitzero"`

	proven time.Time // when the proof was made, on the machine's own clock; zero: in another life of the daemon
}

// Age is how old the newest proof is, or how long one has been wanted.
func (r *Record) Age(now time.Time) time.Duration {
	if r.Proof != nil && !r.Proof.Time.After(now.Add(clockSlack)) {
		return max(0, now.Sub(r.Proof.Time))
	}
	return max(0, now.Sub(r.Since))
}

// Proven reports whether there is a proof that is no older than limit. One from the future, told by
// a clock that was wrong, is none.
func (r *Record) Proven(now time.Time, limit time.Duration) bool {
	return r.Proof != nil && !r.Proof.Time.After(now.Add(clockSlack)) && now.Sub(r.Proof.Time) <= limit
}

const clockSlack = time.Minute

// State is the audit's answer as a whole.
type State string

// The states.
const (
	Equal     State = "equal"     // everything that can be audited was proven equal, not too long ago
	Unproven  State = "unproven"  // some of it was not, not yet or not any more
	Different State = "different" // history and the cluster differ
)

// Report is what the Auditor says about everything.
type Report struct {
	State State         `json:"state"`
	Every time.Duration `json:"every"` // a cycle
	Limit time.Duration `json:"limit"` // the age that a proof may have
	// Resources are sorted by group and name.
	Resources []Record `json:"resources"`
	Requests  uint64   `json:"requests"` // list requests since the start
	Bytes     uint64   `json:"bytes"`    // what they brought
	Objects   uint64   `json:"objects"`  // what was compared
}

// Judge gives the state at a time.
func (r *Report) Judge(now time.Time) State {
	state, audited := Equal, 0
	for i := range r.Resources {
		rec := &r.Resources[i]
		switch {
		case rec.NotAudited != "":
			continue
		case rec.Different > 0:
			return Different
		case !rec.Proven(now, r.Limit):
			state = Unproven
		}
		audited++
	}
	if audited == 0 {
		return Unproven
	}
	return state
}

func compareRecords(a, b Record) int {
	x, y := schema.ParseGroupResource(a.Resource), schema.ParseGroupResource(b.Resource)
	return cmp.Or(cmp.Compare(x.Group, y.Group), cmp.Compare(x.Resource, y.Resource))
}
