package audit_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay/audit"
)

const (
	configMap = `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"shop","uid":"u","resourceVersion":"3","labels":{"app":"x"},"annotations":{"note":"x"}},"data":{"v":"x"}}`
	secret    = `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"a","namespace":"shop","uid":"u","resourceVersion":"3"},"data":{"v":"eA=="},"type":"Opaque"}`
	workload  = `{"kind":"Deployment","apiVersion":"apps/v1","metadata":{"name":"a","namespace":"shop","uid":"u","resourceVersion":"3","generation":4,"labels":{"app":"x"},"annotations":{"note":"x"}},` +
		`"spec":{"replicas":2,"template":{"metadata":{"creationTimestamp":null},"spec":{"containers":[{"name":"a","image":"one"},{"name":"b","image":"two"}]}}},"status":{"replicas":2}}`
	bucket = `{"kind":"Bucket","apiVersion":"example.com/v1","metadata":{"name":"a","namespace":"shop","uid":"u","resourceVersion":"3","labels":{"app":"x"},"finalizers":["keep"]},"spec":{"size":1}}`
)

var (
	secrets    = journal.ResourceInfo{Version: "v1", Resource: "secrets", Kind: "Secret", Namespaced: true}
	workloads  = journal.ResourceInfo{Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true}
	buckets    = journal.ResourceInfo{Group: "example.com", Version: "v1", Resource: "buckets", Kind: "Bucket", Namespaced: true}
	definition = journal.ResourceInfo{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions", Kind: "CustomResourceDefinition"}
)

// definedBuckets is the definition of buckets, at a revision and generation of its own.
func definedBuckets(rv, generation int, strategy string) journal.Event {
	return journal.Event{
		Resource: definition.GroupResource(), Name: "buckets.example.com", UID: "d", Op: journal.Modified, Revision: journal.Revision{RV: uint64(rv)},
		Object: fmt.Appendf(nil, `{"kind":"CustomResourceDefinition","apiVersion":"apiextensions.k8s.io/v1","metadata":{"name":"buckets.example.com","uid":"d","resourceVersion":"%d","generation":%d},`+
			`"spec":{"conversion":{"strategy":%q}}}`, rv, generation, strategy),
	}
}

// What was recorded before the server or a definition changed may have lost or been given fields since. Everything that no
// such change touches is compared all the same: an altered history is not taken for an old form.
func TestAnotherFormExcusesNoOtherContent(t *testing.T) {
	const before, upgraded, redefined, converted = "nothing changed", "the server was upgraded", "the definition was changed", "a webhook converts"
	for _, c := range []struct {
		what   string
		info   journal.ResourceInfo
		object string
		when   string
		change []string // what the live object has instead, in pairs
		want   audit.State
	}{
		{"a field is new", info, configMap, upgraded, []string{`"data":`, `"immutable":false,"data":`}, audit.Equal},
		{"a field is new, without cause", info, configMap, before, []string{`"data":`, `"immutable":false,"data":`}, audit.Different},
		{"a value", info, configMap, upgraded, []string{`"v":"x"`, `"v":"EVIL"`}, audit.Different},
		{"a key less", info, configMap, upgraded, []string{`"v":"x"`, ``}, audit.Different},
		{"a key more", info, configMap, upgraded, []string{`"v":"x"`, `"v":"x","w":"y"`}, audit.Different},
		{"a label", info, configMap, upgraded, []string{`"app":"x"`, ``}, audit.Different},
		{"an annotation", info, configMap, upgraded, []string{`"note":"x"`, `"note":"x","more":"y"`}, audit.Different},
		{"another uid", info, configMap, upgraded, []string{`"uid":"u"`, `"uid":"U"`}, audit.Different},
		{"another kind", info, configMap, upgraded, []string{`"ConfigMap"`, `"Secret"`}, audit.Different},
		{"a value in another version", info, configMap, before, []string{`"apiVersion":"v1"`, `"apiVersion":"v2"`, `"v":"x"`, `"v":"EVIL"`}, audit.Different},
		{"a Secret's value", secrets, secret, upgraded, []string{`"eA=="`, `"eQ=="`}, audit.Different},
		{"a Secret's type", secrets, secret, upgraded, []string{`,"type":"Opaque"`, ``}, audit.Different},

		{"defaults", workloads, workload, upgraded, []string{`"spec":{"replicas":2`, `"spec":{"paused":false,"replicas":2`, `"creationTimestamp":null`, ``}, audit.Equal},
		{"a field that is no more", workloads, workload, upgraded, []string{`,"status":{"replicas":2}`, ``}, audit.Equal},
		{"replicas", workloads, workload, upgraded, []string{`"spec":{"replicas":2`, `"spec":{"replicas":3`}, audit.Different},
		{"a text for a number", workloads, workload, upgraded, []string{`"spec":{"replicas":2`, `"spec":{"replicas":"2"`}, audit.Different},
		{"an image", workloads, workload, upgraded, []string{`"two"`, `"EVIL"`}, audit.Different},
		{"a container less", workloads, workload, upgraded, []string{`,{"name":"b","image":"two"}`, ``}, audit.Different},
		{"a map for a list", workloads, workload, upgraded, []string{`[`, `{"list":[`, `]`, `]}`}, audit.Different},
		{"an annotation of another version", workloads, workload, before, []string{`apps/v1`, `apps/v2`, `"note":"x"`, `"note":"x","more":"y"`}, audit.Equal},
		{"an annotation's value in another version", workloads, workload, before, []string{`apps/v1`, `apps/v2`, `"note":"x"`, `"note":"y"`}, audit.Different},
		{"a label in another version", workloads, workload, before, []string{`apps/v1`, `apps/v2`, `"app":"x"`, ``}, audit.Different},
		{"a value in another version of a group", workloads, workload, before, []string{`apps/v1`, `apps/v2`, `"two"`, `"EVIL"`}, audit.Different},
		{"the version of another group", workloads, strings.Replace(workload, "apps/", "evil/", 1), before, []string{`evil/`, `apps/`}, audit.Different},

		{"a default of a definition", buckets, bucket, redefined, []string{`"size":1`, `"size":1,"class":"fast"`}, audit.Equal},
		{"a default, without cause", buckets, bucket, before, []string{`"size":1`, `"size":1,"class":"fast"`}, audit.Different},
		{"a custom value", buckets, bucket, redefined, []string{`"size":1`, `"size":2`}, audit.Different},
		{"what a webhook makes", buckets, bucket, converted, []string{`"app":"x"`, `"app":"y"`, `"size":1`, `"size":"1Gi"`}, audit.Equal},
		{"what a webhook cannot make", buckets, bucket, converted, []string{`"keep"`, ``}, audit.Different},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newWorld(t)
			if c.info.Resource != info.Resource {
				w.list(c.info)
			}
			if c.info.Group == buckets.Group {
				w.list(definition)
				w.record(definedBuckets(2, 1, "None"))
			}
			e := journal.Event{Resource: c.info.GroupResource(), Namespace: "shop", Name: "a", UID: "u", Op: journal.Added, Revision: journal.Revision{RV: 3}, Object: []byte(c.object)}
			w.record(e)
			audited := func() audit.Record {
				w.now = w.now.Add(w.o.Every)
				if err := w.Audit(t.Context(), e.Resource); err != nil {
					t.Fatal(err)
				}
				r := w.Report().Resources
				return r[len(r)-1]
			}
			w.cluster.objects[[2]string{"shop", "a"}] = e
			if rec := audited(); rec.Proof == nil || rec.Proof.Reshaped > 0 {
				t.Fatalf("before: %+v", rec)
			}
			switch c.when {
			case upgraded:
				w.cluster.version = "v2"
			case redefined:
				w.record(definedBuckets(4, 2, "None"))
			case converted:
				w.record(definedBuckets(4, 2, "Webhook"))
			}
			e.Object = []byte(strings.NewReplacer(c.change...).Replace(c.object))
			if string(e.Object) == c.object {
				t.Fatal("nothing is replaced")
			}
			w.cluster.objects[[2]string{"shop", "a"}] = e
			rec := audited()
			if got := rec.Different == 0; got != (c.want == audit.Equal) || rec.Trouble != "" || c.want == audit.Equal && rec.Proof.Reshaped != 1 {
				t.Errorf("want %s: %+v", c.want, rec)
			}
		})
	}
}
