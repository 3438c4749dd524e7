package capture

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

func TestFramesAreReadInEveryForm(t *testing.T) {
	object := `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x","namespace":"ns","uid":"u","resourceVersion":"12"},"data":{"a":"}}\"{"}}`
	for name, line := range map[string]string{
		"as the server writes it": `{"type":"ADDED","object":` + object + `}`,
		"CRLF":                    `{"type":"ADDED","object":` + object + "}\r\n",
		"spaces":                  ` { "type" : "ADDED" , "object" : ` + object + ` } `,
		"another order":           `{"object":` + object + `,"type":"ADDED"}`,
		"escaped type":            `{"type":"\u0041DDED","object":` + object + `}`,
	} {
		e, err := decodeFrame([]byte(line))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		o := e.Object.(*rawObject)
		if e.Type != watch.Added || o.name != "x" || o.namespace != "ns" || o.uid != "u" || o.rv != 12 || string(o.raw) != object || o.meta.ResourceVersion != "12" {
			t.Errorf("%s: %s %+v", name, e.Type, o)
		}
	}
}

func TestBadFramesAreRefusedWithoutAQuote(t *testing.T) {
	const canary = "canary"
	for _, line := range []string{
		canary, `{"type":"ADDED"}`, `{"object":{"a":"canary"}}`, `{"type":"ADDED","object":"canary"}`, `{"type":"ADDED","object":{"a":"canary"}}`,
		`{"type":"ADDED","object":{"metadata":{"name":"x"},"data":"canary"}}`, `{"type":"ADDED","object":{"metadata":{"resourceVersion":"5"},"data":"canary"}}`,
		`{"type":"ADDED","object":{"metadata":{"name":"x","resourceVersion":"canary"}}}`, `{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"canary"}}}`,
		`{"type":"canary","object":{"metadata":{"name":"x","resourceVersion":"5"}}}`, `{"type":"ERROR","object":["canary"]}`, `{"type":"ADDED","object":{"metadata":{"name":"canary`,
		`{"type":"ADDED","object":null}`, `{}`, `[]`, `{"type":"ADDED","object":{"metadata":"canary"}}`,
	} {
		if _, err := decodeFrame([]byte(line)); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: error %v", line, err)
		}
	}
}

func TestErrorFramesCarryTheStatus(t *testing.T) {
	e, err := decodeFrame([]byte(`{"type":"ERROR","object":` + status(410, metav1.StatusReasonExpired, "too old") + `}`))
	if err != nil || e.Type != watch.Error || e.Object.(*metav1.Status).Code != 410 || e.Object.(*metav1.Status).Reason != metav1.StatusReasonExpired {
		t.Fatalf("%+v %v", e, err)
	}
}

func FuzzFramesAgainstEncodingJSON(f *testing.F) {
	for _, s := range []string{
		`{"type":"ADDED","object":{"kind":"A","metadata":{"name":"x","namespace":"n","uid":"u","resourceVersion":"12"}}}`,
		`{"type":"DELETED","object":{"metadata":{"resourceVersion":"1","name":"\u0061\"b"},"spec":{"metadata":{"name":"no"}}}}`,
		`{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}`,
		`{"type":"ERROR","object":{"code":410}}`,
		`{"object":{},"type":"MODIFIED"}`,
		"{\"type\":\"ADDED\",\"object\":{}}\r\n", `{"type":"ADDED","object":`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := decodeFrame(line)
		if err != nil || !utf8.Valid(line) || !json.Valid(line) || e.Type == watch.Error || e.Type == watch.Bookmark {
			return
		}
		var frame struct {
			Type   string
			Object json.RawMessage
		}
		fields, err := plainObject(line)
		if err != nil || len(fields) != 2 {
			return // keys more than once, or others: no server writes that
		}
		_ = json.Unmarshal(fields["type"], &frame.Type)
		o := e.Object.(*rawObject)
		if string(e.Type) != frame.Type || !bytes.Equal(o.raw, bytes.TrimSpace(fields["object"])) {
			t.Fatalf("%q: type %s, object %q; encoding/json says %s, %q", line, e.Type, o.raw, frame.Type, fields["object"])
		}
		compareScan(t, o, fields["object"])
	})
}

func FuzzScanObjectAgainstEncodingJSON(f *testing.F) {
	f.Add([]byte(`{"metadata":{"name":"x","namespace":"n","uid":"u","resourceVersion":"12","labels":{"name":"no"}}}`))
	f.Add([]byte(`{"spec":{"metadata":{"name":"no"}},"metadata":{"n\u0061me":"\ud83d\ude00","resourceVersion":"1"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		o, err := scanObject(raw)
		if err == nil && utf8.Valid(raw) && json.Valid(raw) {
			compareScan(t, o, raw)
		}
	})
}

// compareScan sets scanned fields against encoding/json, for objects whose keys are there once
// and whose fields are strings, as the API has them.
func compareScan(t *testing.T, o *rawObject, raw []byte) {
	t.Helper()
	fields, err := plainObject(raw)
	if err != nil {
		return
	}
	meta, err := plainObject(fields["metadata"])
	if err != nil {
		return
	}
	for key, got := range map[string]string{"name": o.name, "namespace": o.namespace, "uid": o.uid, "resourceVersion": strconv.FormatUint(o.rv, 10)} {
		var want string
		if v, ok := meta[key]; ok && json.Unmarshal(v, &want) != nil {
			return
		}
		if key == "resourceVersion" {
			n, err := strconv.ParseUint(want, 10, 64)
			if err != nil {
				return
			}
			want = strconv.FormatUint(n, 10)
		}
		if got != want {
			t.Fatalf("%q: %s is %q, encoding/json says %q", raw, key, got, want)
		}
	}
}

var errTwice = errors.New("a key is there twice")

// plainObject decodes one level of an object, with its keys exactly as they are.
func plainObject(raw []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	all := map[string]json.RawMessage{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := key.(string)
		if _, ok := all[name]; ok {
			return nil, errTwice
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		all[name] = v
	}
	return all, nil
}

func TestLinesSurviveOddChunks(t *testing.T) {
	long := strings.Repeat("long", 1<<19)
	text := "one\r\n\n" + long + "\nthree\n" + strings.Repeat("x", lineBuffer) + "\nlast\ncut off"
	want := []string{"one", "", long, "three", strings.Repeat("x", lineBuffer), "last"}
	for name, r := range map[string]io.Reader{
		"whole": strings.NewReader(text), "bytewise": iotest.OneByteReader(bufio.NewReader(strings.NewReader(text))),
		"halves": iotest.HalfReader(strings.NewReader(text)), "data with EOF": iotest.DataErrReader(strings.NewReader(text)),
	} {
		lines := newLineReader(r)
		for i, w := range want {
			line, err := lines.next()
			if err != nil || strings.TrimRight(string(line), "\r\n") != w {
				t.Fatalf("%s: line %d has %d bytes, %v; want %d", name, i, len(line), err, len(w))
			}
		}
		if line, err := lines.next(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: the cut-off line came as %q, %v", name, line, err)
		}
		if cap(lines.big) > 1<<20 {
			t.Errorf("%s: %d bytes are kept for one huge line", name, cap(lines.big))
		}
	}
}

func TestAFrameWithoutEndIsRefusedBeforeItFillsTheMemory(t *testing.T) {
	lines := newLineReader(&endless{limit: maxFrame + 1<<20})
	if _, err := lines.next(); !errors.Is(err, errFrameLarge) {
		t.Fatalf("error %v", err)
	}
}

type endless struct{ limit int }

func (e *endless) Read(p []byte) (int, error) {
	if e.limit -= len(p); e.limit < 0 {
		return 0, errors.New("read on and on")
	}
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

const listText = `{"kind":"BucketList","apiVersion":"example.com/v1","items":[` +
	`{"metadata":{"name":"a","resourceVersion":"3"},"data":{"canary":"canary"}},` +
	`{"aField":"canary","apiVersion":"example.com/v1","kind":"Bucket","metadata":{"name":"b","resourceVersion":"4"}},` +
	`{"kind":"Bucket","apiVersion":"example.com/v1","metadata":{"name":"c"}},` +
	` { } ,{"metadata":{"name":"canary"}}],"metadata":{"continue":"token","remainingItemCount":5,"resourceVersion":"77","selfLink":null}}`

func readText(r io.Reader) (page, []string, error) {
	var items []string
	p, err := readList(r, typeName{"Bucket", "example.com/v1"}, func(b []byte) error {
		items = append(items, string(b))
		return nil
	})
	return p, items, err
}

func TestListsAreReadInEveryOrder(t *testing.T) {
	for name, r := range map[string]io.Reader{"whole": strings.NewReader(listText), "bytewise": iotest.OneByteReader(strings.NewReader(listText))} {
		p, items, err := readText(r)
		if err != nil || p.rv != 77 || p.next != "token" || len(items) != 5 {
			t.Fatalf("%s: %+v %d items, %v", name, p, len(items), err)
		}
		want := []string{
			`{"kind":"Bucket","apiVersion":"example.com/v1","metadata":{"name":"a","resourceVersion":"3"},"data":{"canary":"canary"}}`,
			`{"aField":"canary","apiVersion":"example.com/v1","kind":"Bucket","metadata":{"name":"b","resourceVersion":"4"}}`,
			`{"kind":"Bucket","apiVersion":"example.com/v1","metadata":{"name":"c"}}`,
			`{"kind":"Bucket","apiVersion":"example.com/v1" }`,
			`{"kind":"Bucket","apiVersion":"example.com/v1","metadata":{"name":"canary"}}`,
		}
		if !slices.Equal(items, want) {
			t.Errorf("%s: items\n%s\nwant\n%s", name, strings.Join(items, "\n"), strings.Join(want, "\n"))
		}
	}
	for _, text := range []string{`{"metadata":{"resourceVersion":"7"},"items":null}`, `{"items":[],"metadata":{"resourceVersion":"7","continue":null}}`} {
		if p, items, err := readText(strings.NewReader(text)); err != nil || p.rv != 7 || p.next != "" || len(items) != 0 {
			t.Errorf("%s: %+v %v %v", text, p, items, err)
		}
	}
}

func TestAListThatIsCutOffAnywhereIsAnErrorWithoutAQuote(t *testing.T) {
	for i := range len(listText) {
		_, _, err := readText(strings.NewReader(listText[:i]))
		if err == nil {
			t.Errorf("cut off after %d bytes: no error", i)
		} else if strings.Contains(err.Error(), "canary") {
			t.Errorf("cut off after %d bytes: %v", i, err)
		}
		broken := listText[:i] + "\x00canary" + listText[i:]
		if _, _, err := readText(strings.NewReader(broken)); err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("broken after %d bytes: %v", i, err)
		}
		reset := io.MultiReader(strings.NewReader(listText[:i]), iotest.ErrReader(errors.New("connection reset")))
		if _, _, err := readText(reset); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("connection reset after %d bytes: %v", i, err)
		}
	}
	stop := errors.New("stop")
	if _, err := readList(strings.NewReader(listText), typeName{}, func([]byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the item's error came back as %v", err)
	}
}

func FuzzWithType(f *testing.F) {
	f.Add([]byte(`{"metadata":{"name":"x"}}`))
	f.Add([]byte(` {} `))
	f.Add([]byte(`{"aa":1,"apiVersion":"v1","kind":"K"}`))
	f.Fuzz(func(t *testing.T, v []byte) {
		had, err := plainObject(v)
		if err != nil || !json.Valid(v) {
			_ = withType(v, typeName{"K", "v9"})
			return
		}
		v = bytes.TrimSpace(v)
		got := withType(v, typeName{"K", "v9"})
		has, err := plainObject(got)
		if err != nil && !errors.Is(err, errTwice) || !json.Valid(got) {
			t.Fatalf("%q became %q: %v", v, got, err)
		}
		_, hadVersion := had["apiVersion"]
		_, hadKind := had["kind"]
		switch {
		case hadVersion:
			if !bytes.Equal(got, v) {
				t.Fatalf("%q has a type and became %q", v, got)
			}
		case !hadKind && err == nil:
			want := maps.Clone(had)
			want["kind"], want["apiVersion"] = json.RawMessage(`"K"`), json.RawMessage(`"v9"`)
			if fmt.Sprintf("%q", want) != fmt.Sprintf("%q", has) {
				t.Fatalf("%q became %q", v, got)
			}
		}
	})
}

func FuzzReadList(f *testing.F) {
	f.Add([]byte(listText))
	f.Add([]byte(`{"items":null,"metadata":{}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, items, err := readText(bytes.NewReader(text))
		var want struct {
			Items []json.RawMessage `json:"items"`
		}
		top, plainErr := plainObject(text)
		if err != nil || plainErr != nil || !json.Valid(text) {
			return
		}
		if json.Unmarshal(top["items"], &want.Items) == nil && len(want.Items) != len(items) {
			t.Fatalf("%q: %d items, encoding/json says %d (%+v)", text, len(items), len(want.Items), p)
		}
	})
}
