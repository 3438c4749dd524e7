package replay

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tidemark-backup/tidemark/journal"
)

// applyRecorded applies a plan that must succeed, and gives its record as another process reads it.
func (w *world) applyRecorded(records *Records, p *Plan) *Record {
	w.Helper()
	rec, err := records.Begin(p)
	if err != nil {
		w.Fatal(err)
	}
	if res, err := p.Apply(w.Context(), w.target, ApplyOptions{Record: rec}); err != nil {
		w.Fatalf("%v: %v\n%s", err, res.Errors, planText(p))
	}
	if err := rec.Close(); err != nil {
		w.Fatal(err)
	}
	again, err := records.Open(p.ID, false)
	if err != nil {
		w.Fatal(err)
	}
	if n := again.Progress(); n.Done+n.Left != n.Total || again.Ended.IsZero() {
		w.Fatalf("the record of a finished restore: %+v, ended %v", n, again.Ended)
	}
	return again
}

func (w *world) undo(q UndoRequest) *Plan {
	w.Helper()
	p, err := NewUndo(w.Context(), w.target, q)
	if err != nil {
		w.Fatal(err)
	}
	return p
}

// contents is what people see of a namespace's objects, by their names.
func (w *world) contents(namespace string, resources ...string) map[string]object {
	w.Helper()
	all := map[string]object{}
	for _, gr := range resources {
		for _, o := range w.list(gr, namespace) {
			if o.name() != "kube-root-ca.crt" && o.controller() == nil {
				all[gr+" "+o.name()] = normal(&RestoreRequest{}, &past{}, parseGR(gr), o)
			}
		}
	}
	return all
}

func testUndo(t *testing.T, w *world) {
	w.make("ci", ns("undone"))
	w.make("ci", `
apiVersion: v1
kind: ConfigMap
metadata: {name: edited, namespace: undone}
data: {a: "1"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: edited-again, namespace: undone}
data: {a: "1"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: lost, namespace: undone}
data: {a: "1"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: undone}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "web:1"}, {name: log, image: "log:1"}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: undone}
spec: {suspend: true, completions: 1, template: {spec: {restartPolicy: Never, containers: [{name: c, image: "m:1"}]}}}`)
	h := w.record()
	w.patch("ci", "configmaps", "undone", "edited", `{data: {a: "2"}}`)
	w.patch("ci", "configmaps", "undone", "edited-again", `{data: {a: "2"}}`)
	w.delete("configmaps", "undone", "lost")
	w.delete("jobs.batch", "undone", "once")
	w.gone("jobs.batch", "undone", "once")
	w.make("ci", `
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: undone}
spec: {suspend: true, completions: 3, template: {spec: {restartPolicy: Never, containers: [{name: c, image: "m:2"}]}}}`)
	w.patch("ci", "deployments.apps", "undone", "web", `{spec: {replicas: 5, template: {spec: {containers: [{name: web, image: "web:2"}, {name: log, image: "log:1"}]}}}}`)
	w.make("ci", `{apiVersion: v1, kind: ConfigMap, metadata: {name: new, namespace: undone}}`)
	kinds := []string{"configmaps", "deployments.apps", "jobs.batch"}
	before := w.contents("undone", kinds...)

	records := OpenRecords(t.TempDir())
	rec := w.applyRecorded(records, w.plan(h, RestoreRequest{Scope: InNamespace("undone"), Existing: ExistingRecreate, Prune: true}))
	if w.find("configmaps", "undone", "new") != nil || w.get("jobs.batch", "undone", "once").at("spec", "completions") != int64(1) {
		t.Fatal("the restore did not do what is to be undone")
	}
	// Later changes: of another field, of the same field, and of a restored object.
	w.patch("kubectl-edit", "configmaps", "undone", "edited", `{data: {b: "3"}, metadata: {labels: {later: "yes"}}}`)
	w.patch("kubectl-edit", "configmaps", "undone", "edited-again", `{data: {a: "9"}}`)
	w.patch("kubectl-edit", "configmaps", "undone", "lost", `{data: {mine: "1"}}`)

	p := w.undo(rec.Undo())
	w.want(p, "configmaps", "edited", ActionUpdate, "")
	if it := w.want(p, "configmaps", "edited-again", ActionSkip, ".data.a"); len(it.Conflicts) != 1 || string(it.Conflicts[0].Old) != `"9"` || string(it.Conflicts[0].New) != `"2"` {
		t.Errorf("the conflict: %v", it.Conflicts)
	}
	w.want(p, "configmaps", "lost", ActionSkip, "kubectl-edit; --force")
	w.want(p, "configmaps", "new", ActionCreate, "")
	w.want(p, "deployments.apps", "web", ActionUpdate, "")
	w.want(p, "jobs.batch", "once", ActionRecreate, "")
	undone := w.applyRecorded(records, p)
	if o := w.get("configmaps", "undone", "edited"); o.str("data", "a") != "2" || o.str("data", "b") != "3" || o.label("later") != "yes" {
		t.Errorf("edited: %v", o["data"])
	}

	// Forced, and but for what came later, all is as it was before the restore.
	q := rec.Undo()
	q.Force = true
	w.apply(w.undo(q))
	w.patch("kubectl-edit", "configmaps", "undone", "edited", `{data: {b: null}, metadata: {labels: null}}`)
	w.eventually("lost to be gone", func() bool { return w.find("configmaps", "undone", "lost") == nil })
	if d := cmp.Diff(before, w.contents("undone", kinds...)); d != "" {
		t.Errorf("after the undo (-before the restore +after):\n%s", d)
	}
	// An undo is a restore like any other: it can be undone.
	if redo := w.undo(undone.Undo()); redo.Count(ActionUpdate) == 0 {
		t.Errorf("the undo of the undo:\n%s", planText(redo))
	}
	if again := w.undo(q); again.Writes() != 0 {
		t.Errorf("undone twice:\n%s", planText(again))
	}
	// What was made anew by somebody since is another object, also when it is of the same name.
	w.delete("configmaps", "undone", "edited")
	w.make("somebody", `{apiVersion: v1, kind: ConfigMap, metadata: {name: edited, namespace: undone}, data: {a: "1"}}`)
	w.make("somebody", `{apiVersion: v1, kind: ConfigMap, metadata: {name: lost, namespace: undone}, data: {a: "1"}}`)
	p = w.undo(rec.Undo())
	w.want(p, "configmaps", "edited", ActionSkip, "made anew since")
	p = w.undo(q)
	w.want(p, "configmaps", "lost", ActionSkip, "made anew since")
	begun := UndoRequest{Force: true, Reversals: []Reversal{{Resource: parseGR("configmaps"), Namespace: "undone", Name: "lost", Steps: []Step{{After: []byte(`{"data":{"other":"1"}}`)}}}}}
	w.want(w.undo(begun), "configmaps", "lost", ActionSkip, "changed since") // begun, and perhaps never made: it is not ours by its look
}

func testUndoNamespace(t *testing.T, w *world) {
	w.make("ci", ns("came-back"))
	w.make("ci", manyConfigMaps("came-back", 60))
	w.make("ci", `{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: came-back}, spec: {selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "web:1"}]}}}}`)
	h := w.record()
	w.delete("namespaces", "", "came-back")
	w.gone("namespaces", "", "came-back")
	rec := w.applyRecorded(OpenRecords(t.TempDir()), w.plan(h, RestoreRequest{Scope: InNamespace("came-back")}))
	w.make("somebody", `{apiVersion: v1, kind: ConfigMap, metadata: {name: mine, namespace: came-back}}`)
	w.eventually("the deployment's pod", func() bool { return len(w.list("pods", "came-back")) == 1 })
	p := w.undo(rec.Undo())
	w.want(p, "namespaces", "came-back", ActionSkip, "configmaps came-back/mine, 1 in all")
	w.want(p, "deployments.apps", "web", ActionDelete, "")
	w.delete("configmaps", "came-back", "mine")
	p = w.undo(rec.Undo()) // without it
	if it := w.want(p, "namespaces", "came-back", ActionDelete, ""); it != p.Items[len(p.Items)-1] {
		t.Error("the namespace is not deleted last")
	}
	w.apply(p)
	w.gone("namespaces", "", "came-back")
}

func testStopped(t *testing.T, w *world) {
	w.make("ci", ns("stopped"))
	w.make("ci", manyConfigMaps("stopped", 40))
	h := w.record()
	w.delete("namespaces", "", "stopped")
	w.gone("namespaces", "", "stopped")
	records := OpenRecords(t.TempDir())
	p := w.plan(h, RestoreRequest{Scope: InNamespace("stopped")})
	rec, err := records.Begin(p)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	res, err := p.Apply(t.Context(), w.target, ApplyOptions{Parallel: 2, Record: rec, Stop: stop, Progress: func(p Progress) {
		if p.Done == 10 {
			close(stop)
		}
	}})
	if !errors.Is(err, ErrStopped) || res.Done < 10 || res.Done > 13 || res.Failed > 0 {
		t.Fatalf("stopped: %v, %+v", err, res)
	}
	if n := rec.Progress(); n.Unsure > 0 || n.Done != res.Done {
		t.Errorf("a clean stop leaves %+v", n)
	}
	if _, err := records.Open(p.ID, true); !errors.Is(err, ErrRunning) {
		t.Errorf("opened while it is worked on: %v, want ErrRunning", err)
	}
	ok(t, rec.Close())
	uids := map[string]string{}
	for _, o := range w.list("configmaps", "stopped") {
		uids[o.name()] = o.uid()
	}
	rec, err = records.Open(p.ID, true)
	ok(t, err)
	res, err = rec.Plan.Apply(t.Context(), w.target, ApplyOptions{Record: rec})
	if err != nil || res.Done != p.Writes() {
		t.Fatalf("gone on with: %v, %+v", err, res)
	}
	ok(t, rec.Close())
	for _, o := range w.list("configmaps", "stopped") {
		if uid := uids[o.name()]; uid != "" && uid != o.uid() {
			t.Errorf("%s was made twice", o.name())
		}
	}
	w.settled(h, RestoreRequest{Scope: InNamespace("stopped")})
	w.apply(w.undo(rec.Undo()))
	w.gone("namespaces", "", "stopped")
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testDiedAnywhere: the process died right after item n was written and before that was noted, for
// each kind of action; going on completes, and an undo takes all back. So it is when the machine died, and the
// progress has nothing but what was waited for to be on the disk.
func testDiedAnywhere(t *testing.T, w *world) {
	w.make("ci", ns("died"))
	things := `
apiVersion: v1
kind: ConfigMap
metadata: {name: edited, namespace: died}
data: {a: "1"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: lost, namespace: died}
data: {a: "1"}
---
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: died}
spec: {suspend: true, completions: 1, template: {spec: {restartPolicy: Never, containers: [{name: c, image: "m:1"}]}}}`
	w.make("ci", things)
	h := w.record()
	w.patch("ci", "configmaps", "died", "edited", `{data: {a: "2"}}`)
	w.delete("configmaps", "died", "lost")
	w.delete("jobs.batch", "died", "once")
	w.gone("jobs.batch", "died", "once")
	w.make("ci", strings.Replace(things[strings.Index(things, "apiVersion: batch"):], "completions: 1", "completions: 3", 1))
	w.make("ci", `{apiVersion: v1, kind: ConfigMap, metadata: {name: new, namespace: died}}`)
	kinds := []string{"configmaps", "jobs.batch"}
	before := w.contents("died", kinds...)
	req := RestoreRequest{Scope: InNamespace("died"), Existing: ExistingRecreate, Prune: true}
	for death := range 8 {
		n, machine := death%4, death >= 4
		records := OpenRecords(t.TempDir())
		p := w.plan(h, req)
		if p.Writes() != 4 {
			t.Fatalf("death %d: the plan writes %d objects:\n%s", death, p.Writes(), planText(p))
		}
		rec, err := records.Begin(p)
		ok(t, err)
		stop := make(chan struct{})
		_, err = p.Apply(t.Context(), w.target, ApplyOptions{Record: rec, Parallel: 1, Stop: stop, Progress: func(at Progress) {
			if at.Item != nil && at.Done == n+1 {
				close(stop)
			}
		}})
		if n < 3 && !errors.Is(err, ErrStopped) {
			t.Fatalf("death %d: %v", death, err)
		}
		ok(t, rec.Close())
		b, err := os.ReadFile(rec.progressFile())
		ok(t, err)
		end := bytes.LastIndex(b, []byte(`"done"`)) // before it could note the last one, in the middle of the line
		if machine {
			end = bytes.LastIndex(b, []byte(`"w":`))
			end += bytes.IndexByte(b[end:], '\n') + 1
			was := len(bootID())
			for at := bytes.Index(b, []byte(bootID())); was > 0 && at >= 0; at = bytes.Index(b, []byte(bootID())) {
				b[at] = 'x' // another boot
			}
		}
		ok(t, os.WriteFile(rec.progressFile(), b[:end], 0o600))
		rec, err = records.Open(p.ID, true)
		ok(t, err)
		if got := rec.Progress(); !machine && (got.Unsure != 1 || got.Done != n || got.Pending != 3-n) {
			t.Fatalf("death %d: the record tells %+v", death, got)
		}
		res, err := rec.Plan.Apply(t.Context(), w.target, ApplyOptions{Record: rec, Parallel: 1})
		if err != nil {
			t.Fatalf("death %d: gone on with: %v, %v", death, err, res.Errors)
		}
		ok(t, rec.Close())
		w.settled(h, req)
		rec, err = records.Open(p.ID, false)
		ok(t, err)
		w.apply(w.undo(rec.Undo()))
		w.eventually("what was created to be gone", func() bool { return w.find("configmaps", "died", "lost") == nil })
		if d := cmp.Diff(before, w.contents("died", kinds...)); d != "" {
			t.Fatalf("death %d: after the undo (-before +after):\n%s", death, d)
		}
	}
}

// testUndoTime: what one manager changed in some time is taken back; what others did, and what came
// later, stays.
func testUndoTime(t *testing.T, w *world) {
	w.make("ci", ns("window"))
	w.make("ci", `
apiVersion: v1
kind: ConfigMap
metadata: {name: shared, namespace: window}
data: {a: "1", b: "1"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: dropped, namespace: window}
data: {a: "1"}`)
	h := &history{}
	note := func(op journal.Op, name string) {
		o := w.find("configmaps", "window", name)
		if o == nil {
			o = fromYAML(t, fmt.Sprintf(`{apiVersion: v1, kind: ConfigMap, metadata: {name: %s, namespace: window}}`, name))
		}
		h.add(t, op, "configmaps", toYAML(o))
	}
	note(journal.Added, "shared")
	note(journal.Added, "dropped")
	from := h.now()
	w.patch("bad-operator", "configmaps", "window", "shared", `{data: {a: "2"}}`)
	note(journal.Modified, "shared")
	w.patch("alice", "configmaps", "window", "shared", `{data: {b: "2"}}`)
	note(journal.Modified, "shared")
	w.make("bad-operator", `{apiVersion: v1, kind: ConfigMap, metadata: {name: trash, namespace: window}, data: {a: "1"}}`)
	note(journal.Added, "trash")
	w.delete("configmaps", "window", "dropped")
	note(journal.Deleted, "dropped")
	to := h.now()
	w.patch("alice", "configmaps", "window", "shared", `{data: {c: "3"}}`)
	note(journal.Modified, "shared")

	// What is recorded only since it got a label is not deleted for that.
	h2 := &history{}
	h2.add(t, journal.Added, "configmaps", toYAML(w.find("configmaps", "window", "shared")))
	since := h2.now()
	trash := w.find("configmaps", "window", "trash")
	trash.drop("metadata", "creationTimestamp")
	h2.add(t, journal.Added, "configmaps", toYAML(trash))
	h2.ledgers = []journal.Ledger{{ResourceInfo: journal.ResourceInfo{Version: "v1", Resource: "configmaps"}, Filter: "only labels a=b"}}
	labelled, err := Reversals(t.Context(), h2, since, h2.now(), InNamespace("window"), "")
	ok(t, err)
	w.want(w.undo(UndoRequest{Reversals: labelled}), "configmaps", "trash", ActionSkip, "may have been there before: recorded only labels a=b")
	for minute, want := range []string{"", "a gap", "it says that it was made on 2026-01-02T03:01:00Z"} {
		from := journal.Cut{Time: time.Date(2026, 1, 2, 3, minute, 30, 0, time.UTC)}
		if why := doubt([]byte(`{"metadata":{"creationTimestamp":"2026-01-02T03:01:00Z"}}`), from, "a gap"); why != want {
			t.Errorf("from minute %d: %q, want %q", minute, why, want)
		}
	}

	rs, err := Reversals(t.Context(), h, from, to, InNamespace("window"), "bad-operator")
	ok(t, err)
	p := w.undo(UndoRequest{Reversals: rs})
	w.want(p, "configmaps", "shared", ActionUpdate, "")
	w.want(p, "configmaps", "trash", ActionDelete, "")
	if len(p.Items) != 2 {
		t.Errorf("the plan:\n%s", planText(p))
	}
	w.apply(p)
	if d := w.get("configmaps", "window", "shared").sub("data"); d.str("a") != "1" || d.str("b") != "2" || d.str("c") != "3" {
		t.Errorf("shared: %v", d)
	}
	rs, err = Reversals(t.Context(), h, from, to, InNamespace("window"), "") // and now all of it
	ok(t, err)
	p = w.undo(UndoRequest{Reversals: rs})
	w.want(p, "configmaps", "dropped", ActionCreate, "")
	w.want(p, "configmaps", "trash", ActionUnchanged, "")
	w.apply(p)
	if d := w.get("configmaps", "window", "shared").sub("data"); d.str("a") != "1" || d.str("b") != "1" || d.str("c") != "3" {
		t.Errorf("shared: %v", d)
	}
	if _, err := NewUndo(t.Context(), w.target, UndoRequest{Reversals: rs, Cluster: "another"}); !errors.Is(err, ErrOtherCluster) {
		t.Errorf("in another cluster: %v, want ErrOtherCluster", err)
	}
}
