package api

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/replay"
)

// FuzzRecordReader: whatever arrives, the reader neither panics nor believes in a size before
// the bytes are there, and what it accepts it writes back the same.
func FuzzRecordReader(f *testing.F) {
	var good bytes.Buffer
	w := newRecordWriter(&good)
	c := replay.Change{Event: journal.Event{Op: journal.Added, Name: "a", Object: []byte("{}")}, Before: []byte("{ }")}
	if err := errors.Join(w.write(&c), w.end(nil)); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add([]byte(`{"op":"ADDED","name":"a","size":9223372036854775807}` + "\n{}"))
	f.Add([]byte(`{"op":"ADDED","name":"a","size":-1}` + "\n"))
	f.Add([]byte(`{"error":"x","kind":"range","at":"now"}` + "\n"))
	f.Add([]byte("{\"end\":true}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newRecordReader(bytes.NewReader(b))
		for {
			c, err := r.next()
			if err != nil {
				if errors.Is(err, io.EOF) && !bytes.Contains(b, []byte(`end`)) {
					t.Error("the stream ended without an end")
				}
				return
			}
			if len(c.Object)+len(c.Before) > len(b) {
				t.Fatal("objects longer than the input")
			}
			if c.Op == 0 {
				continue // not a record that the writer could have written
			}
			var out bytes.Buffer
			w := newRecordWriter(&out)
			if err := errors.Join(w.write(&c), w.end(nil)); err != nil {
				t.Fatal(err)
			}
			again, err := newRecordReader(&out).next()
			if err != nil || !bytes.Equal(again.Object, c.Object) || !bytes.Equal(again.Before, c.Before) || again.Name != c.Name {
				t.Fatalf("written back: %v", err)
			}
		}
	})
}
