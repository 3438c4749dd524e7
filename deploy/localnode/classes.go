package localnode

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

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
	for name, mode := range map[string]*storagev1.VolumeBindingMode{StorageClass: &now, Late: &late} {
		class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: Driver, VolumeBindingMode: mode, AllowVolumeExpansion: &yes}
		if name == StorageClass {
			class.Annotations = map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}
		}
		if _, err := n.Client.StorageV1().StorageClasses().Create(ctx, class, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	for _, c := range []struct{ group, resource, kind, name, isDefault string }{
		{"snapshot.storage.k8s.io", "volumesnapshotclasses", "VolumeSnapshotClass", SnapshotClass, "snapshot.storage.kubernetes.io/is-default-class"},
		{"groupsnapshot.storage.k8s.io", "volumegroupsnapshotclasses", "VolumeGroupSnapshotClass", SnapshotClass, "groupsnapshot.storage.kubernetes.io/is-default-class"},
	} {
		u := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": c.group + "/v1", "kind": c.kind, "driver": Driver, "deletionPolicy": "Delete",
			"metadata": map[string]any{"name": c.name, "annotations": map[string]any{c.isDefault: "true"}},
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
