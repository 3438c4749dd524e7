package replay

import (
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"
)

// Managers tells which field managers made the change from before to after, as managedFields
// record it: "kubectl-edit", or "kubelet/status" for a write to a subresource. fields are the
// changed paths as DiffObjects gives them; without them, or without a version before, the
// newest writers are named. It returns nil when the object does not say.
//
// managedFields know times only to the second and forget who removed a field, so the answer
// is exact for most changes and the best guess for the rest.
func Managers(before, after []byte, fields []string) []string {
	now := managedEntries(after)
	if len(now) == 0 {
		return nil
	}
	then := map[string]managedEntry{}
	for _, e := range managedEntries(before) {
		then[e.id] = e
	}
	var written, moved []managedEntry // wrote since then; only their set of fields changed
	for _, e := range now {
		old, known := then[e.id]
		switch {
		case !known || !e.time.Equal(old.time):
			written = append(written, e)
		case e.fields.Raw != old.fields.Raw:
			moved = append(moved, e)
		}
	}
	paths := make([][]pathStep, 0, len(fields))
	for _, f := range fields {
		paths = append(paths, splitPath(f))
	}
	owner := func(e managedEntry) bool {
		return slices.ContainsFunc(paths, func(p []pathStep) bool { return owns(e.fields, p) })
	}
	for _, choice := range [][]managedEntry{filter(written, owner), written, filter(moved, owner), filter(now, owner), moved} {
		if len(choice) > 0 {
			return newest(choice)
		}
	}
	if len(before) == 0 {
		return newest(now)
	}
	return nil
}

type managedEntry struct {
	id     string // which entry it is: manager, operation, version and subresource
	name   string
	time   time.Time
	fields gjson.Result
}

func managedEntries(object []byte) []managedEntry {
	var list []managedEntry
	gjson.GetBytes(object, "metadata.managedFields").ForEach(func(_, v gjson.Result) bool {
		e := managedEntry{name: v.Get("manager").String(), fields: v.Get("fieldsV1")}
		sub := v.Get("subresource").String()
		e.id = strings.Join([]string{e.name, v.Get("operation").String(), v.Get("apiVersion").String(), sub}, "\x00")
		if sub != "" {
			e.name += "/" + sub
		}
		e.time, _ = time.Parse(time.RFC3339, v.Get("time").String()) // no time: the oldest
		list = append(list, e)
		return true
	})
	return list
}

func filter(list []managedEntry, keep func(managedEntry) bool) []managedEntry {
	var out []managedEntry
	for _, e := range list {
		if keep(e) {
			out = append(out, e)
		}
	}
	return out
}

// newest names the managers of the newest entries, each once and sorted.
func newest(list []managedEntry) []string {
	last := slices.MaxFunc(list, func(a, b managedEntry) int { return a.time.Compare(b.time) }).time
	var names []string
	for _, e := range list {
		if e.time.Equal(last) && e.name != "" {
			names = append(names, e.name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// pathStep is one step of a diff path: a member's name, or an element of a list.
type pathStep struct {
	name    string
	element string // what stands between the brackets, when it is an element
}

// splitPath takes a path that DiffObjects made apart.
func splitPath(path string) []pathStep {
	var steps []pathStep
	for path != "" {
		switch {
		case path[0] == '.':
			end := strings.IndexAny(path[1:], ".[")
			if end < 0 {
				return append(steps, pathStep{name: path[1:]})
			}
			steps = append(steps, pathStep{name: path[1 : end+1]})
			path = path[end+1:]
		case path[0] == '[':
			inner, rest := bracket(path)
			if strings.HasPrefix(inner, `"`) {
				steps = append(steps, pathStep{name: unquote(inner)})
			} else if inner != "" {
				steps = append(steps, pathStep{element: inner})
			}
			path = rest
		default:
			return steps
		}
	}
	return steps
}

// bracket splits "[inner]rest", minding quoted text.
func bracket(s string) (inner, rest string) {
	quoted := false
	for i := 1; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ']' && !quoted:
			return s[1:i], s[i+1:]
		}
	}
	return s[1:], ""
}

// owns reports whether a fieldsV1 tree holds the field at the path, or a parent of it that
// is owned as a whole.
func owns(tree gjson.Result, path []pathStep) bool {
	if len(path) == 0 {
		return true
	}
	found, leaf := false, true
	tree.ForEach(func(k, v gjson.Result) bool {
		key := k.String()
		if key == "." {
			return true
		}
		leaf = false
		found = path[0].matches(key) && owns(v, path[1:])
		return !found
	})
	return found || leaf && tree.IsObject()
}

// matches reports whether the step is the fieldsV1 key, such as f:spec or k:{"name":"web"}.
func (p pathStep) matches(key string) bool {
	if p.element == "" {
		return strings.HasPrefix(key, "f:") && key[2:] == p.name
	}
	switch {
	case strings.HasPrefix(key, "i:"):
		return key[2:] == p.element
	case strings.HasPrefix(key, "v:"):
		return true // a set's member: the path has its position only
	case !strings.HasPrefix(key, "k:"):
		return false
	}
	keys := gjson.Parse(key[2:])
	for part := range strings.SplitSeq(p.element, ",") {
		name, value, _ := strings.Cut(part, "=")
		// A list that the schema keys by something else than the path does cannot be told
		// apart: every element may be the one.
		if k := keys.Get(gjson.Escape(name)); k.Exists() && k.String() != unquote(value) {
			return false
		}
	}
	return true
}
