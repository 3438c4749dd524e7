package replay

import (
	"context"
	"fmt"
	"slices"
)

// warn adds a warning to the plan, unless it is there already.
func (p *planner) warn(format string, args ...any) {
	w := fmt.Sprintf(format, args...)
	if !slices.Contains(p.plan.Warnings, w) {
		p.plan.Warnings = append(p.plan.Warnings, w)
	}
}

// checkCluster finds out whether the target is the cluster that history is of. Creating what
// is missing elsewhere is worth a warning; to change and delete there must be meant.
func (p *planner) checkCluster(ctx context.Context, catalog *Catalog) (warnings []string, err error) {
	p.plan.Server = p.target.Server()
	if p.plan.Cluster, err = p.target.ClusterID(ctx); err != nil {
		return nil, err
	}
	if p.plan.Cluster == "" || catalog.ClusterID == "" || p.plan.Cluster == catalog.ClusterID {
		return nil, nil
	}
	what := fmt.Sprintf("%s is cluster %s, and history is of cluster %s", p.plan.Server, p.plan.Cluster, catalog.ClusterID)
	if p.req.overwrites() && !p.req.OtherCluster {
		return nil, fmt.Errorf("%w: %s: choose the recorded one with --context or --kubeconfig, or add --other-cluster to update, recreate or prune there all the same", ErrOtherCluster, what)
	}
	return []string{"another cluster: " + what}, nil
}

// tellInstances says that a definition that is restored by its name comes back without the
// custom resources that went with it.
func (p *planner) tellInstances() {
	if p.req.Scope.Names == nil {
		return
	}
	for _, it := range p.plan.Items {
		if it.Resource == definitions && it.Action == ActionCreate {
			p.warn("%s: the custom resources that were deleted with it are not in this plan: apply it first, then bring them back with 'tidemark restore %s -A --at rv:%s'", it, it.Name, p.req.Cut.Revision)
		}
	}
}
