package cli

import (
	"iter"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
)

func events(all ...journal.Event) iter.Seq2[journal.Event, error] {
	return func(yield func(journal.Event, error) bool) {
		for _, e := range all {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// A rewound namespace differs from how it was in what is made anew. Against live that is no
// difference, unless all is asked for; between two recorded moments it is one.
func TestWhatIsMadeAnewIsNoDifference(t *testing.T) {
	for name, c := range map[string]struct {
		resource, object string
		before, after    string
		differs          bool
	}{
		"a pod of a replica set": {"pods", "p", `{"metadata":{"name":"p","ownerReferences":[{"kind":"ReplicaSet","controller":true,"uid":"1"}]}}`, "", false},
		"a pod of nobody":        {"pods", "p", `{"metadata":{"name":"p"}}`, "", true},
		"an owner's uid": {
			"configmaps", "c", `{"metadata":{"name":"c","ownerReferences":[{"kind":"Job","name":"j","uid":"1"}]}}`,
			`{"metadata":{"name":"c","ownerReferences":[{"kind":"Job","name":"j","uid":"2"}]}}`, false,
		},
		"another owner": {
			"configmaps", "c", `{"metadata":{"name":"c","ownerReferences":[{"kind":"Job","name":"j","uid":"1"}]}}`,
			`{"metadata":{"name":"c","ownerReferences":[{"kind":"Job","name":"k","uid":"2"}]}}`, true,
		},
		"a cluster IP":           {"services", "s", `{"spec":{"clusterIP":"10.0.0.1","clusterIPs":["10.0.0.1"]}}`, `{"spec":{"clusterIP":"10.0.0.2","clusterIPs":["10.0.0.2"]}}`, false},
		"headless or not":        {"services", "s", `{"spec":{"clusterIP":"None"}}`, `{"spec":{"clusterIP":"10.0.0.2"}}`, true},
		"the cluster's CA":       {"configmaps", "kube-root-ca.crt", `{"data":{"a":"b"}}`, "", false},
		"endpoints of a service": {"endpoints", "e", `{"metadata":{"labels":{"endpoints.kubernetes.io/managed-by":"endpoint-controller"}},"subsets":[]}`, `{"subsets":[{}]}`, false},
		"endpoints by hand":      {"endpoints", "e", `{"subsets":[]}`, `{"subsets":[{}]}`, true},
		"a token": {
			"pods", "p", `{"spec":{"volumes":[{"name":"kube-api-access-a"}],"containers":[{"name":"c","volumeMounts":[{"name":"kube-api-access-a"}]}]}}`,
			`{"spec":{"volumes":[{"name":"kube-api-access-b"}],"containers":[{"name":"c","volumeMounts":[{"name":"kube-api-access-b"}]}]}}`, false,
		},
		"a huge number": {"configmaps", "c", `{"x":9007199254740993}`, `{"x":9007199254740992}`, true},
	} {
		e := journal.Event{Resource: schema.GroupResource{Resource: c.resource}, Namespace: "shop", Name: c.object, Object: []byte(c.before)}
		later := e
		later.Object = []byte(c.after)
		after := events(later)
		if c.after == "" {
			after = events()
		}
		count := func(f diffFlags) (n int) {
			if err := f.compare(events(e), after, func(objectDiff) error { n++; return nil }); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			return n
		}
		if got := count(diffFlags{to: "live"}); (got > 0) != c.differs {
			t.Errorf("%s: %d differences", name, got)
		}
		if count(diffFlags{to: "live", all: true}) != 1 || count(diffFlags{to: "now"}) != 1 {
			t.Errorf("%s: it is hidden although it was asked for", name)
		}
	}
}
