package replay

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
)

// merge makes the body of an update: the live object with everything as want has it. have is
// the live object after the rules, so that what the rules take away (addresses, numbers the
// cluster gave) counts neither as a difference nor as superfluous, and stays. Fields that
// only the live object has stay as well, unless exact.
func merge(live, have, want object, exact bool) object {
	out := mergeMaps(live, have, want, exact)
	if exact {
		return out
	}
	// Finalizers that came since are a promise to somebody.
	for _, f := range live.list("metadata", "finalizers") {
		if list := object(out).list("metadata", "finalizers"); !slices.Contains(list, f) {
			object(out).put(append(slices.Clone(list), f), "metadata", "finalizers")
		}
	}
	return out
}

func mergeMaps(live, have, want map[string]any, exact bool) map[string]any {
	out := make(map[string]any, len(live)+len(want))
	maps.Copy(out, live)
	for k, w := range want {
		out[k] = mergeValues(live[k], have[k], w, exact)
	}
	if exact {
		for k := range have {
			if _, kept := want[k]; !kept {
				delete(out, k)
			}
		}
	}
	return out
}

func mergeValues(live, have, want any, exact bool) any {
	if have != nil && reflect.DeepEqual(have, want) {
		return live
	}
	switch w := want.(type) {
	case map[string]any:
		if l, ok := live.(map[string]any); ok {
			h, _ := have.(map[string]any)
			return mergeMaps(l, h, w, exact)
		}
	case []any:
		if l, ok := live.([]any); ok {
			h, _ := have.([]any)
			return mergeLists(l, h, w, exact)
		}
	}
	return runtime.DeepCopyJSONValue(want)
}

// mergeLists merges lists of objects that have a key element by element, in the order that
// want has; other lists become what want has.
func mergeLists(live, have, want []any, exact bool) []any {
	for _, parts := range mergeKeys {
		lk, ok1 := listKeys(live, parts)
		hk, ok2 := listKeys(have, parts)
		wk, ok3 := listKeys(want, parts)
		if !ok1 || !ok2 || !ok3 {
			continue
		}
		at := func(list []any, keys []string, k string) any {
			if i := slices.Index(keys, k); i >= 0 {
				return list[i]
			}
			return nil
		}
		out := make([]any, 0, len(want))
		for i, k := range wk {
			out = append(out, mergeValues(at(live, lk, k), at(have, hk, k), want[i], exact))
		}
		for i, k := range lk {
			// What the rules hid is not the plan's to remove, even when it is exact.
			if !slices.Contains(wk, k) && (!exact || !slices.Contains(hk, k)) {
				out = append(out, live[i])
			}
		}
		return out
	}
	return runtime.DeepCopyJSONValue(want).([]any)
}

// listKeys gives each element's key, or false when some have none or share one.
func listKeys(list []any, parts []string) ([]string, bool) {
	keys := make([]string, 0, len(list))
	for _, v := range list {
		m, ok := v.(map[string]any)
		if !ok || m[parts[0]] == nil {
			return nil, false
		}
		var key strings.Builder
		for _, p := range parts {
			switch v := m[p].(type) {
			case map[string]any, []any:
				return nil, false
			default:
				fmt.Fprintf(&key, "%v\x00", v)
			}
		}
		if slices.Contains(keys, key.String()) {
			return nil, false
		}
		keys = append(keys, key.String())
	}
	return keys, true
}
