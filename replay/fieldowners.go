package replay

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// fieldOwners are the entries of managedFields by which somebody owned something of what comes back. Controllers that only owned
// what a restore leaves out, such as the volume that a claim was bound to, own nothing of it. Who applied keeps its entry in any case.
func (it *Item) fieldOwners(body object) []any {
	all := it.managed.list()
	if len(all) < 2 {
		return all
	}
	return slices.DeleteFunc(all, func(v any) bool {
		m, _ := v.(map[string]any)
		e := object(m)
		fields := e.sub("fieldsV1")
		// Fields are named as in the entry's own version. References to owners are named by uids, which are new ones in the body.
		known := e.str("operation") == "Update" && e.str("apiVersion") == body.str("apiVersion") && len(fields) > 0
		references := object(fields).sub("f:metadata", "f:ownerReferences") != nil && len(body.list("metadata", "ownerReferences")) > 0
		return known && !references && !ownsAny(fields, map[string]any(body))
	})
}

// ownsAny reports whether v has something of what the tree of fieldsV1 owns. A map or list for itself is nothing; what is not understood is something.
func ownsAny(tree map[string]any, v any) bool {
	if len(tree) == 0 {
		return true
	}
	switch v := v.(type) {
	case map[string]any:
		for k, sub := range tree {
			name, isField := strings.CutPrefix(k, "f:")
			below, _ := sub.(map[string]any)
			if field, has := v[name]; isField && has && ownsAny(below, field) || !isField && k != "." {
				return true
			}
		}
		return false
	case []any:
		for k, sub := range tree {
			var key any
			below, _ := sub.(map[string]any)
			switch {
			case k == ".":
			case !strings.HasPrefix(k, "k:") && !strings.HasPrefix(k, "v:") || utiljson.Unmarshal([]byte(k[2:]), &key) != nil:
				return true
			case slices.ContainsFunc(v, func(element any) bool { return isElement(k, key, element) && ownsAny(below, element) }):
				return true
			}
		}
		return false
	}
	return true
}

// creator chooses the field manager to create an object as, so that one call is enough: the
// only manager it had, if it had one. Else it returns the entries to put back.
func creator(managed []any) (manager string, entries []any) {
	for _, v := range managed {
		// What wrote the status owns nothing in an object that comes back without one.
		if m, ok := v.(map[string]any); ok && object(m).str("subresource") == "" {
			entries = append(entries, v)
		}
	}
	if len(entries) == 0 {
		return fieldManager, nil
	}
	if m, _ := entries[0].(map[string]any); len(entries) == 1 && m["operation"] == "Update" && object(m).str("manager") != "" {
		return object(m).str("manager"), nil
	}
	return fieldManager, entries
}

// putManagers gives a created object its field managers back. Failing costs no data, so it
// never fails the item.
func (a *applier) putManagers(ctx context.Context, it *Item, u *unstructured.Unstructured, entries []any) {
	uid := u.GetUID()
	if it.Resource == claims {
		u = a.provisioning(ctx, it, u)
	}
	client := a.target.client(it.served, it.Namespace)
	for range maxRebases {
		if u == nil || u.GetUID() != uid {
			return // it is somebody else's
		}
		list := entries
		live, _ := object(u.Object).at("metadata", "managedFields").([]any)
		for _, v := range live { // a controller may have been at it already
			if m, ok := v.(map[string]any); ok && m["manager"] != fieldManager && !hasManager(entries, m) {
				list = append(slices.Clip(list), v)
			}
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"managedFields": list, "uid": u.GetUID(), "resourceVersion": u.GetResourceVersion()}})
		if err != nil {
			return
		}
		_, err = retry(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
			return client.Patch(ctx, it.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
		})
		if !apierrors.IsConflict(err) {
			return
		}
		if u, err = a.target.get(ctx, it.served, it.Namespace, it.Name); err != nil {
			return
		}
	}
}

// provisioningWait is the limit for one claim.
const provisioningWait = time.Second

// provisioning waits until the volume controller has asked for the claim's volume, and returns the claim as it is then; nil when it cannot be read. The controller
// does so as soon as the claim is there, with what it read then; when a write of ours comes between, it tries again at its next look at all claims only, up to 15 s
// later (kube-controller-manager, --pvclaimbinder-sync-period). A claim that waits for its first Pod, or that is of no class, is left alone by it, and a
// class that it said nothing about in time is not waited for again.
func (a *applier) provisioning(ctx context.Context, it *Item, u *unstructured.Unstructured) *unstructured.Unstructured {
	class := object(u.Object).str("spec", "storageClassName")
	if class == "" || object(u.Object).str("spec", "volumeName") != "" || a.isIdle(ctx, class) {
		return u
	}
	for until := time.Now().Add(provisioningWait); time.Now().Before(until) && sleep(ctx, provisioningWait/20); {
		var err error
		if u, err = a.target.get(ctx, it.served, it.Namespace, it.Name); err != nil || u == nil {
			return nil
		}
		if object(u.Object).annotation("volume.kubernetes.io/storage-provisioner") != "" || object(u.Object).str("spec", "volumeName") != "" {
			return u
		}
	}
	a.nowIdle(class, true)
	return u
}

// isIdle reports whether the volume controller does nothing at once about claims of a class.
func (a *applier) isIdle(ctx context.Context, class string) bool {
	a.mu.Lock()
	idle, known := a.idle[class]
	a.mu.Unlock()
	if r, ok := a.target.version(storageClasses, "v1"); ok && !known {
		if u, err := a.target.get(ctx, r, "", class); err == nil && u != nil {
			idle = object(u.Object).str("volumeBindingMode") == "WaitForFirstConsumer"
		}
		a.nowIdle(class, idle)
	}
	return idle
}

func (a *applier) nowIdle(class string, idle bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.idle[class] = a.idle[class] || idle
}

func hasManager(entries []any, m map[string]any) bool {
	for _, v := range entries {
		if e, ok := v.(map[string]any); ok && e["manager"] == m["manager"] && e["operation"] == m["operation"] && e["subresource"] == m["subresource"] {
			return true
		}
	}
	return false
}
