package cli

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/tidwall/gjson"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// remade reports whether a controller makes the object anew by itself, so that it is not the
// same object after a restore and need not be.
func remade(gr schema.GroupResource, name string, object []byte) bool {
	if len(object) == 0 {
		return false
	}
	switch {
	case gr == schema.GroupResource{Resource: "configmaps"} && name == "kube-root-ca.crt":
		return true
	case gr == schema.GroupResource{Resource: "endpoints"}:
		meta := gjson.GetBytes(object, "metadata")
		return meta.Get(`annotations.endpoints\.kubernetes\.io/last-change-trigger-time`).Exists() || meta.Get(`labels.endpoints\.kubernetes\.io/managed-by`).Exists()
	}
	owned := false
	gjson.GetBytes(object, "metadata.ownerReferences").ForEach(func(_, owner gjson.Result) bool {
		owned = owner.Get("controller").Bool()
		return !owned
	})
	return owned
}

// withoutMarksOfMaking is the object without what the cluster chose when it was made: its
// owners' uids, its cluster IPs, the volume with its token.
func withoutMarksOfMaking(gr schema.GroupResource, object []byte) []byte {
	if len(object) == 0 {
		return object
	}
	var o map[string]any
	d := json.NewDecoder(bytes.NewReader(object))
	d.UseNumber() // no number may change on the way
	if d.Decode(&o) != nil {
		return object // DiffObjects says what is wrong with it
	}
	if meta, ok := o["metadata"].(map[string]any); ok {
		for _, owner := range objectsIn(meta["ownerReferences"]) {
			delete(owner, "uid")
		}
	}
	spec, _ := o["spec"].(map[string]any)
	switch gr {
	case schema.GroupResource{Resource: "services"}:
		if spec["clusterIP"] != "None" {
			delete(spec, "clusterIP")
			delete(spec, "clusterIPs")
		}
	case schema.GroupResource{Resource: "pods"}:
		dropTokens(spec, "volumes")
		for _, kind := range []string{"containers", "initContainers"} {
			for _, c := range objectsIn(spec[kind]) {
				dropTokens(c, "volumeMounts")
			}
		}
	}
	out, err := json.Marshal(o)
	if err != nil {
		return object
	}
	return out
}

// dropTokens takes the volumes, or mounts, of service account tokens out of a list.
func dropTokens(of map[string]any, field string) {
	var rest []any
	for _, v := range objectsIn(of[field]) {
		if name, _ := v["name"].(string); !strings.HasPrefix(name, "kube-api-access-") {
			rest = append(rest, v)
		}
	}
	if rest == nil {
		delete(of, field)
		return
	}
	of[field] = rest
}

// objectsIn are the objects of a JSON list.
func objectsIn(v any) (out []map[string]any) {
	all, _ := v.([]any)
	for _, e := range all {
		if m, ok := e.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}
