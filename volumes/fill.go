package volumes

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/tidemark-backup/tidemark/volumes/kube"
	"github.com/tidemark-backup/tidemark/volumes/mover"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// FillRequest asks for the content of a backup in a claim.
type FillRequest struct {
	Backup    string `json:"backup"`
	Namespace string `json:"namespace"`
	Claim     string `json:"claim"`
	// Path within the backup is what comes back; empty: everything.
	Path        string `json:"path,omitempty"`
	DeleteExtra bool   `json:"deleteExtra,omitempty"`
	// Used allows it while Pods use the claim, which see files change under them.
	Used bool `json:"used,omitempty"`
}

// Fill writes the content of a backup into a claim, in a Pod that mounts it.
func (k *Keeper) Fill(ctx context.Context, q FillRequest, progress func(repository.Progress)) (repository.Progress, error) {
	if k.o.Cluster == nil {
		return repository.Progress{}, errNoCluster
	}
	if err := k.awaitSettled(ctx); err != nil {
		return repository.Progress{}, err
	}
	c := k.o.Cluster.Client
	claim, err := kube.Get[corev1.PersistentVolumeClaim](ctx, c, kube.Claims, q.Namespace, q.Claim)
	if err != nil {
		return repository.Progress{}, err
	}
	if claim == nil {
		return repository.Progress{}, fmt.Errorf("%w: there is no claim %s/%s", ErrRequest, q.Namespace, q.Claim)
	}
	pods, err := kube.List[corev1.Pod](ctx, c, kube.Pods, q.Namespace, "")
	if err != nil {
		return repository.Progress{}, err
	}
	at := mover.Place{Namespace: q.Namespace, Claim: q.Claim, Block: claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock}
	for _, p := range kube.Mounted(pods, q.Claim) {
		if !q.Used {
			return repository.Progress{}, fmt.Errorf("%w: Pod %s uses claim %s/%s and would see its files change: scale its workload down first, or say with --used that it does not matter", ErrRequest, p.Name, q.Namespace, q.Claim)
		}
		at.Node = p.Spec.NodeName
	}
	r, id, err := k.content(ctx, q.Backup)
	if err != nil {
		return repository.Progress{}, err
	}
	defer k.close(ctx, r)
	if progress != nil {
		progress(repository.Progress{Step: "waiting for the turn of its mover"})
	}
	release, err := k.slots.movers(ctx, at.Node)
	if err != nil {
		return repository.Progress{}, err
	}
	defer release()
	o, err := k.o.Cluster.Mover.Run(ctx, backupName("fill-"+q.Claim, k.o.Clock()), mover.Job{
		Kind: mover.Restore, Cluster: r.Cluster(), Password: r.Password(), ID: id, Path: q.Path, DeleteExtra: q.DeleteExtra,
	}, at, r.Store(), nil, progress)
	if o == nil {
		return repository.Progress{}, err
	}
	return o.Restored, err
}
