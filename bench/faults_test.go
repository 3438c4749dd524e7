package bench

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/journal/capture"
)

// requests counts what a client asks for, by kind of request.
type requests struct {
	http.RoundTripper
	mu    sync.Mutex
	lists []string
	watch int
}

// RoundTrip implements http.RoundTripper.
func (c *requests) RoundTrip(r *http.Request) (*http.Response, error) {
	q := r.URL.Query()
	c.mu.Lock()
	switch {
	case q.Get("watch") == "true":
		c.watch++
	case q.Has("limit"):
		c.lists = append(c.lists, r.URL.String())
	}
	c.mu.Unlock()
	return c.RoundTripper.RoundTrip(r)
}

func counted(config *rest.Config) (*rest.Config, *requests) {
	n := &requests{}
	config = rest.CopyConfig(config)
	config.Wrap(func(rt http.RoundTripper) http.RoundTripper { n.RoundTripper = rt; return n })
	return config, n
}

// mustEqualLive compares the fold at the newest moment with what the server holds now.
func (r *recording) mustEqualLive(t *testing.T, config *rest.Config, gvrs ...schema.GroupVersionResource) {
	t.Helper()
	for _, gvr := range gvrs {
		l := r.journal.Ledger(gvr.GroupResource())
		want, ok := exactList(t, config, l.ResourceInfo, l.Watermark.RV)
		if !ok {
			t.Fatalf("the server no longer knows %s at %d", gvr.Resource, l.Watermark.RV)
		}
		compareObjects(t, gvr.GroupResource(), l.Watermark.RV, r.fold(gvr.GroupResource(), l.Watermark.RV), want)
	}
}

func TestRestartGoesOnWithoutAList(t *testing.T) {
	cluster := startCluster(t, localcluster.Options{NoControllers: true})
	d := fastClient(t, cluster.Config())
	dir := t.TempDir()
	r := record(t, cluster.Config(), dir)
	createNamespace(t, d, "red")
	w := &traffic{client: d, namespaces: []string{"red"}, resources: []schema.GroupVersionResource{configMaps}, objects: 5}
	w.run(t.Context(), t, 2, 50)
	r.await(configMaps, w.last()[configMaps])
	r.stop()
	w.run(t.Context(), t, 3, 50) // while nobody watches

	config, asked := counted(cluster.Config())
	r = record(t, config, dir)
	r.await(configMaps, w.last()[configMaps])
	recorded := len(r.capture.Status().Resources)
	eventually(t, 30*time.Second, "all watches", func() (bool, string) {
		asked.mu.Lock()
		defer asked.mu.Unlock()
		return asked.watch >= recorded, fmt.Sprintf("%d of %d", asked.watch, recorded)
	})
	asked.mu.Lock()
	defer asked.mu.Unlock()
	if len(asked.lists) > 0 {
		t.Errorf("the restarted daemon listed: %v", asked.lists)
	}
	for _, l := range r.journal.Ledgers() {
		if len(l.Gaps) > 0 {
			t.Errorf("%s: gaps after a short stop: %+v", l.GroupResource(), l.Gaps)
		}
	}
	r.mustEqualLive(t, cluster.Config(), configMaps)
}

func TestAPIServerRestart(t *testing.T) {
	cluster := startCluster(t, localcluster.Options{NoControllers: true})
	d := fastClient(t, cluster.Config())
	r := record(t, cluster.Config(), t.TempDir())
	createNamespace(t, d, "red")
	createBuckets(t, d)
	w := &traffic{client: d, namespaces: []string{"red"}, resources: []schema.GroupVersionResource{configMaps, secrets, buckets}, objects: 5}
	w.run(t.Context(), t, 4, 60)
	if err := cluster.RestartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.run(t.Context(), t, 5, 60)
	for gvr, rv := range w.last() {
		r.await(gvr, rv)
	}
	r.mustEqualLive(t, cluster.Config(), configMaps, secrets, buckets)
	mustHoldAcked(t, r, w)
}

// mustHoldAcked checks that every acknowledged change is an event of the journal, or lies in a
// gap that the ledger shows.
func mustHoldAcked(t *testing.T, r *recording, w *traffic) {
	t.Helper()
	have := map[acked]bool{}
	tail, err := r.journal.Tail(time.Time{}, r.journal.Newest().Time)
	if err != nil {
		t.Fatal(err)
	}
	for tail.Next() {
		m := tail.Meta()
		have[acked{resource: schema.GroupVersionResource{Group: m.Resource.Group, Resource: m.Resource.Resource}, rv: m.Revision.RV}] = true
	}
	if err := tail.Close(); err != nil {
		t.Fatal(err)
	}
	missing := 0
	for _, a := range w.acked {
		gvr := a.resource
		gvr.Version = ""
		if have[acked{gvr, a.rv}] {
			continue
		}
		l := r.journal.Ledger(gvr.GroupResource())
		inGap := false
		for _, g := range l.Gaps {
			inGap = inGap || a.rv > g.From.RV && a.rv <= g.To.RV
		}
		if !inGap && a.rv > l.First.RV {
			missing++
			t.Errorf("%s revision %d was acknowledged, is not recorded, and no gap says so: %+v", gvr.Resource, a.rv, l)
		}
	}
	if missing == 0 && len(w.acked) == 0 {
		t.Fatal("no change was acknowledged: the test proved nothing")
	}
}

func TestCompactionBecomesAGapAndInferredEvents(t *testing.T) {
	cluster := startCluster(t, localcluster.Options{NoControllers: true})
	d := fastClient(t, cluster.Config())
	dir := t.TempDir()
	r := record(t, cluster.Config(), dir)
	createNamespace(t, d, "red")
	w := &traffic{client: d, namespaces: []string{"red"}, resources: []schema.GroupVersionResource{configMaps, secrets}, objects: 8}
	w.run(t.Context(), t, 6, 60)
	for gvr, rv := range w.last() {
		r.await(gvr, rv)
	}
	r.stop()

	w.run(t.Context(), t, 7, 80)
	if err := cluster.CompactEtcd(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := cluster.RestartAPIServer(t.Context()); err != nil { // its watch cache still knew
		t.Fatal(err)
	}

	r = record(t, cluster.Config(), dir)
	for gvr, rv := range w.last() {
		r.await(gvr, rv)
	}
	r.mustEqualLive(t, cluster.Config(), configMaps, secrets)
	mustHoldAcked(t, r, w)
	l := r.journal.Ledger(configMaps.GroupResource())
	if len(l.Gaps) != 1 || !strings.Contains(l.Gaps[0].Cause, "410") || l.Gaps[0].Inferred == 0 {
		t.Errorf("want one gap caused by 410 Gone with inferred events, have %+v", l.Gaps)
	}
	inferred := 0
	for _, e := range events(t, r.journal) {
		if e.Inferred() && e.Resource == configMaps.GroupResource() {
			inferred++
		}
	}
	if inferred != l.Gaps[0].Inferred {
		t.Errorf("the ledger counts %d inferred events, the history has %d", l.Gaps[0].Inferred, inferred)
	}
}

func events(t *testing.T, j *journal.Journal) []journal.Event {
	t.Helper()
	tail, err := j.Tail(time.Time{}, j.Newest().Time)
	if err != nil {
		t.Fatal(err)
	}
	var all []journal.Event
	for tail.Next() {
		all = append(all, tail.Meta())
	}
	if err := tail.Close(); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestCRDComesAndGoes(t *testing.T) {
	cluster := startCluster(t, localcluster.Options{})
	d := fastClient(t, cluster.Config())
	r := record(t, cluster.Config(), t.TempDir())
	createNamespace(t, d, "red")
	w := &traffic{client: d, namespaces: []string{"red"}, resources: []schema.GroupVersionResource{buckets, configMaps}, objects: 6}
	gone := func() (bool, string) {
		l := r.journal.Ledger(buckets.GroupResource())
		return l != nil && l.Removed != nil, fmt.Sprintf("%+v", l)
	}
	for round := range 3 {
		createBuckets(t, d)
		eventually(t, 30*time.Second, "buckets recorded", func() (bool, string) {
			l := r.journal.Ledger(buckets.GroupResource())
			return l != nil && l.Removed == nil && !l.First.Time.IsZero(), fmt.Sprintf("%+v", l)
		})
		w.run(t.Context(), t, uint64(10+round), 40)
		for gvr, rv := range w.last() {
			r.await(gvr, rv)
		}
		r.mustEqualLive(t, cluster.Config(), buckets)
		before := w.last()[buckets]
		if err := d.Resource(crds).Delete(t.Context(), "buckets.example.com", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, 60*time.Second, "buckets gone", gone)
		l := r.journal.Ledger(buckets.GroupResource())
		if n := len(r.fold(buckets.GroupResource(), l.Watermark.RV)); n > 0 {
			t.Fatalf("round %d: %d objects outlive their CRD", round, n)
		}
		want := len(r.fold(buckets.GroupResource(), before))
		if want == 0 {
			t.Fatalf("round %d: no bucket lived at revision %d", round, before)
		}
	}
	mustHoldAcked(t, r, w)
	if l := r.journal.Ledger(configMaps.GroupResource()); len(l.Gaps) > 0 {
		t.Errorf("a CRD that comes and goes cost another resource: %+v", l.Gaps)
	}
}

func TestRevokedRightsCostOneResourceOnly(t *testing.T) {
	cluster := startCluster(t, localcluster.Options{NoControllers: true})
	admin := fastClient(t, cluster.Config())
	roles := schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"}
	bindings := roles
	bindings.Resource = "clusterrolebindings"
	rule := func(resource string) map[string]any {
		return map[string]any{"apiGroups": []any{""}, "resources": []any{resource}, "verbs": []any{"get", "list", "watch"}}
	}
	grant := func(name string, rules ...any) {
		t.Helper()
		if _, err := admin.Resource(roles).Create(t.Context(), object("rbac.authorization.k8s.io/v1", "ClusterRole", "", name, map[string]any{"rules": rules}), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.Resource(bindings).Create(t.Context(), object("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "", name, map[string]any{
			"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
			"subjects": []any{map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "tidemark"}},
		}), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	grant("base", rule("configmaps"), rule("namespaces"))
	grant("may-read-secrets", rule("secrets"))
	createNamespace(t, admin, "red")
	config, err := cluster.ConfigFor("tidemark")
	if err != nil {
		t.Fatal(err)
	}
	r := record(t, config, t.TempDir(), func(o *capture.Options) { o.Include = []string{"configmaps", "secrets", "namespaces", "services"} })
	w := &traffic{client: admin, namespaces: []string{"red"}, resources: []schema.GroupVersionResource{configMaps, secrets}, objects: 5}
	w.run(t.Context(), t, 20, 30)
	for gvr, rv := range w.last() {
		r.await(gvr, rv)
	}
	state := func(resource string, want capture.State) func() (bool, string) {
		return func() (bool, string) {
			s := r.capture.Status()
			for _, x := range s.Resources {
				if x.Resource.Resource == resource {
					return x.State == want && (want != capture.StateForbidden || x.Error != ""), fmt.Sprintf("%+v", x)
				}
			}
			return false, fmt.Sprintf("%+v", s)
		}
	}
	eventually(t, 20*time.Second, "services were never allowed", state("services", capture.StateForbidden))

	if err := admin.Resource(bindings).Delete(t.Context(), "may-read-secrets", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := cluster.RestartAPIServer(t.Context()); err != nil { // a running watch outlives its right
		t.Fatal(err)
	}
	w.run(t.Context(), t, 21, 30)
	eventually(t, 60*time.Second, "secrets forbidden", state("secrets", capture.StateForbidden))
	r.await(configMaps, w.last()[configMaps])
	if l := r.journal.Ledger(secrets.GroupResource()); l.Watermark.RV >= w.last()[secrets] {
		t.Errorf("the watermark of secrets moved without the right to see them: %+v", l)
	}

	if _, err := admin.Resource(bindings).Create(t.Context(), object("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "", "may-read-secrets", map[string]any{
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "may-read-secrets"},
		"subjects": []any{map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "tidemark"}},
	}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.await(secrets, w.last()[secrets])
	r.mustEqualLive(t, cluster.Config(), configMaps, secrets)
	mustHoldAcked(t, r, w)
}
