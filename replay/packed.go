package replay

import (
	"bytes"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/tidwall/gjson"
	"k8s.io/apimachinery/pkg/types"
)

// packed is an object's JSON, compressed: the plan of a whole cluster holds several versions of each of
// its objects, and parsed they take ten times the memory of their JSON. Nil stands for no object.
type packed []byte

// pack compresses an object's JSON, which must be valid. No JSON is no object.
func pack(text []byte) packed {
	if len(text) == 0 {
		return nil
	}
	w, _ := packers()
	scratch := scratches.Get().(*[]byte)
	defer scratches.Put(scratch)
	*scratch = w.EncodeAll(text, (*scratch)[:0])
	return bytes.Clone(*scratch) // with no room to spare: there are many
}

var scratches = sync.Pool{New: func() any { return new([]byte) }}

// packers are used by all: they are safe for it, and each takes a few hundred KB.
var packers = sync.OnceValues(func() (*zstd.Encoder, *zstd.Decoder) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(128<<10), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	if err != nil {
		panic(err) // the options are wrong
	}
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0))
	if err != nil {
		panic(err)
	}
	return w, r
})

// json is what was packed; nil of nothing.
func (p packed) json() []byte {
	if p == nil {
		return nil
	}
	_, r := packers()
	text, err := r.DecodeAll(p, nil)
	if err != nil {
		panic("what was packed cannot be unpacked: " + err.Error())
	}
	return text
}

// object parses what was packed, which was an object.
func (p packed) object() object {
	o, err := parseObject(p.json())
	if err != nil {
		panic("a packed text that is no object")
	}
	return o
}

// MarshalJSON writes the object as it is.
func (p packed) MarshalJSON() ([]byte, error) {
	if p == nil {
		return []byte("null"), nil
	}
	return p.json(), nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (p *packed) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		*p = nil
		return nil
	}
	if _, err := parseObject(text); err != nil {
		return err
	}
	*p = pack(text)
	return nil
}

// found is a live object as it was when it was read.
type found struct {
	packed
	uid      types.UID
	rv       string
	version  string // its apiVersion
	deleting bool
}

func newFound(o object) *found {
	u := o.unstructured()
	return &found{packed: pack(o.json()), uid: u.GetUID(), rv: u.GetResourceVersion(), version: u.GetAPIVersion(), deleting: o.deleting()}
}

// parts is a list inside an object, such as its managedFields, packed.
type parts struct{ packed }

func packParts(list []any) parts {
	if len(list) == 0 {
		return parts{}
	}
	return parts{pack(object{"list": list}.json())}
}

// MarshalJSON writes the list as it is.
func (p parts) MarshalJSON() ([]byte, error) {
	if p.packed == nil {
		return []byte("null"), nil
	}
	return []byte(gjson.GetBytes(p.packed.json(), "list").Raw), nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (p *parts) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		return nil
	}
	o, err := parseObject(slices.Concat([]byte(`{"list":`), text, []byte("}")))
	if err != nil {
		return err
	}
	*p = packParts(o.list("list"))
	return nil
}

func (p parts) list() []any {
	if p.packed == nil {
		return nil
	}
	return p.object().list("list")
}
