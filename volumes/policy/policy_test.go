package policy

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

func volume(class, size string, more ...func(*Volume)) *Volume {
	mode := corev1.PersistentVolumeFilesystem
	v := &Volume{
		Claim: &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data", Labels: map[string]string{"app": "db"}}, Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, VolumeMode: &mode, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		}},
		PV: &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
			Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "ebs", VolumeAttributes: map[string]string{"tier": "gold"}}},
		}},
	}
	for _, m := range more {
		m(v)
	}
	return v
}

func TestVelerosVolumePolicies(t *testing.T) {
	// A row: conditions, and whether they hold for a gold volume of 10Gi of class fast.
	for conditions, holds := range map[string]bool{
		`{}`: true, `{capacity: "5Gi,20Gi"}`: true, `{capacity: "20Gi,"}`: false, `{capacity: ",5Gi"}`: false, `{capacity: "0,10Gi"}`: true, `{capacity: "5Gi,0"}`: true,
		`{storageClass: [slow, fast]}`: true, `{storageClass: [slow]}`: false,
		`{csi: {driver: ebs}}`: true, `{csi: {driver: efs}}`: false, `{csi: {driver: ebs, volumeAttributes: {tier: gold}}}`: true, `{csi: {driver: ebs, volumeAttributes: {tier: tin}}}`: false,
		`{nfs: {}}`: false, `{volumeTypes: [nfs, csi]}`: true, `{volumeTypes: [local]}`: false,
		`{pvcLabels: {app: db}}`: true, `{pvcLabels: {app: web}}`: false, `{pvcVolumeMode: Filesystem}`: true, `{pvcVolumeMode: Block}`: false,
		`{pvcAccessModes: [ReadWriteOnce]}`: true, `{pvcAccessModes: [ReadWriteMany]}`: false, `{pvcPhase: [Bound]}`: false,
		`{storageClass: [fast], capacity: "20Gi,"}`: false,
	} {
		f, err := ParseVelero([]byte("version: v1\nvolumePolicies:\n- conditions: " + conditions + "\n  action: {type: fs-backup}\n"))
		if err != nil {
			t.Fatalf("%s: %v", conditions, err)
		}
		want := Auto
		if holds {
			want = Kopia
		}
		if c := Choose(volume("fast", "10Gi"), nil, []*Velero{f}); c.Action != want {
			t.Errorf("%s: %+v", conditions, c)
		}
	}
	for _, bad := range []string{"version: v2", "version: v1\nvolumePolicies: [{conditions: {colour: [red]}, action: {type: skip}}]", "version: v1\nvolumePolicies: [{action: {type: burn}}]", "version: v1\nvolumePolicies: [{conditions: {capacity: large}, action: {type: skip}}]"} {
		if _, err := ParseVelero([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if f, err := ParseVelero([]byte("kind: ConfigMap\napiVersion: v1\ndata:\n  policies.yaml: |\n    version: v1\n    volumePolicies: [{conditions: {}, action: {type: skip}}]\n")); err != nil || len(f.Policies) != 1 {
		t.Errorf("of a ConfigMap: %+v, %v", f, err)
	}
}

func TestWhoDecides(t *testing.T) {
	policies := []Policy{
		{Name: "other", Namespaces: []string{"other"}, Action: Skip},
		{Name: "db", Selector: labels.SelectorFromSet(labels.Set{"app": "db"}), Action: Move, KeepSnapshots: true, SnapshotClass: "gold"},
		{Name: "rest", Action: Snapshot},
	}
	c := Choose(volume("fast", "1Gi"), policies, nil)
	if c.Action != Move || !c.KeepSnapshots || c.SnapshotClass != "gold" || c.Reason != "policy db" {
		t.Errorf("by policy: %+v", c)
	}
	skipAll, err := ParseVelero([]byte("version: v1\nvolumePolicies: [{conditions: {}, action: {type: skip}}]"))
	if err != nil {
		t.Fatal(err)
	}
	if c := Choose(volume("fast", "1Gi"), policies, []*Velero{skipAll}); c.Action != Skip {
		t.Errorf("Velero's policy: %+v", c)
	}
	used := func(annotation string) func(*Volume) {
		return func(v *Volume) {
			v.Pods = []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "p", Annotations: map[string]string{annotation: "logs, files"}}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{{
				Name: "files", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}},
			}}}}}
		}
	}
	if c := Choose(volume("fast", "1Gi", used("backup.velero.io/backup-volumes")), policies, []*Velero{skipAll}); c.Action != Kopia {
		t.Errorf("annotated: %+v", c)
	}
	if c := Choose(volume("fast", "1Gi", used("backup.velero.io/backup-volumes-excludes")), policies, nil); c.Action != Skip {
		t.Errorf("annotated to be left out: %+v", c)
	}
	if c := Choose(volume("fast", "1Gi", func(v *Volume) { v.Claim.Labels["velero.io/exclude-from-backup"] = "true" }), policies, nil); c.Action != Skip {
		t.Errorf("excluded by label: %+v", c)
	}
	if c := Choose(volume("fast", "1Gi"), nil, nil); c.Action != Auto {
		t.Errorf("nobody: %+v", c)
	}
}
