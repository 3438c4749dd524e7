package replay

import (
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// ErrNotObject is returned by DiffObjects for input that is not a JSON object. The text never
// quotes the input, which may be a Secret.
var ErrNotObject = errors.New("not a JSON object")

// DiffOptions selects what DiffObjects compares and shows. The zero value compares what
// people and controllers write, and hides the contents of Secrets.
type DiffOptions struct {
	// ServerFields also compares what the API server sets by itself: uid, resourceVersion,
	// generation, creationTimestamp, selfLink and managedFields.
	ServerFields bool
	// IgnoreStatus leaves out the status.
	IgnoreStatus bool
	// ShowSecrets shows the values of Secrets instead of their sizes.
	ShowSecrets bool
	// Secret says that the objects are Secrets, for objects that do not name their kind.
	Secret bool
}

// FieldDiff is one field that differs. Of an added or removed object or list, the topmost
// field that came or went is given, with all that is below it.
type FieldDiff struct {
	// Path is the field, such as `.spec.template.spec.containers[name=web].image` or
	// `.metadata.labels["app.kubernetes.io/name"]`. A path that ends in [] means the order
	// of a list's elements; Old and New are then their keys.
	Path string `json:"path"`
	// Old and New are the JSON values; nil means that there is none. Values of Secrets
	// are replaced by a string that tells only their size.
	Old json.RawMessage `json:"old,omitempty"`
	New json.RawMessage `json:"new,omitempty"`
}

// serverFields are the metadata fields that clients do not write.
var serverFields = []string{"uid", "resourceVersion", "generation", "creationTimestamp", "selfLink", "managedFields"}

// DiffObjects compares two versions of an object field by field; an empty version stands for
// an object that is not there. Elements of lists are matched by name or another key where
// all have one, else by position. Numbers are compared as numbers, at any size. The result
// is ordered by path, lists in their own order.
func DiffObjects(before, after []byte, o DiffOptions) ([]FieldDiff, error) {
	var sides [2]gjson.Result
	for i, b := range [][]byte{before, after} {
		if len(b) == 0 {
			continue
		}
		if sides[i] = gjson.ParseBytes(b); !gjson.ValidBytes(b) || !sides[i].IsObject() {
			return nil, ErrNotObject
		}
	}
	d := differ{o: o, secret: !o.ShowSecrets && (o.Secret || isSecret(sides[0]) || isSecret(sides[1]))}
	d.objects("", sides[0], sides[1])
	return d.out, nil
}

type differ struct {
	o      DiffOptions
	secret bool
	out    []FieldDiff
}

func (d *differ) compare(path string, a, b gjson.Result) {
	switch {
	case a.Exists() == b.Exists() && a.Raw == b.Raw:
	case a.IsObject() && b.IsObject(), path == ".metadata" && (!a.Exists() || !b.Exists()):
		d.objects(path, a, b)
	case a.IsArray() && b.IsArray():
		d.arrays(path, a.Array(), b.Array())
	case !equalScalars(a, b):
		d.out = append(d.out, FieldDiff{Path: path, Old: d.shown(path, a), New: d.shown(path, b)})
	}
}

func (d *differ) objects(path string, a, b gjson.Result) {
	as, bs := members(a), members(b)
	for len(as)+len(bs) > 0 {
		var x, y gjson.Result
		var key string
		switch {
		case len(bs) == 0 || len(as) > 0 && as[0].key < bs[0].key:
			key, x, as = as[0].key, as[0].value, as[1:]
		case len(as) == 0 || bs[0].key < as[0].key:
			key, y, bs = bs[0].key, bs[0].value, bs[1:]
		default:
			key, x, y, as, bs = as[0].key, as[0].value, bs[0].value, as[1:], bs[1:]
		}
		if path == "" && d.o.IgnoreStatus && key == "status" || path == ".metadata" && !d.o.ServerFields && slices.Contains(serverFields, key) {
			continue
		}
		d.compare(path+fieldStep(key), x, y)
	}
}

type member struct {
	key   string
	value gjson.Result
}

// members returns an object's members ordered by key; of a repeated key the last counts, as
// in encoding/json.
func members(o gjson.Result) []member {
	var list []member
	if !o.IsObject() {
		return nil
	}
	o.ForEach(func(k, v gjson.Result) bool {
		list = append(list, member{k.String(), v})
		return true
	})
	slices.SortStableFunc(list, func(a, b member) int { return strings.Compare(a.key, b.key) })
	out := list[:0]
	for i, m := range list {
		if i+1 == len(list) || list[i+1].key != m.key {
			out = append(out, m)
		}
	}
	return out
}

func (d *differ) arrays(path string, a, b []gjson.Result) {
	ak, bk := elementKeys(a, b)
	if ak == nil && bk == nil {
		for i := range max(len(a), len(b)) {
			var x, y gjson.Result
			if i < len(a) {
				x = a[i]
			}
			if i < len(b) {
				y = b[i]
			}
			d.compare(path+"["+strconv.Itoa(i)+"]", x, y)
		}
		return
	}
	at := make(map[string]int, len(b))
	for i, k := range bk {
		at[k] = i
	}
	var before, after []string // the keys both have, in either order
	known := make(map[string]bool, len(a))
	for i, k := range ak {
		known[k] = true
		j, both := at[k]
		if !both {
			d.compare(path+k, a[i], gjson.Result{})
			continue
		}
		before = append(before, k)
		d.compare(path+k, a[i], b[j])
	}
	for j, k := range bk {
		if !known[k] {
			d.compare(path+k, gjson.Result{}, b[j])
			continue
		}
		after = append(after, k)
	}
	if !slices.Equal(before, after) {
		d.out = append(d.out, FieldDiff{Path: path + "[]", Old: keyList(before), New: keyList(after)})
	}
}

func keyList(steps []string) json.RawMessage {
	for i, s := range steps {
		steps[i] = s[1 : len(s)-1]
	}
	b, err := json.Marshal(steps)
	if err != nil {
		return nil // strings always marshal
	}
	return b
}

// mergeKeys are tried in turn: the first one that every element of both lists has, uniquely
// within its list, matches the elements. The first part is required, the others are not.
var mergeKeys = [][]string{
	{"name"},
	{"key"},
	{"containerPort", "protocol"},
	{"port", "protocol"},
	{"mountPath"},
	{"devicePath"},
	{"topologyKey", "whenUnsatisfiable"},
	{"type"},
	{"uid"},
	{"ip"},
}

// elementKeys returns a path step per element, such as [name=web], or nil when the lists have
// no key in common.
func elementKeys(a, b []gjson.Result) (ak, bk []string) {
	if len(a)+len(b) == 0 {
		return nil, nil
	}
	for _, parts := range mergeKeys {
		ak, ok := stepsBy(parts, a)
		if !ok {
			continue
		}
		if bk, ok := stepsBy(parts, b); ok {
			return ak, bk
		}
	}
	return nil, nil
}

func stepsBy(parts []string, list []gjson.Result) ([]string, bool) {
	steps := make([]string, 0, len(list))
	seen := make(map[string]bool, len(list))
	for _, e := range list {
		if !e.IsObject() {
			return nil, false
		}
		var step strings.Builder
		step.WriteString("[")
		for i, part := range parts {
			v := e.Get(part)
			if v.Type != gjson.String && v.Type != gjson.Number {
				if i == 0 || v.Exists() {
					return nil, false
				}
				continue
			}
			if i > 0 {
				step.WriteString(",")
			}
			step.WriteString(part + "=" + keyText(v))
		}
		step.WriteString("]")
		if seen[step.String()] {
			return nil, false
		}
		seen[step.String()] = true
		steps = append(steps, step.String())
	}
	return steps, true
}

func keyText(v gjson.Result) string {
	if v.Type == gjson.Number {
		return v.Raw
	}
	if v.Str == "" || strings.ContainsFunc(v.Str, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`"[],=\`, r) }) {
		return strconv.Quote(v.Str)
	}
	return v.Str
}

// fieldStep is the path step of an object's member: .name, or ["odd/name"].
func fieldStep(key string) string {
	odd := func(r rune) bool {
		return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}
	if key == "" || strings.ContainsFunc(key, odd) {
		return "[" + strconv.Quote(key) + "]"
	}
	return "." + key
}

// equalScalars compares two values of which at most one is an object or a list.
func equalScalars(a, b gjson.Result) bool {
	if a.Type != b.Type || a.Exists() != b.Exists() {
		return false
	}
	switch a.Type {
	case gjson.String:
		return a.Str == b.Str
	case gjson.Number:
		return equalNumbers(a.Raw, b.Raw)
	case gjson.JSON:
		return false
	}
	return true
}

// equalNumbers compares two JSON numbers by value, without converting them to floats.
func equalNumbers(a, b string) bool {
	ad, ae, aok := decimal(a)
	bd, be, bok := decimal(b)
	if !aok || !bok {
		return a == b
	}
	return ad == bd && ae == be
}

// decimal splits a JSON number into its significant digits, with sign, and the power of ten
// of the last one.
func decimal(s string) (digits string, exp int64, ok bool) {
	mantissa, e, found := s, "", false
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		mantissa, e, found = s[:i], s[i+1:], true
	}
	if found {
		n, err := strconv.ParseInt(e, 10, 32)
		if err != nil {
			return "", 0, false
		}
		exp = n
	}
	mantissa, negative := strings.CutPrefix(mantissa, "-")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	exp -= int64(len(fraction))
	digits = strings.TrimLeft(whole+fraction, "0")
	trimmed := strings.TrimRight(digits, "0")
	exp += int64(len(digits) - len(trimmed))
	if trimmed == "" {
		return "0", 0, true
	}
	if negative {
		trimmed = "-" + trimmed
	}
	return trimmed, exp, true
}

func unquote(s string) string {
	if u, err := strconv.Unquote(s); err == nil {
		return u
	}
	return s
}
