package localnode

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// makeClasses makes the definitions of snapshots, and the classes of volumes and snapshots. All definitions are wanted: the
// snapshot controller idles for half a minute when one is missing.
func (n *Node) makeClasses(ctx context.Context) error {
	var files []string
	for _, dir := range n.bin.definitions {
		found, err := filepath.Glob(filepath.Join(dir, "*storage.k8s.io_*.yaml"))
		if err != nil || len(found) == 0 {
			return fmt.Errorf("no definitions in %s (%w)", dir, err)
		}
		files = append(files, found...)
	}
	definitions := n.Dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(b, &u.Object); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if _, err := definitions.Create(ctx, u, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	yes, file, fileFSGroup := true, storagev1.VolumeLifecyclePersistent, storagev1.FileFSGroupPolicy
	no := false
	driver := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: Driver}, Spec: storagev1.CSIDriverSpec{
		AttachRequired: &no, PodInfoOnMount: &no, FSGroupPolicy: &fileFSGroup, VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{file},
	}}
	if _, err := n.Client.StorageV1().CSIDrivers().Create(ctx, driver, metav1.CreateOptions{}); err != nil {
		return err
	}
	now, late := storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer
	for name, mode := range map[string]*storagev1.VolumeBindingMode{StorageClass: &now, Late: &late, Kept: &late} {
		class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: Driver, VolumeBindingMode: mode, AllowVolumeExpansion: &yes}
		switch name {
		case StorageClass:
			class.Annotations = map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}
		case Kept:
			class.ReclaimPolicy = new(corev1.PersistentVolumeReclaimRetain)
		}
		if _, err := n.Client.StorageV1().StorageClasses().Create(ctx, class, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	key := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: SnapshotKey}, StringData: map[string]string{"key": SnapshotKey}}
	if _, err := n.Client.CoreV1().Secrets(metav1.NamespaceDefault).Create(ctx, key, metav1.CreateOptions{}); err != nil {
		return err
	}
	// Names of the snapshot are understood for making and deleting one only, and not by all of the controllers for groups.
	single := secrets(map[string]string{"snapshotter": "${volumesnapshot.namespace}", "snapshotter-list": metav1.NamespaceDefault})
	group := secrets(map[string]string{"group-snapshotter": metav1.NamespaceDefault, "group-snapshotter-get": metav1.NamespaceDefault})
	for _, c := range []struct {
		group, resource, kind, name, isDefault, deletion string
		parameters                                       map[string]any
	}{
		{"snapshot.storage.k8s.io", "volumesnapshotclasses", "VolumeSnapshotClass", SnapshotClass, "true", "Delete", secrets(nil)},
		{"snapshot.storage.k8s.io", "volumesnapshotclasses", "VolumeSnapshotClass", Kept, "false", "Retain", single},
		{"groupsnapshot.storage.k8s.io", "volumegroupsnapshotclasses", "VolumeGroupSnapshotClass", SnapshotClass, "true", "Delete", secrets(nil)},
		{"groupsnapshot.storage.k8s.io", "volumegroupsnapshotclasses", "VolumeGroupSnapshotClass", Kept, "false", "Retain", group},
	} {
		u := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": c.group + "/v1", "kind": c.kind, "driver": Driver, "deletionPolicy": c.deletion, "parameters": c.parameters,
			"metadata": map[string]any{"name": c.name, "annotations": map[string]any{strings.Replace(c.group, "k8s.io", "kubernetes.io", 1) + "/is-default-class": c.isDefault}},
		}}
		client := n.Dynamic.Resource(schema.GroupVersionResource{Group: c.group, Version: "v1", Resource: c.resource})
		var last error
		err := n.until(ctx, c.kind+" to be served", "kube-apiserver", func() bool {
			_, last = client.Create(ctx, u, metav1.CreateOptions{})
			return last == nil
		})
		if err != nil {
			return fmt.Errorf("%w (%w)", err, last)
		}
	}
	return nil
}

// secrets are parameters of a class: for each purpose the namespace in which SnapshotKey is shown to the driver.
func secrets(namespaces map[string]string) map[string]any {
	all := map[string]any{}
	for purpose, namespace := range namespaces {
		all["csi.storage.k8s.io/"+purpose+"-secret-name"], all["csi.storage.k8s.io/"+purpose+"-secret-namespace"] = SnapshotKey, namespace
	}
	return all
}
