package replay

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
)

// TestVeleroScenarios are the scenarios of Velero's own end-to-end tests (test/e2e of v1.18) that need no volumes, by
// their names there. What a restore into another cluster needs runs into a second control plane, without controllers.
func TestVeleroScenarios(t *testing.T) {
	if testing.Short() {
		t.Skip("starts control planes; run without -short")
	}
	here, there := startPair(t, localcluster.Options{}, localcluster.Options{NoControllers: true})
	for _, s := range []struct {
		name string
		test func(*testing.T, *world)
	}{
		{"MultiNSBackupRestore/2", veleroTwoNamespaces},
		{"NamespaceMapping/single", veleroMapOne},
		{"NamespaceMapping/multi", veleroMapTwo},
		{"ResourceFiltering", veleroFilters},
		{"RBAC", veleroRBAC},
		{"NSAnnotations", veleroAnnotations},
		{"APIGroupVersions", veleroVersions},
		{"ResourceModifiers", veleroModifiers},
		{"OrderedResources", veleroOrder},
		{"BackupDeletion", veleroDeletion},
		// NodePort is testNodePorts; ExcludeLabel is a part of ResourceFiltering.
		{"NodePort", testNodePorts},
	} {
		t.Run(s.name, func(t *testing.T) { s.test(t, newWorld(t, here)) })
	}
	t.Run("MultiNSBackupRestore/2500", func(t *testing.T) { veleroManyNamespaces(t, newWorld(t, here), newWorld(t, there)) })
	t.Run("Migration", func(t *testing.T) { veleroMigration(t, newWorld(t, here), newWorld(t, there)) })
}

// startPair starts two control planes.
func startPair(t *testing.T, options ...localcluster.Options) (*rest.Config, *rest.Config) {
	t.Helper()
	configs := make([]*rest.Config, len(options))
	for i, o := range options {
		c, err := localcluster.Start(t.Context(), o)
		ok(t, err)
		t.Cleanup(func() {
			if err := c.Stop(); err != nil {
				t.Error(err)
			}
		})
		configs[i] = c.Config()
	}
	return configs[0], configs[1]
}

func configMap(namespace, name string, labels ...string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s, namespace: %s, labels: {%s}}\ndata: {from: %s}\n", name, namespace, strings.Join(labels, ", "), namespace)
}

// names are the ConfigMaps of a namespace, without the one that the cluster makes.
func (w *world) names(namespace string) []string {
	w.Helper()
	all := []string{}
	for _, o := range w.list("configmaps", namespace) {
		if o.name() != "kube-root-ca.crt" {
			all = append(all, o.name())
		}
	}
	slices.Sort(all)
	return all
}

func (w *world) wantNames(namespace string, want ...string) {
	w.Helper()
	if got := w.names(namespace); !slices.Equal(got, want) {
		w.Errorf("%s has %q, want %q", namespace, got, want)
	}
}

func veleroTwoNamespaces(_ *testing.T, w *world) {
	for _, n := range []string{"v-two-a", "v-two-b"} {
		w.make("ci", ns(n))
		w.make("ci", configMap(n, "settings"))
	}
	h := w.record()
	for _, n := range []string{"v-two-a", "v-two-b"} {
		w.delete("namespaces", "", n)
	}
	for _, n := range []string{"v-two-a", "v-two-b"} {
		w.gone("namespaces", "", n)
	}
	req := RestoreRequest{Scope: Scope{Namespaces: []string{"v-two-a", "v-two-b"}}}
	w.apply(w.plan(h, req))
	w.wantNames("v-two-a", "settings")
	w.wantNames("v-two-b", "settings")
	w.settled(h, req)
}

// veleroManyNamespaces is what Velero calls a scale test: 2,500 namespaces, restored into an empty cluster.
func veleroManyNamespaces(t *testing.T, w, target *world) {
	const n = 2500
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(32)
	create := func(ctx context.Context, gr, namespace, text string) error {
		_, err := w.target.client(w.resource(gr), namespace).Create(ctx, fromYAML(t, text).unstructured(), metav1.CreateOptions{FieldManager: "ci"})
		return err
	}
	for i := range n {
		g.Go(func() error {
			name := fmt.Sprintf("v-many-%d", i)
			if err := create(ctx, "namespaces", "", ns(name)); err != nil {
				return err
			}
			return create(ctx, "configmaps", name, configMap(name, "settings"))
		})
	}
	ok(t, g.Wait())
	h := w.record()
	p := target.plan(h, RestoreRequest{Scope: Scope{Resources: []schema.GroupResource{namespaces, {Resource: "configmaps"}}}})
	target.apply(p)
	have := 0
	for _, o := range target.list("configmaps", "") {
		if strings.HasPrefix(o.namespace(), "v-many-") && o.name() == "settings" && o.str("data", "from") == o.namespace() {
			have++
		}
	}
	if have != n {
		t.Errorf("%d of %d namespaces have their settings", have, n)
	}
}

func veleroMapOne(t *testing.T, w *world) {
	w.make("ci", ns("v-map"))
	w.make("ci", configMap("v-map", "settings"))
	h := w.record()
	req := RestoreRequest{Scope: InNamespace("v-map"), NamespaceMappings: map[string]string{"v-map": "v-map-copy"}}
	w.apply(w.plan(h, req))
	w.wantNames("v-map-copy", "settings")
	w.wantNames("v-map", "settings")
	if got := w.get("namespaces", "", "v-map-copy").label("team"); got != "blue" {
		t.Errorf("the copy's label is %q", got)
	}
	w.settled(h, req)
}

func veleroMapTwo(t *testing.T, w *world) {
	mappings := map[string]string{}
	for _, n := range []string{"v-maps-a", "v-maps-b"} {
		w.make("ci", ns(n))
		w.make("ci", configMap(n, "settings"))
		mappings[n] = n + "-copy"
	}
	h := w.record()
	w.apply(w.plan(h, RestoreRequest{Scope: Scope{Namespaces: []string{"v-maps-a", "v-maps-b"}}, NamespaceMappings: mappings}))
	for from, to := range mappings {
		if got := w.get("configmaps", to, "settings").str("data", "from"); got != from {
			t.Errorf("%s has the settings of %s", to, got)
		}
	}
}

// veleroFilters are all forms of resource filtering: each leaves a known set of objects to be restored.
func veleroFilters(t *testing.T, w *world) {
	for _, n := range []string{"v-filter-a", "v-filter-b"} {
		w.make("ci", ns(n))
		w.make("ci", configMap(n, "plain")+"---\n"+configMap(n, "blue", "color: blue")+"---\n"+configMap(n, "green", "color: green")+"---\n"+configMap(n, "kept-out", `velero.io/exclude-from-backup: "true"`)+
			"---\napiVersion: v1\nkind: Secret\nmetadata: {name: pw, namespace: "+n+"}\n")
	}
	h := w.record()
	blue, err := labels.Parse("color=blue")
	ok(t, err)
	green, err := labels.Parse("color=green")
	ok(t, err)
	maps, all := schema.GroupResource{Resource: "configmaps"}, []string{"v-filter-a", "v-filter-b"}
	for _, c := range []struct {
		name string
		req  RestoreRequest
		maps []string // that come back in v-filter-a
		pw   bool
		b    bool // v-filter-b comes back as well
	}{
		{"include namespaces", RestoreRequest{Scope: InNamespace("v-filter-a")}, []string{"blue", "green", "plain"}, true, false},
		{"include resources", RestoreRequest{Scope: Scope{Namespaces: all, Resources: []schema.GroupResource{secrets}}}, nil, true, true},
		{"exclude resources", RestoreRequest{Scope: Scope{Namespaces: all}, ExcludeResources: []schema.GroupResource{maps}}, nil, true, true},
		{"label selector", RestoreRequest{Scope: Scope{Namespaces: all, Selector: blue}}, []string{"blue"}, false, true},
		{"or selector", RestoreRequest{Scope: Scope{Namespaces: all, Selector: AnyOf{blue, green}}}, []string{"blue", "green"}, false, true},
		{"label and resource", RestoreRequest{Scope: Scope{Namespaces: all, Selector: blue, Resources: []schema.GroupResource{secrets}}}, nil, false, true},
		{"everything but what its label keeps out", RestoreRequest{Scope: Scope{Namespaces: all}}, []string{"blue", "green", "plain"}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, w.config)
			for _, n := range all {
				for _, o := range append(w.list("configmaps", n), w.list("secrets", n)...) {
					if o.name() != "kube-root-ca.crt" {
						w.delete(map[string]string{"ConfigMap": "configmaps", "Secret": "secrets"}[o.str("kind")], n, o.name())
					}
				}
			}
			p, err := NewPlan(t.Context(), h, w.target, withCut(c.req, h))
			if err == nil {
				_, err = p.Apply(t.Context(), w.target, ApplyOptions{})
			}
			if err != nil && (c.maps != nil || c.pw) {
				t.Fatal(err)
			}
			w.wantNames("v-filter-a", c.maps...)
			if got := w.find("secrets", "v-filter-a", "pw") != nil; got != c.pw {
				t.Errorf("the Secret came back: %v", got)
			}
			if got := len(w.names("v-filter-b")) > 0 || w.find("secrets", "v-filter-b", "pw") != nil; got != (c.b && (c.maps != nil || c.pw)) {
				t.Errorf("v-filter-b came back: %v", got)
			}
		})
	}
}

func withCut(req RestoreRequest, h *history) RestoreRequest {
	req.Cut = h.now()
	return req
}
