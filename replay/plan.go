package replay

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

// Action is what a plan does with one object.
type Action string

// The actions of a plan.
const (
	ActionCreate    Action = "create"
	ActionUpdate    Action = "update"
	ActionRecreate  Action = "recreate" // delete and create, for fields that cannot be changed
	ActionDelete    Action = "delete"
	ActionStart     Action = "start"   // a workload that the plan makes at rest; see RestoreRequest.Quiesce and pauseOwners
	ActionFill      Action = "fill"    // the content of a claim
	ActionRelease   Action = "release" // the objects of the snapshot that a claim is made of
	ActionUnchanged Action = "unchanged"
	ActionSkip      Action = "skip" // a rule or the policy for existing objects leaves it out
	ActionFail      Action = "fail" // it cannot be restored; the reason says why and what helps
)

var actionOrder = []Action{ActionCreate, ActionUpdate, ActionRecreate, ActionFill, ActionStart, ActionRelease, ActionDelete, ActionFail, ActionSkip, ActionUnchanged}

func (a Action) writes() bool {
	return a == ActionCreate || a == ActionUpdate || a == ActionRecreate || a == ActionDelete || a.follows()
}

// follows reports whether the action is one more on an object that another item of the plan makes, or that is there.
func (a Action) follows() bool { return a == ActionStart || a == ActionFill || a == ActionRelease }

// Item is what a plan does with one object, and why.
type Item struct {
	Resource  schema.GroupResource `json:"resource"`
	Namespace string               `json:"namespace,omitempty"` // in the target
	Name      string               `json:"name"`
	// From is the namespace the object was recorded in, when it is restored under another.
	From   string `json:"from,omitempty"`
	Action Action `json:"action"`
	Reason string `json:"reason,omitempty"`
	// Rule names the rule that left the object out.
	Rule string `json:"rule,omitempty"`
	// Diff is what differs: Old is live, New is what the object becomes (or, of an object
	// that is skipped, what it was).
	Diff []FieldDiff `json:"diff,omitempty"`
	// Conflicts are fields that an undo leaves because they were changed again since: Old is live,
	// New is what they were before the change that is taken back.
	Conflicts []FieldDiff `json:"conflicts,omitempty"`
	// Transformed names the transforms that changed the object on its way back.
	Transformed []string `json:"transformed,omitempty"`
	// StatusToo is set when the status is written as well, should the object be created.
	StatusToo bool `json:"status,omitempty"`
	// Volume is the backup whose content a claim gets.
	Volume *Volume `json:"volume,omitempty"`
	// Snapshot is the name of the objects that ActionRelease takes away.
	Snapshot string `json:"snapshot,omitempty"`
	// Wave says when: items are written in the order of their waves.
	Wave int `json:"wave"`

	entry   *entry
	served  servedResource
	create  packed // what a create sends, until owners are linked
	update  packed // what an update sends
	live    *found
	owners  []pendingOwner
	managed parts // who owned which fields at the cut
	status  parts // what is written to the created object's status; empty: nothing
	// awaitGone says that a live object is being deleted and must be gone first.
	awaitGone bool
	// unsure says that writing it was begun by a run that was cut off: it may be done.
	unsure bool
	// prior is what an earlier run noted of it.
	prior outcome
}

// MarshalJSON writes the resource as people type it.
func (it *Item) MarshalJSON() ([]byte, error) {
	type plain Item
	return json.Marshal(struct {
		Resource string `json:"resource"`
		*plain
	}{it.Resource.String(), (*plain)(it)})
}

func (it *Item) key() objectKey { return objectKey{it.Resource, it.Namespace, it.Name} }

// String names the object: "deployments.apps shop/web".
func (it *Item) String() string { return it.key().String() }

// Plan is what a restore will do, item by item, in the order in which it will do it.
type Plan struct {
	// ID names the plan: what it restores, the time it was made, and a random end.
	ID   string    `json:"id"`
	Made time.Time `json:"made"`
	// Purpose says what an undo takes back; empty for a restore.
	Purpose string `json:"purpose,omitempty"`
	// Cut is the moment that a restore puts back.
	Cut journal.Cut `json:"cut,omitzero"`
	// Cluster is the id of the cluster that the plan is for, as Catalog.ClusterID has it; empty
	// when it could not be told. Server is the address of its API server.
	Cluster  string   `json:"cluster,omitempty"`
	Server   string   `json:"server"`
	Items    []*Item  `json:"items"`
	Warnings []string `json:"warnings,omitempty"`

	req  RestoreRequest
	past *past
	// gone are the namespaces that are being deleted: their live objects do not count.
	gone map[string]bool
	// recreated are the items that delete and create anew, by the uid that goes.
	recreated map[string]*Item
}

// planner makes one plan.
type planner struct {
	src    Source
	target *Target
	req    *RestoreRequest
	past   *past
	live   *liveSet
	plan   *Plan
	trials []trial
	// sameCluster says that the target is the cluster that history is of, as far as it can be told.
	sameCluster bool
	strategies  map[schema.GroupResource]string // conversion strategies of CRDs looked up
	fieldsSeen  []bool                          // which of req.Fields some object has, or had
	packing     errgroup.Group                  // packs what is to be created
}

// NewPlan compares what was at the cut with what is live and decides about each object. It
// writes nothing.
func NewPlan(ctx context.Context, src Source, target *Target, req RestoreRequest) (*Plan, error) {
	if err := req.validate(); err != nil {
		return nil, err
	}
	req.normalize()
	if err := target.refresh(ctx); err != nil {
		return nil, err
	}
	catalog, err := src.Ledgers(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the ledgers: %w", err)
	}
	p := &planner{
		src: src, target: target, req: &req, strategies: map[schema.GroupResource]string{}, fieldsSeen: make([]bool, len(req.Fields)),
		plan: &Plan{Made: time.Now().UTC(), Cut: req.Cut, req: req, Items: []*Item{}},
	}
	p.plan.ID = planID(&req, p.plan.Made)
	elsewhere, err := p.checkCluster(ctx, catalog)
	if err != nil {
		return nil, err
	}
	if p.past, err = readPast(ctx, src, target, &req); err != nil {
		return nil, err
	}
	if err := p.past.mixed(&req); err != nil {
		return nil, err
	}
	p.plan.past = p.past
	p.past.refuseAll(&req)
	p.plan.Warnings = append(elsewhere, catalog.Caveats(req.Cut, req.Scope)...)
	if p.live, err = readLive(ctx, target, &req, p.past); err != nil {
		return nil, err
	}
	p.plan.gone = p.live.gone
	if err := p.decideAll(ctx); err != nil {
		return nil, err
	}
	if err := p.unknownField(); err != nil {
		return nil, err
	}
	if err := p.tryAll(ctx); err != nil {
		return nil, err
	}
	p.tellInstances()
	if req.Prune {
		if err := p.prune(ctx, catalog); err != nil {
			return nil, err
		}
	}
	if err := p.heirs(ctx); err != nil {
		return nil, err
	}
	p.relinkRecreated()
	p.sameCluster = p.plan.Cluster != "" && p.plan.Cluster == catalog.ClusterID
	if err := p.fillClaims(ctx); err != nil {
		return nil, err
	}
	p.warnOwnership()
	p.tellHooks()
	p.warnEffects()
	if err := p.warnAbsent(ctx); err != nil {
		return nil, err
	}
	if req.Quiesce {
		p.quiesce()
	}
	p.pauseOwners()
	p.plan.sort()
	return p.plan, nil
}

// sort puts the items into the order in which they are written.
func (p *Plan) sort() {
	setWaves(p.Items)
	slices.SortStableFunc(p.Items, func(a, b *Item) int {
		return cmp.Or(cmp.Compare(a.Wave, b.Wave), cmp.Compare(a.Resource.String(), b.Resource.String()), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

// Count tells how many items have the action.
func (p *Plan) Count(a Action) int {
	n := 0
	for _, it := range p.Items {
		if it.Action == a {
			n++
		}
	}
	return n
}

// Writes tells how many objects applying the plan writes or deletes.
func (p *Plan) Writes() int {
	n := 0
	for _, it := range p.Items {
		if it.Action.writes() {
			n++
		}
	}
	return n
}

func planID(req *RestoreRequest, made time.Time) string {
	name := "cluster"
	switch {
	case len(req.Scope.Names) > 0:
		name = req.Scope.Names[0]
	case len(req.Scope.Namespaces) > 0 && req.Scope.Namespaces[0] != ClusterScope:
		name = req.Scope.Namespaces[0]
	}
	if len(name) > 40 {
		name = name[:40]
	}
	return namedID(strings.Trim(name, "-."), made)
}

func namedID(name string, made time.Time) string {
	return fmt.Sprintf("%s-%s-%04x", name, made.Format("20060102-150405"), rand.N(1<<16))
}

func (p *planner) add(it *Item) { p.plan.Items = append(p.plan.Items, it) }

// decideAll makes the items of all objects of the past. Parsing them and packing what is made of them is done beside it.
func (p *planner) decideAll(ctx context.Context) error {
	wanted := func(e *entry) object {
		if e.refused != "" {
			return nil
		}
		return e.object()
	}
	p.packing.SetLimit(runtime.GOMAXPROCS(0))
	for e, recorded := range ahead(p.past.list, wanted) {
		if err := p.decide(ctx, e, recorded); err != nil {
			return errors.Join(err, p.packing.Wait())
		}
	}
	return p.packing.Wait()
}

// decide makes the item of one object of the past, which is parsed if it is not refused. What is to be created is packed when packing has ended.
func (p *planner) decide(ctx context.Context, e *entry, recorded object) error {
	it := &Item{Resource: e.gr, Namespace: e.namespace, Name: e.name, entry: e}
	if e.gr == namespaces {
		it.Name = p.req.namespace(e.name)
	}
	if e.namespace != "" {
		it.Namespace = p.req.namespace(e.namespace)
	}
	if it.Namespace != e.namespace {
		it.From = e.namespace
	}
	p.add(it)
	if e.refused != "" {
		it.Action, it.Reason, it.Rule = ActionSkip, e.refused, e.rule
		return nil
	}
	if e.gr == namespaces && p.live.errs[it.key()] != nil {
		it.Action, it.Reason = ActionSkip, "may not be read with these rights; taken to be as it should"
		return nil
	}
	original, why, err := p.inServedVersion(ctx, it, recorded)
	if err != nil {
		return err
	}
	if why == "" {
		why = p.live.missing(it, p.req.Cut)
	}
	if why != "" {
		it.Action, it.Reason = ActionFail, why
		return nil
	}
	it.live = p.live.objects[it.key()]
	if len(p.req.Fields) > 0 && (it.live == nil || it.live.deleting) {
		it.Action, it.Reason = ActionFail, "is not there, so that no field of it can be restored: restore it as a whole, without --field"
		return nil
	}
	create, by, err := p.prepared(e, original, false)
	if err != nil {
		it.Action, it.Reason = ActionFail, err.Error()
		return nil
	}
	it.Transformed = by
	p.linkOwners(ctx, it, create)
	packed := func() error {
		it.create, it.managed = pack(create.json()), packParts(original.list("metadata", "managedFields"))
		return nil
	}
	if it.live == nil {
		p.packing.Go(packed)
	} else {
		_ = packed() // what comes compares it
	}
	if s := original.sub("status"); len(s) > 0 && p.req.restoresStatus(e.gr, original) {
		switch {
		case !it.served.HasStatus:
			p.warn("%s: its status cannot be written by itself: it comes back without", it)
		default:
			it.status, it.StatusToo = packParts([]any{map[string]any(s)}), true
		}
	}
	switch {
	case it.live == nil && p.live.gone[it.Namespace], it.live == nil && e.gr == namespaces && p.live.gone[it.Name]:
		it.Action, it.Reason, it.awaitGone = ActionCreate, "when the namespace that is being deleted is gone", e.gr == namespaces
	case it.live == nil:
		it.Action = ActionCreate
	case it.live.deleting:
		it.Action, it.Reason, it.awaitGone = ActionCreate, "when the live one, which is being deleted, is gone", true
	default:
		err := p.compare(ctx, it, original)
		if !it.Action.writes() && p.req.Existing != ExistingRecreate {
			it.live.packed = nil // the bodies are of no use any more
			it.create, it.update, it.live, it.managed, it.status = nil, nil, nil, parts{}, parts{}
		}
		return err
	}
	return nil
}

// prepared is the object after the rules and transforms; exists says that it is to be compared with or
// merged into a live one.
func (p *planner) prepared(e *entry, original object, exists bool) (o object, by []string, err error) {
	o = original.clone()
	prepare(&subject{gr: e.gr, obj: o, original: original, exists: exists, req: p.req, past: p.past})
	return p.req.Transforms.Apply(e.gr, e.namespace, o)
}

// normal is a live object after the rules.
func normal(req *RestoreRequest, past *past, gr schema.GroupResource, live object) object {
	o := live.clone()
	prepare(&subject{gr: gr, obj: o, original: live, live: true, exists: true, req: req, past: past})
	return o
}
