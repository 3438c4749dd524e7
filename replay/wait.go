package replay

import (
	"context"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const (
	pollEvery = 200 * time.Millisecond
	tellEvery = 2 * time.Second
)

// until polls a condition up to the limit for waits, telling what it waits for. It returns
// false when the limit or the context's end came first.
func (a *applier) until(ctx context.Context, what string, met func(context.Context) (bool, error)) (bool, error) {
	end, told := time.Now().Add(a.o.Wait), time.Time{}
	for {
		ok, err := met(ctx)
		if ok || err != nil {
			return ok, err
		}
		if a.stopped() {
			return false, ErrStopped
		}
		if time.Now().After(end) {
			return false, nil
		}
		if time.Since(told) >= tellEvery {
			a.waiting(what)
			told = time.Now()
		}
		if !sleep(ctx, pollEvery) {
			return false, context.Cause(ctx)
		}
	}
}

// awaitGone waits until the object, which is being deleted, is not there any more.
func (a *applier) awaitGone(ctx context.Context, it *Item) error {
	var last *unstructured.Unstructured
	gone, err := a.until(ctx, it.String()+" to be gone", func(ctx context.Context) (bool, error) {
		u, err := a.target.get(ctx, it.served, it.Namespace, it.Name)
		if err != nil || u == nil {
			return u == nil, err
		}
		last = u
		return !object(u.Object).deleting(), nil // somebody made it anew: the create will meet it
	})
	if err != nil || gone {
		return err
	}
	return fmt.Errorf("is still being deleted after %s%s: see what holds it with 'kubectl get %s %s -o yaml', then run the restore again", a.o.Wait, holders(last), it.Resource, it.Name)
}

// finalizersWait is how long what holds a deleted object may take before it is told.
const finalizersWait = 3 * time.Second

// awaitFinalizers gives those that hold an object that was just deleted some time. That it is not gone then is told, and no failure: it is theirs by now.
func (a *applier) awaitFinalizers(ctx context.Context, it *Item) error {
	for until := time.Now().Add(finalizersWait); ; {
		u, err := a.target.get(ctx, it.served, it.Namespace, it.Name)
		if err != nil || u == nil || u.GetUID() != it.live.uid {
			return nil // gone, or nobody knows
		}
		if time.Now().After(until) || !sleep(ctx, pollEvery) {
			return &otherwise{fmt.Errorf("is marked for deletion, and not gone yet%s: it goes when they are done, or by 'kubectl edit' without them", holders(u))}
		}
	}
}

// holders names what keeps an object from going.
func holders(u *unstructured.Unstructured) string {
	if u == nil {
		return ""
	}
	var why []string
	if f := u.GetFinalizers(); len(f) > 0 {
		why = append(why, "finalizers "+strings.Join(f, ", "))
	}
	for _, c := range object(u.Object).objects("status", "conditions") {
		if c.str("status") == "True" && (c.str("type") == "NamespaceContentRemaining" || c.str("type") == "NamespaceFinalizersRemaining" || strings.HasSuffix(c.str("type"), "Failure")) {
			why = append(why, c.str("message"))
		}
	}
	if len(why) == 0 {
		return ""
	}
	return " (" + strings.Join(why, "; ") + ")"
}

// awaitDefinitions waits for all new definitions together, and then until discovery knows
// what they define. Definitions that do not make it block their resources.
func (a *applier) awaitDefinitions(ctx context.Context, items []*Item) {
	pending := map[string]*Item{}
	for _, it := range items {
		if it.Resource != definitions || !it.Action.writes() || it.Action == ActionDelete {
			continue
		}
		if a.uid(it.key()) == "" {
			a.block(it.Name+"/", commonError{fmt.Errorf("its definition %s could not be restored", it.Name)})
			continue
		}
		pending[it.Name] = it
	}
	established := map[string]*Item{}
	what := func() string { return fmt.Sprintf("%d custom resource definitions to be established", len(pending)) }
	_, err := a.until(ctx, what(), func(ctx context.Context) (bool, error) {
		for name, it := range pending {
			u, err := retry(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
				return a.target.client(it.served, "").Get(ctx, name, metav1.GetOptions{})
			})
			if err != nil && !apierrors.IsNotFound(err) {
				return false, err
			}
			if err == nil && condition(u.Object, "Established") {
				established[name] = it
				delete(pending, name)
			}
		}
		return len(pending) == 0, nil
	})
	for name := range pending {
		why := fmt.Errorf("its definition %s was not established within %s: see 'kubectl describe crd %s'", name, a.o.Wait, name)
		if err != nil {
			why = fmt.Errorf("its definition %s: %w", name, err)
		}
		a.block(name+"/", commonError{why})
	}
	_, err = a.until(ctx, "discovery to show the new definitions", func(ctx context.Context) (bool, error) {
		if err := a.target.refresh(ctx); err != nil {
			return false, err
		}
		for _, it := range established {
			o := it.create.object()
			for _, v := range o.objects("spec", "versions") {
				gv := o.str("spec", "group") + "/" + v.str("name")
				if _, ok := a.target.resourceOf(gv, o.str("spec", "names", "kind")); v.at("served") == true && !ok {
					return false, nil
				}
			}
		}
		return true, nil
	})
	if err != nil {
		a.o.Logger.Warn("discovery did not show the new definitions")
	}
}

// condition reports whether a status condition is true.
func condition(o object, kind string) bool {
	for _, c := range o.objects("status", "conditions") {
		if c.str("type") == kind {
			return c.str("status") == "True"
		}
	}
	return false
}
