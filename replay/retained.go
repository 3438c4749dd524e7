package replay

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// A volume that is retained outlives its claim, and a claim that comes back with it has what the volume holds now. Where a
// backup was picked the claim gets a new volume instead, with the content of the backup, and its old one is left as it is.

// noProvisioner is what a storage class has whose volumes are made by hand.
const noProvisioner = "kubernetes.io/no-provisioner"

// keepsVolume says why a claim can only have its old volume back; nothing when it can have a new one.
func (p *planner) keepsVolume(ctx context.Context, it *Item, claim object, pv, provisioner string) (string, error) {
	live, err := p.liveVolume(ctx, pv)
	if err != nil {
		return "", err
	}
	ref := live.sub("spec", "claimRef")
	if ref.str("namespace") == it.Namespace && ref.str("name") == it.Name && ref.str("uid") == "" {
		return fmt.Sprintf("volume %s waits for a claim of this name (its claimRef has no uid), and no other would be bound: to have the content of the backup, take the claimRef away first", pv), nil
	}
	was := live
	if e := p.past.find(volumes, "", pv); e != nil {
		was = e.object()
	}
	// The class may be missing in the target, which warnAbsent tells: it has to be made, or mapped.
	if class := claim.str("spec", "storageClassName"); class == "" || provisioner == noProvisioner ||
		provisioner == "" && was.annotation("pv.kubernetes.io/provisioned-by") == "" {
		return fmt.Sprintf("no storage class makes a new volume for it, so it keeps volume %s: 'tidemark volumes restore' writes a backup into a claim that is there", pv), nil
	}
	return "", nil
}

// madeVolumes are the volumes that the plan makes, by the claim each of them is for.
func (p *planner) madeVolumes() map[objectKey]*Item {
	made := map[objectKey]*Item{}
	for _, it := range p.plan.Items {
		if it.Resource != volumes || !it.makes() {
			continue
		}
		if ref := it.create.object().sub("spec", "claimRef"); ref != nil {
			made[objectKey{claims, ref.str("namespace"), ref.str("name")}] = it
		}
	}
	return made
}

// leaveVolume has a claim come back without its old volume. That is not made either: the claim would be bound to it.
func (p *planner) leaveVolume(it *Item, claim object, made *Item) {
	pv := claim.str("spec", "volumeName")
	claim.drop("spec", "volumeName")
	switch {
	case made != nil:
		made.Action, made.Reason = ActionSkip, "its claim gets a new volume, with the content of a backup"
		made.create, made.update, made.live, made.managed, made.status = nil, nil, nil, parts{}, parts{}
	case pv != "":
		p.warn("%s: gets a new volume with the content of its backup; its old one, %s, is left as it is", it, pv)
	}
}

// warnRetained tells which claims will wait for a volume that still belongs to the claim of before.
func (p *planner) warnRetained(ctx context.Context) error {
	for _, it := range p.plan.Items {
		if it.Resource != claims || !it.makes() || it.Volume != nil {
			continue
		}
		pv := it.create.object().str("spec", "volumeName")
		if pv == "" {
			continue
		}
		live, err := p.liveVolume(ctx, pv)
		if err != nil {
			return err
		}
		ref := live.sub("spec", "claimRef")
		switch {
		case ref == nil:
		case ref.str("namespace") != it.Namespace || ref.str("name") != it.Name:
			p.warn("%s: its volume %s belongs to claim %s/%s now: it stays Pending", it, pv, ref.str("namespace"), ref.str("name"))
		case ref.str("uid") != "":
			p.warn(`%s: its volume %s still belongs to the claim of before, and it stays Pending until that is forgotten: kubectl patch pv %s --type merge -p '{"spec":{"claimRef":{"uid":null,"resourceVersion":null}}}'`, it, pv, pv)
		}
	}
	return nil
}

// liveVolume is a volume of the target; nil when it is not there, or may not be read.
func (p *planner) liveVolume(ctx context.Context, name string) (object, error) {
	r, ok := p.target.version(volumes, "v1")
	if !ok {
		return nil, nil
	}
	u, err := p.target.get(ctx, r, "", name)
	if apierrors.IsForbidden(err) || u == nil && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return u.Object, nil
}
