package journal

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// View walks the versions of objects: by namespace, resource and name, and within an object
// from the newest version to the oldest. It sees the journal as it was when it was made, and
// must be closed. A View is for one goroutine.
type View struct {
	it     *pebble.Iterator
	cipher *bodyCipher
	steps  int // to take before seeking; see Tables
	err    error

	object object
	prefix []byte // what the keys of the current object's versions share
	seek   []byte
}

// View opens a view of the whole journal.
func (j *Journal) View() (*View, error) { return j.tables.View() }

// Close frees the view and returns the first error it met.
func (v *View) Close() error { return errors.Join(v.err, v.it.Close()) }

// Seek goes to the newest version of the first object at or after the one named. Empty parts
// sort first. It reports whether there is one.
func (v *View) Seek(namespace string, gr schema.GroupResource, name string) bool {
	v.seek = append(append(v.seek[:0], prefixVersion), namespace...)
	v.seek = append(v.seek, 0)
	if gr.Resource != "" {
		v.seek = appendResource(v.seek, gr)
		v.seek = append(v.seek, 0)
		v.seek = append(v.seek, name...)
	}
	return v.take(v.it.SeekGE(v.seek))
}

// First goes to the newest version of the first object.
func (v *View) First() bool { return v.Seek("", schema.GroupResource{}, "") }

// NextObject goes to the newest version of the next object.
func (v *View) NextObject() bool {
	if v.steps > 0 && v.it.Valid() && !v.within() { // looking for an older version has led past the last one
		return v.take(true)
	}
	for range v.steps {
		if !v.it.Next() {
			return v.take(false)
		}
		if !v.within() {
			return v.take(true)
		}
	}
	v.seek = append(v.seek[:0], v.prefix...)
	v.seek[len(v.seek)-1] = 1 // all versions of the object sort before name 1
	return v.take(v.it.SeekGE(v.seek))
}

// NextResource goes past all objects of the current object's resource and namespace.
func (v *View) NextResource() bool {
	v.seek = append(append(v.seek[:0], prefixVersion), v.object.Namespace...)
	v.seek = append(v.seek, 0)
	v.seek = appendResource(v.seek, v.object.Resource)
	return v.take(v.it.SeekGE(append(v.seek, 1)))
}

// NextNamespace goes past all objects of the current object's namespace.
func (v *View) NextNamespace() bool {
	v.seek = append(append(v.seek[:0], prefixVersion), v.object.Namespace...)
	return v.take(v.it.SeekGE(append(v.seek, 1)))
}

// Before goes, within the current object, to its newest version at or before r. It reports
// whether there is one; if not, only the Next methods for other objects may follow.
func (v *View) Before(r Revision) bool {
	if v.revision().Compare(r) <= 0 {
		return true
	}
	for range v.steps {
		if !v.same(v.it.Next()) {
			return false
		}
		if v.revision().Compare(r) <= 0 {
			return true
		}
	}
	v.seek = appendRevision(append(v.seek[:0], v.prefix...), r)
	return v.same(v.it.SeekGE(v.seek))
}

// NextVersion goes to the next older version of the current object, if there is one.
func (v *View) NextVersion() bool { return v.same(v.it.Next()) }

func (v *View) same(ok bool) bool {
	if !ok {
		v.err = errors.Join(v.err, v.it.Error())
		return false
	}
	return v.within()
}

// within reports whether the iterator is at a version of the current object.
func (v *View) within() bool {
	return bytes.HasPrefix(v.it.Key(), v.prefix) && len(v.it.Key()) == len(v.prefix)+revisionLen
}

func (v *View) take(ok bool) bool {
	if !ok {
		v.err = errors.Join(v.err, v.it.Error())
		return false
	}
	o, _, n, err := decodeVersion(v.it.Key())
	if err != nil {
		v.err = errors.Join(v.err, fmt.Errorf("journal key %q: %w", v.it.Key(), err))
		return false
	}
	v.object, v.prefix = o, append(v.prefix[:0], v.it.Key()[:n]...)
	return true
}

// Object names the current object.
func (v *View) Object() (namespace string, gr schema.GroupResource, name string) {
	return v.object.Namespace, v.object.Resource, v.object.Name
}

func (v *View) revision() Revision { return decodeRevision(v.it.Key()[len(v.prefix):]) }

// Meta is the current version without its body.
func (v *View) Meta() (Event, error) {
	value, err := v.it.ValueAndErr()
	if err != nil {
		return Event{}, err
	}
	m, _, err := decodeVersionMeta(value)
	if err != nil {
		return Event{}, fmt.Errorf("journal value of %q: %w", v.it.Key(), err)
	}
	return m.event(v.object, v.revision()), nil
}

// Event is the current version. Its Object is a copy.
func (v *View) Event() (Event, error) {
	value, err := v.it.ValueAndErr()
	if err != nil {
		return Event{}, err
	}
	return v.cipher.decode(v.it.Key(), v.object, v.revision(), value)
}

func (m versionMeta) event(o object, r Revision) Event {
	return Event{
		Resource: o.Resource, Namespace: o.Namespace, Name: o.Name, UID: m.uid,
		Op: m.op, Revision: r, Observed: m.observed, Flags: m.flags,
	}
}

func (j *Journal) decodeEvent(key []byte, o object, r Revision, value []byte) (Event, error) {
	return j.cipher.decode(key, o, r, value)
}

// decode reads a version. A nil cipher reads those of an archive, where no body is sealed.
func (c *bodyCipher) decode(key []byte, o object, r Revision, value []byte) (Event, error) {
	m, body, err := decodeVersionMeta(value)
	if err != nil {
		return Event{}, fmt.Errorf("journal value of %q: %w", key, err)
	}
	e := m.event(o, r)
	if !m.sealed {
		e.Object = bytes.Clone(body)
		return e, nil
	}
	if c == nil {
		return Event{}, fmt.Errorf("%s at %s: %w", e.ID(), r, errBadValue)
	}
	if e.Object, err = c.open(key, body); err != nil {
		return Event{}, fmt.Errorf("%s at %s: %w", e.ID(), r, err)
	}
	return e, nil
}
