package replay

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

var (
	namespaces  = schema.GroupResource{Resource: "namespaces"}
	definitions = schema.GroupResource{Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"}
	autoscalers = schema.GroupResource{Group: "autoscaling", Resource: "horizontalpodautoscalers"}
	secrets     = schema.GroupResource{Resource: "secrets"}
	services    = schema.GroupResource{Resource: "services"}
	accounts    = schema.GroupResource{Resource: "serviceaccounts"}
	quotas      = schema.GroupResource{Resource: "resourcequotas"}
)

// objectKey names one object.
type objectKey struct {
	gr              schema.GroupResource
	namespace, name string
}

func (k objectKey) String() string { return objectName(k.gr, k.namespace, k.name) }

// entry is one object as it was at the cut.
type entry struct {
	objectKey
	packed         // as it was recorded
	needed  bool   // only because another one refers to it: it is created when it is missing, and else left
	refused string // why it is not restored
	rule    string // which rule says so
}

// past is what there was at the cut, as far as it is in scope.
type past struct {
	list   []*entry
	byKey  map[objectKey]*entry
	byUID  map[string]*entry
	scaled map[scaleTarget]bool // what autoscalers size, by its name in the target
}

// scaleTarget names what an autoscaler sizes.
type scaleTarget struct{ kind, namespace, name string }

func (p *past) find(gr schema.GroupResource, namespace, name string) *entry {
	return p.byKey[objectKey{gr, namespace, name}]
}

// fold adds the objects of one scope to the past.
func (p *past) fold(ctx context.Context, src Source, req *RestoreRequest, scope Scope) error {
	scope, inScope := req.asked(scope)
	for e, err := range src.Fold(ctx, req.Cut, scope) {
		if err != nil {
			return fmt.Errorf("reading the past: %w", err)
		}
		if !inScope(&e) || e.Resource.Group == journal.OwnGroup { // what Tidemark did is no part of what there was
			continue
		}
		k := objectKey{e.Resource, e.Namespace, e.Name}
		if p.byKey[k] != nil {
			continue
		}
		if !gjson.ValidBytes(e.Object) || !gjson.ParseBytes(e.Object).IsObject() { // parsing takes four times as long
			return fmt.Errorf("reading the recorded %s: %w", e.ID(), ErrNotObject)
		}
		n := &entry{objectKey: k, packed: pack(e.Object)}
		p.list = append(p.list, n)
		p.byKey[k] = n
		if e.UID != "" {
			p.byUID[e.UID] = n
		} else if uid := gjson.GetBytes(e.Object, "metadata.uid").String(); uid != "" {
			p.byUID[uid] = n
		}
		if k.gr == autoscalers {
			ref := n.object().sub("spec", "scaleTargetRef")
			p.scaled[scaleTarget{ref.str("kind"), req.namespace(k.namespace), ref.str("name")}] = true
		}
	}
	return nil
}

// mixed is the error of a request that would make one of the objects of two namespaces.
func (p *past) mixed(req *RestoreRequest) error {
	for _, e := range p.list {
		if from := req.mappedTo(e.objectKey); from != "" {
			return asWell(from, req.namespace(from))
		}
	}
	return nil
}

// readPast reads what the request asks for, and what that cannot live without: the
// namespaces, and the definitions of custom resources that the target does not serve.
func readPast(ctx context.Context, src Source, target *Target, req *RestoreRequest) (*past, error) {
	p := &past{byKey: map[objectKey]*entry{}, byUID: map[string]*entry{}, scaled: map[scaleTarget]bool{}}
	if err := p.fold(ctx, src, req, req.Scope); err != nil {
		return nil, err
	}
	p.moveGroups(target)
	if len(p.list) == 0 && !req.Prune {
		// An empty namespace is something as well: its object alone is restored below.
		if req.Scope.Names != nil || len(req.Scope.Namespaces) == 0 {
			return nil, nothing(req)
		}
	}
	if req.Scope.Names != nil {
		return p, nil // single objects: only these
	}
	if err := p.foldNamespaces(ctx, src, target, req); err != nil {
		return nil, err
	}
	if len(p.list) == 0 && !req.Prune {
		return nil, nothing(req)
	}
	if req.Cluster == ClusterNone {
		p.dropClusterScoped()
		return p, nil
	}
	if err := p.foldDefinitions(ctx, src, target, req); err != nil {
		return nil, err
	}
	return p, p.foldNeeded(ctx, src, req)
}

// dropClusterScoped forgets what lies outside any namespace, but for the namespaces.
func (p *past) dropClusterScoped() {
	p.list = slices.DeleteFunc(p.list, func(e *entry) bool {
		drop := e.namespace == "" && e.gr != namespaces
		if drop {
			delete(p.byKey, e.objectKey)
		}
		return drop
	})
}

// foldNeeded adds the cluster-scoped objects that go with some namespaces: all of them, or those that
// something in scope refers to, and so on.
func (p *past) foldNeeded(ctx context.Context, src Source, req *RestoreRequest) error {
	spaces := slices.DeleteFunc(slices.Clone(req.Scope.Namespaces), func(ns string) bool { return ns == ClusterScope })
	if len(spaces) == 0 || len(spaces) < len(req.Scope.Namespaces) { // cluster-scoped objects are asked for as others are
		return nil
	}
	if req.Cluster == ClusterAll {
		scope := Scope{Namespaces: []string{ClusterScope}, Resources: req.Scope.Resources, Selector: req.Scope.Selector}
		return p.foldFew(ctx, src, req, scope, func(e *entry) bool { return e.gr != namespaces })
	}
	if !req.whole() || req.Scope.Selector != nil {
		return nil
	}
	have := len(p.list)
	if err := p.foldFew(ctx, src, req, Scope{Namespaces: []string{ClusterScope}, Resources: []schema.GroupResource{clusterBinds}}, func(e *entry) bool {
		return bindsInto(e.object(), spaces)
	}); err != nil {
		return err
	}
	for next := 0; next < len(p.list); { // what is found may need more
		wanted := map[schema.GroupResource][]string{}
		for ; next < len(p.list); next++ {
			e := p.list[next]
			e.needed = e.needed || next >= have && e.namespace == ""
			for _, n := range e.needs() {
				if p.find(n.gr, "", n.name) == nil && !slices.Contains(wanted[n.gr], n.name) {
					wanted[n.gr] = append(wanted[n.gr], n.name)
				}
			}
		}
		for gr, names := range wanted {
			if err := p.foldFew(ctx, src, req, Scope{Namespaces: []string{ClusterScope}, Resources: []schema.GroupResource{gr}, Names: names}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// foldFew adds those objects of a scope that keep chooses.
func (p *past) foldFew(ctx context.Context, src Source, req *RestoreRequest, scope Scope, keep func(*entry) bool) error {
	have := len(p.list)
	if err := p.fold(ctx, src, req, scope); err != nil {
		return err
	}
	if keep == nil {
		return nil
	}
	all := p.list[have:]
	p.list = p.list[:have]
	for _, e := range all {
		if keep(e) {
			p.list = append(p.list, e)
		} else {
			delete(p.byKey, e.objectKey)
		}
	}
	return nil
}

func (p *past) foldNamespaces(ctx context.Context, src Source, target *Target, req *RestoreRequest) error {
	names := []string{}
	for _, ns := range req.Scope.Namespaces {
		if ns == ClusterScope {
			continue
		}
		if !req.whole() || req.Scope.Selector != nil {
			// Only some of its objects are asked for: the namespace is what they live in.
			if live, err := target.namespace(ctx, req.namespace(ns)); err != nil || live != nil && !object(live.Object).deleting() {
				continue
			}
		}
		names = append(names, ns)
	}
	if len(names) == 0 {
		return nil
	}
	return p.fold(ctx, src, req, Scope{Namespaces: []string{ClusterScope}, Resources: []schema.GroupResource{namespaces}, Names: names})
}

func (p *past) foldDefinitions(ctx context.Context, src Source, target *Target, req *RestoreRequest) error {
	var missing []string
	for _, e := range p.list {
		name := e.gr.Resource + "." + e.gr.Group
		if e.gr.Group != "" && len(target.versions(e.gr)) == 0 && target.table().failed[e.gr.Group] == nil && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return p.fold(ctx, src, req, Scope{Namespaces: []string{ClusterScope}, Resources: []schema.GroupResource{definitions}, Names: missing})
}

// refuseAll runs the rules that leave objects out. Those that look at owners come last: an
// owner that is left out itself makes nothing anew.
func (p *past) refuseAll(req *RestoreRequest) {
	judge := func(e *entry, o object) *subject {
		return &subject{gr: e.gr, obj: o, original: o, req: req, past: p}
	}
	var remade []*entry
	for e, o := range ahead(p.list, entryObject) {
		reason, rule := refuse(judge(e, o))
		if rule == "made-by-controller" {
			remade = append(remade, e)
			continue
		}
		e.refused, e.rule = reason, rule
	}
	// Judged again, now that it is known which owners come back, and all before any of them
	// is refused: a ReplicaSet that its Deployment makes anew does make its Pods anew.
	reasons := make([]string, len(remade))
	for i, e := range remade {
		reasons[i] = skipRemade(judge(e, e.object()))
	}
	for i, e := range remade {
		if reasons[i] != "" {
			e.refused, e.rule = reasons[i], "made-by-controller"
		}
	}
}

// entryObject is the entry as it was recorded.
func entryObject(e *entry) object { return e.object() }

func nothing(req *RestoreRequest) error {
	what, flag := "in the cluster", ""
	if ns := req.Scope.Namespaces; len(ns) > 0 && ns[0] != ClusterScope {
		what, flag = "in namespace "+strings.Join(ns, ", "), " -n "+ns[0]
	}
	if len(req.Scope.Names) > 0 {
		what = "named " + strings.Join(req.Scope.Names, ", ") + " " + what
	}
	if req.Scope.Selector != nil {
		what = fmt.Sprintf("with the labels %s %s", req.Scope.Selector, what)
	}
	return fmt.Errorf("%w: nothing %s was recorded at %s: see 'tidemark log%s' for what happened when, or choose another moment with --at", ErrNothing, what, req.Cut, flag)
}
