package replay

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/deploy/localcluster"
)

// TestApplications loses whole applications, with what the controllers made of them and with their parts outside the
// namespace, restores them, and compares every object with what it was. Only what mayDiffer lists may be different.
func TestApplications(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a control plane; run without -short")
	}
	c, err := localcluster.Start(t.Context(), localcluster.Options{})
	ok(t, err)
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	for _, a := range []struct {
		name string
		req  RestoreRequest
		run  func(*world) // what lives beside the objects; nil: nothing
	}{
		{"shop", RestoreRequest{}, nil},
		{"database", RestoreRequest{}, nil},
		{"operator", RestoreRequest{Quiesce: true, Status: []schema.GroupResource{{Group: "sea.example.com", Resource: "fleets"}}}, operate},
		{"admission", RestoreRequest{}, nil},
		{"infra", RestoreRequest{}, nil}, // last: its aggregated API never answers
	} {
		t.Run(a.name, func(t *testing.T) {
			w := newWorld(t, c.Config())
			app := "app-" + a.name
			if a.name == "admission" {
				w.make("ci", admission(w))
			} else {
				text, err := os.ReadFile("testdata/apps/" + a.name + ".yaml")
				ok(t, err)
				w.make("ci", string(text))
			}
			if a.run != nil {
				a.run(w)
			}
			w.patchManagers(app)
			before := w.rest(app)
			h := w.record()
			w.lose(app)
			req := a.req
			req.Scope, req.Cluster = InNamespace(app), ClusterAll
			p := w.plan(h, req)
			w.apply(p)
			after := w.rest(app)
			for _, k := range slices.Sorted(maps.Keys(merged(before, after))) {
				if diff := cmp.Diff(before[k], after[k]); diff != "" {
					t.Errorf("%s (-was +is)\n%s", k, diff)
				}
			}
			if len(before) < 8 {
				t.Errorf("only %d objects were compared", len(before))
			}
			for _, it := range w.plan(h, req).Items {
				if it.Action.writes() || it.Action == ActionFail {
					t.Errorf("after the restore %s is still to %s (%s): %v", it, it.Action, it.Reason, it.Diff)
				}
			}
		})
	}
}

func merged(a, b map[string]any) map[string]any {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// mayDiffer is all that may be different in an object that came back, and why.
var mayDiffer = []struct {
	resource string // "" is all
	path     string // * stands for every member
	why      string
}{
	{"", "metadata.uid", "the API server gives every new object another one"},
	{"", "metadata.resourceVersion", "as it does here"},
	{"", "metadata.creationTimestamp", "it was created again"},
	{"", "metadata.generation", "counts the changes of the new object"},
	{"", "metadata.managedFields", "hold the time of each write; who manages what is compared by owners()"},
	{"", "metadata.ownerReferences.*.uid", "names the new owner; that it is the right one is compared by its name and kind"},
	{"", "metadata.generateName", "a name that was kept needs no other"},
	{"", "status.observedGeneration", "follows the generation"},
	{"", "status.conditions.*.lastTransitionTime", "the new object came to it later"},
	{"", "status.conditions.*.lastUpdateTime", "as above"},
	{"", "status.conditions.*.lastProbeTime", "as above"},
	{"", "status.conditions.*.observedGeneration", "follows the generation"},
	{"", "status.startTime", "the new object began later"},
	{"services", "spec.clusterIP", "was chosen by the cluster, which may have given it to another Service since"},
	{"services", "spec.clusterIPs", "as above"},
	{"services", "spec.healthCheckNodePort", "as above"},
	{"services", "spec.ports.*.nodePort", "as above; those that somebody chose are compared by chosenPorts()"},
	{"secrets", "data.token", "a token of an account is signed for the new account"},
	{"secrets", "metadata.annotations.kubernetes.io/service-account.uid", "as above"},
	{"deployments.apps", "status.conditions.*.reason", "one that was started from zero replicas counts as rolled out before its Pods run"},
	{"deployments.apps", "status.conditions.*.message", "as above"},
	{"jobs.batch", "spec.selector", "is made of the uid"},
	{"jobs.batch", "metadata.labels.controller-uid", "is the uid"},
	{"jobs.batch", "metadata.labels.batch.kubernetes.io/controller-uid", "as above"},
	{"jobs.batch", "spec.template.metadata.labels.controller-uid", "as above"},
	{"jobs.batch", "spec.template.metadata.labels.batch.kubernetes.io/controller-uid", "as above"},
	{"pods", "metadata.name", "its controller chose a random end"},
	{"pods", "metadata.labels.controller-uid", "is the uid of its Job"},
	{"pods", "metadata.labels.batch.kubernetes.io/controller-uid", "as above"},
	{"pods", "spec.volumes.*.name", "the volume of its token has a random name"},
	{"pods", "spec.containers.*.volumeMounts.*.name", "as above"},
	{"pods", "spec.initContainers.*.volumeMounts.*.name", "as above"},
	{"endpointslices.discovery.k8s.io", "metadata.name", "its controller chose a random end"},
	{"endpoints", "metadata.annotations.endpoints.kubernetes.io/last-change-trigger-time", "tells when"},
	{"endpointslices.discovery.k8s.io", "metadata.annotations.endpoints.kubernetes.io/last-change-trigger-time", "tells when"},
	{"horizontalpodautoscalers.autoscaling", "status.conditions", "tell of the last try to read metrics, which nobody serves here"},
	{"resourcequotas", "status.used", "is counted when the quota is made and every five minutes; Pods that controllers make in between are missing until then"},
	{"namespaces", "status.conditions", "tell how its last deletion went"},
	{"apiservices.apiregistration.k8s.io", "status", "tells whether its backend answered, at some time"},
}

// scrub takes away what may differ, and gives an object its name for comparing.
func scrub(gr schema.GroupResource, o object) (key string, out any) {
	o = o.clone()
	managers := owners(o)
	ports := chosenPorts(gr, o)
	random := o.controller() != nil && o.str("metadata", "generateName") != "" && (gr.Resource == "pods" || gr.Resource == "endpointslices") // made anew
	name, prefix := o.name(), o.str("metadata", "generateName")
	for _, d := range mayDiffer {
		if d.resource != "" && d.resource != gr.String() || strings.HasSuffix(d.path, "metadata.name") && !random {
			continue
		}
		cut(map[string]any(o), steps(d.path))
	}
	slices.SortFunc(o.list("status", "conditions"), func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }) // a set
	if random {
		name = prefix + "*"
	}
	return fmt.Sprintf("%s %s", gr, name), map[string]any{"object": map[string]any(o), "managers": managers, "ports": ports}
}

// steps splits a path at its dots, but not within the names of labels and annotations.
func steps(path string) []string {
	for _, part := range []string{"metadata.labels.", "metadata.annotations."} {
		if i := strings.Index(path, part); i >= 0 {
			return append(strings.Split(strings.TrimSuffix(path[:i+len(part)], "."), "."), path[i+len(part):])
		}
	}
	return strings.Split(path, ".")
}

func cut(v any, path []string) {
	if list, ok := v.([]any); ok && path[0] == "*" {
		for _, e := range list {
			cut(e, path[1:])
		}
		return
	}
	m, ok := v.(map[string]any)
	if !ok {
		return
	}
	if len(path) == 1 {
		delete(m, path[0])
		return
	}
	cut(m[path[0]], path[1:])
}

// owners tells which manager owns which fields, the status aside. An Update by whoever created an object may own more
// than before: the defaults that others had set since.
func owners(o object) map[string]bool {
	out := map[string]bool{}
	for _, e := range o.objects("metadata", "managedFields") {
		if e.str("subresource") == "" {
			out[e.str("manager")+" "+e.str("operation")] = true
		}
	}
	return out
}

func chosenPorts(gr schema.GroupResource, o object) (ports []any) {
	if gr.String() != "services" {
		return nil
	}
	chosen := chosenBy(&subject{original: o, req: &RestoreRequest{}, live: true})
	for _, p := range o.objects("spec", "ports") {
		if chosen.nodePorts[portKey(p)] {
			ports = append(ports, p.at("nodePort"))
		}
	}
	return ports
}

// parts are the objects of an application: all of its namespace, and those outside that say they are of it.
func (w *world) parts(app string, each func(servedResource, object)) {
	w.Helper()
	ok(w.T, w.target.refresh(w.Context()))
	for gr, versions := range w.target.table().byResource {
		r := versions[0]
		if !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "create") || slices.Contains(neverRestored, gr.String()) {
			continue
		}
		space := app
		if !r.Namespaced {
			space = ""
		}
		err := w.target.list(w.Context(), r, space, func(u *unstructured.Unstructured) {
			if o := object(u.Object); r.Namespaced || o.name() == app || o.label("app.kubernetes.io/part-of") == app {
				each(r, o)
			}
		})
		if !apierrors.IsNotFound(err) { // its definition went this moment
			ok(w.T, err)
		}
	}
}

// rest is the application once its controllers have nothing to do: the same three times in a row.
func (w *world) rest(app string) map[string]any {
	w.Helper()
	look := func() map[string]any {
		lists := map[string][]string{}
		w.parts(app, func(r servedResource, o object) {
			key, v := scrub(r.GroupResource(), o)
			b, err := json.MarshalIndent(v, "", " ")
			ok(w.T, err)
			lists[key] = append(lists[key], string(randomIDs.ReplaceAll(b, []byte("kube-api-access"))))
		})
		out := map[string]any{}
		for k, l := range lists {
			slices.Sort(l)
			out[k] = parsed(w.T, l)
		}
		return out
	}
	last := look()
	for end, same := time.Now().Add(time.Minute), 0; same < 4; {
		if time.Now().After(end) {
			w.Fatalf("%s does not come to rest", app)
		}
		time.Sleep(400 * time.Millisecond)
		next := look()
		if maps.EqualFunc(last, next, func(a, b any) bool { return cmp.Equal(a, b) }) {
			same++
		} else {
			same, last = 0, next
		}
	}
	return last
}

func parsed(t testing.TB, texts []string) (all []any) {
	for _, text := range texts {
		var v any
		ok(t, json.Unmarshal([]byte(text), &v))
		all = append(all, v)
	}
	return all
}

var randomIDs = regexp.MustCompile(`kube-api-access-\w+`)

// patchManagers has a second manager write to each workload, as people and tools do.
func (w *world) patchManagers(app string) {
	w.Helper()
	for _, o := range w.list("deployments.apps", app) {
		w.patch("kubectl-edit", "deployments.apps", app, o.name(), `{metadata: {annotations: {edited: "yes"}}}`)
	}
}

// lose deletes the application with its parts outside the namespace. An aggregated API that does not answer would hold up
// the deletion of any namespace; that is gone by the time the namespace is waited for.
func (w *world) lose(app string) {
	w.Helper()
	w.parts(app, func(r servedResource, o object) {
		if len(o.list("metadata", "finalizers")) > 0 && r.GroupResource() != definitions && o.namespace() != "" {
			w.patch("ci", r.GroupResource().String(), o.namespace(), o.name(), `{metadata: {finalizers: null}}`)
		}
	})
	w.delete("namespaces", "", app)
	w.parts(app, func(r servedResource, o object) {
		if !r.Namespaced && r.GroupResource() != namespaces {
			w.delete(r.GroupResource().String(), "", o.name())
		}
	})
	w.gone("namespaces", "", app)
	w.eventually("all of "+app+" to be gone", func() bool {
		n := 0
		w.parts(app, func(servedResource, object) { n++ })
		return n == 0
	})
}
