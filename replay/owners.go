package replay

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// pendingOwner is an owner whose uid is known only once it has been restored.
type pendingOwner struct {
	key  objectKey
	kind string
}

// pendingUID stands for the uid of an owner that is yet to be restored, in plans and diffs.
const pendingUID = "(of the restored owner)"

// linkOwners points the object's owner references at the owners as they are, or will be, in
// the target. A reference to nothing would make the garbage collector delete the object, so
// it is dropped, and the plan says so.
func (p *planner) linkOwners(ctx context.Context, it *Item, o object) {
	it.owners = nil
	var kept []any
	for _, ref := range o.objects("metadata", "ownerReferences") {
		k, ok := p.ownerKey(it, ref)
		if !ok {
			p.warn("%s: its owner %s %s is of a kind the target does not serve: restored without that owner", it, ref.str("kind"), ref.str("name"))
			continue
		}
		uid, pending := p.ownerUID(ctx, k)
		switch {
		case pending:
			it.owners = append(it.owners, pendingOwner{k, ref.str("kind")})
			ref.put(pendingUID, "uid")
		case uid == "":
			p.warn("%s: its owner %s is neither live nor restored: restored without that owner", it, k)
			continue
		default:
			ref.put(uid, "uid")
		}
		kept = append(kept, map[string]any(ref))
	}
	o.putList(kept, "metadata", "ownerReferences")
}

// ownerKey finds out which object of the target a reference means.
func (p *planner) ownerKey(it *Item, ref object) (objectKey, bool) {
	if e := p.past.byUID[it.entry.ownerUID(ref)]; e != nil {
		k := e.objectKey
		if k.namespace != "" {
			k.namespace = it.Namespace
		}
		if k.gr == namespaces {
			k.name = p.req.namespace(k.name)
		}
		return k, true
	}
	gr, ok := p.target.resourceOf(ref.str("apiVersion"), ref.str("kind"))
	if !ok {
		return objectKey{}, false
	}
	k := objectKey{gr: gr, name: ref.str("name")}
	if r, ok := p.target.version(gr, ""); ok && r.Namespaced {
		k.namespace = it.Namespace
	}
	return k, true
}

// ownerUID is the uid that the reference had at the cut; the reference at hand may have been
// linked already.
func (e *entry) ownerUID(ref object) string {
	for _, r := range e.object().objects("metadata", "ownerReferences") {
		if r.str("kind") == ref.str("kind") && r.str("name") == ref.str("name") {
			return r.str("uid")
		}
	}
	return ref.str("uid")
}

// ownerUID returns the uid of a live owner, or that the plan will create it.
func (p *planner) ownerUID(ctx context.Context, k objectKey) (uid string, pending bool) {
	live, known := p.live.objects[k]
	e := p.pastOf(k)
	switch {
	case live != nil && !live.deleting:
		// A live owner that is created anew gets another uid: see relinkRecreated.
		return string(live.uid), false
	case e != nil && e.refused == "":
		return "", true
	case known || p.live.none[k.namespace] || p.live.gone[k.namespace]:
		return "", false
	}
	r, ok := p.target.version(k.gr, "")
	if !ok {
		return "", false
	}
	u, err := p.target.get(ctx, r, k.namespace, k.name)
	if err != nil && !apierrors.IsForbidden(err) {
		p.warn("%v", err)
	}
	p.live.objects[k] = nil // is remembered as well
	if u == nil {
		return "", false
	}
	p.live.objects[k] = newFound(u.Object)
	if object(u.Object).deleting() {
		return "", false
	}
	return string(u.GetUID()), false
}

// pastOf finds the object of the past that is restored as k.
func (p *planner) pastOf(k objectKey) *entry {
	for from, to := range p.req.NamespaceMappings {
		if k.gr == namespaces && k.name == to {
			return p.past.find(k.gr, "", from)
		}
		if k.namespace == to {
			return p.past.find(k.gr, from, k.name)
		}
	}
	return p.past.find(k.gr, k.namespace, k.name)
}

// relinkRecreated points what belongs to recreated objects at their new selves: what it
// points at now is about to be deleted, and the garbage collector would follow.
func (p *planner) relinkRecreated() {
	recreated := map[string]objectKey{}
	for _, it := range p.plan.Items {
		if it.Action == ActionRecreate {
			recreated[string(it.live.uid)] = it.key()
		}
	}
	if len(recreated) == 0 {
		return
	}
	for _, it := range p.plan.Items {
		for _, b := range []*packed{&it.create, &it.update} {
			if *b == nil {
				continue
			}
			o := b.object()
			for _, ref := range o.objects("metadata", "ownerReferences") {
				k, ok := recreated[ref.str("uid")]
				if !ok {
					continue
				}
				ref.put(pendingUID, "uid")
				*b = pack(o.json())
				if p := (pendingOwner{k, ref.str("kind")}); !slices.Contains(it.owners, p) {
					it.owners = append(it.owners, p)
				}
				if it.Action == ActionUnchanged {
					it.Action, it.Reason = ActionUpdate, belongs(k)
				}
			}
		}
	}
}

// link fills in the uids of owners that have been restored meanwhile.
func (it *Item) link(body object, uid func(objectKey) string) error {
	for _, o := range it.owners {
		for _, ref := range body.objects("metadata", "ownerReferences") {
			if ref.str("uid") != pendingUID || ref.str("kind") != o.kind || ref.str("name") != o.key.name {
				continue
			}
			id := uid(o.key)
			if id == "" {
				return fmt.Errorf("its owner %s could not be restored", o.key)
			}
			ref.put(id, "uid")
		}
	}
	return nil
}
