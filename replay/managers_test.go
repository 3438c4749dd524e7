package replay

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tidemark-backup/tidemark/journal"
)

func TestDescribe(t *testing.T) {
	const ci = `{"manager":"ci","operation":"Update","apiVersion":"v1","time":"2026-01-01T00:00:00Z","fieldsV1":{"f:data":{".":{},"f:a":{},"f:gone":{}},"f:metadata":{"f:labels":{".":{},"f:app.kubernetes.io/name":{}}}}}`
	managed := func(entries, rest string) string {
		return `{"kind":"ConfigMap","metadata":{"resourceVersion":"1","generation":2,"managedFields":[` + entries + `],"labels":{"app.kubernetes.io/name":"x"}},` + rest + `}`
	}
	v1 := managed(ci, `"data":{"a":"1","gone":"1"}`)
	for _, tc := range []struct {
		name             string
		op               journal.Op
		flags            journal.Flags
		before, after    string
		fields, managers []string
	}{
		{name: "added", op: journal.Added, after: v1, managers: []string{"ci"}},
		{name: "created anew", op: journal.Added, before: v1, after: v1, managers: []string{"ci"}},
		{name: "there already", op: journal.Added, flags: journal.Initial, after: v1},
		{name: "deleted", op: journal.Deleted, before: v1, after: managed(`{"manager":"x","operation":"Update","time":"2026-01-05T00:00:00Z","fieldsV1":{}}`, `"data":{}`)},
		{name: "the version before is not known", op: journal.Modified, after: v1, managers: []string{"ci"}},
		{
			name: "somebody else edits a field", op: journal.Modified, before: v1,
			after:  managed(`{"manager":"ci","operation":"Update","apiVersion":"v1","time":"2026-01-01T00:00:00Z","fieldsV1":{"f:data":{".":{},"f:gone":{}}}},{"manager":"kubectl-edit","operation":"Update","apiVersion":"v1","time":"2026-01-02T00:00:00Z","fieldsV1":{"f:data":{"f:a":{}}}}`, `"data":{"a":"2","gone":"1"}`),
			fields: []string{".data.a"}, managers: []string{"kubectl-edit"},
		},
		{
			name: "the same manager in the same second", op: journal.Modified, before: v1, after: managed(ci, `"data":{"a":"2","gone":"1"}`),
			fields: []string{".data.a"}, managers: []string{"ci"},
		},
		{
			name: "a field added in the same second, which a newer manager shares", op: journal.Modified,
			before: managed(ci+`,{"manager":"argocd","operation":"Apply","apiVersion":"v1","time":"2026-01-02T00:00:00Z","fieldsV1":{"f:data":{"f:b":{}}}}`, `"data":{"a":"1"}`),
			after:  managed(strings.Replace(ci, `"f:gone":{}`, `"f:b":{}`, 1)+`,{"manager":"argocd","operation":"Apply","apiVersion":"v1","time":"2026-01-02T00:00:00Z","fieldsV1":{"f:data":{"f:b":{}}}}`, `"data":{"a":"1","b":"2"}`),
			fields: []string{".data.b"}, managers: []string{"ci"},
		},
		{
			name: "a field removed by its manager", op: journal.Modified, before: v1,
			after:  managed(`{"manager":"ci","operation":"Update","apiVersion":"v1","time":"2026-01-03T00:00:00Z","fieldsV1":{"f:data":{".":{},"f:a":{}}}},{"manager":"idle","operation":"Apply","apiVersion":"v1","time":"2025-01-01T00:00:00Z","fieldsV1":{"f:data":{"f:a":{}}}}`, `"data":{"a":"1"}`),
			fields: []string{".data.gone"}, managers: []string{"ci"},
		},
		{
			name: "a status", op: journal.Modified, before: v1,
			after:  managed(ci+`,{"manager":"kubelet","operation":"Update","apiVersion":"v1","subresource":"status","time":"2026-01-02T00:00:00Z","fieldsV1":{"f:status":{"f:conditions":{"k:{\"type\":\"Ready\"}":{".":{},"f:status":{}}}}}}`, `"data":{"a":"1","gone":"1"},"status":{"conditions":[{"type":"Ready","status":"True"}]}`),
			fields: []string{".status"}, managers: []string{"kubelet/status"},
		},
		{name: "bookkeeping is no change", op: journal.Modified, before: v1, after: `{"kind":"ConfigMap","metadata":{"resourceVersion":"9","generation":3,"labels":{"app.kubernetes.io/name":"x"}},"data":{"a":"1","gone":"1"}}`},
		{name: "nobody keeps managed fields", op: journal.Modified, before: `{"a":1}`, after: `{"a":2}`, fields: []string{".a"}},
		{name: "bytes that are no object", op: journal.Modified, before: `{`, after: `{"a":2}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := NewChange(journal.Event{Op: tc.op, Flags: tc.flags, Object: []byte(tc.after)}, []byte(tc.before))
			if diff := cmp.Diff(tc.fields, c.Fields); diff != "" {
				t.Errorf("fields: %s", diff)
			}
			if diff := cmp.Diff(tc.managers, c.Managers); diff != "" {
				t.Errorf("managers: %s", diff)
			}
		})
	}
}

func TestManagersTellWhoOwnsAPath(t *testing.T) {
	entry := func(name, fields string) string {
		return `{"manager":"` + name + `","operation":"Apply","apiVersion":"v1","time":"2026-01-01T00:00:00Z","fieldsV1":` + fields + `}`
	}
	object := []byte(`{"metadata":{"managedFields":[` +
		entry("labels", `{"f:metadata":{"f:labels":{"f:app.kubernetes.io/name":{}}}}`) + `,` +
		entry("web", `{"f:spec":{"f:containers":{"k:{\"name\":\"web\"}":{".":{},"f:image":{}}}}}`) + `,` +
		entry("log", `{"f:spec":{"f:containers":{"k:{\"name\":\"log\"}":{".":{},"f:image":{},"f:ports":{"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{}}}}}}}`) + `,` +
		entry("atomic", `{"f:spec":{"f:selector":{}}}`) + `,` +
		entry("set", `{"f:metadata":{"f:finalizers":{"v:\"a\"":{}}}}`) + `]}}`)
	for path, want := range map[string]string{
		`.metadata.labels["app.kubernetes.io/name"]`:       "labels",
		`.spec.containers[name=web].image`:                 "web",
		`.spec.containers[name=log]`:                       "log",
		`.spec.containers[name=log].ports[name=http].name`: "log",
		`.spec.selector.matchLabels.app`:                   "atomic",
		`.metadata.finalizers[0]`:                          "set",
	} {
		// The same second and the same entries: only the owners of the path can tell.
		if got := Managers(object, object, []string{path}); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v, want %s", path, got, want)
		}
	}
	if got := Managers(object, object, []string{".spec.unowned"}); got != nil {
		t.Errorf("a path nobody owns: %v", got)
	}
}
