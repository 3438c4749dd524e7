package csi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/volumes/kube"
)

// What we make goes whatever its class says: with deletionPolicy or reclaimPolicy Retain, Kubernetes would leave what was made for a while in the storage
// for ever. So nothing here relies on a policy. What a VolumeSnapshot became is found by what it is named after, also when its object is gone.

// drop deletes a snapshot that was asked for under a name, and its objects.
func drop(ctx context.Context, c *kube.Client, namespace, name string) error {
	content := ""
	err := kube.Until(ctx, func(ctx context.Context) (bool, error) {
		u, err := c.In(kube.Snapshots, namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		if err != nil {
			return false, kube.Lasting(err)
		}
		found := true
		if claim, _, _ := unstructured.NestedString(u.Object, "spec", "source", "persistentVolumeClaimName"); claim != "" { // it is no import
			content = "snapcontent-" + string(u.GetUID()) // as the snapshot controller names them
			policy := ""
			if found, policy, err = policyOf(ctx, c, content); err != nil {
				return false, err
			}
			if policy == "Delete" { // its controller does the rest
				content = ""
			}
		}
		// Until there is a content, or the object is gone, the controller may be making one.
		return found, c.Delete(ctx, kube.Snapshots, namespace, name, false)
	})
	if err == nil && content != "" { // after the object: as long as that is wanted, another would be made
		err = free(ctx, c, kube.Contents, content)
	}
	if err != nil {
		return fmt.Errorf("delete VolumeSnapshot %s/%s and what the storage has of it: %w", namespace, name, err)
	}
	return nil
}

// policyOf is the deletionPolicy of a content; found is false when it is not there.
func policyOf(ctx context.Context, c *kube.Client, name string) (found bool, policy string, err error) {
	u, err := c.In(kube.Contents, "").Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false, "", kube.Lasting(err)
	}
	policy, _, _ = unstructured.NestedString(u.Object, "spec", "deletionPolicy")
	return true, policy, nil
}

// protection is what contents of a kind are protected and marked with.
type protection struct{ finalizer, deleted, created string }

func protectionOf(r schema.GroupVersionResource) protection {
	if r.Group == groupAPI {
		return protection{groupFinalizer, groupPrefix + "volumegroupsnapshot-being-deleted", groupPrefix + "volumegroupsnapshot-being-created"}
	}
	return protection{finalizer, snapshotPrefix + "volumesnapshot-being-deleted", snapshotPrefix + "volumesnapshot-being-created"}
}

// heldTime is how long it is seen to that a driver's side goes on deleting.
const heldTime = 5 * time.Second

// free has the driver delete what a content of a snapshot that was asked for stands for. The content goes when that is done, which is not waited for
// when it takes long.
func free(ctx context.Context, c *kube.Client, r schema.GroupVersionResource, name string) error {
	began, p := time.Now(), protectionOf(r)
	err := kube.Until(ctx, func(ctx context.Context) (bool, error) {
		u, err := c.In(r, "").Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		if err != nil {
			return false, kube.Lasting(err)
		}
		policy, _, _ := unstructured.NestedString(u.Object, "spec", "deletionPolicy")
		marks := u.GetAnnotations()
		if policy == "Delete" && marks[p.deleted] != "" && u.GetDeletionTimestamp() != nil {
			return marks[p.created] == "" && time.Since(began) > heldTime, nil
		}
		// The driver's side waits for the mark, which the snapshot controller makes only if it knows the content when its object goes; and it writes all
		// annotations as they were before, when it makes the snapshot just now. So this may have to be done again.
		meta := object{"annotations": object{p.deleted: "yes"}}
		if f := u.GetFinalizers(); u.GetDeletionTimestamp() == nil && !slices.Contains(f, p.finalizer) {
			meta["finalizers"] = append(f, p.finalizer)
		}
		if err := c.Patch(ctx, r, "", name, object{"metadata": meta, "spec": object{"deletionPolicy": "Delete"}}); err != nil {
			return false, err
		}
		return false, c.Delete(ctx, r, "", name, false)
	})
	if err != nil {
		return fmt.Errorf("delete %s %s, and the snapshot that it stands for: %w", r.Resource, name, err)
	}
	return nil
}

// each calls do with all objects of a resource; none where it is not served.
func each(ctx context.Context, c *kube.Client, r schema.GroupVersionResource, labels string, do func(*unstructured.Unstructured) error) error {
	for o := (metav1.ListOptions{LabelSelector: labels, Limit: 500}); ; {
		l, err := c.In(r, "").List(ctx, o)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range l.Items {
			if err := do(&l.Items[i]); err != nil {
				return err
			}
		}
		if o.Continue = l.GetContinue(); o.Continue == "" {
			return nil
		}
	}
}

// madeFor reports whether a content belongs to an object of the name, or has our label with it; ref is the field that tells.
func madeFor(u *unstructured.Unstructured, ref, namespace, name string) bool {
	in, _, _ := unstructured.NestedString(u.Object, "spec", ref, "namespace")
	of, _, _ := unstructured.NestedString(u.Object, "spec", ref, "name")
	return in == namespace && of == name || u.GetLabels()[kube.Label] == name
}

// imported reports whether a content was made of a handle.
func imported(u *unstructured.Unstructured) bool {
	source, _, _ := unstructured.NestedMap(u.Object, "spec", "source")
	return source["snapshotHandle"] != nil || source["groupSnapshotHandles"] != nil
}

// sweepContents deletes the contents that belong to objects of a name, and what the storage has of those that were no imports. before is called with
// each of these first.
func sweepContents(ctx context.Context, c *kube.Client, r schema.GroupVersionResource, ref, namespace, name string, before func(*unstructured.Unstructured) error) error {
	return each(ctx, c, r, "", func(u *unstructured.Unstructured) error {
		switch {
		case !madeFor(u, ref, namespace, name) || strings.HasPrefix(u.GetName(), deletePrefix):
			return nil
		case imported(u):
			return c.Delete(ctx, r, "", u.GetName(), false)
		}
		if err := before(u); err != nil {
			return err
		}
		return free(ctx, c, r, u.GetName())
	})
}

// Sweep deletes what tries that were cut off left under a name: the snapshot as well, if it was not kept.
func Sweep(ctx context.Context, c *kube.Client, namespace, name string) error {
	if err := drop(ctx, c, namespace, name); err != nil {
		return err
	}
	err := sweepContents(ctx, c, kube.Contents, "volumeSnapshotRef", namespace, name, func(*unstructured.Unstructured) error { return nil })
	return errors.Join(err, sweepGroups(ctx, c, namespace, name))
}

// SweepDeletes takes away the objects by which a process that died wanted snapshots to be deleted. The snapshots stay where that was not begun: who has
// them recorded deletes them again. Nobody may be deleting snapshots meanwhile.
func SweepDeletes(ctx context.Context, c *kube.Client) (err error) {
	all := []schema.GroupVersionResource{kube.Contents}
	for _, v := range groupVersions {
		all = append(all, resourcesOf(v).contents)
	}
	for _, r := range all {
		err = errors.Join(err, each(ctx, c, r, kube.Label, func(u *unstructured.Unstructured) error {
			if !strings.HasPrefix(u.GetName(), deletePrefix) || u.GetDeletionTimestamp() != nil {
				return nil
			}
			return abandon(ctx, c, r, u.GetName())
		}))
	}
	return err
}

// DropClaim deletes a claim that we made for a while, and its volume with it. One without our label is left alone.
func DropClaim(ctx context.Context, c *kube.Client, namespace, name string) error {
	claim, err := kube.Get[corev1.PersistentVolumeClaim](ctx, c, kube.Claims, namespace, name)
	if err != nil || claim == nil || claim.Labels[kube.Label] == "" {
		return err
	}
	ours := func(pv *corev1.PersistentVolume) bool {
		return pv.Spec.ClaimRef != nil && pv.Spec.ClaimRef.UID == claim.UID
	}
	if claim.Spec.VolumeName != "" { // before the claim goes: whoever deletes it after us does the same
		pv, readErr := kube.Get[corev1.PersistentVolume](ctx, c, kube.Volumes, "", claim.Spec.VolumeName)
		if err = readErr; pv != nil && ours(pv) {
			err = release(ctx, c, pv)
		}
	}
	if deleteErr := c.Delete(ctx, kube.Claims, namespace, name, false); deleteErr != nil {
		return errors.Join(err, deleteErr)
	}
	if err := errors.Join(err, c.Gone(ctx, kube.Claims, namespace, name)); err != nil || claim.Spec.VolumeName != "" {
		return err
	}
	return ReleaseVolumes(ctx, c, ours) // it may have been in the making
}

// ReleaseVolumes has volumes that were made for claims of ours go with these, or now if they are gone.
func ReleaseVolumes(ctx context.Context, c *kube.Client, ours func(*corev1.PersistentVolume) bool) error {
	all, err := kube.List[corev1.PersistentVolume](ctx, c, kube.Volumes, "", "")
	for _, pv := range all {
		if ours(pv) {
			err = errors.Join(err, release(ctx, c, pv))
		}
	}
	return err
}

// release has a volume go with its claim, unless it was there before it.
func release(ctx context.Context, c *kube.Client, pv *corev1.PersistentVolume) error {
	const made, found = "pv.kubernetes.io/provisioned-by", "pv.kubernetes.io/bound-by-controller"
	if pv.Annotations[made] == "" || pv.Annotations[found] != "" || pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		return nil
	}
	err := c.Patch(ctx, kube.Volumes, "", pv.Name, object{"spec": object{"persistentVolumeReclaimPolicy": corev1.PersistentVolumeReclaimDelete}})
	if err != nil {
		return fmt.Errorf("volume %s, which was made for a while, stays in the storage: its StorageClass says reclaimPolicy %s, and that cannot be changed for it: %w", pv.Name, pv.Spec.PersistentVolumeReclaimPolicy, err)
	}
	return nil
}
