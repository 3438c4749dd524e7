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
var rests = map[string]string{
	"deployments.apps":       "replicas",
	"statefulsets.apps":      "replicas",
	"replicasets.apps":       "replicas",
	"replicationcontrollers": "replicas",
	"jobs.batch":             "suspend",
	"cronjobs.batch":         "suspend",
}

// atRest is what such a field holds until its workload is started, and running what the API server takes for it
// when it is left out.
var atRest, running = map[string]any{"replicas": int64(0), "suspend": true, "paused": true}, map[string]any{"replicas": int64(1), "suspend": false}

// quiesce lets workloads that the plan makes begin only when all that they use is there: they are made at rest, and an
// item of its own starts each after everything but what watches over writes. That item is journaled as all
// are, so that a restore which was cut off between the two starts them when it is gone on with.
func (p *planner) quiesce() {
	for _, it := range p.plan.Items {
		field, can := rests[it.Resource.String()]
		if !can || !it.makes() {
			continue
		}
		was, owned := it.create.object().at("spec", field), it.create.object().controller() != nil
		if was == atRest[field] || owned { // it rests already, or its controller says how many
			continue
		}
		if was == nil {
			was = running[field]
		}
		p.startLater(it, field, was)
	}
}

// pauseOwners makes Deployments paused until the ReplicaSets that the plan restores under them are there. Such a Deployment
// takes over a ReplicaSet with its Pod template, whatever its name; one that is not paused
// makes its own at once, under a name that each version of Kubernetes computes otherwise, and would run its Pods twice.
func (p *planner) pauseOwners() {
	owners := map[objectKey]bool{}
	for _, it := range p.plan.Items {
		if it.Resource.String() == "replicasets.apps" && it.Action.writes() {
			for _, o := range it.owners {
				owners[o.key] = true
			}
		}
	}
	for _, it := range p.plan.Items {
		if it.Resource.String() == "deployments.apps" && it.makes() && owners[it.key()] && it.create.object().at("spec", "paused") != true {
			p.startLater(it, "paused", it.create.object().at("spec", "paused"))
		}
	}
}

func (it *Item) makes() bool { return it.Action == ActionCreate || it.Action == ActionRecreate }

// startLater makes a workload at rest, and adds the item that gives the field what it was.
func (p *planner) startLater(it *Item, field string, was any) {
	o := it.create.object()
	o.put(atRest[field], "spec", field)
	it.create = pack(o.json())
	reason := fmt.Sprintf("%s: %v", field, was)
	if field == "paused" {
		reason = "when its ReplicaSets are there"
	}
	p.add(&Item{
		Resource: it.Resource, Namespace: it.Namespace, Name: it.Name, From: it.From, Action: ActionStart, served: it.served,
		Reason:  reason,
		managed: it.managed,
		update:  pack(object{"spec": map[string]any{field: was}}.json()),
	})
}

// starts is the field that an item gives back to a workload, and what it held; nil when it was not set.
func (it *Item) starts() (field string, was any) {
	for field, was = range it.update.object().sub("spec") {
		break
	}
	return field, was
}

// start gives a workload back what the plan made it without, unless somebody did meanwhile.
func (a *applier) start(ctx context.Context, it *Item) error {
	uid := a.uid(it.key())
	if uid == "" {
		return errors.New("was not restored, so that it is not started") // a failure, so that it is tried again with the workload
	}
	field, want := it.starts()
	manager := updaterOf(it.managed.list(), field)
	for range maxRebases {
		u, err := a.target.get(ctx, it.served, it.Namespace, it.Name)
		if err != nil {
			return err
		}
		if u == nil || string(u.GetUID()) != uid {
			return &leftAlone{"was deleted by somebody else meanwhile"}
		}
		live := object(u.Object)
		if have := live.at("spec", field); have != atRest[field] {
			if have == want { // by a run that was cut off
				a.madeAs(it, live)
				return nil
			}
			return &leftAlone{"was started by somebody else meanwhile"}
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": u.GetResourceVersion()}, "spec": map[string]any{field: want}})
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
