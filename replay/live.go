package replay

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

const (
	liveReaders = 8 // requests at once while the target is read
	fewObjects  = 3 // up to so many are read one by one
	fewSpaces   = 8 // up to so many namespaces are read one by one
)

// liveSet is what the target has of the objects that a plan is about.
type liveSet struct {
	mu      sync.Mutex
	objects map[objectKey]*found
	errs    map[objectKey]error // what could not be read
	none    map[string]bool     // namespaces that the target does not have
	gone    map[string]bool     // namespaces that are being deleted
	created map[string]bool     // namespaces that the plan creates
}

// readLive reads the live counterparts of everything the past has. Namespaces that are not
// there, or are being deleted, are not looked into.
func readLive(ctx context.Context, target *Target, req *RestoreRequest, p *past) (*liveSet, error) {
	l := &liveSet{objects: map[objectKey]*found{}, errs: map[objectKey]error{}, none: map[string]bool{}, gone: map[string]bool{}, created: map[string]bool{}}
	wanted := map[schema.GroupResource]map[string][]string{} // resource -> namespace -> names
	spaces := map[string]bool{}
	for _, e := range p.list {
		ns, name := "", e.name
		if e.namespace != "" {
			ns = req.namespace(e.namespace)
			spaces[ns] = true
		}
		if e.gr == namespaces {
			name = req.namespace(e.name)
			spaces[name] = true
			if e.refused == "" {
				l.created[name] = true
			}
		}
		if e.refused == "" && e.gr != namespaces {
			if wanted[e.gr] == nil {
				wanted[e.gr] = map[string][]string{}
			}
			wanted[e.gr][ns] = append(wanted[e.gr][ns], name)
		}
	}
	if err := l.readNamespaces(ctx, target, spaces); err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(liveReaders)
	for gr, places := range wanted {
		r, ok := target.version(gr, "")
		if !ok {
			continue
		}
		for ns := range places {
			if l.none[ns] || l.gone[ns] {
				delete(places, ns)
			}
		}
		if len(places) > fewSpaces {
			g.Go(func() error { return l.readEverywhere(ctx, target, r, places) })
			continue
		}
		for ns, names := range places {
			g.Go(func() error { return l.read(ctx, target, r, ns, names) })
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return l, nil
}

// readEverywhere reads one resource in many namespaces with one list.
func (l *liveSet) readEverywhere(ctx context.Context, target *Target, r servedResource, places map[string][]string) error {
	wanted := map[objectKey]bool{}
	for ns, names := range places {
		for _, n := range names {
			wanted[objectKey{r.GroupResource(), ns, n}] = true
		}
	}
	err := target.list(ctx, r, "", func(u *unstructured.Unstructured) {
		if k := (objectKey{r.GroupResource(), u.GetNamespace(), u.GetName()}); wanted[k] {
			l.have(k, u)
		}
	})
	if !apierrors.IsForbidden(err) {
		return err
	}
	for ns, names := range places { // perhaps some of them may be read
		if err := l.read(ctx, target, r, ns, names); err != nil {
			return err
		}
	}
	return nil
}

// have files a live object.
func (l *liveSet) have(k objectKey, u *unstructured.Unstructured) {
	f := newFound(u.Object)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.objects[k] = f
}

// readNamespaces reads the namespaces of that name: with one list when they are many.
func (l *liveSet) readNamespaces(ctx context.Context, target *Target, names map[string]bool) error {
	if r, served := target.version(namespaces, ""); served && len(names) > fewSpaces {
		all := map[string]*unstructured.Unstructured{}
		err := target.list(ctx, r, "", func(u *unstructured.Unstructured) { all[u.GetName()] = u })
		if err == nil {
			for name := range names {
				l.namespace(name, all[name])
			}
			return nil
		}
		if !apierrors.IsForbidden(err) {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(liveReaders)
	for name := range names {
		g.Go(func() error {
			u, err := target.namespace(ctx, name)
			if err != nil && !apierrors.IsForbidden(err) {
				return err
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			if err != nil { // a tenant need not see it; the objects will tell
				l.errs[objectKey{namespaces, "", name}] = err
				return nil
			}
			l.namespace(name, u)
			return nil
		})
	}
	return g.Wait()
}

// namespace files what a namespace is: nil means that it is not there.
func (l *liveSet) namespace(name string, u *unstructured.Unstructured) {
	switch {
	case u == nil:
		l.none[name] = true
	case object(u.Object).deleting():
		l.gone[name] = true
	default:
		l.objects[objectKey{namespaces, "", name}] = newFound(u.Object)
	}
}

// read reads some objects of one resource in one namespace. What may not be read costs
// those objects, not the plan.
func (l *liveSet) read(ctx context.Context, target *Target, r servedResource, namespace string, names []string) error {
	gr := r.GroupResource()
	if len(names) > fewObjects {
		wanted := make(map[string]bool, len(names))
		for _, n := range names {
			wanted[n] = true
		}
		err := target.list(ctx, r, namespace, func(u *unstructured.Unstructured) {
			if wanted[u.GetName()] && u.GetNamespace() == namespace {
				l.have(objectKey{gr, namespace, u.GetName()}, u)
			}
		})
		if err == nil || !apierrors.IsForbidden(err) && !apierrors.IsMethodNotSupported(err) {
			return err
		}
	}
	for _, name := range names {
		u, err := target.get(ctx, r, namespace, name)
		if err != nil && !apierrors.IsForbidden(err) && !apierrors.IsMethodNotSupported(err) {
			return err
		}
		k := objectKey{gr, namespace, name}
		if err != nil {
			l.mu.Lock()
			l.errs[k] = err
			l.mu.Unlock()
		} else if u != nil {
			l.have(k, u)
		}
	}
	return nil
}

// missing says why an item cannot be restored as things are in the target, or nothing. cut is the moment that is restored; zero for an undo.
func (l *liveSet) missing(it *Item, cut journal.Cut) string {
	if err := l.errs[it.key()]; err != nil {
		return err.Error() + ": ask for the right to read it, or restore with another kubeconfig"
	}
	switch ns := it.Namespace; {
	case ns == "" || l.created[ns]:
	case l.none[ns]:
		alone := ""
		if !cut.Revision.IsZero() {
			alone = fmt.Sprintf("bring back the namespace alone with 'tidemark restore namespaces/%s --at rv:%s', or ", ns, cut.Revision)
		}
		return fmt.Sprintf("namespace %s is not there: %sall of it with 'tidemark undelete ns/%s', or make it with 'kubectl create namespace %s'", ns, alone, ns, ns)
	case l.gone[ns]:
		return fmt.Sprintf("namespace %s is being deleted: restore it as a whole with 'tidemark undelete ns/%s', or wait until it is gone", ns, ns)
	}
	return ""
}
