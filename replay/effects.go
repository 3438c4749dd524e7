package replay

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// warnEffects tells what the plan sets going outside of the objects it writes, and who may undo it.
func (p *planner) warnEffects() {
	var effects []effect
	for _, it := range p.plan.Items {
		if !it.Action.writes() || it.Action.follows() {
			continue
		}
		for _, what := range effectsOf(it) {
			i := slices.IndexFunc(effects, func(e effect) bool { return e.what == what })
			if i < 0 {
				effects = append(effects, effect{what: what, first: it.String()})
				i = len(effects) - 1
			}
			effects[i].n++
		}
	}
	for _, e := range effects {
		who := e.first
		if e.n > 1 {
			who = fmt.Sprintf("%s and %d more", e.first, e.n-1)
		}
		p.warn("%s: %s", who, e.what)
	}
}

type effect struct {
	what, first string
	n           int
}

// effectsOf are the effects of writing one object.
func effectsOf(it *Item) (all []string) {
	var o object
	switch {
	case it.create != nil && it.Action != ActionUpdate:
		if !mayMatter(it) {
			return nil // parsing all of a large plan once more takes seconds
		}
		o = it.create.object()
	case it.live != nil:
		o = it.live.object()
	default:
		return nil
	}
	made := it.Action == ActionCreate || it.Action == ActionRecreate
	switch gr := it.Resource.String(); {
	case gr == "services" && made && o.str("spec", "type") == "LoadBalancer":
		all = append(all, "a load balancer is made for it, with another address than it had unless the provider is told to keep it")
	case gr == "persistentvolumeclaims" && made && o.str("spec", "volumeName") == "" && it.Volume == nil:
		all = append(all, "comes back without its data: a new volume is made for it")
	case gr == "persistentvolumeclaims" && made && it.Volume == nil:
		all = append(all, "comes back with the volume that it had, as that is now and not as it was at the moment")
	case gr == "persistentvolumeclaims" && it.Action == ActionDelete:
		all = append(all, "is deleted, and its data with it unless the volume is retained")
	case gr == "cronjobs.batch" && made && o.at("spec", "suspend") != true:
		all = append(all, "runs at its next time")
	case slices.Contains(webhookResources, gr) && made:
		all = append(all, "is asked about writes as soon as it is there: its backend must run")
	}
	if tool := managedBy(o, it.managed.list()); tool != "" {
		all = append(all, "is managed by "+tool+", which may change it again: pause that, or change its source")
	}
	return all
}

// mayMatter is a cheap look at whether an object to be created can have any effect.
func mayMatter(it *Item) bool {
	gr := it.Resource.String()
	if gr == "services" || gr == "persistentvolumeclaims" || gr == "cronjobs.batch" || slices.Contains(webhookResources, gr) {
		return true
	}
	text, managers := it.create.json(), it.managed.json()
	return slices.ContainsFunc(gitOps, func(g struct{ tool, manager, mark string }) bool {
		return bytes.Contains(text, []byte(g.mark)) || bytes.Contains(managers, []byte(`"`+g.manager+`"`))
	})
}

// gitOps are the tools that make objects as their source has them, by what they leave in the objects.
var gitOps = []struct{ tool, manager, mark string }{
	{"Argo CD", "argocd-controller", "argocd.argoproj.io/"},
	{"Flux", "kustomize-controller", "kustomize.toolkit.fluxcd.io/"},
	{"Flux", "helm-controller", "helm.toolkit.fluxcd.io/"},
}

// managedBy names the GitOps tool that an object belongs to, by its labels, annotations and field managers.
func managedBy(o object, managed []any) string {
	if m, ok := o.at("metadata", "managedFields").([]any); ok {
		managed = m
	}
	for _, g := range gitOps {
		for _, list := range []string{"labels", "annotations"} {
			for k := range o.sub("metadata", list) {
				if strings.HasPrefix(k, g.mark) {
					return g.tool
				}
			}
		}
		for _, v := range managed {
			if m, ok := v.(map[string]any); ok && m["manager"] == g.manager {
				return g.tool
			}
		}
	}
	return ""
}
