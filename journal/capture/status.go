package capture

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// State says what the capture of a resource is doing.
type State string

// The states of a resource.
const (
	StateWaiting   State = "waiting"   // for the server, after an error
	StateListing   State = "listing"   // a list is being compared with the journal
	StateWatching  State = "watching"  // changes arrive as they happen
	StateForbidden State = "forbidden" // the server refuses: RBAC
)

// Status is what a Capture is doing right now.
type Status struct {
	Connected bool              `json:"connected"`       // the cluster was reached and is the journal's
	Error     string            `json:"error,omitempty"` // why not, or what is wrong with discovery
	Resources []ResourceStatus  `json:"resources"`
	LeftOut   []journal.LeftOut `json:"leftOut,omitempty"`
}

// ResourceStatus is what the capture of one resource is doing right now.
type ResourceStatus struct {
	Resource schema.GroupResource `json:"resource"`
	State    State                `json:"state"`
	Since    time.Time            `json:"since"` // when it came to be in that state
	Error    string               `json:"error,omitempty"`
}

// Status tells what the capture is doing, sorted by resource.
func (c *Capture) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Connected: c.connected, Error: c.err, LeftOut: slices.Clone(c.leftOut)}
	for gr, r := range c.running {
		r.mu.Lock()
		s.Resources = append(s.Resources, ResourceStatus{Resource: gr, State: r.state, Since: r.since, Error: r.err})
		r.mu.Unlock()
	}
	slices.SortFunc(s.Resources, func(a, b ResourceStatus) int {
		return cmp.Or(cmp.Compare(a.Resource.Group, b.Resource.Group), cmp.Compare(a.Resource.Resource, b.Resource.Resource))
	})
	return s
}

// plain shortens an error of a request: its URL says nothing that the resource does not.
func plain(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return fmt.Errorf("%s: %w", u.Op, u.Err)
	}
	return err
}
