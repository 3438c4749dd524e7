package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The first byte of a key says what it is. Names hold no zero byte (Kubernetes allows none,
// and checkName refuses them), so a zero ends each part.
const (
	prefixVersion   = 'v' // v namespace 0 resource 0 name 0 ^epoch ^revision -> version
	prefixHead      = 'h' // h resource 0 namespace 0 name -> newest revision, deleted?
	prefixTime      = 't' // t observed -> which event, or a tick of the main counter
	prefixWatermark = 'w' // w resource -> watermark
	prefixLedger    = 'l' // l resource -> ledger, without its watermark (JSON)
	prefixSeen      = 's' // s resource 0 namespace 0 name -> seen by the running comparison
	prefixMark      = 'm' // m name -> cut (JSON)
	prefixMeta      = 'M' // M name -> what the journal is: format, cluster id, key check, horizon
)

// revisionLen is the length of an encoded revision: epoch and resourceVersion, each inverted
// so that the newest version of an object sorts first.
const revisionLen = 4 + 8

var errBadKey = errors.New("malformed key")

// object names one object; it is what the keys of its versions share.
type object struct {
	Namespace string
	Resource  schema.GroupResource
	Name      string
}

// appendObject appends the key prefix of all versions of the object.
func appendObject(b []byte, o object) []byte {
	b = append(b, prefixVersion)
	b = append(b, o.Namespace...)
	b = append(b, 0)
	b = appendResource(b, o.Resource)
	b = append(b, 0)
	b = append(b, o.Name...)
	return append(b, 0)
}

// appendVersion appends the key of one version of the object.
func appendVersion(b []byte, o object, r Revision) []byte {
	return appendRevision(appendObject(b, o), r)
}

func appendRevision(b []byte, r Revision) []byte {
	b = binary.BigEndian.AppendUint32(b, ^r.Epoch)
	return binary.BigEndian.AppendUint64(b, ^r.RV)
}

// appendResource appends the usual text form of a resource: "pods", "deployments.apps".
func appendResource(b []byte, gr schema.GroupResource) []byte {
	b = append(b, gr.Resource...)
	if gr.Group != "" {
		b = append(b, '.')
		b = append(b, gr.Group...)
	}
	return b
}

func appendHead(b []byte, prefix byte, o object) []byte {
	b = append(b, prefix)
	b = appendResource(b, o.Resource)
	b = append(b, 0)
	b = append(b, o.Namespace...)
	b = append(b, 0)
	return append(b, o.Name...)
}

// timeKey is the key of the moment in the time index. Moments that nanoseconds since 1970
// cannot tell, before 1970 or after 2261, are put at the ends.
func timeKey(t time.Time) []byte {
	n := t.UnixNano()
	switch {
	case t.Unix() < 0:
		n = 0
	case t.Year() > 2261:
		n = math.MaxInt64
	}
	return binary.BigEndian.AppendUint64([]byte{prefixTime}, uint64(n))
}

func decodeTimeKey(k []byte) (time.Time, error) {
	if len(k) != 9 || k[0] != prefixTime {
		return time.Time{}, errBadKey
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(k[1:]))).UTC(), nil
}

func nameKey(prefix byte, name string) []byte { return append([]byte{prefix}, name...) }

func resourceKey(prefix byte, gr schema.GroupResource) []byte {
	return appendResource([]byte{prefix}, gr)
}

// decodeVersion splits the key of a version. prefixLen is the length of the part that all
// versions of the object share.
func decodeVersion(k []byte) (o object, r Revision, prefixLen int, err error) {
	prefixLen = len(k) - revisionLen
	if prefixLen < 4 || k[0] != prefixVersion || k[prefixLen-1] != 0 {
		return o, r, 0, errBadKey
	}
	parts := bytes.Split(k[1:prefixLen-1], []byte{0})
	if len(parts) != 3 || len(parts[1]) == 0 || len(parts[2]) == 0 {
		return o, r, 0, errBadKey
	}
	o = object{Namespace: string(parts[0]), Resource: schema.ParseGroupResource(string(parts[1])), Name: string(parts[2])}
	return o, decodeRevision(k[prefixLen:]), prefixLen, nil
}

func decodeRevision(b []byte) Revision {
	return Revision{Epoch: ^binary.BigEndian.Uint32(b), RV: ^binary.BigEndian.Uint64(b[4:])}
}

// decodeHead splits a key made by appendHead.
func decodeHead(k []byte) (object, error) {
	if len(k) == 0 {
		return object{}, errBadKey
	}
	parts := strings.Split(string(k[1:]), "\x00")
	if len(parts) != 3 || parts[0] == "" || parts[2] == "" {
		return object{}, errBadKey
	}
	return object{Namespace: parts[1], Resource: schema.ParseGroupResource(parts[0]), Name: parts[2]}, nil
}

// keyAfter is the smallest key that sorts after all keys with the prefix.
func keyAfter(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}
