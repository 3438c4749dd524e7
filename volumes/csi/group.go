package csi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/volumes/kube"
)

// ErrNoGroups is returned where the cluster or the driver cannot take a snapshot of several volumes at one instant.
var ErrNoGroups = errors.New("no group snapshots")

// groupVersions are the versions that are understood, best first.
var groupVersions = []string{"v1", "v1beta2"}

const groupAPI = "groupsnapshot.storage.k8s.io"

// groups are the resources of one version.
type groups struct {
	version                      string
	snapshots, contents, classes schema.GroupVersionResource
}

// resourcesOf are the resources of a version.
func resourcesOf(version string) *groups {
	g := &groups{version: version}
	for r, name := range map[*schema.GroupVersionResource]string{&g.snapshots: "volumegroupsnapshots", &g.contents: "volumegroupsnapshotcontents", &g.classes: "volumegroupsnapshotclasses"} {
		*r = schema.GroupVersionResource{Group: groupAPI, Version: version, Resource: name}
	}
	return g
}

// groupsServed finds the best version that the cluster serves.
func groupsServed(ctx context.Context, c *kube.Client) (*groups, error) {
	for _, v := range groupVersions {
		g := resourcesOf(v)
		_, err := c.In(g.classes, "").List(ctx, metav1.ListOptions{Limit: 1})
		if err == nil {
			return g, nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("%w: %w", ErrNoGroups, err)
		}
	}
	return nil, fmt.Errorf("%w: the cluster does not serve %s", ErrNoGroups, groupAPI)
}

// servedGroups finds the version that the cluster serves, and the class of the driver.
func servedGroups(ctx context.Context, c *kube.Client, driver string) (*groups, string, error) {
	g, err := groupsServed(ctx, c)
	if err != nil {
		return nil, "", err
	}
	all, err := c.In(g.classes, "").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrNoGroups, err)
	}
	class := ""
	for i := range all.Items {
		u := &all.Items[i]
		if d, _, _ := unstructured.NestedString(u.Object, "driver"); d != driver {
			continue
		}
		if class == "" || u.GetAnnotations()["groupsnapshot.storage.kubernetes.io/is-default-class"] == "true" {
			class = u.GetName()
		}
	}
	if class == "" {
		return nil, "", fmt.Errorf("%w: there is no VolumeGroupSnapshotClass of driver %s", ErrNoGroups, driver)
	}
	return g, class, nil
}

const groupFinalizer = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshotcontent-bound-protection"

// content is the VolumeGroupSnapshotContent of an import of a group. The snapshot controller wants it to be there when a member is imported.
func (g *groups) content(h Handle, namespace, name string) object {
	members := make([]any, len(h.Members))
	for i, m := range h.Members {
		members[i] = m
	}
	content := object{
		"apiVersion": groupAPI + "/" + g.version, "kind": "VolumeGroupSnapshotContent",
		"metadata": object{"name": contentName(namespace, name), "labels": object{kube.Label: name}},
		"spec": object{
			"deletionPolicy": "Retain", "driver": h.Driver,
			"source":                 object{"groupSnapshotHandles": object{"volumeGroupSnapshotHandle": h.Group, "volumeSnapshotHandles": members}},
			"volumeGroupSnapshotRef": object{"namespace": namespace, "name": name},
		},
	}
	withSecret(content, groupPrefix, h.Secret)
	if spec, _ := content["spec"].(object); h.GroupClass != "" {
		spec["volumeGroupSnapshotClassName"] = h.GroupClass
	}
	return content
}

// current is a handle without a class that is gone: its driver's side would wait for it.
func (g *groups) current(ctx context.Context, c *kube.Client, h Handle) Handle {
	if h.GroupClass == "" {
		return h
	}
	if _, err := c.In(g.classes, "").Get(ctx, h.GroupClass, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		h.GroupClass = ""
	}
	return h
}

// importGroup makes what an import of a member of a group needs beside.
func importGroup(ctx context.Context, c *kube.Client, h Handle, namespace, name string) error {
	if h.Group == "" {
		return nil
	}
	g, err := groupsServed(ctx, c)
	if err != nil {
		return err
	}
	content := g.content(g.current(ctx, c, h), namespace, name)
	if _, err := kube.Create(ctx, c, g.contents, "", &content); err != nil {
		return err
	}
	known, err := lookUp(ctx, c, g.contents, contentName(namespace, name), "volumeGroupSnapshotHandle")
	if err == nil && !known {
		err = fmt.Errorf("%w: the driver does not know group %s any more", ErrSnapshot, h.Group)
	}
	return err
}

// releaseGroup takes the object of a group's import away.
func releaseGroup(ctx context.Context, c *kube.Client, name string) (err error) {
	for _, v := range groupVersions { // where it is not served, there is nothing
		err = errors.Join(err, c.Delete(ctx, resourcesOf(v).contents, "", name, false))
	}
	return err
}

// sweepGroups deletes what a group snapshot that was cut off left under a name.
func sweepGroups(ctx context.Context, c *kube.Client, namespace, name string) (err error) {
	for _, v := range groupVersions { // where it is not served, there is nothing
		err = errors.Join(err, resourcesOf(v).drop(ctx, c, namespace, name))
	}
	return err
}

// drop deletes a group snapshot that was asked for under a name, and its objects.
func (g *groups) drop(ctx context.Context, c *kube.Client, namespace, name string) error {
	if err := c.Delete(ctx, g.snapshots, namespace, name, false); err != nil {
		return err
	}
	found := false
	sweep := func() error {
		return sweepContents(ctx, c, g.contents, "volumeGroupSnapshotRef", namespace, name, func(group *unstructured.Unstructured) error {
			found = true
			id, _, _ := unstructured.NestedString(group.Object, "status", "volumeGroupSnapshotHandle")
			members, err := membersOf(ctx, c, id)
			for _, m := range members { // before the group's, by which they are found
				err = errors.Join(err, free(ctx, c, kube.Contents, m.GetName()))
			}
			return err
		})
	}
	if err := sweep(); err != nil {
		return err
	}
	// Until its object is gone, the snapshot controller may make more of them.
	if err := c.Gone(ctx, g.snapshots, namespace, name); err != nil {
		if found {
			return nil // all that is left is being deleted
		}
		return fmt.Errorf("delete VolumeGroupSnapshot %s/%s: %w", namespace, name, err)
	}
	return sweep()
}

// Group is a snapshot of several volumes at one instant.
type Group struct {
	ID   string // the storage system's handle
	Time time.Time
	// Members are the snapshots by the handles of the volumes.
	Members map[string]Handle

	r                        *groups
	class                    string
	namespace, name, content string
}

// GroupRequest asks for a snapshot of several volumes of one driver.
type GroupRequest struct {
	Driver, Namespace, Name string
	// Label and Value choose Claims.
	Label, Value string
	Claims       []string
	// Mark are claims that have the label only until the snapshot is taken.
	Mark []string
}

// lookEvery is how often the claims of a group that makes no progress are asked for.
const lookEvery = 3 * time.Second

// GoneError is returned for a group of which claims were deleted before it was taken.
type GoneError struct {
	Namespace string
	Claims    []string
}

// Error names them.
func (e *GoneError) Error() string {
	return fmt.Sprintf("claim %s/%s was deleted before its snapshot was taken", e.Namespace, strings.Join(e.Claims, ", "))
}

// gone is the error for claims that are not there any more.
func gone(ctx context.Context, c *kube.Client, namespace string, claims []string) error {
	e := &GoneError{Namespace: namespace}
	for _, name := range claims {
		if _, err := c.In(kube.Claims, namespace).Get(ctx, name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			e.Claims = append(e.Claims, name)
		}
	}
	if e.Claims == nil {
		return nil
	}
	return e
}

// mark gives claims a label, or takes it away.
func mark(ctx context.Context, c *kube.Client, namespace string, claims []string, label string, value any) (err error) {
	for _, name := range claims {
		err = errors.Join(err, c.Patch(ctx, kube.Claims, namespace, name, object{"metadata": object{"labels": object{label: value}}}))
	}
	return err
}

// Unmark takes away what a group snapshot that was cut off left on a claim.
func Unmark(ctx context.Context, c *kube.Client, namespace, claim string) error {
	o, err := kube.Get[corev1.PersistentVolumeClaim](ctx, c, kube.Claims, namespace, claim)
	if err != nil || o == nil || o.Labels[kube.Together] == "" {
		return err
	}
	return mark(ctx, c, namespace, []string{claim}, kube.Together, nil)
}

// TakeGroup has a snapshot made of all claims with a label, and returns when their content is fixed. On failure nothing is left.
func TakeGroup(ctx context.Context, c *kube.Client, q GroupRequest) (_ *Group, err error) {
	r, class, err := servedGroups(ctx, c, q.Driver)
	if err != nil {
		return nil, err
	}
	namespace, name := q.Namespace, q.Name
	if len(q.Mark) > 0 {
		defer func() {
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
			defer cancel()
			err = errors.Join(err, mark(last, c, namespace, q.Mark, q.Label, nil))
		}()
		if err := mark(ctx, c, namespace, q.Mark, q.Label, q.Value); err != nil {
			return nil, err
		}
	}
	g := &Group{r: r, class: class, namespace: namespace, name: name}
	defer func() {
		if err != nil {
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
			defer cancel()
			err = errors.Join(err, r.drop(last, c, namespace, name))
		}
	}()
	_, err = kube.Create(ctx, c, r.snapshots, namespace, &object{
		"apiVersion": groupAPI + "/" + r.version, "kind": "VolumeGroupSnapshot",
		"metadata": object{"name": name, "namespace": namespace, "labels": object{kube.Label: name}},
		"spec": object{
			"volumeGroupSnapshotClassName": class, "source": object{"selector": object{"matchLabels": object{q.Label: q.Value}}},
		},
	})
	if err != nil {
		return nil, err
	}
	return g, g.await(ctx, c, q.Claims, false)
}

// Ready waits until volumes can be made of all members.
func (g *Group) Ready(ctx context.Context, c *kube.Client) error {
	return g.await(ctx, c, nil, true)
}

// await waits until a snapshot of claims is taken, or, without claims, of the members it has.
func (g *Group) await(ctx context.Context, c *kube.Client, claims []string, ready bool) error {
	var p patience
	var looked time.Time
	volumes := max(len(claims), len(g.Members))
	err := kube.Until(ctx, func(ctx context.Context) (bool, error) {
		u, err := c.In(g.r.snapshots, g.namespace).Get(ctx, g.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, fmt.Errorf("VolumeGroupSnapshot %s/%s was deleted by somebody else", g.namespace, g.name)
		}
		if err != nil {
			return false, kube.Lasting(err)
		}
		lasting := p.hear(u)
		if !p.since.IsZero() && time.Since(looked) > lookEvery { // no patience with what cannot become better
			looked = time.Now()
			lasting = errors.Join(gone(ctx, c, g.namespace, claims), lasting)
		}
		if lasting != nil {
			return false, lasting
		}
		g.content, _, _ = unstructured.NestedString(u.Object, "status", "boundVolumeGroupSnapshotContentName")
		if is, _, _ := unstructured.NestedBool(u.Object, "status", "readyToUse"); g.content == "" || ready && !is {
			return false, nil
		}
		content, err := c.In(g.r.contents, "").Get(ctx, g.content, metav1.GetOptions{})
		if err != nil {
			return false, kube.Lasting(err)
		}
		if g.read(content, volumes) {
			return true, nil
		}
		if g.cut() { // of fewer than were asked for, and no more will come of one that is gone
			return false, gone(ctx, c, g.namespace, claims)
		}
		return false, nil
	})
	return p.explain(ctx, err)
}

func (g *Group) read(content *unstructured.Unstructured, volumes int) bool {
	g.ID, _, _ = unstructured.NestedString(content.Object, "status", "volumeGroupSnapshotHandle")
	driver, _, _ := unstructured.NestedString(content.Object, "spec", "driver")
	if text, _, _ := unstructured.NestedString(content.Object, "status", "creationTime"); text != "" {
		g.Time, _ = time.Parse(time.RFC3339, text)
	}
	list, _, _ := unstructured.NestedSlice(content.Object, "status", "volumeSnapshotInfoList")
	g.Members = map[string]Handle{}
	var ids []string
	for _, v := range list {
		m, _ := v.(object)
		volume, _ := m["volumeHandle"].(string)
		id, _ := m["snapshotHandle"].(string)
		size, _ := m["restoreSize"].(int64)
		ids = append(ids, id)
		g.Members[volume] = Handle{Driver: driver, ID: id, Size: size, Group: g.ID, GroupClass: g.class, Secret: deletionSecret(content, groupPrefix)}
	}
	for volume, h := range g.Members {
		h.Members = ids
		g.Members[volume] = h
	}
	return g.cut() && len(g.Members) >= volumes
}

// cut reports whether the content of what is in it is fixed.
func (g *Group) cut() bool { return g.ID != "" && !g.Time.IsZero() }

// Keep takes all objects of the group away and leaves the snapshots: record their handles before.
func (g *Group) Keep(ctx context.Context, c *kube.Client) error {
	retain := object{"metadata": object{"labels": object{kube.Label: g.name}}, "spec": object{"deletionPolicy": "Retain"}}
	if err := c.Patch(ctx, g.r.contents, "", g.content, retain); err != nil {
		return err
	}
	members, err := membersOf(ctx, c, g.ID)
	if err != nil {
		return err
	}
	for _, m := range members {
		if err := c.Patch(ctx, kube.Contents, "", m.GetName(), retain); err != nil {
			return err
		}
	}
	if err := errors.Join(c.Delete(ctx, g.r.snapshots, g.namespace, g.name, false), c.Delete(ctx, g.r.contents, "", g.content, false)); err != nil {
		return err
	}
	for _, m := range members {
		name, _, _ := unstructured.NestedString(m.Object, "spec", "volumeSnapshotRef", "name")
		if err := errors.Join(c.Delete(ctx, kube.Snapshots, g.namespace, name, false), c.Delete(ctx, kube.Contents, "", m.GetName(), false)); err != nil {
			return err
		}
	}
	return errors.Join(c.Gone(ctx, g.r.snapshots, g.namespace, g.name), c.Gone(ctx, g.r.contents, "", g.content))
}

// membersOf are the contents that the snapshot controller made of the members of a group.
func membersOf(ctx context.Context, c *kube.Client, group string) (found []*unstructured.Unstructured, err error) {
	if group == "" {
		return nil, nil
	}
	err = each(ctx, c, kube.Contents, "", func(u *unstructured.Unstructured) error {
		id, _, _ := unstructured.NestedString(u.Object, "status", "volumeGroupSnapshotHandle")
		if !imported(u) && (id == group || u.GetAnnotations()["groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle"] == group) {
			found = append(found, u)
		}
		return nil
	})
	return found, err
}

// Drop deletes the snapshots and their objects.
func (g *Group) Drop(ctx context.Context, c *kube.Client) error {
	return g.r.drop(ctx, c, g.namespace, g.name)
}
