package replay

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/tidwall/gjson"
)

// lastApplied is the annotation in which kubectl apply keeps a copy of the whole object.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

const annotationsPath = ".metadata.annotations"

func isSecret(o gjson.Result) bool {
	return o.Get("kind").String() == "Secret" && !strings.Contains(o.Get("apiVersion").String(), "/")
}

// shown is the value as the diff may show it.
func (d *differ) shown(path string, v gjson.Result) json.RawMessage {
	if !v.Exists() {
		return nil
	}
	if !d.secret {
		return json.RawMessage(v.Raw)
	}
	switch {
	case path == ".data" || path == ".stringData":
		return redactMembers(v, func(string) bool { return true }, path == ".data")
	case path == annotationsPath:
		return redactMembers(v, func(key string) bool { return key == lastApplied }, false)
	case path == ".metadata", path == annotationsPath+fieldStep(lastApplied), below(path, ".stringData"):
		return sizeOnly(v, false)
	case below(path, ".data"):
		return sizeOnly(v, true)
	}
	return json.RawMessage(v.Raw)
}

func below(path, parent string) bool {
	rest, ok := strings.CutPrefix(path, parent)
	return ok && rest != "" && (rest[0] == '.' || rest[0] == '[')
}

func redactMembers(v gjson.Result, hide func(key string) bool, encoded bool) json.RawMessage {
	if !v.IsObject() {
		return sizeOnly(v, false)
	}
	out := map[string]json.RawMessage{}
	for _, m := range members(v) {
		out[m.key] = json.RawMessage(m.value.Raw)
		if hide(m.key) {
			out[m.key] = sizeOnly(m.value, encoded)
		}
	}
	b, err := json.Marshal(out)
	if err != nil {
		return sizeOnly(v, false)
	}
	return b
}

// sizeOnly says how long a hidden value is; encoded values are base64. It gives no hash: a
// hash of a short secret gives the secret away.
func sizeOnly(v gjson.Result, encoded bool) json.RawMessage {
	n := len(v.Raw)
	if v.Type == gjson.String {
		n = len(v.Str)
		if b, err := base64.StdEncoding.DecodeString(v.Str); encoded && err == nil {
			n = len(b)
		}
	}
	return json.RawMessage(fmt.Sprintf(`"(secret, %d bytes)"`, n))
}
