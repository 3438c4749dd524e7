package replay

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// fieldOwners are the entries of managedFields by which somebody owned something of what comes back. Controllers that only owned
// what a restore leaves out, such as the volume that a claim was bound to, own nothing of it.
func (it *Item) fieldOwners(body object) []any {
	all := it.managed.list()
	if len(all) < 2 {
		return all
	}
	return slices.DeleteFunc(all, func(v any) bool {
		m, ok := v.(map[string]any)
		if !ok {
			return false
		}
		fields := object(m).sub("fieldsV1")
		return len(fields) > 0 && !ownsAny(fields, map[string]any(body))
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

// giveBack gives a created object its field managers back. Failing costs no data, so it
// never fails the item.
//
// A claim gets them when all else is done: its controller writes to it as soon as it is there, and when a write of ours comes between what it read and
// what it writes, it tries again at its next look at all claims only, up to 15 s later (kube-controller-manager, --pvclaimbinder-sync-period).
func (a *applier) giveBack(ctx context.Context, it *Item, u *unstructured.Unstructured, entries []any) {
	if it.Resource != claims {
		a.putManagers(ctx, it, u, entries)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = append(a.last, func() { a.putManagers(ctx, it, u, entries) })
}

func (a *applier) putManagers(ctx context.Context, it *Item, u *unstructured.Unstructured, entries []any) {
	client := a.target.client(it.served, it.Namespace)
	for range maxRebases {
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
		if u, err = a.target.get(ctx, it.served, it.Namespace, it.Name); err != nil || u == nil {
			return
		}
	}
}

func hasManager(entries []any, m map[string]any) bool {
	for _, v := range entries {
		if e, ok := v.(map[string]any); ok && e["manager"] == m["manager"] && e["operation"] == m["operation"] && e["subresource"] == m["subresource"] {
			return true
		}
	}
	return false
}
