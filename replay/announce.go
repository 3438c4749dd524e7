package replay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// mostAnnounced bounds the Events of one restore.
const mostAnnounced = 20

var events = schema.GroupVersionResource{Group: "events.k8s.io", Version: "v1", Resource: "events"}

// Announce leaves Events in the cluster about what was applied: one on each namespace that was written to, and one
// on each object that failed, up to 20 of each. They name what failed and not why, which the API server may have
// told in an object's words. The error is of the first that could not be written; where Events may not be written,
// there is none.
func (p *Plan) Announce(ctx context.Context, target *Target, result *Result) error {
	spaces := map[string]int{}
	for _, it := range p.Items {
		if it.Action.writes() && it.Namespace != "" && !it.Action.follows() {
			spaces[it.Namespace]++
		}
	}
	what := p.Purpose
	if what == "" {
		what = "the state at " + p.Cut.Time.UTC().Format(time.RFC3339)
	}
	var errs []error
	send := func(namespace, reason, kind, note string, regarding object) {
		now := time.Now().UTC()
		e := object{
			"apiVersion": "events.k8s.io/v1", "kind": "Event",
			"metadata":  map[string]any{"generateName": "tidemark-", "namespace": namespace},
			"eventTime": now.Format("2006-01-02T15:04:05.000000Z07:00"), "action": "Restore", "reason": reason, "type": kind, "note": note,
			"reportingController": "tidemark.dev/restore", "reportingInstance": hostnameOr("tidemark"), "regarding": map[string]any(regarding),
		}
		_, err := target.dyn.Resource(events).Namespace(namespace).Create(ctx, e.unstructured(), metav1.CreateOptions{FieldManager: fieldManager})
		if err != nil && !apierrors.IsForbidden(err) && !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	for i, ns := range slices.Sorted(maps.Keys(spaces)) {
		if i == mostAnnounced {
			break
		}
		reason, kind, note := "Restored", "Normal", fmt.Sprintf("%s: %s; %d objects of this namespace were in the plan", p.ID, what, spaces[ns])
		if result.Failed > 0 {
			reason, kind, note = "PartlyRestored", "Warning", fmt.Sprintf("%s; %d of all its objects failed", note, result.Failed)
		}
		send(ns, reason, kind, note, object{"apiVersion": "v1", "kind": "Namespace", "name": ns, "namespace": ns}) // the namespace, to be seen in it
	}
	for i := range result.Errors {
		it := result.Errors[i].Item
		if i == mostAnnounced {
			break
		}
		ns := it.Namespace
		if ns == "" || spaces[ns] == 0 {
			ns = metav1.NamespaceDefault // where Events of cluster-scoped objects go
		}
		regarding := object{"apiVersion": it.served.GroupVersion().String(), "kind": it.served.Kind, "name": it.Name, "namespace": it.Namespace}
		if it.served.Kind == "" {
			regarding = object{"apiVersion": "v1", "kind": "Namespace", "name": ns, "namespace": ns}
		}
		send(ns, "RestoreFailed", "Warning", fmt.Sprintf("%s: %s was not restored: 'tidemark restores describe %s' tells why", p.ID, it, p.ID), regarding)
	}
	return errors.Join(errs...)
}

func hostnameOr(other string) string {
	if name, err := os.Hostname(); err == nil && name != "" {
		return name
	}
	return other
}
