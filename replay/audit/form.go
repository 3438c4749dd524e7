package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"time"

	"github.com/tidwall/gjson"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// form is how the API server gives the objects of a resource. What is stored stays what it is when the server is
// upgraded or a definition changes; it is read in another form from then on, at the same revision.
type form struct {
	name  string    // the server's version and, of a custom resource, the generation of its definition
	since time.Time // what was recorded before, or in the time of a roll-out after it, may have been given in another form
	group string
	// converted: a webhook converts the objects, and may make of them what it likes.
	converted bool
}

// form asks for the form of a resource; since is the caller's to know.
func (a *Auditor) form(ctx context.Context, gr schema.GroupResource) (form, error) {
	if now := a.o.Clock(); a.server == "" || now.Sub(a.serverAt).Abs() > min(time.Minute, a.o.Every) {
		ctx, cancel := context.WithTimeout(ctx, pageTimeout)
		defer cancel()
		version, err := a.o.Cluster.ServerVersion(ctx)
		if err != nil {
			return form{}, fmt.Errorf("ask the API server for its version: %w", err)
		}
		a.server, a.serverAt = version, now
	}
	f := form{name: a.server, group: gr.Group}
	l := a.o.Journal.Ledger(gr)
	if l == nil || gr.Group == "" {
		return f, nil
	}
	v, err := a.o.Journal.View()
	if err != nil {
		return f, err
	}
	e, found, err := replay.VersionAt(v, definitions, "", gr.String(), a.o.Journal.Newest().Revision)
	if closeErr := v.Close(); closeErr != nil {
		return f, closeErr
	}
	if err != nil || !found { // a built-in kind; what cannot be read is found by the audit of definitions
		return f, nil
	}
	f.name = fmt.Sprintf("%s %s %s", a.server, l.Version, gjson.GetBytes(e.Object, "metadata.generation"))
	f.converted = gjson.GetBytes(e.Object, "spec.conversion.strategy").String() == "Webhook"
	return f, nil
}

// confirmForm is an error when the form is another one than it was when a pass began, which may be all that it found.
func (a *Auditor) confirmForm(ctx context.Context, gr schema.GroupResource, began form) error {
	a.server = ""
	f, err := a.form(ctx, gr)
	if err == nil && f.name != began.name {
		err = errForm
	}
	return err
}

// rollout is how long after the audit met a new API server another one may still be the old one, with watches of ours on it.
const rollout = time.Hour

// explains reports whether two objects that are not the same may well be one object in two forms: the same revision,
// recorded in another API version or before the form changed, and nothing differs that no change of form can touch.
func (f form) explains(recorded, listed *journal.Event) bool {
	if recorded.UID != listed.UID || recorded.Revision.RV != listed.Revision.RV {
		return false
	}
	was, wasRead := parse(recorded.Object).(map[string]any)
	is, isRead := parse(listed.Object).(map[string]any)
	if !wasRead || !isRead || was["kind"] != is["kind"] {
		return false
	}
	inVersion := was["apiVersion"] == is["apiVersion"]
	if inVersion && (f.since.IsZero() || !recorded.Observed.Before(f.since.Add(rollout))) {
		return false
	}
	version, _ := was["apiVersion"].(string)
	if gv, err := schema.ParseGroupVersion(version); err != nil || gv.Group != f.group {
		return false
	}
	return f.keeps(was, is, inVersion)
}

// keeps reports whether the two have in common what they must. No form changes metadata, but that another API version
// may have annotations for what it cannot say otherwise (those of HorizontalPodAutoscalers do), and that the server
// takes labels and annotations from a webhook, and nothing else of the metadata. Nor is anything added to or dropped
// from what ConfigMaps and Secrets hold. The rest of what a webhook converts can be anything; else a form
// adds defaults and drops fields, and changes no value: defaults are stored with the first write.
func (f form) keeps(was, is map[string]any, inVersion bool) bool {
	wasMeta, _ := was["metadata"].(map[string]any)
	isMeta, _ := is["metadata"].(map[string]any)
	free := func(key string) bool {
		return f.converted && key == "labels" || (f.converted || !inVersion) && key == "annotations"
	}
	for _, meta := range []map[string]any{wasMeta, isMeta} {
		for key := range meta {
			if !free(key) && !reflect.DeepEqual(wasMeta[key], isMeta[key]) {
				return false
			}
		}
	}
	if f.group == "" {
		for _, key := range []string{"data", "binaryData", "type"} {
			if !reflect.DeepEqual(was[key], is[key]) {
				return false
			}
		}
	}
	if f.converted {
		return true
	}
	delete(was, "apiVersion")
	return agree(was, is)
}

// agree reports whether two values of JSON have no place at which both have something, and not the same. Null is nothing.
func agree(a, b any) bool {
	if a == nil || b == nil {
		return true
	}
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		for key := range a {
			ok = ok && agree(a[key], b[key])
		}
		return ok
	case []any:
		b, ok := b.([]any)
		ok = ok && len(a) == len(b)
		for i := range a {
			ok = ok && agree(a[i], b[i])
		}
		return ok
	}
	return a == b
}

// same reports whether two objects are the same bytes or, the order of keys and spaces aside, the same JSON.
func same(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	x, y := parse(a), parse(b)
	return x != nil && reflect.DeepEqual(x, y)
}

// parse gives the value of JSON, nil when it is none or more than one. Numbers stay as they are written.
func parse(raw []byte) (v any) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return nil
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil
	}
	return v
}
