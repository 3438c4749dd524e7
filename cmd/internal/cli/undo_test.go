package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

var (
	cmLedger     = &journal.Ledger{ResourceInfo: journal.ResourceInfo{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true}}
	deployLedger = &journal.Ledger{ResourceInfo: journal.ResourceInfo{Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true}}
)

func created(n int, namespace string) (out []*replay.Item) {
	for range n {
		out = append(out, &replay.Item{Resource: cmLedger.GroupResource(), Namespace: namespace, Name: "x", Action: replay.ActionCreate})
	}
	return out
}

// The printed commands take back all of it: with all flags, in all namespaces, and with as many
// deletions as that needs; and what they leave is told.
func TestUndoIsCompleteAndTrue(t *testing.T) {
	ns := &replay.Item{Resource: namespaceKind, Name: "shop-copy", Action: replay.ActionCreate}
	role := &replay.Item{Resource: schema.GroupResource{Group: "rbac.authorization.k8s.io", Resource: "clusterroles"}, Name: "system:x", Action: replay.ActionCreate}
	for name, c := range map[string]struct {
		flags   restoreFlags
		targets []target
		items   []*replay.Item
		cluster string
		want    []string
		stays   []string
	}{
		"a namespace": {
			flags: restoreFlags{request: replay.RestoreRequest{Scope: replay.InNamespace("shop")}}, items: created(3, "shop"),
			want: []string{"tidemark restore -n shop --at before:restore/ID --existing update --prune"},
		},
		"recreate, many objects, and everything that was typed": {
			flags: restoreFlags{
				historyFlags: historyFlags{
					selector: "app in (web, db)", server: serverFlags{server: "https://h:1", tokenFile: "t", ca: "c"},
					namespace: namespaceFlags{kube: kubeFlags{kubeconfig: "my config", context: "it's"}},
				},
				request: replay.RestoreRequest{Scope: replay.InNamespace("shop"), Existing: replay.ExistingRecreate},
			},
			items: created(200, "shop"),
			want: []string{"tidemark restore -n shop --at before:restore/ID --existing recreate --prune --max-deletes 210 -l 'app in (web, db)'" +
				` --kubeconfig 'my config' --context 'it'\''s' --server https://h:1 --token-file t --server-ca c`},
		},
		"under other names": {
			flags: restoreFlags{request: replay.RestoreRequest{
				Scope: replay.Scope{Namespaces: []string{"a", "shop"}}, NamespaceMappings: map[string]string{"shop": "shop-copy"},
			}},
			items: append(created(1, "a"), ns),
			want: []string{
				"tidemark restore -n a --at before:restore/ID --existing update --prune",
				"tidemark restore -n shop-copy --at before:restore/ID --existing update --prune",
			},
			stays: []string{"the namespace shop-copy itself stays: kubectl delete namespace shop-copy"},
		},
		"single objects of several types": {
			flags:   restoreFlags{request: replay.RestoreRequest{Scope: replay.InNamespace("shop")}},
			targets: []target{{deployLedger, []string{"web"}}, {cmLedger, []string{"settings", "other"}}},
			want: []string{
				"tidemark restore deployments.apps/web -n shop --at before:restore/ID --existing update --prune",
				"tidemark restore configmaps/settings configmaps/other -n shop --at before:restore/ID --existing update --prune",
			},
		},
		"types in the whole cluster": {
			flags:   restoreFlags{},
			targets: []target{{ledger: deployLedger}, {ledger: cmLedger}},
			items:   []*replay.Item{role},
			want:    []string{"tidemark restore deployments.apps,configmaps -A --at before:restore/ID --existing update --prune"},
			stays:   []string{"clusterroles.rbac.authorization.k8s.io system:x stays: kubectl delete clusterroles.rbac.authorization.k8s.io system:x"},
		},
		"labels that decide what is in scope": {
			flags: restoreFlags{historyFlags: historyFlags{selector: "app=web"}, request: replay.RestoreRequest{Scope: replay.InNamespace("shop")}},
			items: []*replay.Item{{Resource: cmLedger.GroupResource(), Action: replay.ActionUpdate, Diff: []replay.FieldDiff{{Path: ".metadata.labels.app"}}}},
			want:  []string{"tidemark restore -n shop --at before:restore/ID --existing update --prune -l app=web"},
			stays: []string{"objects whose labels did not match before, and do now, stay as they are"},
		},
		"another cluster": {
			flags: restoreFlags{request: replay.RestoreRequest{Scope: replay.InNamespace("shop")}}, cluster: "other",
			stays: []string{"there is no command that undoes it: history is of another cluster than the one that was written to"},
		},
	} {
		h := &history{targets: c.targets, catalog: &replay.Catalog{ClusterID: "recorded"}}
		got := c.flags.undo(&cobra.Command{Use: "tidemark"}, h, &replay.Plan{ID: "ID", Items: c.items, Cluster: c.cluster})
		if d := cmp.Diff(&undo{Commands: c.want, Stays: c.stays}, got); d != "" {
			t.Errorf("%s: (-want +got)\n%s", name, d)
		}
	}
}

// Each failure is told once, each action is counted, and what wrote nothing is not undone.
func TestSummaryCountsEachAction(t *testing.T) {
	var out bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetOut(&out)
	cmd.SetContext(t.Context())
	items := created(3, "shop")
	items[1].Action, items[2].Action = replay.ActionUpdate, replay.ActionDelete
	r := &restoreReport{cmd: cmd, plan: &replay.Plan{ID: "ID", Items: items}, done: map[replay.Action]int{}}
	for _, it := range items {
		r.count(replay.Progress{Item: it})
	}
	r.count(replay.Progress{Item: items[0], Err: replay.ErrPartly})
	r.count(replay.Progress{Waiting: "a namespace"})
	u := &undo{Commands: []string{"tidemark restore x"}, Stays: []string{"y stays"}}
	if err := r.applied(&replay.Result{Done: 3, Skipped: 24}, nil, u); err != nil {
		t.Fatal(err)
	}
	if want := "\n1 created, 1 updated, 1 deleted, 24 left out, 0 failed\nto undo: tidemark restore x\n  y stays\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	out.Reset()
	r.done = map[replay.Action]int{}
	if err := r.applied(&replay.Result{Failed: 3}, replay.ErrPartly, u); err == nil || strings.Contains(out.String(), "undo") {
		t.Errorf("nothing was written: %v, %q", err, out.String())
	}
	if got, want := question(r.plan), "Create 1, update 1 and delete 1 objects"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
