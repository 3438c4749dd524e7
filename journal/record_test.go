package journal

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestRecord records what is Tidemark's own beside what the cluster has, over a restart.
func TestRecord(t *testing.T) {
	dir := t.TempDir()
	info := ResourceInfo{Group: OwnGroup, Version: "v1alpha1", Resource: "volumebackups", Kind: "VolumeBackup", Namespaced: true}
	j, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	record := func(op Op, name, text string) {
		t.Helper()
		if err := j.Record(t.Context(), info, Event{Namespace: "shop", Name: name, Op: op, Object: []byte(text)}); err != nil {
			t.Fatal(err)
		}
	}
	current := func(name, want string) {
		t.Helper()
		tail, err := j.Tail(time.Time{}, time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		defer tail.Close()
		got := ""
		for tail.Next() {
			e, ok, err := tail.Event()
			if err != nil || !ok {
				t.Fatalf("event %+v: %t, %v", tail.Meta(), ok, err)
			}
			if e.Name == name {
				if got = string(e.Object); e.Op == Deleted {
					got = ""
				}
			}
		}
		if got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	current("a", "")
	record(Added, "a", `{"n":1}`)
	record(Modified, "a", `{"n":2}`)
	record(Added, "b", `{"n":3}`)
	record(Deleted, "b", `{"n":3}`)
	current("a", `{"n":2}`)
	current("b", "")
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if j, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	current("a", `{"n":2}`)
	record(Modified, "a", `{"n":4}`)
	current("a", `{"n":4}`)
	l := j.Ledger(info.GroupResource())
	if l == nil || !l.OwnCounter || l.First.Time.IsZero() || l.Watermark.RV != 5 || j.Ledgers()[0].Interrupted != "" {
		t.Errorf("ledger %+v", l)
	}
	if j.Newest().RV != 0 {
		t.Errorf("the cluster's own counter stands at %v", j.Newest())
	}
	tail, err := j.Tail(time.Time{}, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	n := 0
	for tail.Next() {
		if m := tail.Meta(); m.Resource != (schema.GroupResource{Group: OwnGroup, Resource: "volumebackups"}) || m.Observed.IsZero() {
			t.Errorf("event %+v", m)
		}
		n++
	}
	if n != 5 {
		t.Errorf("%d events, want 5", n)
	}
	if err := j.Record(t.Context(), ResourceInfo{Resource: "pods"}, Event{Name: "x", Op: Added}); err == nil {
		t.Error("an object of the cluster was recorded as our own")
	}
}
