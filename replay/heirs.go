package replay

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
)

// heirs plans what becomes of the live objects that belong to an object that is deleted and
// created anew. Left to the garbage collector, they would go with it, claims and their data
// as well; so they are orphaned, and linked to the new object. What a controller makes, and
// the new object would not take over, is deleted: its Pods would run beside the new ones.
func (p *planner) heirs(ctx context.Context) error {
	owners := map[string]*Item{} // by uid
	places := map[string]bool{}  // their namespaces
	for _, it := range p.plan.Items {
		if it.Action == ActionRecreate {
			owners[string(it.live.uid)] = it
			places[it.Namespace] = true
		}
	}
	if len(owners) == 0 {
		return nil
	}
	p.plan.recreated = owners
	if places[""] { // what belongs to a cluster-scoped object may be anywhere
		places = map[string]bool{"": true}
	}
	planned := map[objectKey]*Item{}
	for _, it := range p.plan.Items {
		planned[it.key()] = it
	}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(liveReaders)
	for gr, versions := range p.target.table().byResource {
		r := versions[0]
		if !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "update") || slices.Contains(neverRestored, gr.String()) {
			continue
		}
		for ns := range places {
			if ns != "" && !r.Namespaced {
				continue
			}
			g.Go(func() error {
				err := p.target.list(ctx, r, ns, func(u *unstructured.Unstructured) {
					mu.Lock()
					defer mu.Unlock()
					p.inherit(r, u, owners, planned)
				})
				if apierrors.IsForbidden(err) || apierrors.IsMethodNotSupported(err) || apierrors.IsNotFound(err) {
					mu.Lock()
					defer mu.Unlock()
					p.warn("what belongs to recreated objects loses its owner where it may not be read: %v", err)
					return nil
				}
				return err
			})
		}
	}
	return g.Wait()
}

// inherit plans what becomes of one live object, if it belongs to a recreated one.
func (p *planner) inherit(r servedResource, u *unstructured.Unstructured, owners map[string]*Item, planned map[objectKey]*Item) {
	o := object(u.Object)
	if o.deleting() {
		return
	}
	for _, ref := range o.objects("metadata", "ownerReferences") {
		owner := owners[ref.str("uid")]
		if owner == nil {
			continue
		}
		it := planned[objectKey{r.GroupResource(), u.GetNamespace(), u.GetName()}]
		switch {
		case it == nil || it.Action == ActionFail: // a failure stays in the plan beside it
			it = &Item{Resource: r.GroupResource(), Namespace: u.GetNamespace(), Name: u.GetName()}
			p.add(it)
		case it.Action != ActionSkip:
			return // relinkRecreated points it at the new owner
		}
		it.served, it.live = r, newFound(o)
		if ref.at("controller") == true && isRemade(r, ref) && !takesOver(owner, o) {
			it.Action, it.Rule, it.Reason = ActionDelete, "", "belongs to "+owner.String()+", which is created anew and makes its own"
			return
		}
		it.Action, it.Rule, it.update = ActionUpdate, "", pack(o.json())
		it.Reason = belongs(owner.key())
		return
	}
}

func belongs(owner objectKey) string {
	return "belongs to " + owner.String() + ", which is created anew"
}

// isRemade reports whether a controller of every cluster makes such objects for such owners.
func isRemade(r servedResource, ref object) bool {
	return builtin[ref.str("apiVersion")] && slices.Contains(remade[r.GroupResource().String()], ref.str("kind"))
}

// takesOver reports whether the recreated owner will take the object as its own: it selects
// it, or needs no selector.
func takesOver(owner *Item, o object) bool {
	created := owner.create.object()
	raw := created.sub("spec", "selector")
	switch owner.Resource.String() {
	case "services", "cronjobs.batch":
		return true
	case "replicationcontrollers":
		set := labels.Set{}
		for k, v := range raw {
			set[k] = fmt.Sprint(v)
		}
		return len(set) > 0 && set.AsSelector().Matches(labels.Set(o.unstructured().GetLabels()))
	}
	var parsed metav1.LabelSelector
	if raw == nil || runtime.DefaultUnstructuredConverter.FromUnstructured(raw, &parsed) != nil {
		return false // a Job selects by a uid that it does not have yet
	}
	s, err := metav1.LabelSelectorAsSelector(&parsed)
	return err == nil && !s.Empty() && s.Matches(labels.Set(o.unstructured().GetLabels()))
}

// disowned is a live object without the owners that the plan recreates: the garbage collector
// takes them away when it orphans the object, and a controller may have adopted it since.
func (p *Plan) disowned(live object) object {
	recreated := func(ref object) bool {
		if p.recreated[ref.str("uid")] != nil {
			return true
		}
		for _, it := range p.recreated {
			if ref.str("kind") == it.served.Kind && ref.str("name") == it.Name {
				return true
			}
		}
		return false
	}
	if len(p.recreated) == 0 || !slices.ContainsFunc(live.objects("metadata", "ownerReferences"), recreated) {
		return live
	}
	o := live.clone()
	o.putList(without(o.list("metadata", "ownerReferences"), recreated), "metadata", "ownerReferences")
	return o
}
