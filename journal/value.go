package journal

import (
	"encoding/binary"
	"errors"
	"time"
)

var errBadValue = errors.New("malformed value")

// Layout of a version: layout byte, op, flags, observed time, uid, body. A sealed body is
// encrypted (see cipher).
const (
	versionPlain  = 1
	versionSealed = 2
)

// versionMeta is what a version says besides its body.
type versionMeta struct {
	op       Op
	flags    Flags
	observed time.Time
	uid      string
	sealed   bool
}

func appendVersionMeta(b []byte, e *Event, sealed bool) []byte {
	layout := byte(versionPlain)
	if sealed {
		layout = versionSealed
	}
	b = append(b, layout, byte(e.Op), byte(e.Flags))
	b = binary.BigEndian.AppendUint64(b, uint64(e.Observed.UnixNano()))
	b = binary.AppendUvarint(b, uint64(len(e.UID)))
	return append(b, e.UID...)
}

func decodeVersionMeta(v []byte) (m versionMeta, body []byte, err error) {
	if len(v) < 11 || (v[0] != versionPlain && v[0] != versionSealed) || Op(v[1]) < Added || Op(v[1]) > Deleted {
		return m, nil, errBadValue
	}
	m = versionMeta{op: Op(v[1]), flags: Flags(v[2]), sealed: v[0] == versionSealed}
	m.observed = time.Unix(0, int64(binary.BigEndian.Uint64(v[3:]))).UTC()
	n, w := binary.Uvarint(v[11:])
	if w <= 0 || n > uint64(len(v)-11-w) {
		return m, nil, errBadValue
	}
	v = v[11+w:]
	m.uid = string(v[:n])
	return m, v[n:], nil
}

// indexEntry is a value of the time index: one event, or (op 0) a tick, which says that the
// main counter was seen at Max without an event of that revision.
type indexEntry struct {
	op       Op
	flags    Flags
	revision Revision
	// max is the highest revision of the main counter seen up to and including this entry.
	// It only grows along the index, so it tells which revision a moment stands for.
	max Revision
	// count numbers the events since the journal began, this one included; ticks repeat it.
	count  uint64
	object object
}

func appendIndexEntry(b []byte, e *indexEntry) []byte {
	b = append(b, byte(e.op), byte(e.flags))
	b = binary.AppendUvarint(b, uint64(e.max.Epoch))
	b = binary.AppendUvarint(b, e.max.RV)
	b = binary.AppendUvarint(b, e.count)
	if e.op == 0 {
		return b
	}
	b = binary.AppendUvarint(b, uint64(e.revision.Epoch))
	b = binary.AppendUvarint(b, e.revision.RV)
	b = appendResource(b, e.object.Resource)
	b = append(b, 0)
	b = append(b, e.object.Namespace...)
	b = append(b, 0)
	return append(b, e.object.Name...)
}

func decodeIndexEntry(v []byte) (indexEntry, error) {
	e, v, err := decodeIndexHead(v)
	if err != nil || e.op == 0 {
		return e, err
	}
	if e.revision, v, err = takeRevision(v); err != nil {
		return e, err
	}
	e.object, err = decodeHead(append([]byte{prefixHead}, v...))
	return e, err
}

// decodeIndexHead decodes what every entry has, and returns what follows it.
func decodeIndexHead(v []byte) (e indexEntry, rest []byte, err error) {
	if len(v) < 2 || Op(v[0]) > Deleted {
		return e, nil, errBadValue
	}
	e.op, e.flags = Op(v[0]), Flags(v[1])
	if e.max, v, err = takeRevision(v[2:]); err != nil {
		return e, nil, err
	}
	n := 0
	if e.count, n = binary.Uvarint(v); n <= 0 {
		return e, nil, errBadValue
	}
	return e, v[n:], nil
}

func appendRevisionValue(b []byte, r Revision) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(r.Epoch)), r.RV)
}

func takeRevision(v []byte) (Revision, []byte, error) {
	epoch, n := binary.Uvarint(v)
	if n <= 0 || epoch > 1<<32-1 {
		return Revision{}, nil, errBadValue
	}
	rv, m := binary.Uvarint(v[n:])
	if m <= 0 {
		return Revision{}, nil, errBadValue
	}
	return Revision{Epoch: uint32(epoch), RV: rv}, v[n+m:], nil
}

// head is the newest version of an object.
type head struct {
	revision Revision
	deleted  bool
}

func appendHeadValue(b []byte, h head) []byte {
	deleted := byte(0)
	if h.deleted {
		deleted = 1
	}
	return appendRevisionValue(append(b, deleted), h.revision)
}

func decodeHeadValue(v []byte) (h head, err error) {
	if len(v) < 1 || v[0] > 1 {
		return h, errBadValue
	}
	h.deleted = v[0] == 1
	h.revision, _, err = takeRevision(v[1:])
	return h, err
}

func appendWatermark(b []byte, c Cut) []byte {
	return binary.BigEndian.AppendUint64(appendRevisionValue(b, c.Revision), uint64(c.Time.UnixNano()))
}

func decodeWatermark(v []byte) (c Cut, err error) {
	if c.Revision, v, err = takeRevision(v); err != nil {
		return c, err
	}
	if len(v) != 8 {
		return c, errBadValue
	}
	c.Time = time.Unix(0, int64(binary.BigEndian.Uint64(v))).UTC()
	return c, nil
}
