package replay

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The definitions of snapshots, as far as is needed here: nobody acts on them.
const snapshotKinds = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: volumesnapshots.snapshot.storage.k8s.io, annotations: {api-approved.kubernetes.io: "https://example.com"}}
spec:
  group: snapshot.storage.k8s.io
  scope: Namespaced
  names: {plural: volumesnapshots, singular: volumesnapshot, kind: VolumeSnapshot}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: volumesnapshotcontents.snapshot.storage.k8s.io, annotations: {api-approved.kubernetes.io: "https://example.com"}}
spec:
  group: snapshot.storage.k8s.io
  scope: Cluster
  names: {plural: volumesnapshotcontents, singular: volumesnapshotcontent, kind: VolumeSnapshotContent}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]`

const onSnapshots = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: snapped}
provisioner: snapped.example.com
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: lost}
spec: {accessModes: [ReadWriteOnce], storageClassName: snapped, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: app, namespace: lost}
spec: {containers: [{name: c, image: none}], volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]}`

// testLostSnapshot restores a claim whose snapshot somebody deleted in the storage: it gets the files of its backup, also when that takes two tries, and is not made
// where there are none, nor is the Pod that would begin on it.
func testLostSnapshot(t *testing.T, w *world) {
	defer w.serveSnapshots()()
	w.make("ci", ns("lost"))
	w.make("ci", onSnapshots)
	h := w.record()
	h.clusterID = w.get("namespaces", "", "kube-system").uid()
	drop := func() {
		w.delete("namespaces", "", "lost")
		w.gone("namespaces", "", "lost")
	}
	drop()
	plan := func(files bool) *Plan {
		return w.plan(h, RestoreRequest{Scope: InNamespace("lost"), Volumes: map[string]Volume{"lost/data": {
			Backup: "data-1", Off: time.Minute, Files: files, Snapshot: &VolumeSnapshot{Driver: "snapped.example.com", Handle: "snap-1"},
		}}})
	}
	stop := w.driverWithout()
	defer stop()
	left := func() int {
		return len(w.list("volumesnapshotcontents.snapshot.storage.k8s.io", "")) + len(w.list("volumesnapshots.snapshot.storage.k8s.io", "lost"))
	}
	const lost = "its snapshot snap-1 is gone from the storage of driver snapped.example.com"

	for name, c := range map[string]struct {
		files bool
		fill  func(context.Context, Filling, func(string)) error
		want  string
	}{
		"without files":   {false, func(context.Context, Filling, func(string)) error { return errors.New("is not to be filled") }, "choose another backup with --volumes"},
		"without a mover": {true, nil, ErrNoFill.Error()},
	} {
		res, err := plan(c.files).Apply(t.Context(), w.target, ApplyOptions{Fill: c.fill, Wait: 10 * time.Second})
		var text strings.Builder
		for i := range res.Errors {
			text.WriteString(res.Errors[i].Error() + "\n")
		}
		if !errors.Is(err, ErrPartly) || !strings.Contains(text.String(), lost) || !strings.Contains(text.String(), c.want) || !strings.Contains(text.String(), "its claim data did not get its content") {
			t.Errorf("%s: %v\n%s", name, err, &text)
		}
		if w.find("persistentvolumeclaims", "lost", "data") != nil || w.find("pods", "lost", "app") != nil {
			t.Errorf("%s: the claim, or its Pod, was made", name)
		}
		if n := left(); n > 0 {
			t.Errorf("%s: %d objects of the snapshot are left", name, n)
		}
		drop()
	}

	records := OpenRecords(t.TempDir())
	p := plan(true)
	rec, err := records.Begin(p)
	ok(t, err)
	trouble := errors.New("the mover did not come to an end")
	fills := 0
	fill := func(_ context.Context, f Filling, _ func(string)) error {
		fills++
		if c := w.find("persistentvolumeclaims", "lost", "data"); c == nil || c.at("spec", "dataSource") != nil || f.Volume.Backup != "data-1" {
			t.Errorf("filled with %+v: %v", f, c)
		}
		w.patch("csi", "persistentvolumeclaims", "lost", "data", `{metadata: {labels: {somebody: labels-it}}}`)
		return trouble
	}
	if _, err := p.Apply(t.Context(), w.target, ApplyOptions{Record: rec, Fill: fill, Wait: time.Second}); !errors.Is(err, ErrPartly) || fills != 1 || w.find("pods", "lost", "app") != nil {
		t.Fatalf("a fill that fails: %v after %d, %v", err, fills, w.find("pods", "lost", "app"))
	}
	ok(t, rec.Close())
	rec, err = records.Open(p.ID, true)
	ok(t, err)
	trouble = nil
	res, err := rec.Plan.Apply(t.Context(), w.target, ApplyOptions{Record: rec, Fill: fill, Wait: time.Second})
	if err != nil || fills != 2 || w.find("pods", "lost", "app") == nil {
		t.Fatalf("gone on with: %v after %d: %+v", err, fills, res)
	}
	if len(res.Left) == 0 || !strings.Contains(res.Left[0].Message, lost+", so it got the files of the same backup") {
		t.Errorf("it is not told: %+v", res.Left)
	}
	ok(t, rec.Close())
	drop()
}

// serveSnapshots has the cluster serve snapshots, until the function that it returns is called.
func (w *world) serveSnapshots() (stop func()) {
	kinds := []string{"volumesnapshots.snapshot.storage.k8s.io", "volumesnapshotcontents.snapshot.storage.k8s.io"}
	served := func(want bool) {
		w.eventually("the kinds of snapshots to come or go", func() bool {
			return w.target.refresh(w.Context()) == nil && !slices.ContainsFunc(kinds, func(gr string) bool {
				return len(w.target.versions(schema.ParseGroupResource(gr))) > 0 != want
			})
		})
	}
	w.make("ci", snapshotKinds)
	served(true)
	return func() {
		for _, gr := range kinds {
			w.delete("customresourcedefinitions.apiextensions.k8s.io", "", gr)
			w.gone("customresourcedefinitions.apiextensions.k8s.io", "", gr)
		}
		served(false) // or the next test would look for some
	}
}

// driverWithout tells of each VolumeSnapshotContent what a driver's side says of a snapshot that there is not, until the function that it returns is called. It protects them, and
// lets go of those that are marked only, as where a snapshot went before the snapshot controller knew it.
func (w *world) driverWithout() (stop func()) {
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan struct{})
	contents := w.resource("volumesnapshotcontents.snapshot.storage.k8s.io")
	go func() {
		defer close(done)
		for sleep(ctx, 50*time.Millisecond) {
			for _, o := range w.list("volumesnapshotcontents.snapshot.storage.k8s.io", "") {
				switch {
				case o.at("metadata", "deletionTimestamp") != nil:
					if o.at("metadata", "annotations", "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted") == "yes" {
						o.drop("metadata", "finalizers")
						_, _ = w.target.client(contents, "").Update(ctx, o.unstructured(), metav1.UpdateOptions{})
					}
				case o.at("status") == nil:
					o.put([]any{"example.com/protected"}, "metadata", "finalizers")
					o.put("failed to list snapshot for content: can not find snapshot for snapshotID snap-1", "status", "error", "message")
					_, _ = w.target.client(contents, "").Update(ctx, o.unstructured(), metav1.UpdateOptions{})
				}
			}
		}
	}()
	return func() {
		cancel()
		<-done
		for _, o := range w.list("volumesnapshotcontents.snapshot.storage.k8s.io", "") {
			w.patch("csi", "volumesnapshotcontents.snapshot.storage.k8s.io", "", o.name(), `{metadata: {finalizers: []}}`)
		}
	}
}
