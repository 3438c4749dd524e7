// Package kube is what the other packages below volumes need of the Kubernetes API: objects as typed values, waiting, and running
// programs in containers.
package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// Label is on every object that is made for a volume backup or a restore, with its name: what is left over is found by it.
const Label = "tidemark.dev/volume"

// Together is a label that claims have while a snapshot of several is taken: Kubernetes chooses them by a label.
const Together = "tidemark.dev/taken-together"

// Manager is the field manager of all writes.
const Manager = "tidemark-volumes"

// The resources that are used.
var (
	Pods            = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	Secrets         = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	Claims          = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}
	events          = schema.GroupVersionResource{Version: "v1", Resource: "events"}
	Volumes         = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumes"}
	Namespaces      = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	StorageClasses  = schema.GroupVersionResource{Group: "storage.k8s.io", Version: "v1", Resource: "storageclasses"}
	Snapshots       = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshots"}
	Contents        = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshotcontents"}
	SnapshotClasses = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshotclasses"}
)

// Client talks to one cluster.
type Client struct {
	Dynamic dynamic.Interface
	config  *rest.Config
}

// New makes a client, whose pace the API server decides.
func New(cfg *rest.Config) (*Client, error) {
	c := rest.CopyConfig(cfg)
	c.QPS, c.Burst, c.UserAgent = -1, 0, Manager
	c.WarningHandler = rest.NoWarnings{}
	d, err := dynamic.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return &Client{Dynamic: d, config: c}, nil
}

// In is a resource in a namespace; without one, in all, or of none.
func (c *Client) In(r schema.GroupVersionResource, namespace string) dynamic.ResourceInterface {
	if namespace == "" {
		return c.Dynamic.Resource(r)
	}
	return c.Dynamic.Resource(r).Namespace(namespace)
}

// As is an object as a typed value.
func As[T any](u *unstructured.Unstructured) (*T, error) {
	v := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, v); err != nil {
		return nil, fmt.Errorf("read %s %s: %w", u.GetKind(), u.GetName(), err)
	}
	return v, nil
}

// Get reads one object; nil when there is none.
func Get[T any](ctx context.Context, c *Client, r schema.GroupVersionResource, namespace, name string) (*T, error) {
	u, err := c.In(r, namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s %s: %w", r.Resource, name, err)
	}
	return As[T](u)
}

// page is how many objects are asked for at once.
const page = 500

// List reads all objects with the labels; without a namespace, of all of them.
func List[T any](ctx context.Context, c *Client, r schema.GroupVersionResource, namespace, labels string) ([]*T, error) {
	var all []*T
	for o := (metav1.ListOptions{LabelSelector: labels, Limit: page}); ; {
		l, err := c.In(r, namespace).List(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", r.Resource, err)
		}
		for i := range l.Items {
			v, err := As[T](&l.Items[i])
			if err != nil {
				return nil, err
			}
			all = append(all, v)
		}
		if o.Continue = l.GetContinue(); o.Continue == "" {
			return all, nil
		}
	}
}

// Create makes an object. One that is there already under the name is no error if it carries the same Label: it is our own, of a try
// whose answer was lost.
func Create[T any](ctx context.Context, c *Client, r schema.GroupVersionResource, namespace string, o *T) (*T, error) {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{Object: m}
	made, err := c.In(r, namespace).Create(ctx, u, metav1.CreateOptions{FieldManager: Manager})
	if apierrors.IsAlreadyExists(err) {
		there, readErr := c.In(r, namespace).Get(ctx, u.GetName(), metav1.GetOptions{})
		if readErr == nil && there.GetDeletionTimestamp() == nil && there.GetLabels()[Label] != "" && there.GetLabels()[Label] == u.GetLabels()[Label] {
			made, err = there, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make %s %s: %w", r.Resource, u.GetName(), err)
	}
	return As[T](made)
}

// Complaint is the newest warning that anybody has left of an object; empty when there is none, or events may not be read.
func (c *Client) Complaint(ctx context.Context, namespace, kind, name string) (said string) {
	l, err := c.In(events, namespace).List(ctx, metav1.ListOptions{FieldSelector: "type=Warning,involvedObject.kind=" + kind + ",involvedObject.name=" + name})
	if err != nil {
		return ""
	}
	var newest time.Time
	for i := range l.Items {
		e, err := As[corev1.Event](&l.Items[i])
		if err != nil {
			continue
		}
		at := e.LastTimestamp.Time
		if e.EventTime.After(at) {
			at = e.EventTime.Time
		}
		if !at.Before(newest) {
			newest, said = at, e.Message
		}
	}
	return said
}

// Delete deletes an object, at once with now. One that is not there is no error.
func (c *Client) Delete(ctx context.Context, r schema.GroupVersionResource, namespace, name string, now bool) error {
	o := metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)}
	if now {
		o.GracePeriodSeconds = new(int64)
	}
	if err := c.In(r, namespace).Delete(ctx, name, o); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s %s: %w", r.Resource, name, err)
	}
	return nil
}

// Patch merges a change into an object. One that is not there is no error.
func (c *Client) Patch(ctx context.Context, r schema.GroupVersionResource, namespace, name string, change map[string]any) error {
	b, err := json.Marshal(change)
	if err != nil {
		return err
	}
	_, err = c.In(r, namespace).Patch(ctx, name, types.MergePatchType, b, metav1.PatchOptions{FieldManager: Manager})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("change %s %s: %w", r.Resource, name, err)
	}
	return nil
}

// poll is how often what is waited for is looked at.
const poll = 250 * time.Millisecond

// Until waits until met reports true, fails, or the context ends; then its cause is the error.
func Until(ctx context.Context, met func(context.Context) (bool, error)) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		ok, err := met(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Gone waits until an object is not there any more.
func (c *Client) Gone(ctx context.Context, r schema.GroupVersionResource, namespace, name string) error {
	return Until(ctx, func(ctx context.Context) (bool, error) {
		_, err := c.In(r, namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, Lasting(err)
	})
}

// Lasting is an error of the API that waiting does not mend; nil for others.
func Lasting(err error) error {
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) {
		return err
	}
	return nil
}

// Mounted are the Pods of a namespace that use a claim and are not over, with the node that they run on.
func Mounted(pods []*corev1.Pod, claim string) (using []*corev1.Pod) {
	for _, p := range pods {
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, v := range p.Spec.Volumes {
			name := ""
			switch {
			case v.PersistentVolumeClaim != nil:
				name = v.PersistentVolumeClaim.ClaimName
			case v.Ephemeral != nil:
				name = p.Name + "-" + v.Name
			}
			if name == claim {
				using = append(using, p)
				break
			}
		}
	}
	return using
}

// StorageClass reads a class; nil when there is none.
func (c *Client) StorageClass(ctx context.Context, name string) (*storagev1.StorageClass, error) {
	return Get[storagev1.StorageClass](ctx, c, StorageClasses, "", name)
}
