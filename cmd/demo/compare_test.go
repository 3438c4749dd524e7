package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// configMap is one object of the namespace; owner, when given, is the uid of a Deployment web.
func configMap(name, uid, value, owner string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": name, "uid": uid, "resourceVersion": uid + "1", "labels": map[string]any{"a": "b"}},
		"data":     map[string]any{"key": value},
	}}
	if owner != "" {
		o.Object["metadata"].(map[string]any)["ownerReferences"] = []any{
			map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": owner},
		}
	}
	return o
}

func pictureOf(web types.UID, objects ...*unstructured.Unstructured) *picture {
	p := &picture{objects: map[id]*unstructured.Unstructured{}, made: map[string]int{}, byUID: map[types.UID]id{web: {"deployments.apps", "web"}}}
	for _, o := range objects {
		p.objects[id{"configmaps", o.GetName()}] = o
	}
	return p
}

func TestCompareFindsWhatIsNotAsBefore(t *testing.T) {
	before := pictureOf("w1", configMap("a", "1", "x", ""), configMap("b", "2", "x", "w1"))
	for name, tt := range map[string]struct {
		now  *picture
		want map[id][]string
	}{
		"equal but for what the server sets": {
			pictureOf("w2", configMap("a", "3", "x", ""), configMap("b", "4", "x", "w2")),
			map[id][]string{},
		},
		"one is missing": {
			pictureOf("w2", configMap("a", "3", "x", "")),
			map[id][]string{{"configmaps", "b"}: {"did not come back"}},
		},
		"one too many": {
			pictureOf("w2", configMap("a", "3", "x", ""), configMap("b", "4", "x", "w2"), configMap("c", "5", "x", "")),
			map[id][]string{{"configmaps", "c"}: {"was not there before"}},
		},
		"data changed": {
			pictureOf("w2", configMap("a", "3", "secret", ""), configMap("b", "4", "x", "w2")),
			map[id][]string{{"configmaps", "a"}: {".data.key"}},
		},
		"owner is the one that was deleted": {
			pictureOf("w2", configMap("a", "3", "x", ""), configMap("b", "4", "x", "w1")),
			map[id][]string{{"configmaps", "b"}: {".metadata.ownerReferences[0].uid"}},
		},
		"owner lost": {
			pictureOf("w2", configMap("a", "3", "x", ""), configMap("b", "4", "x", "")),
			map[id][]string{{"configmaps", "b"}: {".metadata.ownerReferences"}},
		},
		"the same object, never deleted": {
			pictureOf("w2", configMap("a", "1", "x", ""), configMap("b", "4", "x", "w2")),
			map[id][]string{{"configmaps", "a"}: {"was never gone"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := compare(before, tt.now)
			if diff := cmp.Diff(tt.want, c.differences); diff != "" {
				t.Errorf("differences (-want +got):\n%s", diff)
			}
			var out bytes.Buffer
			c.write(&out)
			if n := strings.Count(out.String(), "DIFFERS"); n != len(tt.want) {
				t.Errorf("%d differences are printed, want %d:\n%s", n, len(tt.want), out.String())
			}
			if strings.Contains(out.String(), "secret") {
				t.Errorf("a value is printed:\n%s", out.String())
			}
		})
	}
}

func TestEssenceKeepsWhatIsWantedAndDropsWhatIsAssigned(t *testing.T) {
	service := func(clusterIP string, nodePort int64) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"name": "s"},
			"spec": map[string]any{"clusterIP": clusterIP, "ports": []any{map[string]any{"nodePort": nodePort}}},
		}}
	}
	p := pictureOf("w")
	if paths := different("", essence(service("10.96.0.7", 30080), p), essence(service("10.96.0.9", 30080), p)); len(paths) > 0 {
		t.Errorf("an assigned cluster IP counts as a difference: %v", paths)
	}
	if paths := different("", essence(service("None", 1), p), essence(service("10.96.0.9", 1), p)); len(paths) == 0 {
		t.Error("a headless Service that got an IP counts as equal")
	}
	if paths := different("", essence(service("10.96.0.7", 30080), p), essence(service("10.96.0.7", 30081), p)); len(paths) == 0 {
		t.Error("another node port counts as equal")
	}
}

func TestStatusTellsWhatIsNotRecordedYet(t *testing.T) {
	var s status
	if s.missing(nil) == "" {
		t.Error("a daemon that is not connected counts as recording")
	}
	s.Capture.Connected = true
	s.Catalog.From.Time = s.Catalog.From.Time.AddDate(2026, 0, 0)
	s.Capture.Resources = append(s.Capture.Resources, struct {
		Resource string `json:"resource"`
		State    string `json:"state"`
	}{"pods", "watching"})
	if m := s.missing([]string{"pods"}); m != "" {
		t.Errorf("all is watched, yet %q is missing", m)
	}
	if s.missing([]string{"pods", "vouchers.shop.example.com"}) == "" {
		t.Error("a resource that is not there counts as recorded")
	}
	s.Capture.Resources[0].State = "listing"
	if s.missing(nil) == "" {
		t.Error("a resource that is being listed counts as recorded")
	}
}

// The cluster of the demo is gone afterwards: its restores are not recorded with the person's own.
func TestRestoresAreRecordedInTheDemosDirectory(t *testing.T) {
	dir := t.TempDir()
	tool := &tidemark{program: "tidemark", dataDir: filepath.Join(dir, "data")}
	state := ""
	for _, e := range tool.command(t.Context(), "restore").Env { // the last one counts
		if v, ok := strings.CutPrefix(e, "XDG_STATE_HOME="); ok {
			state = v
		}
	}
	if state != filepath.Join(dir, "state") {
		t.Errorf("restores are recorded in %q", state)
	}
}
