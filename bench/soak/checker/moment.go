package checker

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// Moment is the cluster at one exact revision, as the API server told it.
type Moment struct {
	RV        uint64
	Taken     time.Time
	Resources []Resource
	sums      map[string]map[string]sum
	file      string // the objects themselves
}

// ErrTooOld is returned when the server no longer knows the revision.
var ErrTooOld = errGone

// TakeMoment lists everything at the revision rv, and keeps the objects in a file of dir.
func (m *Model) TakeMoment(ctx context.Context, rv uint64, dir string) (*Moment, error) {
	f, err := os.CreateTemp(dir, fmt.Sprintf("moment-%d-*.jsonl.gz", rv)) // a revision may be taken twice, and forgotten once
	if err != nil {
		return nil, err
	}
	mo := &Moment{RV: rv, Taken: time.Now(), sums: map[string]map[string]sum{}, file: f.Name()}
	defer f.Close()
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	for _, r := range m.watched() {
		items, err := m.client.exactly(ctx, &r, rv)
		if errors.Is(err, errMissing) {
			continue // a definition that is gone by now: nobody can tell any more
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("list %s at %d: %w", r.Name, rv, err), os.Remove(mo.file))
		}
		sums := map[string]sum{}
		for _, it := range items {
			sums[it.key] = sha256.Sum256(it.raw)
			line, err := json.Marshal(stored{r.Name, it.key, it.raw})
			if err != nil {
				return nil, err
			}
			if _, err := z.Write(append(line, '\n')); err != nil {
				return nil, err
			}
		}
		mo.Resources, mo.sums[r.Name] = append(mo.Resources, r), sums
	}
	return mo, errors.Join(z.Close(), f.Sync())
}

// exactly lists a resource at an exact revision. A definition that has just come, or an API server that has, may ask
// for some patience.
func (c *Client) exactly(ctx context.Context, r *Resource, rv uint64) ([]item, error) {
	for try := 1; ; try++ {
		items, _, err := c.list(ctx, r, r.all(), fmt.Sprintf("?resourceVersion=%d&resourceVersionMatch=Exact", rv))
		if !errors.Is(err, errBusy) || try == 10 {
			return items, err
		}
		pause(ctx, 300*time.Millisecond)
	}
}

// stored is one object in a Moment's file. Bytes are kept as they are: as RawMessage they would be compacted.
type stored struct {
	Resource string
	Key      string
	Raw      []byte
}

// objects reads the objects again, those of a namespace only.
func (mo *Moment) objects(namespace string) (map[string]map[string][]byte, error) {
	f, err := os.Open(mo.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	out := map[string]map[string][]byte{}
	for d := json.NewDecoder(z); d.More(); {
		var s stored
		if err := d.Decode(&s); err != nil {
			return nil, err
		}
		if ns, _ := split(s.Key); ns != namespace {
			continue
		}
		if out[s.Resource] == nil {
			out[s.Resource] = map[string][]byte{}
		}
		out[s.Resource][s.Key] = s.Raw
	}
	return out, nil
}

// Objects counts them.
func (mo *Moment) Objects() int {
	n := 0
	for _, s := range mo.sums {
		n += len(s)
	}
	return n
}

// Forget removes the objects; the hashes stay.
func (mo *Moment) Forget() { _ = os.Remove(mo.file) }

// CompareModel sets the Moment against the Model: two ways of the same reader. It returns how many objects were compared.
func (m *Model) CompareModel(mo *Moment) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, name := range slices.Sorted(maps.Keys(mo.sums)) {
		s := m.all[name]
		if s == nil || !s.knows(mo.RV) {
			continue
		}
		if err := compare(mo, name, "the checker's own watch", s.at(mo.RV)); err != nil {
			return n, err
		}
		n += len(mo.sums[name])
	}
	return n, nil
}

// Difference is what the checker looks for.
type Difference struct {
	RV            uint64
	Resource, Key string
	Who           string // whose answer differs from the API server's
	Want, Have    string // hashes, or "not there"
	File          string // with the objects as the API server had them
	Saved         string // with the answer, when it was saved
}

func (d *Difference) Error() string {
	text := fmt.Sprintf("DIFFERENCE at rv:%d in %s %s: the API server had %s, %s says %s", d.RV, d.Resource, d.Key, d.Want, d.Who, d.Have)
	if d.Resource == "archive" || d.Resource == "ledger" || d.Resource == "answer" {
		text = fmt.Sprintf("DIFFERENCE in the %s, %s: expected %s, found %s by %s", d.Resource, d.Key, d.Want, d.Have, d.Who)
	}
	if d.File != "" {
		text += "; objects: " + d.File
	}
	if d.Saved != "" {
		text += "; answer: " + d.Saved
	}
	return text
}

// compare finds the first difference between the Moment and what somebody says of a resource.
func compare(mo *Moment, resource, who string, have map[string]sum) error {
	want := mo.sums[resource]
	keys := slices.Sorted(maps.Keys(want))
	for key := range have {
		if _, ok := want[key]; !ok {
			keys = append(keys, key)
		}
	}
	for _, key := range keys {
		w, inWant := want[key]
		h, inHave := have[key]
		if inWant == inHave && w == h {
			continue
		}
		d := &Difference{RV: mo.RV, Resource: resource, Key: key, Who: who, Want: "not there", Have: "not there", File: mo.file}
		if inWant {
			d.Want = w.String()
		}
		if inHave {
			d.Have = h.String()
		}
		return d
	}
	return nil
}

// split takes a key apart.
func split(key string) (namespace, name string) {
	namespace, name, _ = strings.Cut(key, "/")
	return namespace, name
}
