package replay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// saveablePlan is a plan of n objects to create, and one that is left out.
func saveablePlan(t *testing.T, n int) *Plan {
	t.Helper()
	p := &Plan{ID: "shop-1", past: &past{scaled: map[scaleTarget]bool{{"Deployment", "shop", "web"}: true}}}
	p.Items = append(p.Items, &Item{Resource: namespaces, Name: "shop", Action: ActionSkip, Reason: "is there"})
	for i := range n {
		body := fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {name: c%d}, data: {big: %d, html: '<b>&'}}", i, int64(1)<<60)
		it := &Item{Resource: schema.GroupResource{Resource: "configmaps"}, Namespace: "shop", Name: fmt.Sprintf("c%d", i), Action: ActionCreate, create: pack(fromYAML(t, body).json())}
		it.served = servedResource{GroupVersionResource: it.Resource.WithVersion("v1"), Kind: "ConfigMap", Namespaced: true}
		if i%2 == 0 {
			it.managed = packParts([]any{map[string]any{"manager": "helm", "n": int64(1) << 60}})
			it.status = packParts([]any{map[string]any{"phase": "Active"}})
			it.owners = []pendingOwner{{objectKey{namespaces, "", "shop"}, "Namespace"}}
		}
		p.Items = append(p.Items, it)
	}
	return p
}

func TestSavedPlanIsTheSamePlan(t *testing.T) {
	for _, n := range []int{0, 1, 3, 100} {
		var file bytes.Buffer
		want := saveablePlan(t, n)
		if err := want.Save(&file); err != nil {
			t.Fatal(err)
		}
		got, err := LoadPlan(&file)
		if err != nil {
			t.Fatalf("%d objects: %v", n, err)
		}
		if len(got.Items) != len(want.Items) || got.ID != want.ID || !got.past.scaled[scaleTarget{"Deployment", "shop", "web"}] {
			t.Fatalf("%d objects: %d items of %q, %v", n, len(got.Items), got.ID, got.past.scaled)
		}
		for i, w := range want.Items {
			g := got.Items[i]
			if !bytes.Equal(g.create.json(), w.create.json()) || !bytes.Equal(g.managed.json(), w.managed.json()) || !bytes.Equal(g.status.json(), w.status.json()) {
				t.Errorf("%d objects: %s: %s %s %s", n, w, g.create.json(), g.managed.json(), g.status.json())
			}
			if g.Action != w.Action || g.served.Kind != w.served.Kind || len(g.owners) != len(w.owners) {
				t.Errorf("%d objects: %s: %+v", n, w, g)
			}
		}
	}
}

func TestPlanThatCannotBeSavedSaysSo(t *testing.T) {
	r, w := io.Pipe()
	full := errors.New("no space left")
	_ = r.CloseWithError(full)
	if err := saveablePlan(t, 3).Save(w); !errors.Is(err, full) {
		t.Errorf("Save = %v", err)
	}
}

func TestSavedPlanIsOneJSONObject(t *testing.T) {
	var file bytes.Buffer
	if err := saveablePlan(t, 2).Save(&file); err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewReader(&file)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	var v struct {
		Format string
		Bodies []struct {
			Index  int              `json:"i"`
			Create map[string]any   `json:"create"`
			Status []map[string]any `json:"status"`
		}
	}
	if err := json.NewDecoder(z).Decode(&v); err != nil || v.Format != planFormat || len(v.Bodies) != 2 {
		t.Fatalf("%v: %+v", err, v)
	}
	if b := v.Bodies[0]; b.Index != 1 || b.Create["kind"] != "ConfigMap" || b.Status[0]["phase"] != "Active" {
		t.Errorf("%+v", b)
	}
}
