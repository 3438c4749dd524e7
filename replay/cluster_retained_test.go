package replay

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"
)

const retained = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: retaining}
provisioner: retained.example.com
reclaimPolicy: Retain
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: retained, annotations: {pv.kubernetes.io/provisioned-by: retained.example.com}}
spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], persistentVolumeReclaimPolicy: Retain, storageClassName: retaining, csi: {driver: retained.example.com, volumeHandle: h}, claimRef: {namespace: retaining, name: data}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: retaining}
spec: {accessModes: [ReadWriteOnce], storageClassName: retaining, volumeName: retained, resources: {requests: {storage: 1Gi}}}`

// testRetained brings a claim back whose volume outlived it: with the content of a backup in a new volume, and without one as the volume is, which first
// has to forget the claim of before.
func testRetained(t *testing.T, w *world) {
	claim := func() object { return w.find("persistentvolumeclaims", "retaining", "data") }
	bound := func() bool { return claim().str("status", "phase") == "Bound" }
	drop := func() {
		w.delete("persistentvolumeclaims", "retaining", "data")
		w.gone("persistentvolumeclaims", "retaining", "data")
	}
	warned := func(p *Plan, parts ...string) {
		t.Helper()
		for _, part := range parts {
			if !slices.ContainsFunc(p.Warnings, func(s string) bool { return strings.Contains(s, part) }) {
				t.Errorf("nothing warns of %q: %q", part, p.Warnings)
			}
		}
	}
	backup := RestoreRequest{Scope: InNamespace("retaining"), Volumes: map[string]Volume{"retaining/data": {Backup: "data-1", Off: time.Minute, Files: true}}}
	plain := RestoreRequest{Scope: InNamespace("retaining")}
	w.make("ci", ns("retaining"))
	w.make("ci", retained)
	w.eventually("the claim to be bound", bound)
	h := w.record()
	drop()
	w.eventually("the volume to be released", func() bool { return w.get("persistentvolumes", "", "retained").str("status", "phase") == "Released" })

	p := w.plan(h, plain)
	warned(p, "comes back with the volume that it had, as that is now", `kubectl patch pv retained --type merge -p '{"spec":{"claimRef":{"uid":null,"resourceVersion":null}}}'`)
	w.apply(p)
	if got := claim().str("spec", "volumeName"); got != "retained" {
		t.Errorf("the claim came back with volume %q", got)
	}
	w.patch("ci", "persistentvolumes", "", "retained", `{spec: {claimRef: {uid: null, resourceVersion: null}}}`)
	w.eventually("the claim to have its volume back", bound)
	drop()

	p = w.plan(h, backup)
	warned(p, "gets a new volume with the content of its backup; its old one, retained, is left as it is")
	w.want(p, "persistentvolumes", "retained", ActionUnchanged, "")
	filled := 0
	if _, err := p.Apply(t.Context(), w.target, ApplyOptions{Fill: func(_ context.Context, f Filling, _ func(string)) error {
		filled++
		if f.Claim != "data" || claim().str("spec", "volumeName") != "" {
			t.Errorf("%s is filled, and is of volume %q", f.Claim, claim().str("spec", "volumeName"))
		}
		return nil
	}}); err != nil || filled != 1 {
		t.Errorf("filled %d times: %v", filled, err)
	}
	drop()

	// A volume that would be bound again, and would lose what it holds to the backup.
	w.patch("ci", "persistentvolumes", "", "retained", `{spec: {claimRef: {uid: null, resourceVersion: null}}}`)
	p = w.plan(h, backup)
	warned(p, "its backup data-1 is not used: volume retained waits for a claim of this name")
	if n := p.Count(ActionFill); n != 0 {
		t.Errorf("%d claims are filled", n)
	}

	// Another cluster, or one where the volume is gone: it is not made again when the claim has no use of it.
	w.delete("persistentvolumes", "", "retained")
	w.gone("persistentvolumes", "", "retained")
	w.want(w.plan(h, plain), "persistentvolumes", "retained", ActionCreate, "")
	p = w.plan(h, backup)
	w.want(p, "persistentvolumes", "retained", ActionSkip, "with the content of a backup")
	if it := w.want(p, "persistentvolumeclaims", "data", ActionCreate, ""); it.create.object().str("spec", "volumeName") != "" {
		t.Error("the claim still wants its old volume")
	}

	// Its class makes no volumes.
	w.delete("storageclasses.storage.k8s.io", "", "retaining")
	w.make("ci", `{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: retaining}, provisioner: kubernetes.io/no-provisioner}`)
	p = w.plan(h, backup)
	warned(p, "its backup data-1 is not used: no storage class makes a new volume for it")
	w.want(p, "persistentvolumes", "retained", ActionCreate, "")
}
