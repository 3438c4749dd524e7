package replay

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// hostname is the label by which objects choose a node by its name.
const hostname = "kubernetes.io/hostname"

var nodes = schema.GroupResource{Resource: "nodes"}

// warnAbsent names, before anything is written, the cluster-scoped objects that the created ones need and the target
// will not have: storage classes and nodes of the cluster that history is of, above all.
func (p *planner) warnAbsent(ctx context.Context) error {
	users := map[need][]*Item{}
	coming := map[objectKey]bool{}
	for _, it := range p.plan.Items {
		if it.Action != ActionCreate && it.Action != ActionRecreate {
			continue
		}
		coming[it.key()] = true
		if !slices.Contains(referring, it.Resource.String()) {
			continue
		}
		o := it.create.object()
		for _, n := range append(needsOf(it.Resource, o), nodesOf(it.Resource, o)...) {
			if list := users[n]; len(list) == 0 || list[len(list)-1] != it {
				users[n] = append(list, it)
			}
		}
	}
	for _, n := range slices.SortedFunc(maps.Keys(users), func(a, b need) int {
		return cmp.Or(cmp.Compare(a.gr.String(), b.gr.String()), cmp.Compare(a.name, b.name))
	}) {
		k := objectKey{n.gr, "", n.name}
		r, served := p.target.version(n.gr, "")
		if coming[k] || p.live.objects[k] != nil || !served && n.gr.Group != "" && p.target.table().failed[n.gr.Group] != nil {
			continue
		}
		if served {
			u, err := p.target.get(ctx, r, "", n.name)
			if ctx.Err() != nil {
				return err
			}
			if err != nil || u != nil { // what may not be read may be there
				continue
			}
		}
		who := users[n][0].String()
		if more := len(users[n]) - 1; more > 0 {
			who = fmt.Sprintf("%s and %d more", who, more)
		}
		p.warn("%s: needed by %s, and not in the target%s", k, who, absentAdvice[n.gr])
	}
	return nil
}

var absentAdvice = map[schema.GroupResource]string{
	storageClasses: ": make it first, or map it to one that is there with --storage-class-mappings OLD:NEW",
	nodes:          ": it will not run, or not be bound, until there is a node of that name; --transform or --resource-modifiers can change that",
	clusterRoles:   ": it gives no rights until the role is there",
	priorities:     ": it will be refused until the class is there",
	runtimeClasses: ": it will be refused until the class is there",
	ingressClasses: ": nothing serves it until the class is there",
	gatewayClasses: ": nothing serves it until the class is there",
}

// nodesOf are the nodes that an object asks for by name.
func nodesOf(gr schema.GroupResource, o object) (all []need) {
	if gr == volumes {
		for _, term := range o.objects("spec", "nodeAffinity", "required", "nodeSelectorTerms") {
			for _, e := range term.objects("matchExpressions") {
				if e.str("key") == hostname && e.str("operator") == "In" {
					for _, v := range e.list("values") {
						name, _ := v.(string)
						all = append(all, need{nodes, name})
					}
				}
			}
		}
		return all
	}
	for _, pod := range podsOf(o) {
		if name := pod.str("nodeSelector", hostname); name != "" {
			all = append(all, need{nodes, name})
		}
	}
	return all
}
