package volumes

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
	kubetesting "k8s.io/client-go/testing"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/kube"
	"github.com/tidemark-backup/tidemark/volumes/mover"
	"github.com/tidemark-backup/tidemark/volumes/policy"
	"github.com/tidemark-backup/tidemark/volumes/repository"
)

const driver = "csi.example"

// cluster is one that does what a run asks of it, and what a test has it do wrong: its snapshots are taken at once, and its movers are not there.
type cluster struct {
	*world
	*fake.FakeDynamicClient
	k *Keeper

	exec  func(pod, command string) (kube.Executed, error) // nil: every program succeeds
	mover func(ctx context.Context, at mover.Place) error  // nil: every mover succeeds
	// ready says whether group snapshots can be used yet.
	ready func() bool

	mu     sync.Mutex
	calls  []string                     // what was done, in order
	tagged map[string]map[string]string // by backup: the tags of its content
}

var groupGVR = schema.GroupVersionResource{Group: "groupsnapshot.storage.k8s.io", Version: "v1", Resource: "volumegroupsnapshots"}

func newCluster(t *testing.T, limits Cluster, objects ...runtime.Object) *cluster {
	c := &cluster{world: newWorld(t), tagged: map[string]map[string]string{}}
	classes := []runtime.Object{
		&unstructured.Unstructured{Object: map[string]any{"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", "metadata": map[string]any{"name": "snaps"}, "driver": driver}},
		&unstructured.Unstructured{Object: map[string]any{"apiVersion": groupGVR.GroupVersion().String(), "kind": "VolumeGroupSnapshotClass", "metadata": map[string]any{"name": "groups"}, "driver": driver}},
	}
	for i, o := range objects {
		u, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		ok(t, err)
		objects[i] = &unstructured.Unstructured{Object: u}
	}
	lists := map[schema.GroupVersionResource]string{
		kube.Claims: "PersistentVolumeClaimList", kube.Volumes: "PersistentVolumeList", kube.Pods: "PodList", kube.Secrets: "SecretList",
		kube.Snapshots: "VolumeSnapshotList", kube.Contents: "VolumeSnapshotContentList", kube.SnapshotClasses: "VolumeSnapshotClassList",
	}
	for _, v := range []string{"v1", "v1beta2"} {
		for resource, kind := range map[string]string{"volumegroupsnapshots": "VolumeGroupSnapshotList", "volumegroupsnapshotcontents": "VolumeGroupSnapshotContentList", "volumegroupsnapshotclasses": "VolumeGroupSnapshotClassList"} {
			lists[groupGVR.GroupResource().WithVersion(v).GroupVersion().WithResource(resource)] = kind
		}
	}
	c.FakeDynamicClient = fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, append(classes, objects...)...)
	c.PrependReactor("create", "*", c.create)
	c.PrependReactor("get", groupGVR.Resource, c.becomeReady)
	limits.Client, limits.Mover = &kube.Client{Dynamic: c.FakeDynamicClient}, c
	limits.Exec = func(_ context.Context, _, pod, _ string, command []string) (kube.Executed, error) {
		c.did("exec " + command[0])
		if c.exec == nil {
			return kube.Executed{}, nil
		}
		return c.exec(pod, command[0])
	}
	record, clock, fence := c.o.Record, c.o.Clock, c.o.Fence
	c.o.Record = func(ctx context.Context, e journal.Event) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		return record(ctx, e)
	}
	c.o.Recorded = func(ctx context.Context) iter.Seq2[journal.Event, error] {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.recorded(ctx)
	}
	c.o.Clock = func() time.Time {
		c.mu.Lock()
		defer c.mu.Unlock()
		return clock()
	}
	c.o.Fence = func(ctx context.Context) (journal.Cut, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		return fence(ctx)
	}
	c.o.Cluster = &limits
	c.k = New(c.o)
	ok(t, c.k.Settle(t.Context()))
	return c
}

func (c *cluster) did(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, what)
}

// create is what controllers do with the objects of snapshots.
func (c *cluster) create(a kubetesting.Action) (bool, runtime.Object, error) {
	made, is := a.(kubetesting.CreateAction)
	if !is {
		return false, nil, nil
	}
	u, is := made.GetObject().(*unstructured.Unstructured)
	if !is {
		return false, nil, nil
	}
	name, r := u.GetName(), a.GetResource()
	content := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": "content-" + name}, "spec": map[string]any{"driver": driver}}}
	switch r.Resource {
	case "volumesnapshots":
		c.did("snapshot")
		content.SetAPIVersion("snapshot.storage.k8s.io/v1")
		content.SetKind("VolumeSnapshotContent")
		content.Object["status"] = map[string]any{"snapshotHandle": "h-" + name, "creationTime": time.Now().UnixNano(), "restoreSize": int64(1 << 20)}
		u.Object["status"] = map[string]any{"boundVolumeSnapshotContentName": content.GetName(), "readyToUse": true}
		return false, nil, c.Tracker().Create(kube.Contents, content, "")
	case "volumesnapshotcontents": // of an import
		handle, _, _ := unstructured.NestedString(u.Object, "spec", "source", "snapshotHandle")
		u.Object["status"] = map[string]any{"snapshotHandle": handle, "creationTime": time.Now().UnixNano()}
	case "volumegroupsnapshotcontents":
		handle, _, _ := unstructured.NestedString(u.Object, "spec", "source", "groupSnapshotHandles", "volumeGroupSnapshotHandle")
		u.Object["status"] = map[string]any{"volumeGroupSnapshotHandle": handle}
	case groupGVR.Resource:
		c.did("group")
		label, _, _ := unstructured.NestedStringMap(u.Object, "spec", "source", "selector", "matchLabels")
		claims, err := c.Tracker().List(kube.Claims, corev1.SchemeGroupVersion.WithKind("PersistentVolumeClaim"), u.GetNamespace())
		if err != nil {
			return true, nil, err
		}
		var members []any
		for _, claim := range claims.(*unstructured.UnstructuredList).Items {
			if labels.SelectorFromSet(label).Matches(labels.Set(claim.GetLabels())) {
				members = append(members, map[string]any{"volumeHandle": "handle-" + claim.GetName(), "snapshotHandle": "h-" + claim.GetName()})
			}
		}
		content.SetAPIVersion(groupGVR.GroupVersion().String())
		content.SetKind("VolumeGroupSnapshotContent")
		content.Object["status"] = map[string]any{"volumeGroupSnapshotHandle": "g-" + name, "creationTime": time.Now().Format(time.RFC3339), "volumeSnapshotInfoList": members}
		u.Object["status"] = map[string]any{"boundVolumeGroupSnapshotContentName": content.GetName(), "readyToUse": c.ready == nil}
		return false, nil, c.Tracker().Create(r.GroupVersion().WithResource("volumegroupsnapshotcontents"), content, "")
	}
	return false, nil, nil
}

// becomeReady is what the snapshot controller does with a group in the end.
func (c *cluster) becomeReady(a kubetesting.Action) (bool, runtime.Object, error) {
	get, is := a.(kubetesting.GetAction)
	if !is || c.ready == nil || !c.ready() {
		return false, nil, nil
	}
	o, err := c.Tracker().Get(groupGVR, a.GetNamespace(), get.GetName())
	if u, is := o.(*unstructured.Unstructured); is {
		err = errors.Join(err, unstructured.SetNestedField(u.Object, true, "status", "readyToUse"))
	}
	return err == nil, o, err
}

// Run implements Mover.
func (c *cluster) Run(ctx context.Context, name string, _ mover.Job, at mover.Place, _ archive.Store, tags func() (map[string]string, error), _ func(repository.Progress)) (*mover.Outcome, error) {
	c.did("move " + at.Claim)
	if c.mover != nil {
		if err := c.mover(ctx, at); err != nil {
			return nil, err
		}
	}
	if tags != nil {
		all, err := tags()
		if err != nil {
			return nil, err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.tagged[name] = all
	}
	return &mover.Outcome{Result: &repository.Result{Backup: repository.Backup{ID: "content-of-" + name, Files: 1}}}, nil
}

// Owner implements Mover.
func (c *cluster) Owner() string { return "test" }

// back backs claims up, and gives the backups by their claims.
func (c *cluster) back(q ClaimsRequest) (map[string]*Backup, error) {
	m, err := c.k.BackClaims(c.Context(), q, nil)
	if m == nil {
		c.Fatal(err)
	}
	by := map[string]*Backup{}
	for _, b := range m.Backups {
		by[b.Spec.Claim] = b
	}
	return by, err
}

// recorded is what history has of a backup now.
func (c *cluster) recordOf(b *Backup) *Backup {
	c.Helper()
	found, err := c.k.Find(context.WithoutCancel(c.Context()), b.Metadata.Name)
	ok(c.T, err)
	return found
}

// claim is a claim with its volume.
func claim(namespace, name string, labels map[string]string) []runtime.Object {
	volume := "pv-" + namespace + "-" + name
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}
	return []runtime.Object{
		&corev1.PersistentVolumeClaim{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
			Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: volume, Resources: corev1.VolumeResourceRequirements{Requests: size}},
			Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
		},
		&corev1.PersistentVolume{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"}, ObjectMeta: metav1.ObjectMeta{Name: volume}, Spec: corev1.PersistentVolumeSpec{
			Capacity: size, PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "handle-" + name}},
		}},
	}
}

// user is a Pod that uses claims.
func user(namespace, name string, annotations map[string]string, claims ...string) runtime.Object {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: annotations},
		Spec:       corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{Name: "main"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, c := range claims {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
	}
	return p
}

const preHook, postHook = "pre.hook.backup.velero.io/", "post.hook.backup.velero.io/"

// TestWhatCannotBeRemoved leaves content that is whole alone: its backup is done, restores find it, and says what it left, which goes with the next one.
func TestWhatCannotBeRemoved(t *testing.T) {
	for what, fault := range map[string]struct {
		resource, name string // what cannot be deleted
		keep           bool
		note           string
		snapshot       bool // is left
	}{
		"the claim of a mover": {"persistentvolumeclaims", "data-", false, "which was made of its snapshot, could not be removed", false},
		"a snapshot":           {"volumesnapshotcontents", "tidemark-delete-data-", false, "its snapshot could not be removed", true},
		"beside one to keep":   {"persistentvolumeclaims", "data-", true, "which was made of its snapshot, could not be removed", false},
	} {
		t.Run(what, func(t *testing.T) {
			c := newCluster(t, Cluster{}, claim("shop", "data", nil)...)
			broken := true
			c.PrependReactor("delete", fault.resource, func(a kubetesting.Action) (bool, runtime.Object, error) {
				del, is := a.(kubetesting.DeleteAction)
				return is && broken && strings.HasPrefix(del.GetName(), fault.name), nil, errors.New("the storage is busy")
			})
			q := ClaimsRequest{Action: policy.Move, KeepSnapshots: fault.keep}
			by, err := c.back(q)
			ok(t, err)
			b := c.recordOf(by["data"])
			s := b.Status
			if s.Phase != Done || s.Error != "" || s.Content == nil || (s.Snapshot != nil) != fault.keep || len(s.Notes) != 1 || !strings.Contains(s.Notes[0], fault.note) || !strings.Contains(s.Notes[0], "the storage is busy") {
				t.Errorf("%+v", s)
			}
			if s.Left == nil || (s.Left.Snapshot != nil) != fault.snapshot {
				t.Fatalf("left: %+v", s.Left)
			}
			if picked := Pick([]*Backup{b}, PickRequest{At: c.now}); picked["shop/data"] == nil {
				t.Error("a restore does not find it")
			}
			_, err = c.k.Delete(t.Context(), b.Metadata.Name)
			if err == nil {
				t.Error("it is forgotten, and with it what it left")
			}
			broken = false
			_, err = c.back(q)
			ok(t, err)
			if s := c.recordOf(b).Status; s.Left != nil || (s.Snapshot != nil) != fault.keep {
				t.Errorf("after the next one: %+v", s)
			}
			claims, err := kube.List[corev1.PersistentVolumeClaim](t.Context(), c.o.Cluster.Client, kube.Claims, "", kube.Label)
			ok(t, err)
			for _, left := range claims {
				t.Errorf("claim %s is left", left.Name)
			}
		})
	}
}

// TestHooksThatAreNotUnderstood costs the Pod's own claims their backup, with a record that says why, and no others.
func TestHooksThatAreNotUnderstood(t *testing.T) {
	c := newCluster(t, Cluster{}, slices.Concat(
		claim("shop", "bad", nil), claim("shop", "shared", nil), claim("shop", "good", nil), claim("other", "far", nil),
		[]runtime.Object{
			user("shop", "db", map[string]string{preHook + "command": "/freeze", preHook + "timeout": "30"}, "bad", "shared"),
			user("shop", "web", map[string]string{preHook + "command": "/sync", postHook + "command": "/go"}, "shared"),
			user("shop", "db-2", map[string]string{preHook + "command": "/flush"}, "good"),
		})...)
	by, err := c.back(ClaimsRequest{Action: policy.Snapshot})
	if !errors.Is(err, ErrPartly) || len(by) != 4 {
		t.Fatalf("%d backups, %v", len(by), err)
	}
	for name, b := range by {
		s := c.recordOf(b).Status
		if lost := name == "bad" || name == "shared"; lost != (s.Phase == Failed) || lost != strings.Contains(s.Error, `in Pod shop/db: annotations pre.hook.backup.velero.io/*: timeout "30"`) {
			t.Errorf("%s: %s, %q", name, s.Phase, s.Error)
		}
	}
	if fmt.Sprint(c.calls) != "[exec /flush snapshot snapshot]" && fmt.Sprint(c.calls) != "[snapshot exec /flush snapshot]" {
		t.Errorf("done: %q", c.calls)
	}
}
