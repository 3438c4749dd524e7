package journal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	gocmp "github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"pgregory.net/rapid"
)

// names that are prefixes of each other, or hold the bytes that sort next to the separator.
var oddNames = rapid.SampledFrom([]string{"a", "a-b", "a.b", "aa", "ab", "a\x01", "a\x01b", "a:b", "system:a", "\xff", "é", "0"})

func drawObject(t *rapid.T) object {
	return object{
		Namespace: rapid.OneOf(rapid.Just(""), oddNames).Draw(t, "namespace"),
		Resource: schema.GroupResource{
			Resource: rapid.SampledFrom([]string{"pods", "pod", "podsx", "a"}).Draw(t, "resource"),
			Group:    rapid.SampledFrom([]string{"", "apps", "example.com", "x.example.com"}).Draw(t, "group"),
		},
		Name: oddNames.Draw(t, "name"),
	}
}

func drawRevision(t *rapid.T) Revision {
	return Revision{Epoch: rapid.Uint32().Draw(t, "epoch"), RV: rapid.Uint64().Draw(t, "rv")}
}

func TestKeysSortAsObjectsDoAndNewestFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawObject(t), drawObject(t)
		ra, rb := drawRevision(t), drawRevision(t)
		if rapid.Bool().Draw(t, "same object") {
			b = a
		}
		want := cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Resource.String(), b.Resource.String()),
			strings.Compare(a.Name, b.Name), rb.Compare(ra))
		ka, kb := appendVersion(nil, a, ra), appendVersion(nil, b, rb)
		if got := bytes.Compare(ka, kb); got != want {
			t.Fatalf("%q and %q compare as %d, want %d", ka, kb, got, want)
		}
		o, r, n, err := decodeVersion(ka)
		if err != nil || o != a || r != ra || !bytes.Equal(ka[:n], appendObject(nil, a)) {
			t.Fatalf("decodeVersion: %v %v %d %v", o, r, n, err)
		}
		if o, err := decodeHead(appendHead(nil, prefixHead, a)); err != nil || o != a {
			t.Fatalf("decodeHead: %v %v", o, err)
		}
		if prefix := appendObject(nil, a); a != b && bytes.Compare(kb, prefix) >= 0 && bytes.Compare(kb, keyAfter(prefix)) < 0 {
			t.Fatalf("the versions of %v lie among those of %v", b, a)
		}
	})
}

func TestValuesComeBackAsTheyWere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		op := Op(rapid.IntRange(1, 3).Draw(t, "op"))
		e := &Event{
			Op: op, Flags: Flags(rapid.Byte().Draw(t, "flags")), UID: rapid.String().Draw(t, "uid"),
			Observed: time.Unix(0, rapid.Int64().Draw(t, "observed")).UTC(),
		}
		body := rapid.SliceOf(rapid.Byte()).Draw(t, "body")
		sealed := rapid.Bool().Draw(t, "sealed")
		m, got, err := decodeVersionMeta(append(appendVersionMeta(nil, e, sealed), body...))
		if err != nil || !bytes.Equal(got, body) || m != (versionMeta{op: op, flags: e.Flags, observed: e.Observed, uid: e.UID, sealed: sealed}) {
			t.Fatalf("version: %+v %q %v", m, got, err)
		}
		i := indexEntry{max: drawRevision(t), count: rapid.Uint64().Draw(t, "count")}
		if rapid.Bool().Draw(t, "event") {
			i.op, i.flags, i.revision, i.object = op, e.Flags, drawRevision(t), drawObject(t)
		}
		if got, err := decodeIndexEntry(appendIndexEntry(nil, &i)); err != nil || got != i {
			t.Fatalf("index entry: %+v %v, want %+v", got, err, i)
		}
		h := head{revision: drawRevision(t), deleted: sealed}
		if got, err := decodeHeadValue(appendHeadValue(nil, h)); err != nil || got != h {
			t.Fatalf("head: %+v %v", got, err)
		}
		c := Cut{Revision: drawRevision(t), Time: e.Observed}
		if got, err := decodeWatermark(appendWatermark(nil, c)); err != nil || got != c {
			t.Fatalf("watermark: %+v %v", got, err)
		}
		if got, err := ParseRevision(c.Revision.String()); err != nil || got != c.Revision {
			t.Fatalf("revision: %v %v", got, err)
		}
	})
}

func TestMomentsSortInTheTimeIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Int64Range(0, math.MaxInt64).Draw(t, "a"), rapid.Int64Range(0, math.MaxInt64).Draw(t, "b")
		if time.Unix(0, max(a, b)).UTC().Year() > 2261 {
			t.Skip()
		}
		ka, kb := timeKey(time.Unix(0, a)), timeKey(time.Unix(0, b))
		if bytes.Compare(ka, kb) != cmp.Compare(a, b) {
			t.Fatalf("%d and %d", a, b)
		}
		if got, err := decodeTimeKey(ka); err != nil || got.UnixNano() != a {
			t.Fatalf("%v %v, want %d", got, err, a)
		}
	})
}

func TestSealedBodiesCannotBeSwapped(t *testing.T) {
	j := openForTest(t)
	sec := schema.GroupResource{Resource: "secrets"}
	a, b := object{"ns", sec, "a"}, object{"ns", sec, "b"}
	ka, kb := appendVersion(nil, a, Revision{1, 11}), appendVersion(nil, b, Revision{1, 12})
	for _, e := range []Event{{Resource: sec, Namespace: "ns", Name: "a", Op: Added, Revision: Revision{RV: 11}, Object: []byte("secret a")}, {Resource: sec, Namespace: "ns", Name: "b", Op: Added, Revision: Revision{RV: 12}, Object: []byte("secret b")}} {
		if err := j.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e, err := j.version(a, Revision{1, 11}); err != nil || string(e.Object) != "secret a" {
		t.Fatalf("before: %q %v", e.Object, err)
	}
	va, err := j.get(ka)
	if err != nil {
		t.Fatal(err)
	}
	vb, err := j.get(kb)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.db.Set(ka, vb, nil), j.db.Set(kb, va, nil)); err != nil {
		t.Fatal(err)
	}
	for o, r := range map[object]Revision{a: {1, 11}, b: {1, 12}} {
		if e, err := j.version(o, r); err == nil || len(e.Object) > 0 {
			t.Errorf("%v: a swapped body was opened: %q", o, e.Object)
		} else if strings.Contains(err.Error(), "secret") && !strings.Contains(err.Error(), "secrets ns/") {
			t.Errorf("the error quotes the body: %v", err)
		}
	}
}

func openForTest(t *testing.T) *Journal {
	t.Helper()
	j, err := Open("/data", Options{FS: vfs.NewMem(), Key: make([]byte, keyLen), Free: func() (uint64, error) { return 1 << 40, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := j.Compare(t.Context(), Recording{ResourceInfo: ResourceInfo{Version: "v1", Resource: "secrets", Kind: "Secret"}}, 10, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	return j
}

func FuzzDecodeKeys(f *testing.F) {
	o := object{"ns", schema.GroupResource{Group: "apps", Resource: "deployments"}, "web"}
	f.Add(appendVersion(nil, o, Revision{1, 2}))
	f.Add(appendHead(nil, prefixHead, o))
	f.Add(timeKey(time.Unix(1, 0)))
	f.Fuzz(func(t *testing.T, k []byte) {
		if o, r, _, err := decodeVersion(k); err == nil {
			if again := appendVersion(nil, o, r); !bytes.Equal(again, k) && o.Resource == schema.ParseGroupResource(o.Resource.String()) && !strings.HasSuffix(o.Resource.String(), ".") && !bytes.Contains(k, []byte(".\x00")) {
				t.Errorf("%q decodes to %v %v, which is %q", k, o, r, again)
			}
		}
		_, _ = decodeHead(k)
		_, _ = decodeTimeKey(k)
		if after := keyAfter(k); after != nil && bytes.Compare(after, k) <= 0 {
			t.Errorf("%q is not after %q", after, k)
		}
	})
}

func FuzzDecodeValues(f *testing.F) {
	e := &Event{Op: Added, UID: "u", Observed: time.Unix(1, 0)}
	f.Add(append(appendVersionMeta(nil, e, true), "body"...))
	f.Add(appendIndexEntry(nil, &indexEntry{op: Added, object: object{"ns", schema.GroupResource{Resource: "pods"}, "x"}}))
	f.Add(appendHeadValue(nil, head{revision: Revision{1, 2}}))
	f.Add(appendWatermark(nil, Cut{Revision: Revision{1, 2}, Time: time.Unix(1, 0)}))
	f.Add([]byte{1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, v []byte) {
		if m, body, err := decodeVersionMeta(v); err == nil && len(m.uid)+len(body) > len(v) {
			t.Errorf("%x: longer than what it was made of", v)
		}
		if e, err := decodeIndexEntry(v); err == nil {
			again, err := decodeIndexEntry(appendIndexEntry(nil, &e))
			if err != nil || again != e && !strings.Contains(e.object.Resource.String(), ".") && !bytes.Contains(v, []byte(".\x00")) {
				t.Errorf("%x: %s %v", v, gocmp.Diff(e.count, again.count), err)
			}
		}
		if h, err := decodeHeadValue(v); err == nil {
			if again, err := decodeHeadValue(appendHeadValue(nil, h)); err != nil || again != h {
				t.Errorf("%x: %+v, again %+v %v", v, h, again, err)
			}
		}
		if c, err := decodeWatermark(v); err == nil {
			if again, err := decodeWatermark(appendWatermark(nil, c)); err != nil || again != c {
				t.Errorf("%x: %+v, again %+v %v", v, c, again, err)
			}
		}
	})
}

func FuzzOpenSealed(f *testing.F) {
	c, err := newBodyCipher(make([]byte, keyLen))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("key"), c.seal(nil, []byte("key"), []byte("body")), true)
	f.Add([]byte("key"), []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1, 0, 0}, false)
	f.Fuzz(func(t *testing.T, key, sealed []byte, as bool) {
		if as {
			_, _ = c.open(key, sealed)
			return
		}
		// Below the seal: what the key's owner could have packed, a bomb of zeros included.
		if body, err := c.open(key, c.aead.Seal(nil, nil, sealed, key)); err == nil && len(body) > maxBody {
			t.Errorf("%d bytes from %d", len(body), len(sealed))
		}
	})
}

func FuzzParseRevision(f *testing.F) {
	for _, s := range []string{"1/2", "12", "", "/", "1/", "-1/2", "4294967296/1", "1/18446744073709551616", "0x1/2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRevision(s)
		if err != nil {
			return
		}
		if again, err := ParseRevision(r.String()); err != nil || again != r {
			t.Errorf("%q is %v, which is read as %v, %v", s, r, again, err)
		}
	})
}

// Open checks every table; the compactions that it starts must not look like damage.
func TestATableThatWasCompactedAwayIsNotDamage(t *testing.T) {
	j := openForTest(t)
	for i := range 3 {
		e := Event{Resource: schema.GroupResource{Resource: "secrets"}, Name: "a", Op: Modified, Revision: Revision{RV: uint64(11 + i)}, Object: []byte("{}")}
		if err := errors.Join(j.Append(t.Context(), e), j.Flush(t.Context()), j.db.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	before, err := j.db.SSTables()
	if err != nil {
		t.Fatal(err)
	}
	if err := j.db.Compact(t.Context(), []byte{0}, []byte{0xff}, false); err != nil {
		t.Fatal(err)
	}
	gone := func() bool {
		for _, level := range before {
			for _, table := range level {
				if _, err := j.opts.FS.Stat(fmt.Sprintf("/data/journal/%06d.sst", uint64(table.BackingSSTNum))); err != nil {
					return true
				}
			}
		}
		return false
	}
	for end := time.Now().Add(30 * time.Second); !gone(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no table was compacted away")
		}
	}
	if err := verifyListed(j.db, j.opts.FS, "/data/journal", before); err != nil {
		t.Fatal(err)
	}
}
