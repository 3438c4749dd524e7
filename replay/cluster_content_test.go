package replay

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

const withContent = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: holding}
provisioner: holding.example.com
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: content, labels: {tier: one}}
spec: {accessModes: [ReadWriteOnce], storageClassName: holding, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: app, namespace: content}
spec: {containers: [{name: c, image: none}], volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: content}
spec:
  replicas: 1
  serviceName: db
  selector: {matchLabels: {app: db}}
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c, image: none}]}}
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], storageClassName: holding, resources: {requests: {storage: 1Gi}}}}]`

const noClaims = `{apiVersion: v1, kind: ResourceQuota, metadata: {name: no-claims, namespace: content}, spec: {hard: {persistentvolumeclaims: "0"}}}`

// contents is a namespace whose claims have backups, and restores of it that go wrong in the middle.
type contents struct {
	*world
	history *history
	fills   []string // claims, each time that one is filled
	trouble error    // what the next fills end with
}

// testContent: whatever goes wrong, and however often a restore is gone on with, nothing begins on a claim that did not get its content, and nobody else's claim is
// written over.
func testContent(t *testing.T, w *world) {
	defer w.serveSnapshots()()
	w.make("ci", ns("content"))
	w.make("ci", withContent)
	w.eventually("the claim of the StatefulSet", func() bool { return w.find("persistentvolumeclaims", "content", "data-db-0") != nil })
	h := w.record()
	h.clusterID = w.get("namespaces", "", "kube-system").uid()
	there := w.plan(h, RestoreRequest{Scope: InNamespace("content"), Existing: ExistingUpdate, VolumesInPlace: true, Volumes: map[string]Volume{
		"content/data": {Backup: "b", Snapshot: &VolumeSnapshot{Driver: "holding.example.com", Handle: "snap-1"}},
	}})
	if !slices.ContainsFunc(there.Warnings, func(s string) bool {
		return strings.Contains(s, "restore it beside this one with --namespace-mappings content:NEW") && !strings.Contains(s, "--existing recreate")
	}) {
		t.Errorf("it is not told what to do about a claim that is there: %q", there.Warnings)
	}
	for _, part := range []struct {
		name string
		test func(*contents)
	}{
		{"a claim that is refused at first", claimRefused},
		{"a claim of a snapshot that is refused at first", snapshotClaimRefused},
		{"a snapshot that may not be looked for", snapshotHidden},
		{"a snapshot that is not found at first", snapshotLate},
		{"a snapshot that is refused at first", snapshotRefused},
		{"a claim that is half filled", halfFilled},
		{"a claim of somebody else", claimOfAnother},
		{"a claim that somebody deleted, and made anew", claimAnew},
	} {
		t.Run(part.name, func(t *testing.T) {
			c := &contents{world: newWorld(t, w.config), history: h}
			c.drop()
			part.test(c)
		})
	}
}

// drop deletes what is to be restored.
func (c *contents) drop() {
	background := metav1.DeletePropagationBackground
	for _, o := range []string{"statefulsets.apps/db", "pods/app", "pods/db-0", "persistentvolumeclaims/data", "persistentvolumeclaims/data-db-0"} {
		gr, name, _ := strings.Cut(o, "/")
		err := c.target.client(c.resource(gr), "content").Delete(c.Context(), name, metav1.DeleteOptions{PropagationPolicy: &background})
		if err != nil && !apierrors.IsNotFound(err) {
			c.Fatal(err)
		}
		c.gone(gr, "content", name)
	}
	if c.find("resourcequotas", "content", "no-claims") != nil {
		c.delete("resourcequotas", "content", "no-claims")
	}
	for _, gr := range []string{"volumesnapshots.snapshot.storage.k8s.io", "volumesnapshotcontents.snapshot.storage.k8s.io"} {
		for _, o := range c.list(gr, "") {
			c.delete(gr, o.namespace(), o.name())
		}
	}
}

// planned is a plan that gives both claims content: of a snapshot, or of files.
func (c *contents) planned(snapshot, files bool) *Plan {
	v := Volume{Backup: "b", Off: time.Minute, Files: files}
	if snapshot {
		v.Snapshot = &VolumeSnapshot{Driver: "holding.example.com", Handle: "snap-1"}
	}
	return c.plan(c.history, RestoreRequest{Scope: InNamespace("content"), Quiesce: true, Volumes: map[string]Volume{"content/data": v, "content/data-db-0": v}})
}

// run applies a plan, or goes on with it, over a transport that may fail.
func (c *contents) run(records *Records, p *Plan, fault func(http.RoundTripper) http.RoundTripper) (res *Result, text string, err error) {
	c.Helper()
	rec, err := records.Open(p.ID, true)
	if errors.Is(err, ErrNoRecord) {
		rec, err = records.Begin(p)
	}
	ok(c.T, err)
	defer func() { ok(c.T, rec.Close()) }()
	target := c.target
	if fault != nil {
		cfg := rest.CopyConfig(c.config)
		cfg.Wrap(fault)
		target = newWorld(c.T, cfg).target
	}
	res, err = rec.Plan.Apply(c.Context(), target, ApplyOptions{Record: rec, Wait: time.Second, Fill: func(_ context.Context, f Filling, _ func(string)) error {
		c.fills = append(c.fills, f.Claim)
		return c.trouble
	}, Progress: func(p Progress) {
		if strings.HasPrefix(p.Waiting, "persistentvolumeclaims content/data ") && strings.HasSuffix(p.Waiting, "to get its volume") {
			c.patch("pv", "persistentvolumeclaims", "content", "data", `{status: {phase: Bound}}`, "status")
		}
	}})
	var b strings.Builder
	for _, e := range slices.Concat(res.Errors, res.Left) {
		b.WriteString(e.Error() + "\n")
	}
	return res, b.String(), err
}

// held checks that nothing began.
func (c *contents) held() {
	c.Helper()
	if c.find("pods", "content", "app") != nil || c.find("statefulsets.apps", "content", "db") != nil {
		c.Fatal("a workload was made whose claim did not get its content")
	}
}

// complete checks that all is there and runs.
func (c *contents) complete() {
	c.Helper()
	c.get("pods", "content", "app")
	if n := c.get("statefulsets.apps", "content", "db").at("spec", "replicas"); n != int64(1) {
		c.Errorf("the StatefulSet was not started: replicas %v", n)
	}
}

// refusing answers requests of a method for a resource with 403.
func refusing(method, resource string) func(http.RoundTripper) http.RoundTripper {
	return func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method == method && strings.Contains(r.URL.Path, "/"+resource) {
				return &http.Response{StatusCode: http.StatusForbidden, Body: http.NoBody, Header: http.Header{}, Request: r}, nil
			}
			return rt.RoundTrip(r)
		})
	}
}

func (c *contents) imported() int {
	return len(c.list("volumesnapshotcontents.snapshot.storage.k8s.io", "")) + len(c.list("volumesnapshots.snapshot.storage.k8s.io", "content"))
}

func claimRefused(c *contents) {
	c.make("ci", noClaims)
	c.eventually("the quota", func() bool { return c.get("resourcequotas", "content", "no-claims").at("status", "hard") != nil })
	records, p := OpenRecords(c.TempDir()), c.planned(false, true)
	if _, text, err := c.run(records, p, nil); !errors.Is(err, ErrPartly) && !errors.Is(err, ErrNotRestored) || len(c.fills) > 0 {
		c.Errorf("refused: %v, filled %v\n%s", err, c.fills, text)
	}
	c.held()
	c.delete("resourcequotas", "content", "no-claims")
	_, text, err := c.run(records, p, nil)
	slices.Sort(c.fills)
	if err != nil || !slices.Equal(c.fills, []string{"data", "data-db-0"}) {
		c.Errorf("gone on with: %v, filled %v\n%s", err, c.fills, text)
	}
	c.complete()
}

func snapshotClaimRefused(c *contents) {
	records, p := OpenRecords(c.TempDir()), c.planned(true, false)
	if _, text, err := c.run(records, p, refusing(http.MethodPost, "persistentvolumeclaims")); !errors.Is(err, ErrPartly) {
		c.Errorf("refused: %v\n%s", err, text)
	}
	c.held()
	if _, text, err := c.run(records, p, nil); err != nil {
		c.Errorf("gone on with: %v\n%s", err, text)
	}
	c.complete()
	if n := c.imported(); n != 2 { // those of the claim that has no volume
		c.Errorf("%d objects of snapshots are left", n)
	}
	c.undo(records, p)
}

func snapshotHidden(c *contents) {
	records, p := OpenRecords(c.TempDir()), c.planned(true, true)
	cfg := rest.CopyConfig(c.config)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: "nobody-in-content"}
	nobody, err := NewTarget(cfg)
	ok(c.T, err)
	missing, err := p.Rights(c.Context(), nobody)
	ok(c.T, err)
	for _, right := range []string{"get volumesnapshotcontents.snapshot.storage.k8s.io (2 objects)", "get volumesnapshots.snapshot.storage.k8s.io in content (2 objects)"} {
		if !slices.Contains(missing, right) {
			c.Errorf("%q is not asked for: %q", right, missing)
		}
	}
	if _, text, err := c.run(records, p, refusing(http.MethodGet, "volumesnapshotcontents")); !errors.Is(err, ErrPartly) {
		c.Errorf("hidden: %v\n%s", err, text)
	}
	c.held()
	if _, text, err := c.run(records, p, nil); err != nil {
		c.Errorf("gone on with: %v\n%s", err, text)
	}
	c.complete()
	c.undo(records, p)
}

func snapshotLate(c *contents) {
	records, p := OpenRecords(c.TempDir()), c.planned(true, false)
	stop := c.driverWithout()
	if _, text, err := c.run(records, p, nil); !errors.Is(err, ErrPartly) || !strings.Contains(text, "is gone from the storage") {
		c.Errorf("not found: %v\n%s", err, text)
	}
	stop()
	c.held()
	if n := c.imported(); n != 0 {
		c.Errorf("%d objects of snapshots are left", n)
	}
	if _, text, err := c.run(records, p, nil); err != nil {
		c.Errorf("gone on with: %v\n%s", err, text)
	}
	if c.get("persistentvolumeclaims", "content", "data").str("spec", "dataSource", "kind") != "VolumeSnapshot" {
		c.Error("the claim is not of its snapshot")
	}
	c.complete()
	c.undo(records, p)
}

func snapshotRefused(c *contents) {
	records, p := OpenRecords(c.TempDir()), c.planned(true, false)
	if _, text, err := c.run(records, p, refusing(http.MethodPost, "volumesnapshotcontents")); !errors.Is(err, ErrPartly) || strings.Contains(text, "was deleted") || !strings.Contains(text, "could not be made") {
		c.Errorf("refused: %v\n%s", err, text)
	}
	c.held()
	if _, text, err := c.run(records, p, nil); err != nil {
		c.Errorf("gone on with: %v\n%s", err, text)
	}
	c.complete()
	c.undo(records, p)
}

// halfFilled: a claim whose fill failed is filled again, also when somebody changed it meanwhile and when its snapshot is found by then; and an undo takes it away.
func halfFilled(c *contents) {
	records, p := OpenRecords(c.TempDir()), c.planned(true, true)
	c.trouble = errors.New("the mover did not come to an end")
	stop := c.driverWithout()
	_, text, err := c.run(records, p, nil)
	stop()
	if !errors.Is(err, ErrPartly) || len(c.fills) != 2 {
		c.Errorf("half filled: %v, filled %v\n%s", err, c.fills, text)
	}
	c.held()
	rec, err := records.Open(p.ID, false)
	ok(c.T, err)
	c.want(c.world.undo(rec.Undo()), "persistentvolumeclaims", "data", ActionDelete, "was not there before")

	c.patch("ci", "persistentvolumeclaims", "content", "data", `{metadata: {labels: {tier: two}}}`)
	if _, text, err = c.run(records, p, refusing(http.MethodGet, "persistentvolumeclaims/")); !errors.Is(err, ErrPartly) {
		c.Errorf("hidden: %v\n%s", err, text)
	}
	c.held()
	c.trouble, c.fills = nil, nil
	if _, text, err = c.run(records, p, nil); err != nil || len(c.fills) != 2 || !strings.Contains(text, "so it got the files of the same backup") {
		c.Errorf("gone on with: %v, filled %v\n%s", err, c.fills, text)
	}
	c.complete()
	c.undo(records, p)
}

// claimOfAnother: a claim that somebody made since the plan is left as it is, with what it holds, and used.
func claimOfAnother(c *contents) {
	claim := strings.Split(withContent, "\n---\n")[1]
	for name, body := range map[string]string{"identical": claim, "another size": strings.Replace(claim, "1Gi", "2Gi", 1)} {
		for _, snapshot := range []bool{false, true} {
			records, p := OpenRecords(c.TempDir()), c.planned(snapshot, true)
			c.make("somebody", body)
			c.fills = nil
			stop := c.driverWithout()
			_, text, err := c.run(records, p, nil)
			stop()
			if err != nil || !slices.Equal(c.fills, []string{"data-db-0"}) || !strings.Contains(text, "persistentvolumeclaims content/data: was made by somebody else meanwhile") {
				c.Errorf("%s, snapshot %v: %v, filled %v\n%s", name, snapshot, err, c.fills, text)
			}
			c.complete()
			c.undo(records, p)
			c.get("persistentvolumeclaims", "content", "data")
			c.drop()
		}
	}
}

// claimAnew: a claim that is deleted after its fill failed is not missed silently when the restore is gone on with; one that somebody makes in its place is theirs.
func claimAnew(c *contents) {
	records, p := OpenRecords(c.TempDir()), c.planned(false, true)
	c.trouble = errors.New("the mover did not come to an end")
	_, _, _ = c.run(records, p, nil)
	c.trouble, c.fills = nil, nil
	for _, name := range []string{"data", "data-db-0"} {
		c.delete("persistentvolumeclaims", "content", name)
		c.gone("persistentvolumeclaims", "content", name)
	}
	if _, text, err := c.run(records, p, nil); !errors.Is(err, ErrPartly) || len(c.fills) > 0 || !strings.Contains(text, "was deleted since the restore made it") {
		c.Errorf("deleted: %v, filled %v\n%s", err, c.fills, text)
	}
	c.held()
	for _, name := range []string{"data", "data-db-0"} {
		c.make("somebody", strings.Replace(strings.Split(withContent, "\n---\n")[1], "name: data", "name: "+name, 1))
	}
	if _, text, err := c.run(records, p, nil); err != nil || len(c.fills) > 0 || !strings.Contains(text, "persistentvolumeclaims content/data: was made by somebody else meanwhile") {
		c.Errorf("made anew: %v, filled %v\n%s", err, c.fills, text)
	}
	c.complete()
	c.undo(records, p)
	c.get("persistentvolumeclaims", "content", "data")
}

// undo takes a restore back, and with it what was made for its snapshots.
func (c *contents) undo(records *Records, p *Plan) {
	c.Helper()
	rec, err := records.Open(p.ID, false)
	ok(c.T, err)
	c.apply(c.world.undo(rec.Undo()))
	if n := c.imported(); n != 0 {
		c.Errorf("after the undo, %d objects of snapshots are left", n)
	}
}
