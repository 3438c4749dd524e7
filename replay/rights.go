package replay

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// right is what writing some items needs.
type right struct {
	verb      string
	gr        schema.GroupResource
	namespace string
}

// verbs are what the API server must allow for an action.
var verbs = map[Action][]string{
	ActionCreate: {"create"}, ActionUpdate: {"update"}, ActionRecreate: {"delete", "create"}, ActionDelete: {"delete"}, ActionStart: {"patch"},
}

// Rights asks the API server, before anything is written, whether it will let the plan be applied,
// and returns what is missing, a line for each right: "create secrets in shop (3 objects)". It asks for
// all namespaces first, so that an administrator costs one request for each kind and verb. Where the
// question may not be asked, nothing is missing.
func (p *Plan) Rights(ctx context.Context, target *Target) ([]string, error) {
	needed := map[right]int{}
	for _, it := range p.Items {
		for _, v := range verbs[it.Action] {
			needed[right{v, it.Resource, it.Namespace}]++
		}
		if it.Action == ActionRelease {
			for _, gr := range it.imports() { // they tell whether the storage still has the snapshot
				needed[right{"get", gr, it.importedTo(gr)}]++
			}
		}
		if it.status.packed != nil && it.Action.writes() {
			needed[right{"update", schema.GroupResource{Group: it.Resource.Group, Resource: it.Resource.Resource + "/status"}, it.Namespace}]++
		}
	}
	everywhere := map[right]bool{}
	for r := range needed {
		everywhere[right{r.verb, r.gr, ""}] = true
	}
	allowed, err := target.allowed(ctx, slices.Collect(maps.Keys(everywhere)))
	if err != nil || allowed == nil {
		return nil, err
	}
	var rest []right
	for r := range needed {
		if r.namespace != "" && !allowed[right{r.verb, r.gr, ""}] {
			rest = append(rest, r)
		}
	}
	inNamespaces, err := target.allowed(ctx, rest)
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, r := range slices.SortedFunc(maps.Keys(needed), func(a, b right) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.gr.String(), b.gr.String()), cmp.Compare(a.verb, b.verb))
	}) {
		if allowed[right{r.verb, r.gr, ""}] || inNamespaces[r] {
			continue
		}
		where, objects := "", "object"
		if r.namespace != "" {
			where = " in " + r.namespace
		}
		if needed[r] > 1 {
			objects = "objects"
		}
		missing = append(missing, fmt.Sprintf("%s %s%s (%d %s)", r.verb, r.gr, where, needed[r], objects))
	}
	return missing, nil
}

var reviews = schema.GroupVersionResource{Group: "authorization.k8s.io", Version: "v1", Resource: "selfsubjectaccessreviews"}

// allowed asks for rights, several at once; nil when the server does not answer such questions.
func (t *Target) allowed(ctx context.Context, rights []right) (map[right]bool, error) {
	answers := map[right]bool{}
	var mu sync.Mutex
	deaf := false
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(liveReaders)
	for _, r := range rights {
		g.Go(func() error {
			resource, sub, _ := strings.Cut(r.gr.Resource, "/")
			ask := object{"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": map[string]any{
				"resourceAttributes": map[string]any{"verb": r.verb, "group": r.gr.Group, "resource": resource, "subresource": sub, "namespace": r.namespace},
			}}
			u, err := retry(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
				return t.dyn.Resource(reviews).Create(ctx, ask.unstructured(), metav1.CreateOptions{})
			})
			mu.Lock()
			defer mu.Unlock()
			if err != nil && ctx.Err() == nil { // whoever may not ask finds out by trying
				deaf = true
				return nil
			}
			if err == nil {
				answers[r] = object(u.Object).at("status", "allowed") == true
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if deaf {
		return nil, nil
	}
	return answers, nil
}

// Rejection is what the API server would not accept.
type Rejection struct {
	Item *Item  `json:"item"`
	Why  string `json:"why"`
}

// Rehearse sends everything that the plan writes to the API server as a server-side dry run: with
// admission, validation and quotas, and without a trace. What can only be tried once something else
// is there, such as objects of a namespace that the plan creates, is untried. It returns the rejections
// in the order of the plan.
func (p *Plan) Rehearse(ctx context.Context, target *Target) (rejected []Rejection, tried, untried int, err error) {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(firstParallel)
	coming := map[string]bool{} // namespaces and resources that are not there yet
	for _, it := range p.Items {
		if it.Action.writes() && it.Action != ActionDelete && it.live == nil && (it.Resource == namespaces || it.Resource == definitions) {
			coming[it.Name] = true
		}
	}
	for _, it := range p.Items {
		if !it.Action.writes() {
			continue
		}
		if it.Namespace != "" && (coming[it.Namespace] || p.gone[it.Namespace]) || coming[it.Resource.String()] || it.awaitGone || it.Action.follows() {
			untried++
			continue
		}
		tried++
		g.Go(func() error {
			err := p.rehearse(ctx, target, it)
			if err == nil || ctx.Err() != nil {
				return ctx.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			rejected = append(rejected, Rejection{Item: it, Why: hint(it, err).Error()})
			return nil
		})
	}
	err = g.Wait()
	order := map[*Item]int{}
	for i, it := range p.Items {
		order[it] = i
	}
	slices.SortFunc(rejected, func(a, b Rejection) int { return order[a.Item] - order[b.Item] })
	return rejected, tried, untried, err
}

func (p *Plan) rehearse(ctx context.Context, target *Target, it *Item) error {
	client, dry := target.client(it.served, it.Namespace), []string{metav1.DryRunAll}
	_, err := retry(ctx, func(ctx context.Context) (struct{}, error) {
		var err error
		switch it.Action {
		case ActionCreate:
			_, err = client.Create(ctx, withoutPending(it.create.object()).unstructured(), metav1.CreateOptions{FieldManager: fieldManager, DryRun: dry})
		case ActionUpdate:
			_, err = client.Update(ctx, withoutPending(it.update.object()).unstructured(), metav1.UpdateOptions{FieldManager: fieldManager, DryRun: dry})
		default: // what is recreated cannot be tried while the old one is there
			uid := it.live.uid
			err = client.Delete(ctx, it.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}, DryRun: dry})
		}
		return struct{}{}, err
	})
	return err
}

// withoutPending is the object without owners that are not there yet.
func withoutPending(o object) object {
	o.putList(without(o.list("metadata", "ownerReferences"), func(ref object) bool { return strings.HasPrefix(ref.str("uid"), "(") }), "metadata", "ownerReferences")
	return o
}
