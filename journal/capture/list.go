package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

// pageSize is the number of objects per list request. The page is streamed, so it bounds what
// the server prepares at once, not our memory.
const pageSize = 500

// partialMetadata asks for object metadata only; servers that cannot give that give all.
const partialMetadata = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json"

// metav1Version is the version of the options that go into request parameters.
var metav1Version = schema.GroupVersion{Version: "v1"}

var errList = errors.New("malformed list")

// page is what a list response says besides its items.
type page struct {
	rv   uint64
	next string // the continue token
}

// getPage requests one page and calls item with each object's JSON, in the form that a watch
// would give it (lists of built-in kinds leave out apiVersion and kind). The bytes belong to
// item.
func getPage(ctx context.Context, c rest.Interface, path, accept string, o metav1.ListOptions, kind typeName, item func([]byte) error) (page, error) {
	body, err := c.Get().AbsPath(path).SpecificallyVersionedParams(&o, metav1.ParameterCodec, metav1Version).SetHeader("Accept", accept).Stream(ctx)
	if err != nil {
		return page{}, err
	}
	defer body.Close()
	return readList(body, kind, item)
}

// typeName is the kind and apiVersion of a list's items.
type typeName struct{ kind, apiVersion string }

// readList streams a list's JSON. Its parts may come in any order.
func readList(r io.Reader, kind typeName, item func([]byte) error) (p page, err error) {
	d := jsontext.NewDecoder(r, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if err := expect(d, '{'); err != nil {
		return p, err
	}
	for d.PeekKind() != '}' {
		key, err := d.ReadToken()
		if err != nil {
			return p, listError(err)
		}
		switch key.String() {
		case "items":
			err = readItems(d, kind, item)
		case "metadata":
			err = p.readMetadata(d)
		default:
			err = d.SkipValue()
		}
		if err != nil {
			return p, listError(err)
		}
	}
	return p, listError(expect(d, '}'))
}

func readItems(d *jsontext.Decoder, kind typeName, item func([]byte) error) error {
	if d.PeekKind() == 'n' {
		return d.SkipValue()
	}
	if err := expect(d, '['); err != nil {
		return err
	}
	for d.PeekKind() != ']' {
		v, err := d.ReadValue()
		if err != nil {
			return listError(err)
		}
		if err := item(withType(v, kind)); err != nil {
			return &itemError{err}
		}
	}
	return expect(d, ']')
}

// itemError keeps what item said apart from what is wrong with the list.
type itemError struct{ error }

func (e *itemError) Unwrap() error { return e.error }

// listError hides the decoder's texts, which quote the list, and so the objects.
func listError(err error) error {
	var item *itemError
	var syntax *jsontext.SyntacticError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &item):
		return item.error
	case errors.As(err, &syntax):
		return fmt.Errorf("%w: bad JSON at byte %d", errList, syntax.ByteOffset)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it ends early", errList)
	}
	return err
}

func (p *page) readMetadata(d *jsontext.Decoder) error {
	if err := expect(d, '{'); err != nil {
		return err
	}
	for d.PeekKind() != '}' {
		key, err := d.ReadToken()
		if err != nil {
			return err
		}
		switch name := key.String(); name {
		case "resourceVersion", "continue":
			v, err := d.ReadToken()
			if err != nil {
				return err
			}
			if v.Kind() == 'n' {
				continue // null is none
			}
			if name == "continue" {
				p.next = v.String()
			} else if p.rv, err = strconv.ParseUint(v.String(), 10, 64); err != nil {
				return &itemError{errNotNumeric}
			}
		default:
			if err := d.SkipValue(); err != nil {
				return err
			}
		}
	}
	return expect(d, '}')
}

func expect(d *jsontext.Decoder, kind jsontext.Kind) error {
	t, err := d.ReadToken()
	if err != nil {
		return err
	}
	if t.Kind() != kind {
		return fmt.Errorf("%w: want %q", errList, byte(kind))
	}
	return nil
}

// withType copies an item and gives it the kind and apiVersion it lacks, in the place where a
// watch event of a built-in kind has them.
func withType(v []byte, kind typeName) []byte {
	if len(v) < 2 || v[0] != '{' || kind.kind == "" || hasType(v) {
		return bytes.Clone(v)
	}
	b := make([]byte, 0, len(v)+len(kind.kind)+len(kind.apiVersion)+32)
	b = append(b, `{"kind":"`...)
	b = append(b, kind.kind...)
	b = append(b, `","apiVersion":"`...)
	b = append(b, kind.apiVersion...)
	b = append(b, '"')
	if rest := bytes.TrimSpace(v[1:]); !bytes.HasPrefix(rest, []byte("}")) {
		b = append(b, ',')
	}
	return append(b, v[1:]...)
}

// hasType reports whether the object says what it is. A watch event's first key is kind (of
// built-in kinds) or, with the keys sorted, usually apiVersion (of custom resources).
func hasType(v []byte) bool {
	rest := bytes.TrimLeft(v[1:], " \n\t\r")
	return bytes.HasPrefix(rest, []byte(`"apiVersion"`)) || bytes.HasPrefix(rest, []byte(`"kind"`)) || gjson.GetBytes(v, "apiVersion").Exists()
}
