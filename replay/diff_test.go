package replay

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// diffText is a diff as one line per field: "path old -> new".
func diffText(t testing.TB, before, after string, o DiffOptions) []string {
	t.Helper()
	ds, err := DiffObjects([]byte(before), []byte(after), o)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range ds {
		side := func(r json.RawMessage) string {
			if r == nil {
				return "-"
			}
			return string(r)
		}
		out = append(out, d.Path+" "+side(d.Old)+" -> "+side(d.New))
	}
	return out
}

func TestDiffObjects(t *testing.T) {
	for _, tc := range []struct {
		name, before, after string
		o                   DiffOptions
		want                []string
	}{
		{name: "equal objects with keys in another order", before: `{"a":1,"b":{"c":2,"d":3}}`, after: `{"b":{"d":3,"c":2},"a":1}`},
		{
			name:   "an element found by its name although it moved",
			before: `{"spec":{"containers":[{"name":"web","image":"a:1"},{"name":"log","image":"l"}]}}`,
			after:  `{"spec":{"containers":[{"name":"init","image":"i"},{"name":"web","image":"a:2"},{"name":"log","image":"l"}]}}`,
			want:   []string{`.spec.containers[name=web].image "a:1" -> "a:2"`, `.spec.containers[name=init] - -> {"name":"init","image":"i"}`},
		},
		{
			name:   "the order of containers, which matters to init containers",
			before: `{"spec":{"initContainers":[{"name":"a"},{"name":"b"}]}}`, after: `{"spec":{"initContainers":[{"name":"b"},{"name":"a"}]}}`,
			want: []string{`.spec.initContainers[] ["name=a","name=b"] -> ["name=b","name=a"]`},
		},
		{
			name:   "ports without names by port and protocol",
			before: `{"ports":[{"port":53,"protocol":"TCP"},{"port":53,"protocol":"UDP","nodePort":1}]}`, after: `{"ports":[{"port":53,"protocol":"TCP"},{"port":53,"protocol":"UDP","nodePort":2}]}`,
			want: []string{`.ports[port=53,protocol=UDP].nodePort 1 -> 2`},
		},
		{
			name:   "elements with a repeated name by position",
			before: `{"l":[{"name":"a","v":1},{"name":"a","v":2}]}`, after: `{"l":[{"name":"a","v":1},{"name":"a","v":3}]}`,
			want: []string{`.l[1].v 2 -> 3`},
		},
		{name: "plain lists by position", before: `{"args":["a","b"]}`, after: `{"args":["a","c","d"]}`, want: []string{`.args[1] "b" -> "c"`, `.args[2] - -> "d"`}},
		{
			name:   "odd keys and names are quoted",
			before: `{"metadata":{"labels":{"app.kubernetes.io/name":"a"}},"l":[{"name":"x=y]","v":1}]}`, after: `{"metadata":{"labels":{"app.kubernetes.io/name":"b"}},"l":[{"name":"x=y]","v":2}]}`,
			want: []string{`.l[name="x=y]"].v 1 -> 2`, `.metadata.labels["app.kubernetes.io/name"] "a" -> "b"`},
		},
		{name: "numbers by value", before: `{"a":1,"b":1e2,"c":0.10,"d":-0}`, after: `{"a":1.0,"b":100,"c":0.1,"d":0}`},
		{name: "numbers beyond floats", before: `{"n":9007199254740993}`, after: `{"n":9007199254740992}`, want: []string{`.n 9007199254740993 -> 9007199254740992`}},
		{name: "a number is not its text", before: `{"n":1}`, after: `{"n":"1"}`, want: []string{`.n 1 -> "1"`}},
		{name: "escapes are not a difference", before: `{"s":"\u0061<"}`, after: `{"s":"a\u003c"}`},
		{name: "null is not absent", before: `{"a":null}`, after: `{}`, want: []string{`.a null -> -`}},
		{
			name:   "what the server sets is left out, deletion is not",
			before: `{"metadata":{"uid":"1","resourceVersion":"1","generation":1,"managedFields":[1],"creationTimestamp":"a","selfLink":"s"}}`, after: `{"metadata":{"uid":"2","resourceVersion":"2","deletionTimestamp":"now"}}`,
			want: []string{`.metadata.deletionTimestamp - -> "now"`},
		},
		{name: "what the server sets, when asked for", before: `{"metadata":{"uid":"1"}}`, after: `{"metadata":{"uid":"2"}}`, o: DiffOptions{ServerFields: true}, want: []string{`.metadata.uid "1" -> "2"`}},
		{name: "only the server's fields below another name are compared", before: `{"spec":{"uid":"1"}}`, after: `{"spec":{"uid":"2"}}`, want: []string{`.spec.uid "1" -> "2"`}},
		{name: "status", before: `{"status":{"a":1}}`, after: `{"status":{"a":2}}`, want: []string{`.status.a 1 -> 2`}},
		{name: "status left out", before: `{"status":{"a":1},"x":{"status":1}}`, after: `{"x":{"status":2}}`, o: DiffOptions{IgnoreStatus: true}, want: []string{`.x.status 1 -> 2`}},
		{name: "an added object field by field at the top", before: ``, after: `{"kind":"A","metadata":{"uid":"1","name":"n"}}`, want: []string{`.kind - -> "A"`, `.metadata.name - -> "n"`}},
		{name: "of a repeated key the last counts", before: `{"a":1,"a":2}`, after: `{"a":2}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, diffText(t, tc.before, tc.after, tc.o)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDiffHidesSecrets(t *testing.T) {
	const before = `{"apiVersion":"v1","kind":"Secret","metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"data\":{\"p\":\"aHVudGVyMg==\"}}","team":"a"}},"data":{"p":"aHVudGVyMg==","gone":"aHVudGVyMg=="}}`
	const after = `{"apiVersion":"v1","kind":"Secret","metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"data\":{\"p\":\"aHVudGVyMw==\"}}","team":"b"}},"data":{"p":"aHVudGVyMw==","new":"aHVudGVyMg=="},"stringData":{"s":"hunter2"}}`
	want := []string{
		`.data.gone "(secret, 7 bytes)" -> -`,
		`.data.new - -> "(secret, 7 bytes)"`,
		`.data.p "(secret, 7 bytes)" -> "(secret, 7 bytes)"`,
		`.metadata.annotations["kubectl.kubernetes.io/last-applied-configuration"] "(secret, 29 bytes)" -> "(secret, 29 bytes)"`,
		`.metadata.annotations.team "a" -> "b"`,
		`.stringData - -> {"s":"(secret, 7 bytes)"}`,
	}
	if diff := cmp.Diff(want, diffText(t, before, after, DiffOptions{})); diff != "" {
		t.Error(diff)
	}
	hidden := func(name, a, b string, o DiffOptions) {
		for _, l := range diffText(t, a, b, o) {
			for _, secret := range []string{"aHVudGVy", "hunter"} {
				if strings.Contains(l, secret) {
					t.Errorf("%s: %s is in the diff: %s", name, secret, l)
				}
			}
		}
	}
	hidden("created", "", after, DiffOptions{})
	hidden("deleted", before, "", DiffOptions{})
	hidden("annotations come", `{"apiVersion":"v1","kind":"Secret","metadata":{}}`, after, DiffOptions{})
	hidden("no metadata", `{"apiVersion":"v1","kind":"Secret"}`, after, DiffOptions{})
	hidden("odd metadata", `{"apiVersion":"v1","kind":"Secret","metadata":7}`, after, DiffOptions{})
	hidden("odd data", `{"apiVersion":"v1","kind":"Secret","data":"hunter2"}`, `{"apiVersion":"v1","kind":"Secret","data":["hunter3"]}`, DiffOptions{})
	hidden("no kind", `{"data":{"p":"aHVudGVyMg=="}}`, `{}`, DiffOptions{Secret: true})
	if got := diffText(t, before, after, DiffOptions{ShowSecrets: true}); !strings.Contains(strings.Join(got, "\n"), "aHVudGVyMw==") {
		t.Errorf("ShowSecrets does not show them: %q", got)
	}
	if got := diffText(t, `{"apiVersion":"example.com/v1","kind":"Secret","data":{"p":"a"}}`, `{"apiVersion":"example.com/v1","kind":"Secret","data":{"p":"b"}}`, DiffOptions{}); got[0] != `.data.p "a" -> "b"` {
		t.Errorf("a custom resource named Secret: %q", got)
	}
}

func TestDiffErrorsQuoteNothing(t *testing.T) {
	for _, bad := range []string{`{"data":{"p":"hunter2"`, `["hunter2"]`, `hunter2`, ` `} {
		_, err := DiffObjects([]byte(bad), []byte(`{}`), DiffOptions{})
		if !errors.Is(err, ErrNotObject) || strings.Contains(err.Error(), "h") && strings.Contains(err.Error(), "hunter") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzDiffObjects(f *testing.F) {
	f.Add([]byte(`{"a":[{"name":"x","v":1e3},{"name":"y"}],"metadata":{"annotations":{"k":"v"}}}`), []byte(`{"a":[{"name":"y","v":null}],"kind":"Secret","apiVersion":"v1","data":{"p":"cA=="}}`))
	f.Add([]byte(`{"l":[{"port":1},{"port":1,"protocol":"UDP"}],"n":-0.0e-5}`), []byte(`{"l":[{"port":1}],"n":0}`))
	f.Add([]byte(`{"a":{"":[[]],"\"]":{}}}`), []byte(`{"a":{"":[{}]},"a":1}`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if same, err := DiffObjects(a, a, DiffOptions{ServerFields: true}); err == nil && len(same) != 0 {
			t.Fatalf("differs from itself: %v", same)
		}
		there, err := DiffObjects(a, b, DiffOptions{ShowSecrets: true})
		back, err2 := DiffObjects(b, a, DiffOptions{ShowSecrets: true})
		if (err == nil) != (err2 == nil) {
			t.Fatalf("one way %v, the other %v", err, err2)
		}
		if err != nil {
			return
		}
		paths := func(ds []FieldDiff) map[string]string {
			m := map[string]string{}
			for _, d := range ds {
				if d.Old == nil && d.New == nil {
					t.Fatalf("%s: neither old nor new", d.Path)
				}
				m[d.Path] = string(d.Old) + "|" + string(d.New)
			}
			return m
		}
		forth, reverse := paths(there), paths(back)
		if len(forth) != len(reverse) {
			t.Fatalf("%v\n%v", forth, reverse)
		}
		for p := range forth {
			if _, ok := reverse[p]; !ok {
				t.Fatalf("path %s only one way", p)
			}
			splitPath(p)
		}
		Managers(a, b, []string{"." + string(a[:min(len(a), 20)])})
		if err := WriteDiff(&strings.Builder{}, "x", there, true); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWriteDiff(t *testing.T) {
	ds, err := DiffObjects([]byte(`{"data":{"conf":"a\nb\nc\nd\n","n":"1","esc":"x"},"spec":{"replicas":1}}`),
		[]byte(`{"data":{"conf":"a\nB\nc\nd\n","n":"2","esc":"\u001b[2Jx"},"spec":{"replicas":2,"sel":{"a":"b","c":1}}}`), DiffOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := WriteDiff(&b, "configmaps shop/web", ds, false); err != nil {
		t.Fatal(err)
	}
	want := `configmaps shop/web
  .data.conf:
    ... 1 equal line
-   b
+   B
    ... 3 equal lines
- .data.esc: x
+ .data.esc: "\x1b[2Jx"
- .data.n: "1"
+ .data.n: "2"
- .spec.replicas: 1
+ .spec.replicas: 2
  .spec.sel:
+   a: b
+   c: 1
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}
