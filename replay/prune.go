package replay

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tidemark-backup/tidemark/journal"
)

// prune adds the deletion of what is in scope and live and was not there at the cut.
// Cluster-scoped kinds are pruned only when they are named; what a controller owns goes with
// its owner or comes again.
func (p *planner) prune(ctx context.Context, catalog *Catalog) error {
	existed, err := p.existed(ctx)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var doomed []*Item
	kept := p.leftOut(catalog)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(liveReaders)
	for i := range catalog.Resources {
		l := &catalog.Resources[i]
		r, places := p.prunable(catalog, l, &kept)
		for _, ns := range places {
			g.Go(func() error {
				err := p.target.list(ctx, r, ns, func(u *unstructured.Unstructured) {
					it := &Item{Resource: r.GroupResource(), Namespace: u.GetNamespace(), Name: u.GetName(), Action: ActionDelete, Reason: "was not there", served: r}
					mu.Lock()
					defer mu.Unlock()
					if !existed[it.key()] && p.mayPrune(it, u.Object) {
						it.live = newFound(u.Object)
						doomed = append(doomed, it)
					}
				})
				if apierrors.IsForbidden(err) || apierrors.IsMethodNotSupported(err) {
					mu.Lock()
					defer mu.Unlock()
					p.warn("not pruned: %v", err)
					return nil
				}
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, w := range kept.lines(10, func(who, why string) string { return "not pruned: " + who + ": " + why }) {
		p.warn("%s", w)
	}
	if limit := p.req.maxDeletes(); len(doomed) > limit {
		return fmt.Errorf("%w: --prune would delete %d objects, and --max-deletes allows %d; to see them, use --dry-run --max-deletes %d", ErrTooManyDeletes, len(doomed), limit, len(doomed))
	}
	p.plan.Items = append(p.plan.Items, doomed...)
	return nil
}

// existed is what was there at the cut, whatever its labels, by its name in the target.
func (p *planner) existed(ctx context.Context) (map[objectKey]bool, error) {
	out := map[objectKey]bool{}
	add := func(k objectKey) {
		k.namespace = p.req.namespace(k.namespace)
		if k.gr == namespaces {
			k.name = p.req.namespace(k.name)
		}
		out[k] = true
	}
	for _, e := range p.past.list {
		add(e.objectKey)
	}
	if s := p.req.Scope.Selector; s == nil || s.Empty() {
		return out, nil
	}
	scope := p.req.Scope
	scope.Selector = nil
	for e, err := range p.src.Fold(ctx, p.req.Cut, scope) {
		if err != nil {
			return nil, fmt.Errorf("reading the past: %w", err)
		}
		add(objectKey{e.Resource, e.Namespace, e.Name})
	}
	return out, nil
}

// leftOut are the reasons why what was never recorded is not pruned, as far as it is a
// restore's business.
func (p *planner) leftOut(catalog *Catalog) shared {
	var kept shared
	for _, out := range catalog.LeftOut {
		named := slices.Contains(p.req.Scope.Resources, out.Resource)
		r, served := p.target.version(out.Resource, "")
		if served && !slices.Contains(r.Verbs, "list") {
			continue // nothing that could be there
		}
		known := slices.ContainsFunc(catalog.Resources, func(l journal.Ledger) bool { return l.GroupResource() == out.Resource }) // it is told about with its ledger
		if named && !known || p.req.Scope.Resources == nil && !known && served && r.Namespaced && !slices.Contains(neverRestored, out.Resource.String()) {
			kept.add("not recorded: "+out.Why, out.Resource)
		}
	}
	return kept
}

// prunable tells where objects of a recorded resource may be pruned: namespaces, or "" for
// all of the cluster. What history may have missed is kept: that it has nothing of an object
// must mean that the object was not there.
func (p *planner) prunable(catalog *Catalog, l *journal.Ledger, kept *shared) (servedResource, []string) {
	gr := l.GroupResource()
	r, ok := p.target.version(gr, l.Version)
	named := slices.Contains(p.req.Scope.Resources, gr)
	switch {
	case !ok, p.req.Scope.Resources != nil && !named, !slices.Contains(r.Verbs, "list"), !slices.Contains(r.Verbs, "delete"):
		return r, nil
	case !r.Namespaced && (!named || !has(p.req.Scope.Namespaces, ClusterScope)):
		return r, nil
	case slices.Contains(neverRestored, gr.String()), slices.Contains(p.req.ExcludeResources, gr):
		return r, nil
	}
	if why := catalog.unsure(l, p.req.Cut); why != "" {
		kept.add(why, gr)
		return r, nil
	}
	switch {
	case !r.Namespaced || p.req.Scope.Namespaces == nil:
		return r, []string{""}
	}
	var places []string
	for _, ns := range p.req.Scope.Namespaces {
		if to := p.req.namespace(ns); ns != ClusterScope && !p.live.none[to] && !p.live.gone[to] {
			places = append(places, to)
		}
	}
	return r, places
}

// mayPrune reports whether a live object is the restore's to delete.
func (p *planner) mayPrune(it *Item, o object) bool {
	if o.deleting() || o.controller() != nil {
		return false
	}
	if it.Namespace != "" && p.req.namespace(it.Namespace) != it.Namespace {
		return false // its namespace is restored elsewhere; this one is not touched
	}
	if names := p.req.Scope.Names; names != nil && !slices.Contains(names, it.Name) {
		return false
	}
	if s := p.req.Scope.Selector; s != nil && !s.Matches(labels.Set(o.unstructured().GetLabels())) {
		return false
	}
	return !guarded(&subject{gr: it.Resource, obj: o, original: o, live: true, req: p.req, past: p.past})
}
