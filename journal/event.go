package journal

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Op says what happened to the object.
type Op uint8

// The three kinds of event a watch reports.
const (
	Added Op = iota + 1
	Modified
	Deleted
)

// String gives the watch protocol's own word: ADDED, MODIFIED or DELETED.
func (o Op) String() string {
	switch o {
	case Added:
		return "ADDED"
	case Modified:
		return "MODIFIED"
	case Deleted:
		return "DELETED"
	}
	return "OP(" + strconv.Itoa(int(o)) + ")"
}

// MarshalText and UnmarshalText use the watch protocol's words.
func (o Op) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (o *Op) UnmarshalText(b []byte) error {
	for _, v := range []Op{Added, Modified, Deleted} {
		if v.String() == string(b) {
			*o = v
			return nil
		}
	}
	return fmt.Errorf("unknown operation %q", b)
}

// Flags tell how an event became known.
type Flags uint8

const (
	// Initial marks an object that was there already when recording of its resource began.
	Initial Flags = 1 << iota
	// Inferred marks an event found by comparing a list with the journal after a gap; it was
	// not seen on the wire and its observed time is that of the comparison.
	Inferred
)

// Revision orders the events of one counter (usually one etcd): first by epoch, then by
// resourceVersion. The zero Revision is before everything.
type Revision struct {
	Epoch uint32 `json:"epoch"`
	RV    uint64 `json:"revision"`
}

// Compare orders revisions as cmp.Compare orders numbers.
func (r Revision) Compare(o Revision) int {
	return cmp.Or(cmp.Compare(r.Epoch, o.Epoch), cmp.Compare(r.RV, o.RV))
}

// IsZero reports whether r is the zero Revision.
func (r Revision) IsZero() bool { return r == Revision{} }

// String gives "epoch/resourceVersion", the form ParseRevision reads.
func (r Revision) String() string {
	return strconv.FormatUint(uint64(r.Epoch), 10) + "/" + strconv.FormatUint(r.RV, 10)
}

// ParseRevision reads "epoch/resourceVersion", or a bare "resourceVersion" with epoch 0,
// which callers replace by the newest epoch.
func ParseRevision(s string) (Revision, error) {
	epoch, rv, found := strings.Cut(s, "/")
	if !found {
		epoch, rv = "0", s
	}
	e, err := strconv.ParseUint(epoch, 10, 32)
	if err != nil {
		return Revision{}, fmt.Errorf("%q is not a revision: want a number like 123456, or epoch/number like 1/123456", s)
	}
	n, err := strconv.ParseUint(rv, 10, 64)
	if err != nil {
		return Revision{}, fmt.Errorf("%q is not a revision: want a number like 123456, or epoch/number like 1/123456", s)
	}
	return Revision{Epoch: uint32(e), RV: n}, nil
}

// Event is one change of one object. Events are values: once handed to the journal, neither
// side changes Object any more.
type Event struct {
	Resource  schema.GroupResource `json:"resource"`
	Namespace string               `json:"namespace,omitempty"` // empty for cluster-scoped objects
	Name      string               `json:"name"`
	UID       string               `json:"uid,omitempty"`
	Op        Op                   `json:"op"`
	Revision  Revision             `json:"revision"`
	// Observed is when Tidemark received the event: wall clock, forced to be strictly
	// increasing over the life of the journal. The journal sets it.
	Observed time.Time `json:"observed"`
	Flags    Flags     `json:"flags,omitempty"`
	// Object is the object's JSON exactly as the API server sent it (of a deleted object, its last state).
	Object []byte `json:"-"`
}

// Inferred reports whether the event was found by a comparison rather than seen on the wire.
func (e *Event) Inferred() bool { return e.Flags&Inferred != 0 }

// ID names the object without its revision, for messages: "deployments.apps shop/web".
func (e *Event) ID() string {
	if e.Namespace == "" {
		return e.Resource.String() + " " + e.Name
	}
	return e.Resource.String() + " " + e.Namespace + "/" + e.Name
}

// Cut is the exact place in history a question is asked at. Revision places every resource
// that shares the cluster's main counter; Time places the others.
type Cut struct {
	Revision
	Time time.Time `json:"time"`
}

// String gives "rv:epoch/revision (time)", for people.
func (c Cut) String() string {
	return "rv:" + c.Revision.String() + " (" + c.Time.UTC().Format(time.RFC3339Nano) + ")"
}
