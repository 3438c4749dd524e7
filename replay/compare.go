package replay

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// compare decides about an object that the target has already.
func (p *planner) compare(ctx context.Context, it *Item, original object) error {
	want, _, err := p.prepared(it.entry, original, true)
	if err != nil {
		it.Action, it.Reason = ActionFail, err.Error()
		return nil
	}
	p.linkOwners(ctx, it, want)
	if it.live.version != want.str("apiVersion") {
		// Only the same version can be compared.
		live, err := p.target.get(ctx, it.served, it.Namespace, it.Name)
		if err != nil {
			return err
		}
		if live == nil {
			it.live, it.Action = nil, ActionCreate
			return nil
		}
		it.live = newFound(live.Object)
	}
	live := it.live.object()
	have := normal(p.req, p.past, it.Resource, live)
	diff, err := diffBodies(have, want)
	if err != nil {
		return fmt.Errorf("comparing %s: %w", it, err)
	}
	switch {
	case len(p.req.Fields) > 0:
		return p.planFields(it, live, have, want)
	case len(diff) == 0:
		it.Action, it.update = ActionUnchanged, pack(live.json())
		return nil
	case it.entry.needed && p.req.Existing != ExistingNone:
		it.Action, it.Reason, it.Rule, it.Diff = ActionSkip, "is there, and only needed by what is restored: left as it is", "needed", diff
		return nil
	case p.req.Existing == ExistingNone && it.Resource == accounts:
		return p.addToAccount(it, live, have, want, diff)
	case p.req.Existing == ExistingNone:
		it.Action, it.Reason, it.Diff = ActionSkip, "exists and differs; --existing update makes it as it was", diff
		return nil
	}
	return p.planUpdate(it, live, have, want, diff)
}

func diffBodies(have, want object) ([]FieldDiff, error) {
	return DiffObjects(have.json(), want.json(), DiffOptions{IgnoreStatus: true})
}

// addToAccount gives an existing ServiceAccount what it had and lacks now, and changes
// nothing else: most exist already because a controller made them.
func (p *planner) addToAccount(it *Item, live, have, want object, full []FieldDiff) error {
	merged := addMissing(live, want)
	diff, err := diffBodies(have, normal(p.req, p.past, it.Resource, merged))
	if err != nil {
		return fmt.Errorf("comparing %s: %w", it, err)
	}
	if len(diff) == 0 {
		it.Action, it.Reason, it.Diff = ActionSkip, "exists and differs; --existing update makes it as it was", full
		return nil
	}
	it.Action, it.Reason, it.Rule, it.Diff, it.update = ActionUpdate, "gets back what it lacks", "service-account-merge", diff, pack(merged.json())
	return nil
}

// addMissing adds labels, annotations, secrets and pull secrets to a ServiceAccount.
func addMissing(live, want object) object {
	out := live.clone()
	for _, f := range []string{"labels", "annotations"} {
		for k, v := range want.sub("metadata", f) {
			if out.at("metadata", f, k) == nil {
				out.put(v, "metadata", f, k)
			}
		}
	}
	for _, f := range []string{"secrets", "imagePullSecrets"} {
		list := out.list(f)
		for _, w := range want.objects(f) {
			if !hasNamed(list, w.str("name")) {
				list = append(list, map[string]any(w))
			}
		}
		out.putList(list, f)
	}
	return out
}

func hasNamed(list []any, name string) bool {
	for _, v := range list {
		if m, ok := v.(map[string]any); ok && object(m).str("name") == name {
			return true
		}
	}
	return false
}

// planUpdate decides how to make an existing object as it was. The API server is asked, by
// a dry run, whether it would take the change: only it knows which fields cannot change.
func (p *planner) planUpdate(it *Item, live, have, want object, full []FieldDiff) error {
	merged := merge(live, have, want, p.req.Exact)
	diff, err := diffBodies(have, normal(p.req, p.past, it.Resource, merged))
	if err != nil {
		return fmt.Errorf("comparing %s: %w", it, err)
	}
	it.update, it.Diff = pack(merged.json()), diff
	if !p.req.Exact {
		if it.Reason, err = p.keeps(it, merged, want); err != nil {
			return fmt.Errorf("comparing %s: %w", it, err)
		}
	}
	if len(diff) == 0 {
		it.Action, it.Diff = ActionUnchanged, full
		return nil
	}
	it.Action = ActionUpdate
	if changeable(it.Resource, live, diff) {
		return nil
	}
	wanted := pack(want.json())
	p.try(it, func(ctx context.Context, refused error) error {
		return p.refusedUpdate(ctx, it, wanted.object(), refused)
	})
	return nil
}

// changeable reports whether the API server lets all of that be changed in any object of the kind, so that it need
// not be asked.
func changeable(gr schema.GroupResource, live object, diff []FieldDiff) bool {
	fields := []string{".metadata.labels", ".metadata.annotations"}
	switch gr.String() {
	case "configmaps", "secrets":
		if live.at("immutable") != true {
			fields = append(fields, ".data", ".binaryData")
		}
	case "deployments.apps", "statefulsets.apps", "replicasets.apps", "replicationcontrollers":
		fields = append(fields, ".spec.replicas")
	}
	for _, d := range diff {
		if !slices.ContainsFunc(fields, func(f string) bool {
			rest, under := strings.CutPrefix(d.Path, f)
			return under && (rest == "" || rest[0] == '.' || rest[0] == '[')
		}) {
			return false
		}
	}
	return true
}

// refusedUpdate decides about an object that the API server does not let be updated as planned.
func (p *planner) refusedUpdate(ctx context.Context, it *Item, want object, refused error) error {
	live := it.live.object()
	have := normal(p.req, p.past, it.Resource, live)
	full, err := diffBodies(have, want)
	if err != nil {
		return fmt.Errorf("comparing %s: %w", it, err)
	}
	if !p.req.Exact {
		// What was added since may contradict what was there, such as a second kind of probe.
		exact := merge(live, have, want, true)
		if !reflect.DeepEqual(exact, it.update.object()) && p.dryRun(ctx, it, exact).refused == nil {
			it.update, it.Diff, it.Reason = pack(exact.json()), full, "made exactly as it was: what was added since does not go with it"
			return nil
		}
	}
	why := invalid(refused, "does not allow to change")
	switch {
	case p.req.Existing != ExistingRecreate:
		it.Action, it.Reason = ActionFail, why+"; --existing recreate deletes it and creates it anew"
	case precious[it.Resource.String()]:
		it.Action, it.Reason = ActionFail, why+"; it is never deleted to be created anew, because what it holds would be lost"
	default:
		it.Action, it.Reason, it.Diff = ActionRecreate, why, full
	}
	return nil
}

// keeps says what an update leaves although it was not there at the cut.
func (p *planner) keeps(it *Item, merged, want object) (string, error) {
	diff, err := diffBodies(normal(p.req, p.past, it.Resource, merged), want)
	diff = slices.DeleteFunc(diff, func(d FieldDiff) bool { return d.New != nil })
	if err != nil || len(diff) == 0 {
		return "", err
	}
	return "keeps what was added since: " + paths(diff) + " (--exact removes it)", nil
}

// paths names the first fields of a diff.
func paths(diff []FieldDiff) string {
	list := make([]string, 0, shownInShort+1)
	for i, d := range diff {
		if i == shownInShort {
			list = append(list, fmt.Sprintf("%d more", len(diff)-i))
			break
		}
		list = append(list, d.Path)
	}
	return strings.Join(list, ", ")
}

// precious are the kinds whose deletion takes more with it than the object.
var precious = map[string]bool{"namespaces": true, "customresourcedefinitions.apiextensions.k8s.io": true, "persistentvolumes": true, "persistentvolumeclaims": true}

// trial is an update that the API server is asked about before the plan is complete.
type trial struct {
	it   *Item
	then func(ctx context.Context, refused error) error // what becomes of the item if it is refused
}

// try has the API server asked whether it takes the item's update, with all others at once: one after another they
// would take most of a plan's time.
func (p *planner) try(it *Item, then func(ctx context.Context, refused error) error) {
	p.trials = append(p.trials, trial{it, then})
}

// tryAll asks, and decides about what is refused.
func (p *planner) tryAll(ctx context.Context) error {
	answers := make([]trialAnswer, len(p.trials))
	g, asking := errgroup.WithContext(ctx)
	g.SetLimit(liveReaders)
	for i, t := range p.trials {
		g.Go(func() error {
			answers[i] = p.dryRun(asking, t.it, withoutPending(t.it.update.object()))
			return asking.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, t := range p.trials {
		switch a := answers[i]; {
		case a.refused != nil:
			if err := t.then(ctx, a.refused); err != nil {
				return err
			}
		case a.same && len(t.it.owners) == 0:
			t.it.Action, t.it.Reason = ActionUnchanged, "the API server sets by itself: "+paths(t.it.Diff)
		}
	}
	p.trials = nil
	return nil
}

// trialAnswer is what the API server says of an update.
type trialAnswer struct {
	refused error // it is invalid; all other errors are left to apply: they may be different by then
	same    bool  // nothing would change: what differs is what this version of Kubernetes sets by itself
}

// dryRun asks the API server about an update.
func (p *planner) dryRun(ctx context.Context, it *Item, body object) trialAnswer {
	body = body.clone()
	for range maxRebases {
		u, err := retry(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
			return p.target.client(it.served, it.Namespace).Update(ctx, body.clone().unstructured(), metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}, FieldManager: fieldManager})
		})
		if apierrors.IsInvalid(err) {
			return trialAnswer{refused: err}
		}
		if err == nil {
			return trialAnswer{same: equalObjects(normal(p.req, p.past, it.Resource, it.live.object()), normal(p.req, p.past, it.Resource, u.Object))}
		}
		if !apierrors.IsConflict(err) {
			return trialAnswer{}
		}
		// Somebody writes to it, its status perhaps: what can change stays the same.
		u, err = p.target.get(ctx, it.served, it.Namespace, it.Name)
		if err != nil || u == nil {
			return trialAnswer{}
		}
		body.put(u.GetResourceVersion(), "metadata", "resourceVersion")
	}
	return trialAnswer{}
}

// invalid says which fields the API server refused, without their values.
func invalid(err error, verb string) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Details != nil {
		var fields []string
		for _, c := range status.Status().Details.Causes {
			if c.Field != "" {
				fields = append(fields, c.Field)
			}
		}
		if len(fields) > 0 {
			return "the API server " + verb + " " + strings.Join(fields, ", ")
		}
	}
	return "the API server refuses the object as invalid"
}

// moved are resources that went to another API group: old -> new.
var moved = map[schema.GroupResource]schema.GroupResource{
	{Group: "extensions", Resource: "ingresses"}:       {Group: "networking.k8s.io", Resource: "ingresses"},
	{Group: "extensions", Resource: "networkpolicies"}: {Group: "networking.k8s.io", Resource: "networkpolicies"},
	{Group: "extensions", Resource: "deployments"}:     {Group: "apps", Resource: "deployments"},
	{Group: "extensions", Resource: "daemonsets"}:      {Group: "apps", Resource: "daemonsets"},
	{Group: "extensions", Resource: "replicasets"}:     {Group: "apps", Resource: "replicasets"},
}

// moveGroups files what was recorded under a group that is no longer served under the group
// its resource went to.
func (p *past) moveGroups(target *Target) {
	for _, e := range p.list {
		to, known := moved[e.gr]
		if !known || len(target.versions(e.gr)) > 0 || len(target.versions(to)) == 0 {
			continue
		}
		k := objectKey{to, e.namespace, e.name}
		if p.byKey[k] == nil {
			delete(p.byKey, e.objectKey)
			e.objectKey = k
			p.byKey[k] = e
		}
	}
}
