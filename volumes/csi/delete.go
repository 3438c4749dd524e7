package csi

import (
	"context"
	"errors"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/volumes/kube"
)

// deletePrefix is what the names of contents begin with by which a deletion is asked for.
const deletePrefix = "tidemark-delete-"

// finalizer is the one that the driver's side takes off a content when it has deleted the snapshot. It is put on bound contents by the
// snapshot controller, and on this one by us: without it the object would be gone before the driver is asked.
const finalizer = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"

// Delete has the driver delete a snapshot that is known by its handle, with all of its group. One that is gone already is no error.
func Delete(ctx context.Context, c *kube.Client, h Handle, name string) error {
	h = current(ctx, c, h)
	content, _ := Objects(h, "default", name)
	r, protect, field := kube.Contents, finalizer, "snapshotHandle"
	if h.Group != "" {
		g, err := groupsServed(ctx, c)
		if err != nil {
			return err
		}
		r, protect, field, content = g.contents, groupFinalizer, "volumeGroupSnapshotHandle", g.content(g.current(ctx, c, h), "default", name)
	}
	spec, _ := content["spec"].(object)
	spec["deletionPolicy"] = "Delete"
	full := deletePrefix + name
	meta, _ := content["metadata"].(object)
	meta["name"], meta["finalizers"] = full, []any{protect}
	err := deleteThrough(ctx, c, r, content, full, field, h.Secret)
	if err != nil { // the object goes all the same; the next try makes another
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		return fmt.Errorf("delete snapshot %s of driver %s: %w", h.ID, h.Driver, errors.Join(err, abandon(last, c, r, full)))
	}
	return nil
}

// deleteThrough makes a content, waits until the driver knows it, and deletes it. secret is the one that the driver wants for that; empty: none.
func deleteThrough(ctx context.Context, c *kube.Client, r schema.GroupVersionResource, content object, name, field, secret string) error {
	if _, err := kube.Create(ctx, c, r, "", &content); err != nil {
		return err
	}
	known, err := lookUp(ctx, c, r, name, field)
	if err != nil {
		return err
	}
	if !known {
		return abandon(ctx, c, r, name)
	}
	if err := missing(ctx, c, secret); err != nil {
		return err
	}
	if err := c.Delete(ctx, r, "", name, false); err != nil {
		return err
	}
	return c.Gone(ctx, r, "", name)
}

// missing is the error for a Secret that is not there: without it the driver's side deletes nothing, tries for ever, and says only that it failed. One that may
// not be read is taken to be there.
func missing(ctx context.Context, c *kube.Client, secret string) error {
	namespace, name, ok := strings.Cut(secret, "/")
	if !ok {
		return nil
	}
	if _, err := c.In(kube.Secrets, namespace).Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("Secret %s is not there, with which the driver deletes it, as the class of the snapshot said when it was taken: make it again, with what the storage wants, and it goes with the next try", secret) //nolint:staticcheck // Secret is a kind
}

// lookUp waits until the driver has told of the snapshot of a content, and reports whether it has it. field is that of the status with its handle.
func lookUp(ctx context.Context, c *kube.Client, r schema.GroupVersionResource, content, field string) (known bool, err error) {
	var p patience
	err = kube.Until(ctx, func(ctx context.Context) (bool, error) {
		u, err := c.In(r, "").Get(ctx, content, metav1.GetOptions{})
		if err != nil {
			return false, kube.Lasting(err)
		}
		handle, _, _ := unstructured.NestedString(u.Object, "status", field)
		msg, _, _ := unstructured.NestedString(u.Object, "status", "error", "message")
		switch known = handle != ""; {
		case known:
			return true, nil
		case strings.Contains(msg, "can not find"), strings.Contains(msg, "NotFound"): // what the driver's side says when a list or a look has none
			return true, nil
		}
		return false, p.hear(u)
	})
	return known, err
}

// abandon deletes a content and leaves the snapshot alone.
func abandon(ctx context.Context, c *kube.Client, r schema.GroupVersionResource, content string) error {
	return errors.Join(
		c.Patch(ctx, r, "", content, object{"metadata": object{"finalizers": nil}, "spec": object{"deletionPolicy": "Retain"}}),
		c.Delete(ctx, r, "", content, false))
}

// Beginnings of the annotations of contents of snapshots, and of groups.
const (
	snapshotPrefix = "snapshot.storage.kubernetes.io/"
	groupPrefix    = "groupsnapshot.storage.kubernetes.io/"
)

// Annotations of contents, after their beginning. A driver's side takes the Secret for a deletion from them, and never from the class; the snapshot
// controller writes them on contents that it makes, and for others whoever makes them has to.
const (
	secretName      = "deletion-secret-name"
	secretNamespace = "deletion-secret-namespace"
)

// deletionSecret is the Secret, "namespace/name", with which what a content stands for is deleted; empty: none.
func deletionSecret(content *unstructured.Unstructured, prefix string) string {
	a := content.GetAnnotations()
	if a[prefix+secretName] == "" {
		return ""
	}
	return a[prefix+secretNamespace] + "/" + a[prefix+secretName]
}

// withSecret gives a content the Secret with which what it stands for is deleted.
func withSecret(content object, prefix, secret string) {
	namespace, name, ok := strings.Cut(secret, "/")
	if !ok {
		return
	}
	meta, _ := content["metadata"].(object)
	a, _ := meta["annotations"].(object)
	if a == nil {
		a = object{}
		meta["annotations"] = a
	}
	a[prefix+secretName], a[prefix+secretNamespace] = name, namespace
}

// current is a handle by what the cluster has now: a class that is gone is left out, for its driver's side would wait for it, and a snapshot that was
// recorded without its Secret has the one that its class names. A class that may not be read is taken to be there.
func current(ctx context.Context, c *kube.Client, h Handle) Handle {
	if h.Class == "" {
		return h
	}
	class, err := c.In(kube.SnapshotClasses, "").Get(ctx, h.Class, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		h.Class = ""
	case err == nil && h.Secret == "" && h.Group == "":
		p, _, _ := unstructured.NestedStringMap(class.Object, "parameters")
		name, namespace := p["csi.storage.k8s.io/snapshotter-secret-name"], p["csi.storage.k8s.io/snapshotter-secret-namespace"]
		if name != "" && namespace != "" && !strings.Contains(name+namespace, "${") {
			h.Secret = namespace + "/" + name
		}
	}
	return h
}
