package replay

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay/transform"
)

// Errors of planning and applying.
var (
	// ErrPartly is returned by Apply when some objects could not be restored; the others were.
	ErrPartly = errors.New("partly restored")
	// ErrTooManyDeletes is returned by NewPlan when pruning would delete more than allowed.
	ErrTooManyDeletes = errors.New("too many deletions")
	// ErrNothing is returned by NewPlan when nothing in scope existed at the cut.
	ErrNothing = errors.New("nothing to restore")
	// ErrOtherCluster is returned by NewPlan when existing objects would be changed or deleted
	// in a cluster that is not the one that history is of.
	ErrOtherCluster = errors.New("the target is another cluster")
	// ErrStopped is returned by Apply when ApplyOptions.Stop ended it.
	ErrStopped = errors.New("stopped")
	// ErrNotRestored is returned by Apply when nothing was written: all that the plan wanted
	// to write failed.
	ErrNotRestored = errors.New("nothing was restored")
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
	// ExcludeResources are left out, and are not pruned.
	ExcludeResources []schema.GroupResource
	// Transforms change the objects on their way back; nil: none does.
	Transforms *transform.Set
	// Fields, when there are some, are all that is restored of objects that are there; see ParseField.
	Fields []string
	// Cluster says which objects outside any namespace a restore of some namespaces brings back.
	Cluster ClusterPolicy
	// NamespaceMappings restores a namespace under another name: old name to new name.
	NamespaceMappings map[string]string
	// Existing says what happens to objects that are there already; default ExistingNone.
	Existing ExistingPolicy
	// Exact also removes fields that existing objects did not have at the cut. Prune implies
	// it: together with ExistingUpdate it takes the scope back to what it was.
	Exact bool
	// Prune deletes what is in scope, is there now, and was not there at the cut. Nothing is
	// deleted of resources of which history cannot tell that: the plan's warnings name them.
	Prune bool
	// MaxDeletes is how many objects Prune may delete; 0 means DefaultMaxDeletes. A plan
	// that would delete more is refused, with the number in the error.
	MaxDeletes int
	// OtherCluster allows to update, recreate and prune in a cluster that is not the one
	// that history is of. Creating what is missing needs no permission.
	OtherCluster bool
	// Quiesce makes Deployments, StatefulSets, ReplicaSets, ReplicationControllers, Jobs and CronJobs without replicas, or
	// suspended, and starts them when all else is there.
	Quiesce bool
	// Status are the resources whose objects get their status back when they are created.
	Status []schema.GroupResource
	// Volumes are the backups whose content claims get, by "namespace/name" of the recorded claims.
	Volumes map[string]Volume
	// VolumesInPlace replaces the files of claims that are there, too.
	VolumesInPlace bool
	// NodePorts says which ports of the nodes Services get back.
	NodePorts NodePortPolicy
	// Owned brings back objects as well that a restored controller would make anew, such as
	// the Pods of a ReplicaSet.
	Owned bool
	// Named says that single objects are named, which are meant whoever made them.
	Named bool
}

// restoresStatus reports whether an object gets its status back: its annotation, which is Velero's, has the
// last word.
func (r *RestoreRequest) restoresStatus(gr schema.GroupResource, o object) bool {
	switch o.annotation("velero.io/restore-status") {
	case "true":
		return true
	case "false":
		return false
	}
	return slices.Contains(r.Status, gr) || slices.Contains(r.Status, AnyResource)
}

// AnyResource stands for all resources in RestoreRequest.Status.
var AnyResource = schema.GroupResource{Resource: "*"}

// NodePortPolicy says which ports of the nodes Services get back.
type NodePortPolicy uint8

const (
	// NodePortsChosen keeps those that somebody asked for, and has the cluster choose the others anew.
	NodePortsChosen NodePortPolicy = iota
	// NodePortsKept keeps all; a Service whose port is taken by then is refused by the API server.
	NodePortsKept
	// NodePortsDropped keeps none.
	NodePortsDropped
)

// namespace is the name a namespace is restored under.
func (r *RestoreRequest) namespace(ns string) string {
	if to, ok := r.NamespaceMappings[ns]; ok {
		return to
	}
	return ns
}

// mappedTo is the namespace that is restored under the name of the one that an object is in; empty: it has its name for itself.
func (r *RestoreRequest) mappedTo(k objectKey) string {
	ns := k.namespace
	if k.gr == namespaces {
		ns = k.name
	}
	if ns == "" || r.NamespaceMappings[ns] != "" {
		return ""
	}
	for from, to := range r.NamespaceMappings {
		if to == ns {
			return from
		}
	}
	return ""
}

// whole reports whether all objects of some namespaces, or of the cluster, are asked for.
func (r *RestoreRequest) whole() bool { return r.Scope.Names == nil && r.Scope.Resources == nil }

// byKind reports whether all objects of some resources are asked for, and not what they belong to.
func (r *RestoreRequest) byKind() bool {
	return r.Scope.Resources != nil && r.Scope.Names == nil && !r.Named
}

func (r *RestoreRequest) validate() error {
	if r.Cut.Time.IsZero() {
		return errors.New("a restore needs a moment: use --at, as in --at 15m")
	}
	if r.MaxDeletes < 0 {
		return fmt.Errorf("at most %d deletions: use --max-deletes with a number from 1 on; 0 is %d", r.MaxDeletes, DefaultMaxDeletes)
	}
	if r.Quiesce && r.Owned {
		return errors.New("what controllers made cannot come back while they are at rest, they would delete it: use either --quiesce or --owned")
	}
	targets := map[string]string{}
	for from, to := range r.NamespaceMappings {
		if from == "" || to == "" {
			return errors.New("a namespace mapping needs two names: use --namespace-mappings old:new")
		}
		if bad := validation.IsDNS1123Label(to); len(bad) > 0 {
			return fmt.Errorf("namespace %s cannot be mapped to %q: %s", from, to, bad[0])
		}
		if other, taken := targets[to]; taken {
			return fmt.Errorf("namespaces %s and %s are both mapped to %s: use one restore for each", min(from, other), max(from, other), to)
		}
		targets[to] = from
		if r.Scope.Namespaces != nil && !slices.Contains(r.Scope.Namespaces, from) {
			return fmt.Errorf("namespace %s is mapped to %s but not asked for: add -n %s", from, to, from)
		}
		if r.Scope.Namespaces != nil && slices.Contains(r.Scope.Namespaces, to) && r.NamespaceMappings[to] == "" {
			return asWell(from, to)
		}
	}
	return nil
}

// asWell is the error of a namespace that is mapped to another one that comes back too: objects of both would be one.
func asWell(from, to string) error {
	return fmt.Errorf("namespace %s is mapped to %s, which is restored under its own name as well: map both, or use one restore for each", from, to)
}

// normalize sets what other fields imply.
func (r *RestoreRequest) normalize() { r.Exact = r.Exact || r.Prune }

// overwrites reports whether the request may change or delete what is there.
func (r *RestoreRequest) overwrites() bool {
	return r.Prune || r.Existing != ExistingNone || len(r.Fields) > 0
}

// ParseNamespaceMappings reads mappings as they are typed: "old:new". None give nil.
func ParseNamespaceMappings(mappings []string) (map[string]string, error) {
	var all map[string]string
	for _, m := range mappings {
		from, to, _ := strings.Cut(m, ":")
		if from == "" || to == "" || strings.Contains(to, ":") {
			return nil, fmt.Errorf("%q maps no namespace: use --namespace-mappings FROM:TO, such as shop:shop-copy", m)
		}
		if other, twice := all[from]; twice {
			return nil, fmt.Errorf("namespace %s is mapped to both %s and %s: use one restore for each", from, other, to)
		}
		if all == nil {
			all = map[string]string{}
		}
		all[from] = to
	}
	return all, nil
}

func (r *RestoreRequest) maxDeletes() int {
	if r.MaxDeletes == 0 {
		return DefaultMaxDeletes
	}
	return r.MaxDeletes
}
