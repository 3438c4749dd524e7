// Package csi takes snapshots of claims with the CSI driver that made their volumes, one by one or several at one instant, and makes
// claims of them again.
//
// A snapshot that is kept has no objects in the cluster: its handle is all that is needed. It is imported when it is used, and
// deleted through an import as well.
package csi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/tidemark-backup/tidemark/volumes/kube"
)

var (
	// ErrNoClass is returned for a driver for which no VolumeSnapshotClass is to be chosen.
	ErrNoClass = errors.New("no VolumeSnapshotClass")
	// ErrSnapshot is returned when the driver refuses or does not come to an end.
	ErrSnapshot = errors.New("the snapshot failed")
)

// Handle is a snapshot that a storage system has.
type Handle struct {
	Driver string `json:"driver"`
	ID     string `json:"handle"`
	// Size is what a volume that is made of it must have at least, in bytes; 0 when it is not known.
	Size int64 `json:"size,omitempty"`
	// Class is the VolumeSnapshotClass that it was made with, GroupClass the VolumeGroupSnapshotClass: theirs are the secrets that a driver may want to
	// tell of it.
	Class      string `json:"class,omitempty"`
	GroupClass string `json:"groupClass,omitempty"`
	// Secret, "namespace/name", is the one that its driver wants to delete it, as the class said when it was taken; empty: none.
	Secret string `json:"secret,omitempty"`
	// Group is the handle of the group that it belongs to, and Members are those of all that do. A group is deleted as a whole.
	Group   string   `json:"group,omitempty"`
	Members []string `json:"members,omitempty"`
	// Mode is the volumeMode of its source.
	Mode string `json:"volumeMode,omitempty"`
}

// Names of what Velero's users choose classes by.
const classLabel = "velero.io/csi-volumesnapshot-class"

const defaultClass = "snapshot.storage.kubernetes.io/is-default-class"

// Class is the VolumeSnapshotClass for snapshots of a claim: the one that is named, or that the claim's annotation names, or among
// those of the driver the one with Velero's label, the default one, the only one.
func Class(ctx context.Context, c *kube.Client, driver string, claim *corev1.PersistentVolumeClaim, named string) (string, error) {
	all, err := c.In(kube.SnapshotClasses, "").List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", fmt.Errorf("%w: the cluster's cannot be listed: %w", ErrNoClass, err)
	}
	if named == "" {
		named = claim.Annotations[classLabel]
	}
	var fits, labelled, preferred []string
	for i := range all.Items {
		u := &all.Items[i]
		if d, _, _ := unstructured.NestedString(u.Object, "driver"); d != driver {
			continue
		}
		fits = append(fits, u.GetName())
		if _, has := u.GetLabels()[classLabel]; has {
			labelled = append(labelled, u.GetName())
		}
		if u.GetAnnotations()[defaultClass] == "true" {
			preferred = append(preferred, u.GetName())
		}
	}
	switch {
	case named != "" && slices.Contains(fits, named):
		return named, nil
	case named != "":
		return "", fmt.Errorf("%w %q of driver %s", ErrNoClass, named, driver)
	case len(labelled) > 0:
		return labelled[0], nil
	case len(preferred) > 0:
		return preferred[0], nil
	case len(fits) == 1:
		return fits[0], nil
	case len(fits) == 0:
		return "", fmt.Errorf("%w of driver %s: make one, or back the volume up with another action", ErrNoClass, driver)
	}
	return "", fmt.Errorf("%w is the default one of driver %s, and there are %d: name one in the policy, or mark one with the annotation %s", ErrNoClass, driver, len(fits), defaultClass)
}

// Taken is a snapshot whose instant has passed, and that may not be ready to use yet.
type Taken struct {
	Handle
	Time   time.Time // by the storage system's clock
	Volume string    // handle of the volume that it is of

	namespace, name, content string
	claim                    string // that it is made of; empty: of a handle
}

// Patience is how long a driver may report errors before a snapshot counts as failed: its controller tries again and again.
const Patience = 30 * time.Second

// Take has a snapshot of a claim made, under the name, and returns when its content is fixed. On failure nothing is left.
func Take(ctx context.Context, c *kube.Client, namespace, claim, name, class string) (_ *Taken, err error) {
	defer func() {
		if err != nil {
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
			defer cancel()
			err = errors.Join(err, drop(last, c, namespace, name))
		}
	}()
	_, err = kube.Create(ctx, c, kube.Snapshots, namespace, snapshotOf(namespace, name, class, map[string]any{"persistentVolumeClaimName": claim}))
	if err != nil {
		return nil, err
	}
	t := &Taken{namespace: namespace, name: name, claim: claim, Handle: Handle{Class: class}}
	return t, t.await(ctx, c, false)
}

const cleanTime = 20 * time.Second

// object is an object without a type of its own here.
type object = map[string]any

func snapshotOf(namespace, name, class string, source object) *object {
	spec := object{"source": source}
	if class != "" {
		spec["volumeSnapshotClassName"] = class
	}
	return &object{
		"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
		"metadata": object{"name": name, "namespace": namespace, "labels": object{kube.Label: name}}, "spec": spec,
	}
}

// await waits until the snapshot is taken, or until it is ready to use.
func (t *Taken) await(ctx context.Context, c *kube.Client, ready bool) error {
	var p patience
	err := kube.Until(ctx, func(ctx context.Context) (bool, error) {
		u, err := c.In(kube.Snapshots, t.namespace).Get(ctx, t.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, fmt.Errorf("VolumeSnapshot %s/%s was deleted by somebody else", t.namespace, t.name)
		}
		if err != nil {
			return false, kube.Lasting(err)
		}
		lasting := p.hear(u)
		if !p.since.IsZero() { // no patience with what cannot become better
			lasting = errors.Join(t.unclaimed(ctx, c), lasting)
		}
		if lasting != nil {
			return false, lasting
		}
		t.content, _, _ = unstructured.NestedString(u.Object, "status", "boundVolumeSnapshotContentName")
		if is, _, _ := unstructured.NestedBool(u.Object, "status", "readyToUse"); t.content == "" || ready && !is {
			return false, nil
		}
		content, err := c.In(kube.Contents, "").Get(ctx, t.content, metav1.GetOptions{})
		if err != nil {
			return false, kube.Lasting(err)
		}
		return t.read(content), nil
	})
	return p.explain(ctx, err)
}

// unclaimed is the error for a snapshot whose claim is gone before it was taken.
func (t *Taken) unclaimed(ctx context.Context, c *kube.Client) error {
	if t.claim == "" || t.ID != "" {
		return nil
	}
	if _, err := c.In(kube.Claims, t.namespace).Get(ctx, t.claim, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("claim %s/%s was deleted before its snapshot was taken", t.namespace, t.claim)
}

// patience is what a driver has said while it was waited for.
type patience struct {
	last  string    // the last error
	since time.Time // when it began; zero: there is none now
}

// hear looks at the error in an object's status, and gives it back when it has lasted too long.
func (p *patience) hear(u *unstructured.Unstructured) error {
	msg, _, _ := unstructured.NestedString(u.Object, "status", "error", "message")
	switch {
	case msg == "":
		p.since = time.Time{}
		return nil
	case p.since.IsZero():
		p.since = time.Now()
	}
	p.last = msg
	if time.Since(p.since) > Patience {
		return errors.New(msg)
	}
	return nil
}

// explain adds to the end of a wait what the driver said last.
func (p *patience) explain(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && p.last != "":
		return fmt.Errorf("%w: %s (%w)", ErrSnapshot, p.last, err)
	}
	return fmt.Errorf("%w: %w", ErrSnapshot, err)
}

// read takes over what is known of it; false while it is not taken.
func (t *Taken) read(content *unstructured.Unstructured) bool {
	get := func(fields ...string) string {
		s, _, _ := unstructured.NestedString(content.Object, fields...)
		return s
	}
	t.ID, t.Driver, t.Mode = get("status", "snapshotHandle"), get("spec", "driver"), get("spec", "sourceVolumeMode")
	t.Volume = get("spec", "source", "volumeHandle")
	if at, _, _ := unstructured.NestedInt64(content.Object, "status", "creationTime"); at > 0 {
		t.Time = time.Unix(0, at).UTC()
	}
	t.Size, _, _ = unstructured.NestedInt64(content.Object, "status", "restoreSize")
	t.Secret = deletionSecret(content, snapshotPrefix)
	return t.ID != "" && !t.Time.IsZero()
}

// Ready waits until volumes can be made of it.
func (t *Taken) Ready(ctx context.Context, c *kube.Client) error { return t.await(ctx, c, true) }

// Keep takes the snapshot's objects away and leaves the snapshot, which is known by its handle from now on: record that before.
func (t *Taken) Keep(ctx context.Context, c *kube.Client) error {
	err := c.Patch(ctx, kube.Contents, "", t.content, object{
		"metadata": object{"labels": object{kube.Label: t.name}}, "spec": object{"deletionPolicy": "Retain"},
	})
	if err := errors.Join(err, c.Delete(ctx, kube.Snapshots, t.namespace, t.name, false), c.Delete(ctx, kube.Contents, "", t.content, false)); err != nil {
		return err
	}
	// An import may want the same name.
	return errors.Join(c.Gone(ctx, kube.Snapshots, t.namespace, t.name), c.Gone(ctx, kube.Contents, "", t.content))
}

// Drop deletes the snapshot and its objects.
func (t *Taken) Drop(ctx context.Context, c *kube.Client) error {
	return drop(ctx, c, t.namespace, t.name)
}

// Import makes objects for a snapshot that is known by its handle, so that claims in the namespace can be made of it.
func Import(ctx context.Context, c *kube.Client, h Handle, namespace, name string) error {
	h = current(ctx, c, h)
	if err := importGroup(ctx, c, h, namespace, name); err != nil {
		return err
	}
	content, snapshot := Objects(h, namespace, name)
	if _, err := kube.Create(ctx, c, kube.Contents, "", &content); err != nil {
		return err
	}
	if _, err := kube.Create(ctx, c, kube.Snapshots, namespace, &snapshot); err != nil {
		return errors.Join(err, c.Delete(ctx, kube.Contents, "", contentName(namespace, name), false))
	}
	t := &Taken{namespace: namespace, name: name}
	return t.await(ctx, c, true)
}

// Objects are the VolumeSnapshotContent and the VolumeSnapshot of an import.
func Objects(h Handle, namespace, name string) (content, snapshot map[string]any) {
	content = object{
		"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
		"metadata": object{
			"name": contentName(namespace, name), "labels": object{kube.Label: name},
			"annotations": object{"snapshot.storage.kubernetes.io/allow-volume-mode-change": "true"},
		},
		"spec": object{
			"deletionPolicy": "Retain", "driver": h.Driver, "source": object{"snapshotHandle": h.ID},
			"volumeSnapshotRef": object{"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "namespace": namespace, "name": name},
		},
	}
	withSecret(content, snapshotPrefix, h.Secret)
	spec, _ := content["spec"].(object)
	if h.Class != "" {
		spec["volumeSnapshotClassName"] = h.Class
	}
	if h.Mode != "" {
		spec["sourceVolumeMode"] = h.Mode
	}
	return content, *snapshotOf(namespace, name, h.Class, object{"volumeSnapshotContentName": contentName(namespace, name)})
}

func contentName(namespace, name string) string { return "tidemark-" + namespace + "-" + name }

// Release takes the objects of an import away, and leaves the snapshot.
func Release(ctx context.Context, c *kube.Client, namespace, name string) error {
	return errors.Join(releaseGroup(ctx, c, contentName(namespace, name)),
		c.Delete(ctx, kube.Snapshots, namespace, name, false), c.Delete(ctx, kube.Contents, "", contentName(namespace, name), false))
}

// Claim is a claim that is made of an imported snapshot.
func Claim(source *corev1.PersistentVolumeClaimSpec, h Handle, namespace, name, snapshot string, readOnly bool) *corev1.PersistentVolumeClaim {
	size := source.Resources.Requests[corev1.ResourceStorage]
	if h.Size > size.Value() {
		size = *resource.NewQuantity(h.Size, resource.BinarySI)
	}
	mode := corev1.ReadWriteOnce
	if readOnly {
		mode = corev1.ReadOnlyMany
	}
	group := "snapshot.storage.k8s.io"
	return &corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{kube.Label: name}},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{mode}, StorageClassName: source.StorageClassName, VolumeMode: source.VolumeMode,
			Resources:  corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: size}},
			DataSource: &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: snapshot},
		},
	}
}
