package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// rests are the workloads that can be made without running, and the field that holds them back.
var rests = map[string]struct {
	field string
	value any
}{
	"deployments.apps":       {"replicas", int64(0)},
	"statefulsets.apps":      {"replicas", int64(0)},
	"replicasets.apps":       {"replicas", int64(0)},
	"replicationcontrollers": {"replicas", int64(0)},
	"jobs.batch":             {"suspend", true},
	"cronjobs.batch":         {"suspend", true},
}

// quiesce lets workloads that the plan makes begin only when all that they use is there: they are made at rest, and an
// item of its own starts each after everything but what watches over writes. That item is journaled as all
// are, so that a restore which was cut off between the two starts them when it is gone on with.
func (p *planner) quiesce() {
	for _, it := range p.plan.Items {
		rest, can := rests[it.Resource.String()]
		if !can || it.Action != ActionCreate && it.Action != ActionRecreate {
			continue
		}
		o := it.create.object()
		was := o.at("spec", rest.field)
		if was == rest.value || o.controller() != nil { // it rests already, or its controller says how many
			continue
		}
		o.put(rest.value, "spec", rest.field)
		it.create = pack(o.json())
		if was == nil {
			was = map[string]any{"replicas": int64(1), "suspend": false}[rest.field] // the API server's default
		}
		p.add(&Item{
			Resource: it.Resource, Namespace: it.Namespace, Name: it.Name, From: it.From, Action: ActionStart, served: it.served,
			Reason:  fmt.Sprintf("%s: %v", rest.field, was),
			managed: it.managed,
			update:  pack(object{"spec": map[string]any{rest.field: was}}.json()),
		})
	}
}

// start gives a workload back what the plan made it without, unless somebody did meanwhile.
func (a *applier) start(ctx context.Context, it *Item) error {
	uid := a.uid(it.key())
	if uid == "" {
		return &leftAlone{"was not restored, so that it is not started"}
	}
	rest := rests[it.Resource.String()]
	want := it.update.object().at("spec", rest.field)
	manager := updaterOf(it.managed.list(), rest.field)
	for range maxRebases {
		u, err := a.target.get(ctx, it.served, it.Namespace, it.Name)
		if err != nil {
			return err
		}
		if u == nil || string(u.GetUID()) != uid {
			return &leftAlone{"was deleted by somebody else meanwhile"}
		}
		live := object(u.Object)
		if have := live.at("spec", rest.field); have != rest.value {
			if have == want { // by a run that was cut off
				a.madeAs(it, live)
				return nil
			}
			return &leftAlone{"was started by somebody else meanwhile"}
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": u.GetResourceVersion()}, "spec": map[string]any{rest.field: want}})
		if err != nil {
			return err
		}
		u, err = retry(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
			return a.target.client(it.served, it.Namespace).Patch(ctx, it.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: manager})
		})
		if err == nil {
			a.madeAs(it, u.Object)
			return nil
		}
		if !apierrors.IsConflict(err) {
			return err
		}
	}
	return errors.New("is being changed by somebody else all the time: run the restore again")
}

// updaterOf is the manager that set a field of the spec, so that it stays that manager's.
func updaterOf(managed []any, field string) string {
	for _, v := range managed {
		m, _ := v.(map[string]any)
		if e := object(m); e.str("operation") == "Update" && e.str("subresource") == "" && e.at("fieldsV1", "f:spec", "f:"+field) != nil {
			return e.str("manager")
		}
	}
	return fieldManager
}
