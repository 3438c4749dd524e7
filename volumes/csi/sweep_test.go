package csi

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tidemark-backup/tidemark/volumes/kube"
)

// cluster is one with these objects, without any controller.
func cluster(objects ...runtime.Object) *kube.Client {
	lists := map[schema.GroupVersionResource]string{
		kube.Snapshots: "VolumeSnapshotList", kube.Contents: "VolumeSnapshotContentList", kube.SnapshotClasses: "VolumeSnapshotClassList",
		kube.Claims: "PersistentVolumeClaimList", kube.Volumes: "PersistentVolumeList",
	}
	for _, v := range groupVersions {
		lists[resourcesOf(v).classes] = "VolumeGroupSnapshotClassList"
		lists[resourcesOf(v).snapshots], lists[resourcesOf(v).contents] = "VolumeGroupSnapshotList", "VolumeGroupSnapshotContentList"
	}
	return &kube.Client{Dynamic: fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, objects...)}
}

func typed(t *testing.T, o any) runtime.Object {
	t.Helper()
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: m}
}

func claimOf(name, volume string, labels map[string]string) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"}}
	c.Namespace, c.Name, c.UID, c.Labels, c.Spec.VolumeName = "shop", name, types.UID("uid-"+name), labels, volume
	return c
}

func volumeOf(name, claim string, annotations map[string]string) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"}}
	v.Name, v.Annotations, v.Spec.PersistentVolumeReclaimPolicy = name, annotations, corev1.PersistentVolumeReclaimRetain
	v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "shop", Name: claim, UID: types.UID("uid-" + claim)}
	return v
}

// TestOnlyOurVolumesGo drops claims whose volumes would stay: those that were made for claims of ours go with them, and no others.
func TestOnlyOurVolumesGo(t *testing.T) {
	ours, made := map[string]string{kube.Label: "x"}, map[string]string{"pv.kubernetes.io/provisioned-by": "d"}
	foreign := volumeOf("foreign", "early", made)
	foreign.Spec.ClaimRef.UID = "of a claim of that name that was there before"
	c := cluster(
		typed(t, claimOf("ours", "bound", ours)), typed(t, volumeOf("bound", "ours", made)), typed(t, foreign),
		typed(t, claimOf("early", "", ours)), typed(t, volumeOf("in-the-making", "early", made)),
		typed(t, claimOf("theirs", "user", nil)), typed(t, volumeOf("user", "theirs", made)),
		typed(t, claimOf("found", "static", ours)), typed(t, volumeOf("static", "found", map[string]string{"pv.kubernetes.io/provisioned-by": "d", "pv.kubernetes.io/bound-by-controller": "yes"})),
	)
	for _, name := range []string{"ours", "early", "theirs", "found", "nowhere"} {
		if err := DropClaim(t.Context(), c, "shop", name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, want := range map[string]corev1.PersistentVolumeReclaimPolicy{"bound": "Delete", "in-the-making": "Delete", "foreign": "Retain", "user": "Retain", "static": "Retain"} {
		v, err := kube.Get[corev1.PersistentVolume](t.Context(), c, kube.Volumes, "", name)
		if err != nil || v == nil || v.Spec.PersistentVolumeReclaimPolicy != want {
			t.Errorf("volume %s: %v, %v; want %s", name, v.Spec.PersistentVolumeReclaimPolicy, err, want)
		}
	}
	left, err := kube.List[corev1.PersistentVolumeClaim](t.Context(), c, kube.Claims, "shop", "")
	if err != nil || len(left) != 1 || left[0].Name != "theirs" {
		t.Errorf("%d claims are left, %v", len(left), err)
	}
}

// TestSecretOfADeletion reads the Secret off a content as the snapshot controller makes it, and gives it to one that we make; a snapshot that was recorded
// without it has that of its class.
func TestSecretOfADeletion(t *testing.T) {
	class := &unstructured.Unstructured{Object: object{
		"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", "metadata": object{"name": "c"},
		"parameters": object{"csi.storage.k8s.io/snapshotter-secret-name": "key", "csi.storage.k8s.io/snapshotter-secret-namespace": "ceph"},
	}}
	c := cluster(class)
	for _, h := range []Handle{{Class: "c"}, {Class: "c", Secret: "ceph/key"}, {Class: "gone", Secret: "ceph/key"}} {
		was := h.Class
		h = current(t.Context(), c, h)
		content, _ := Objects(h, "shop", "x")
		u := &unstructured.Unstructured{Object: content}
		if a := u.GetAnnotations(); a["snapshot.storage.kubernetes.io/deletion-secret-name"] != "key" || a["snapshot.storage.kubernetes.io/deletion-secret-namespace"] != "ceph" {
			t.Errorf("%+v: %v", h, a)
		}
		if got := deletionSecret(u, snapshotPrefix); got != "ceph/key" {
			t.Errorf("%+v: it is read as %q", h, got)
		}
		if named, _, _ := unstructured.NestedString(content, "spec", "volumeSnapshotClassName"); (named == "c") != (was == "c") {
			t.Errorf("%+v names class %q", h, named)
		}
	}
	g := &unstructured.Unstructured{Object: resourcesOf("v1").content(Handle{Group: "g", GroupClass: "gc", Secret: "ceph/key"}, "shop", "x")}
	if class, _, _ := unstructured.NestedString(g.Object, "spec", "volumeGroupSnapshotClassName"); deletionSecret(g, groupPrefix) != "ceph/key" || class != "gc" {
		t.Errorf("a group: %v, %q", g.GetAnnotations(), class)
	}
}

// TestDeleteWithoutItsSecret names the Secret that is not there, without which the driver would never come to an end, and leaves the snapshot.
func TestDeleteWithoutItsSecret(t *testing.T) {
	c := cluster()
	api := c.Dynamic.(*fake.FakeDynamicClient)
	api.PrependReactor("create", kube.Contents.Resource, func(a clienttesting.Action) (bool, runtime.Object, error) { // the driver knows it
		u := a.(clienttesting.CreateAction).GetObject().(*unstructured.Unstructured)
		return false, nil, unstructured.SetNestedField(u.Object, "h", "status", "snapshotHandle")
	})
	h := Handle{Driver: "d", ID: "h", Secret: "ceph/key"}
	if err := Delete(t.Context(), c, h, "x"); err == nil || !strings.Contains(err.Error(), "Secret ceph/key is not there") {
		t.Errorf("without its secret: %v", err)
	}
	for _, a := range api.Actions() {
		if p, ok := a.(clienttesting.PatchAction); ok && a.GetVerb() == "patch" && !strings.Contains(string(p.GetPatch()), `"deletionPolicy":"Retain"`) {
			t.Errorf("it is changed by %s", p.GetPatch())
		}
	}
	if l, err := c.In(kube.Contents, "").List(t.Context(), metav1.ListOptions{}); err != nil || len(l.Items) > 0 {
		t.Errorf("left: %v, %v", l, err)
	}
	secret := &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Namespace: "ceph", Name: "key"}}
	if err := errors.Join(api.Tracker().Add(typed(t, secret)), Delete(t.Context(), c, h, "x")); err != nil {
		t.Errorf("with it: %v", err)
	}
}

// TestASnapshotOfAClaimThatIsGone does not wait for what will not come.
func TestASnapshotOfAClaimThatIsGone(t *testing.T) {
	c := cluster()
	c.Dynamic.(*fake.FakeDynamicClient).PrependReactor("create", kube.Snapshots.Resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
		u := a.(clienttesting.CreateAction).GetObject().(*unstructured.Unstructured)
		return false, nil, unstructured.SetNestedField(u.Object, "cannot get claim from snapshot", "status", "error", "message")
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := Take(ctx, c, "shop", "data", "x", "c"); !errors.Is(err, ErrSnapshot) || !strings.Contains(err.Error(), "claim shop/data was deleted before its snapshot was taken") || ctx.Err() != nil {
		t.Errorf("%v", err)
	}
}

// TestAGroupOfAClaimThatIsGone names the claim at once, whether the driver takes the others or says that it cannot; one that is only slow is waited for.
func TestAGroupOfAClaimThatIsGone(t *testing.T) {
	r := resourcesOf("v1")
	class := &unstructured.Unstructured{Object: object{"apiVersion": groupAPI + "/v1", "kind": "VolumeGroupSnapshotClass", "metadata": object{"name": "c"}, "driver": "d"}}
	content := &unstructured.Unstructured{Object: object{
		"apiVersion": groupAPI + "/v1", "kind": "VolumeGroupSnapshotContent", "metadata": object{"name": "content"}, "spec": object{"driver": "d"},
		"status": object{
			"volumeGroupSnapshotHandle": "g", "creationTime": "2026-11-22T10:30:00Z",
			"volumeSnapshotInfoList": []any{object{"volumeHandle": "v", "snapshotHandle": "s"}},
		},
	}}
	for _, taken := range []bool{true, false} {
		for _, there := range []bool{true, false} {
			objects := []runtime.Object{class, content, typed(t, claimOf("data", "v", nil))}
			if there {
				objects = append(objects, typed(t, claimOf("wal", "w", nil)))
			}
			c := cluster(objects...)
			c.Dynamic.(*fake.FakeDynamicClient).PrependReactor("create", r.snapshots.Resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
				u := a.(clienttesting.CreateAction).GetObject().(*unstructured.Unstructured)
				if taken {
					return false, nil, unstructured.SetNestedField(u.Object, "content", "status", "boundVolumeGroupSnapshotContentName")
				}
				return false, nil, unstructured.SetNestedField(u.Object, "no claims", "status", "error", "message")
			})
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			_, err := TakeGroup(ctx, c, GroupRequest{Driver: "d", Namespace: "shop", Name: "x", Label: "l", Value: "v", Claims: []string{"data", "wal"}})
			_, named := errors.AsType[*GoneError](err)
			if err == nil || named == there || named && (!strings.Contains(err.Error(), "claim shop/wal was deleted before its snapshot was taken") || ctx.Err() != nil) {
				t.Errorf("taken: %v, there: %v: %v", taken, there, err)
			}
			cancel()
		}
	}
}

// TestSweep leaves what other backups have, whether a VolumeSnapshot is still there or only its content.
func TestSweep(t *testing.T) {
	content := func(name, of, source string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: object{
			"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": object{"name": name},
			"spec": object{"deletionPolicy": "Retain", "source": object{source: "h"}, "volumeSnapshotRef": object{"namespace": "shop", "name": of}},
		}}
	}
	c := cluster(content("left", "x", "volumeHandle"), content("other", "y", "volumeHandle"), content("import", "x", "snapshotHandle"), content(deletePrefix+"z", "z", "snapshotHandle"))
	freed := map[string]bool{}
	fakes := c.Dynamic.(*fake.FakeDynamicClient)
	if err := Sweep(t.Context(), c, "shop", "x"); err != nil {
		t.Fatal(err)
	}
	for _, a := range fakes.Actions() {
		if p, ok := a.(interface{ GetName() string }); ok && a.GetVerb() == "patch" {
			freed[p.GetName()] = true
		}
	}
	l, err := c.In(kube.Contents, "").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(l.Items) != 2 || l.Items[0].GetName() != "other" || l.Items[1].GetName() != deletePrefix+"z" || len(freed) != 1 || !freed["left"] {
		t.Errorf("left: %v, freed: %v, %v", l, freed, err)
	}
}
