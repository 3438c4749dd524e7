package replay

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/tidemark-backup/tidemark/journal"
)

func TestExistingPolicyText(t *testing.T) {
	for _, p := range []ExistingPolicy{ExistingNone, ExistingUpdate, ExistingRecreate} {
		b, err := json.Marshal(p)
		var back ExistingPolicy
		if err != nil || json.Unmarshal(b, &back) != nil || back != p {
			t.Errorf("%s: %s, back %s", p, b, back)
		}
	}
	if _, err := ParseExistingPolicy("all"); err == nil || !strings.Contains(err.Error(), "--existing none, update or recreate") {
		t.Errorf("%v", err)
	}
}

func TestRequestsThatCannotBeMeant(t *testing.T) {
	now := journal.Cut{Time: time.Now()}
	for _, tc := range []struct {
		name, want string
		req        RestoreRequest
	}{
		{"no moment", "--at", RestoreRequest{}},
		{"two into one", "both mapped", RestoreRequest{Cut: now, NamespaceMappings: map[string]string{"a": "c", "b": "c"}}},
		{"half a mapping", "old:new", RestoreRequest{Cut: now, NamespaceMappings: map[string]string{"a": ""}}},
		{"a mapping that is not asked for", "add -n a", RestoreRequest{Cut: now, Scope: InNamespace("b"), NamespaceMappings: map[string]string{"a": "c"}}},
		{"a mapping onto another one", "under its own name", RestoreRequest{Cut: now, Scope: Scope{Namespaces: []string{"a", "b"}}, NamespaceMappings: map[string]string{"a": "b"}}},
		{"a name that no namespace can have", "cannot be mapped", RestoreRequest{Cut: now, NamespaceMappings: map[string]string{"a": "B_c"}}},
		{"fewer deletions than none", "--max-deletes", RestoreRequest{Cut: now, MaxDeletes: -1}},
		{"at rest with what would be deleted", "either --quiesce or --owned", RestoreRequest{Cut: now, Quiesce: true, Owned: true}},
		{"fine", "", RestoreRequest{Cut: now, Scope: Scope{Namespaces: []string{"a", "b"}}, NamespaceMappings: map[string]string{"a": "b", "b": "a"}}},
	} {
		err := tc.req.validate()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// A whole cluster names no namespaces: that one is mapped to another that comes back as well is seen in history.
func TestAMappingOntoWhatComesBackIsRefused(t *testing.T) {
	h := &history{}
	for _, ns := range []string{"one", "two"} {
		h.add(t, journal.Added, "configmaps", `{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: `+ns+`}}`)
	}
	for to, want := range map[string]string{"two": "namespace one is mapped to two, which is restored under its own name as well", "three": ""} {
		p := &past{byKey: map[objectKey]*entry{}, byUID: map[string]*entry{}, scaled: map[scaleTarget]bool{}}
		req := &RestoreRequest{Cut: h.now(), NamespaceMappings: map[string]string{"one": to}}
		ok(t, p.fold(t.Context(), h, req, Scope{}))
		err := p.mixed(req)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("mapped to %s: %v", to, err)
		}
	}
}

func TestParseNamespaceMappings(t *testing.T) {
	for _, tc := range []struct {
		in   []string
		want map[string]string
		err  string
	}{
		{nil, nil, ""},
		{[]string{"a:b", "c:d"}, map[string]string{"a": "b", "c": "d"}, ""},
		{[]string{"a:b", "a:c"}, nil, "both b and c"},
		{[]string{"a"}, nil, "FROM:TO"},
		{[]string{"a:b:c"}, nil, "FROM:TO"},
		{[]string{":b"}, nil, "FROM:TO"},
	} {
		got, err := ParseNamespaceMappings(tc.in)
		if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) || !maps.Equal(got, tc.want) {
			t.Errorf("%q: %v, %v", tc.in, got, err)
		}
	}
}

func TestPruneIsExact(t *testing.T) {
	for _, req := range []RestoreRequest{{Prune: true}, {Exact: true}, {}} {
		want := req.Prune || req.Exact
		if req.normalize(); req.Exact != want {
			t.Errorf("%+v", req)
		}
	}
}

func TestItemJSON(t *testing.T) {
	b, err := json.Marshal(&Plan{Items: []*Item{{Resource: parseGR("deployments.apps"), Namespace: "a", Name: "web", Action: ActionCreate}}})
	if err != nil || !strings.Contains(string(b), `"items":[{"resource":"deployments.apps","namespace":"a","name":"web","action":"create","wave":0}]`) {
		t.Errorf("%v %s", err, b)
	}
}

func TestPlanText(t *testing.T) {
	item := func(a Action, gr, name, why, rule string) *Item {
		return &Item{Resource: parseGR(gr), Namespace: "shop", Name: name, Action: a, Reason: why, Rule: rule}
	}
	p := &Plan{ID: "shop-20261122-103000-ab12", Server: "https://shop.example.com:6443", Cut: journal.Cut{Revision: journal.Revision{Epoch: 1, RV: 7}, Time: time.Date(2026, 11, 22, 10, 29, 0, 0, time.UTC)}, Warnings: []string{"mind the gap"}}
	for _, n := range []string{"a", "b", "c", "d", "e", "f"} {
		p.Items = append(p.Items, item(ActionCreate, "configmaps", n, "", ""), item(ActionSkip, "pods", n, "ReplicaSet "+n+" makes it", "made-by-controller"))
	}
	u := item(ActionUpdate, "deployments.apps", "web", "", "")
	u.Diff = []FieldDiff{{Path: ".spec.replicas", Old: json.RawMessage("1"), New: json.RawMessage("2")}}
	p.Items = append(p.Items, item(ActionCreate, "services", "web", "", ""), u, item(ActionDelete, "secrets", "new", "was not there", ""), item(ActionFail, "widgets.example.com", "w", "not served", ""), item(ActionUnchanged, "secrets", "same", "", ""),
		item(ActionUnchanged, "secrets", "more", "keeps what was added since: .data.KEY (--exact removes it)", ""))
	const short = `Plan shop-20261122-103000-ab12: the state at 2026-11-22T10:29:00Z (rv:1/7)
in the cluster at https://shop.example.com:6443
create:
  configmaps: 6, such as shop/a, shop/b
  services: shop/web
update:
  deployments.apps shop/web
      .spec.replicas
delete:
  secrets shop/new: was not there
fail:
  widgets.example.com shop/w: not served
skip:
  pods: 6, such as shop/a: ReplicaSet a makes it
unchanged:
  secrets: shop/same
  secrets shop/more: keeps what was added since: .data.KEY (--exact removes it)
warning: mind the gap
7 to create, 1 to update, 1 to delete, 1 that cannot be restored, 6 to skip, 2 unchanged
`
	var b strings.Builder
	if err := p.WriteText(&b, DetailShort); err != nil || b.String() != short {
		t.Errorf("%v\n%s", err, b.String())
	}
	if long := planText(p); !strings.Contains(long, "configmaps shop/f\n") || !strings.Contains(long, "      + .spec.replicas: 2\n") {
		t.Errorf("%s", long)
	}
	if p.Writes() != 9 || p.Count(ActionSkip) != 6 {
		t.Errorf("%d writes, %d skips", p.Writes(), p.Count(ActionSkip))
	}
}

func TestASelectorThatMatchesNothingIsNamed(t *testing.T) {
	selector, err := labels.Parse("nothing=there")
	ok(t, err)
	scope := InNamespace("shop")
	scope.Selector = selector
	if err := nothing(&RestoreRequest{Scope: scope}); !strings.Contains(err.Error(), "nothing with the labels nothing=there in namespace shop was recorded") {
		t.Error(err)
	}
}
