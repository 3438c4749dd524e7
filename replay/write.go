package replay

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tidwall/gjson"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// maxRebases is how often a write is tried again on a newer state of its object.
const maxRebases = 5

// write does what the plan says about one item. It returns how much of the time went into
// waiting, and an error that tells a person what to do.
func (a *applier) write(ctx context.Context, it *Item) (waited time.Duration, err error) {
	if it.makes() && it.Volume != nil {
		if !a.recorded() { // that it is begun: one of which that is not known is not filled
			return 0, ErrStopped
		}
		waited, err = a.writeClaim(ctx, it)
	} else {
		waited, err = a.writeItem(ctx, it)
	}
	return waited, hint(it, err)
}

func (a *applier) writeItem(ctx context.Context, it *Item) (waited time.Duration, err error) {
	start := time.Now()
	switch it.Action {
	case ActionCreate:
		if it.awaitGone {
			if err := a.awaitGone(ctx, it); err != nil {
				return time.Since(start), err
			}
			waited = time.Since(start)
		}
		err = a.create(ctx, it)
	case ActionUpdate:
		err = a.update(ctx, it)
	case ActionRecreate:
		if it.unsure {
			if done, err := a.recreated(ctx, it); done || err != nil {
				return 0, err
			}
		}
		if err = a.delete(ctx, it, metav1.DeletePropagationOrphan); err == nil {
			mark := time.Now()
			err = a.awaitGone(ctx, it)
			waited = time.Since(mark)
		}
		if err == nil {
			err = a.create(ctx, it)
		}
	case ActionStart:
		err = a.start(ctx, it)
	case ActionFill:
		err = a.fill(ctx, it)
		waited = time.Since(start)
	case ActionRelease:
		err = a.release(ctx, it)
		waited = time.Since(start)
	case ActionDelete:
		if err = a.delete(ctx, it, metav1.DeletePropagationBackground); err == nil && gjson.GetBytes(it.live.json(), "metadata.finalizers.0").Exists() {
			mark := time.Now()
			err = a.awaitFinalizers(ctx, it)
			waited = time.Since(mark)
		}
	}
	return waited, err
}

// create makes the object. The API server files the fields under the manager that creates them;
// where history knows several managers of what comes back, their entries are put back by a second call. A single one that applied
// the object does so again, where that leads to the same object.
func (a *applier) create(ctx context.Context, it *Item) error {
	if it.create == nil { // it was only to be linked to its new owner
		return &leftAlone{"was deleted by somebody else meanwhile"}
	}
	if err := a.hollow(it); err != nil {
		return err
	}
	body := it.create.object()
	if err := it.link(body, a.uid); err != nil {
		return err
	}
	manager, entries := creator(it.fieldOwners(body))
	if in := a.applicable(ctx, it, body, entries); in != nil {
		u, unsure, err := a.tryCreate(ctx, it, func(ctx context.Context) (*unstructured.Unstructured, error) { return a.apply(ctx, it, in) })
		if !a.isNoWay(it, err) {
			return a.created(ctx, it, body, entries, in, u, unsure, err)
		}
	}
	text := body.json()
	u, unsure, err := a.tryCreate(ctx, it, func(ctx context.Context) (*unstructured.Unstructured, error) {
		return a.target.create(ctx, it.served, it.Namespace, text, manager)
	})
	return a.created(ctx, it, body, entries, nil, u, unsure, err)
}

// tryCreate sends a creation until it is answered.
func (a *applier) tryCreate(ctx context.Context, it *Item, send func(context.Context) (*unstructured.Unstructured, error)) (u *unstructured.Unstructured, unsure bool, err error) {
	u, unsure, err = retryCounting(ctx, send)
	// The API server may take a moment to notice that the namespace is a new one.
	again := func() bool {
		return ofQuota(it, err) || apierrors.HasStatusCause(err, "NamespaceTerminating") && a.uid(objectKey{namespaces, "", it.Namespace}) != ""
	}
	for try := 0; try < 25 && again() && sleep(ctx, pollEvery); try++ {
		u, err = send(ctx)
	}
	return u, unsure, err
}

// ofQuota reports whether a creation was refused with a conflict about the namespace's quota, in which it counts itself: the API server gives up after some
// tries when many are at it. Nothing was written then.
func ofQuota(it *Item, err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsConflict(err) || !errors.As(err, &status) || it.Resource == quotas {
		return false
	}
	of := status.Status().Details
	return of != nil && of.Kind == quotas.Resource
}

// created does what comes after a creation: by the intent of the object's manager, or a plain one. entries are the field managers to put back, if any.
func (a *applier) created(ctx context.Context, it *Item, body object, entries []any, in *intent, u *unstructured.Unstructured, unsure bool, err error) error {
	if apierrors.IsAlreadyExists(err) || in != nil && apierrors.IsConflict(err) {
		return a.meet(ctx, it, body, unsure || it.unsure)
	}
	if err != nil {
		return err
	}
	a.restored(it.key(), string(u.GetUID()))
	a.madeAs(it, u.Object)
	if in != nil && in.shape != "" && !holds(u.Object, map[string]any(body)) {
		if u, err = a.complete(ctx, it, body, u); err != nil {
			return fmt.Errorf("was made, but with other defaults than it had, which cannot be put right: %w", err)
		}
		a.madeAs(it, u.Object)
	}
	if entries != nil && (in == nil || !in.owns(u.Object)) {
		a.putManagers(ctx, it, u, entries)
	}
	return a.putStatus(ctx, it)
}

// putStatus writes the status that the object had, if that is asked for. Its controller may write it at the same
// time, and has the last word.
func (a *applier) putStatus(ctx context.Context, it *Item) error {
	if it.status.packed == nil {
		return nil
	}
	status := it.status.list()[0]
	var err error
	for range maxRebases {
		var u *unstructured.Unstructured
		if u, err = a.target.get(ctx, it.served, it.Namespace, it.Name); err != nil || u == nil {
			break
		}
		u.Object["status"] = status
		_, err = retry(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
			return a.target.client(it.served, it.Namespace).UpdateStatus(ctx, u.DeepCopy(), metav1.UpdateOptions{FieldManager: fieldManager})
		})
		if err == nil {
			return nil
		}
		if !apierrors.IsConflict(err) {
			break
		}
	}
	return &otherwise{fmt.Errorf("was made, but its status could not be written: %w", err)}
}

// put sends an update that holds only as long as the object is as it was read.
func (a *applier) put(ctx context.Context, it *Item, body object) (*unstructured.Unstructured, error) {
	u, _, err := a.putCounting(ctx, it, body)
	return u, err
}

func (a *applier) putCounting(ctx context.Context, it *Item, body object) (u *unstructured.Unstructured, unsure bool, err error) {
	return retryCounting(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
		return a.target.client(it.served, it.Namespace).Update(ctx, body.clone().unstructured(), metav1.UpdateOptions{FieldManager: fieldManager})
	})
}

// errMeanwhile is why a planned write did not happen.
var errMeanwhile = errors.New("was changed by somebody else since the plan was made: run the restore again to see the new plan")

// update makes an existing object as it was. When the object has changed since the plan was
// made, it is written only if the change is one that the plan did not look at, such as its
// status.
func (a *applier) update(ctx context.Context, it *Item) error {
	body := it.update.object()
	if err := it.link(body, a.uid); err != nil {
		return err
	}
	for range maxRebases {
		u, unsure, err := a.putCounting(ctx, it, body)
		if err == nil {
			a.restored(it.key(), string(u.GetUID()))
			return nil
		}
		if (unsure || it.unsure) && apierrors.IsConflict(err) && a.isAs(ctx, it, body) {
			return nil // with our own write, whose answer was lost
		}
		if apierrors.IsNotFound(err) {
			return a.create(ctx, it) // the plan promised the object as it was
		}
		if !apierrors.IsConflict(err) {
			return err
		}
		live, err := a.unmoved(ctx, it)
		if err != nil {
			return err
		}
		if live == nil {
			return a.create(ctx, it)
		}
		// Nothing but bookkeeping moved: the planned body holds with the new bookkeeping.
		for _, f := range []string{"resourceVersion", "generation", "managedFields"} {
			body.put(live.at("metadata", f), "metadata", f)
		}
		if live.at("status") != nil {
			body.put(live.at("status"), "status")
		}
	}
	return errors.New("is being changed by somebody else all the time: run the restore again")
}

// unmoved reads the object again and reports an error unless it is, but for its status,
// bookkeeping and owners that the plan itself deletes, as the plan found it. It is nil when the object is gone.
func (a *applier) unmoved(ctx context.Context, it *Item) (object, error) {
	u, err := a.target.get(ctx, it.served, it.Namespace, it.Name)
	if err != nil || u == nil {
		return nil, err
	}
	live := object(u.Object)
	diff, err := DiffObjects(a.plan.disowned(it.live.object()).json(), a.plan.disowned(live).json(), DiffOptions{IgnoreStatus: true})
	if err != nil {
		return nil, err
	}
	if len(diff) > 0 || u.GetUID() != it.live.uid {
		return nil, errMeanwhile
	}
	return live, nil
}

// delete removes the very object that the plan saw. What belongs to an object that is about
// to be created anew is orphaned, not deleted: the plan links it to the new one.
func (a *applier) delete(ctx context.Context, it *Item, dependents metav1.DeletionPropagation) error {
	rv, uid := it.live.rv, it.live.uid
	for range maxRebases {
		_, err := retry(ctx, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, a.target.client(it.served, it.Namespace).Delete(ctx, it.Name, metav1.DeleteOptions{
				Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &rv}, PropagationPolicy: &dependents,
			})
		})
		switch {
		case err == nil || apierrors.IsNotFound(err):
			return nil
		case !apierrors.IsConflict(err):
			return err
		}
		live, err := a.unmoved(ctx, it)
		if err != nil {
			return err
		}
		if live == nil {
			return nil
		}
		rv = live.str("metadata", "resourceVersion")
	}
	return errors.New("is being changed by somebody else all the time: run the restore again")
}

// remove deletes an object that the plan made for its own use. One that is not there is no error.
func (a *applier) remove(ctx context.Context, r servedResource, namespace, name string) error {
	_, err := retry(ctx, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, a.target.client(r, namespace).Delete(ctx, name, metav1.DeleteOptions{})
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// hint adds to an API server's refusal what helps against it.
func hint(it *Item, err error) error {
	if err == nil {
		return nil
	}
	msg := err.Error()
	shown := err
	var status apierrors.APIStatus
	if it.Resource == secrets && errors.As(err, &status) {
		// The API server, or a webhook that it asks, may quote what is refused.
		shown = fmt.Errorf("the API server answered %d %s (the message is not shown: it may quote the Secret)", status.Status().Code, status.Status().Reason)
		if apierrors.IsInvalid(err) {
			shown = errors.New(invalid(err, "refuses"))
		}
	}
	advice := ""
	switch {
	case strings.Contains(msg, "exceeded quota"):
		advice = fmt.Sprintf("make room or raise the quota ('kubectl -n %s describe resourcequota'), then run the restore again", it.Namespace)
	case strings.Contains(msg, "failed calling webhook"):
		advice = "the webhook's backend does not answer: restore or start it first, or remove its configuration, then run the restore again"
	case strings.Contains(msg, "admission webhook") || strings.Contains(msg, "ValidatingAdmissionPolicy"):
		advice = "an admission rule of the cluster refuses the object as it was: change the rule, or take the object with 'tidemark get -o yaml' and adapt it"
	case apierrors.IsForbidden(err) && strings.Contains(msg, "is being terminated"):
		advice = "the namespace is being deleted: wait until it is gone, then run the restore again"
	case apierrors.IsForbidden(err):
		advice = "ask for the right, or restore with another kubeconfig"
	case apierrors.IsInvalid(err):
		advice = "the cluster refuses what it once accepted: take the object with 'tidemark get -o yaml' and adapt it"
	}
	if advice == "" {
		return shown
	}
	return fmt.Errorf("%w; %s", shown, advice)
}
