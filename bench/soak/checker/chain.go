package checker

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Chain follows an archive's manifests in a directory, as docs/formats.md describes them. It may be asked again and
// again: what was read once is not read again, for no file may ever change.
type Chain struct {
	Dir string // <prefix>/<cluster id>

	seq      int    // of the last manifest that was read
	hash     string // of its file
	segments []segment
	shots    map[string]shot // snapshots by ID
	garbage  map[string]bool
	known    map[string]bool // files whose hash was checked
	position place
}

type place struct {
	Revision uint64
	Epoch    uint32
	Time     time.Time
	Count    uint64
}

type segment struct {
	Name     string
	Size     int64
	SHA256   string
	From, To place
	Entries  int
}

// shot is the file of a snapshot.
type shot struct {
	Name     string
	Size     int64
	SHA256   string
	ID       string
	Position place
}

type manifest struct {
	Format, Cluster, Prev, ID, Journal string
	Seq                                int
	Change                             struct {
		Step      string
		Gone      []string
		Segments  []segment
		Snapshots []shot
		Freed     []string
		ChainFrom int
		Lost      []json.RawMessage
		Known     struct{ Position *place }
	}
}

// damaged is a Difference about a file.
func damaged(file, want, have string) error {
	return &Difference{Resource: "archive", Key: file, Who: "the archive", Want: want, Have: have}
}

// envelope takes {"sha256":"...","body":...}\n apart and checks it.
func envelope(file string, b []byte) ([]byte, error) {
	const head, middle, tail = `{"sha256":"`, `","body":`, "}\n"
	if len(b) < 84+len(tail) || string(b[:11]) != head || string(b[75:84]) != middle || !bytes.HasSuffix(b, []byte(tail)) {
		return nil, damaged(file, "an envelope", "something else")
	}
	body := b[84 : len(b)-len(tail)]
	if want, have := string(b[11:75]), hash(body); want != have {
		return nil, damaged(file, want, have)
	}
	return body, nil
}

func hash(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:]) }

// Follow reads the manifests that came since it was called last, and checks all files that they leave in the archive.
// It returns how many manifests were read. Nobody may shorten the chain meanwhile: a soak is too short for that.
func (c *Chain) Follow() (int, error) {
	if c.shots == nil {
		c.shots, c.garbage, c.known = map[string]shot{}, map[string]bool{}, map[string]bool{}
		b, err := os.ReadFile(filepath.Join(c.Dir, "format"))
		if errors.Is(err, fs.ErrNotExist) {
			c.shots = nil
			return 0, nil // not made yet
		}
		if err != nil {
			return 0, err
		}
		if _, err := envelope("format", b); err != nil {
			return 0, err
		}
		c.hash = hash(b)
	}
	n := 0
	for ; ; n++ {
		name := fmt.Sprintf("manifests/%020d.json", c.seq+1)
		b, err := os.ReadFile(filepath.Join(c.Dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return n, err
		}
		if err := c.step(name, b); err != nil {
			return n, err
		}
	}
	if n == 0 {
		return 0, nil
	}
	return n, c.files()
}

// step applies one manifest.
func (c *Chain) step(name string, b []byte) error {
	body, err := envelope(name, b)
	if err != nil {
		return err
	}
	var m manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return damaged(name, "JSON", "something else")
	}
	switch {
	case m.Format != "tidemark-manifest/1" || m.Seq != c.seq+1:
		return damaged(name, fmt.Sprintf("tidemark-manifest/1 number %d", c.seq+1), fmt.Sprintf("%s number %d", m.Format, m.Seq))
	case m.Prev != c.hash:
		return damaged(name, "prev "+c.hash, "prev "+m.Prev)
	case m.Cluster != filepath.Base(c.Dir):
		return damaged(name, "cluster "+filepath.Base(c.Dir), "cluster "+m.Cluster)
	case len(m.Change.Lost) > 0:
		return damaged(name, "nothing lost", "a stretch given up")
	}
	c.seq, c.hash = m.Seq, hash(b)
	return c.apply(name, &m)
}

// apply makes the change to the state, in the order of the table of docs/formats.md.
func (c *Chain) apply(name string, m *manifest) error {
	before := c.entries()
	for _, g := range m.Change.Gone {
		if i := slices.IndexFunc(c.segments, func(s segment) bool { return s.Name == g }); i >= 0 {
			c.garbage[g] = true
			c.segments = slices.Delete(c.segments, i, i+1)
		}
		if s, ok := c.shots[g]; ok {
			delete(c.shots, g)
			c.garbage[s.Name] = true
		}
	}
	c.segments = append(c.segments, m.Change.Segments...)
	slices.SortFunc(c.segments, func(a, b segment) int { return a.To.Time.Compare(b.To.Time) })
	for _, s := range m.Change.Snapshots {
		c.shots[s.ID] = s
	}
	for _, s := range c.shots { // a file that another snapshot shares stays
		delete(c.garbage, s.Name)
	}
	for _, f := range m.Change.Freed {
		if !c.garbage[f] {
			return damaged(name, "only garbage freed", f)
		}
		delete(c.garbage, f)
	}
	if p := m.Change.Known.Position; p != nil {
		if p.Count < c.position.Count || p.Time.Before(c.position.Time) {
			return damaged(name, fmt.Sprintf("a position from %d on", c.position.Count), fmt.Sprint(p.Count))
		}
		c.position = *p
	}
	if m.Change.Step == "merge" && c.entries() != before {
		return damaged(name, fmt.Sprintf("%d entries after the merge", before), fmt.Sprint(c.entries()))
	}
	for i := 1; i < len(c.segments); i++ {
		if a, b := &c.segments[i-1], &c.segments[i]; !a.To.Time.Equal(b.From.Time) || a.To.Count != b.From.Count {
			return damaged(name, "segments without a hole", fmt.Sprintf("%s ends at %d, %s begins at %d", a.Name, a.To.Count, b.Name, b.From.Count))
		}
	}
	return nil
}

func (c *Chain) entries() int {
	n := 0
	for _, s := range c.segments {
		n += s.Entries
	}
	return n
}

// files checks the size and the hash of every file that is part of the archive and was not checked before.
func (c *Chain) files() error {
	all := slices.Clone(c.segments)
	for _, s := range c.shots {
		all = append(all, segment{Name: s.Name, Size: s.Size, SHA256: s.SHA256})
	}
	for _, s := range all {
		if c.known[s.Name] {
			continue
		}
		if strings.Contains(s.Name, "..") {
			return damaged(s.Name, "a name below the archive", "another")
		}
		have, size, err := hashFile(filepath.Join(c.Dir, s.Name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return damaged(s.Name, "the file", "no file")
		case err != nil:
			return err
		case size != s.Size || have != s.SHA256:
			return damaged(s.Name, fmt.Sprintf("%d bytes, %s", s.Size, s.SHA256), fmt.Sprintf("%d bytes, %s", size, have))
		}
		c.known[s.Name] = true

	}
	return nil
}

func hashFile(path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// Checked tells how much was looked at: manifests, files, events in the archive.
func (c *Chain) Checked() (manifests, files int, events uint64) {
	return c.seq, len(c.known), c.position.Count
}
