package repository

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// attributesName is the file in the root of a backup that holds what Kopia does not keep: one JSON object on a line for each file
// that has any of it, and for each directory, whose time Kopia mistakes for that of the newest file in it.
const attributesName = ".tidemark-attributes"

// attribute is what one file has besides.
type attribute struct {
	Path string `json:"path"`
	// Xattrs are extended attributes, ACLs and capabilities among them.
	Xattrs map[string][]byte `json:"xattrs,omitempty"`
	// Link is another path of the same file.
	Link string `json:"link,omitempty"`
	// Sparse files have holes.
	Sparse bool `json:"sparse,omitempty"`
	// Modified is the time of directories and special files, and of those whose time Kopia cannot hold: before 1678 or after 2262.
	Modified time.Time `json:"modified,omitzero"`
	// Special is "fifo", "char" or "block"; the rest is about those.
	Special string `json:"special,omitempty"`
	Mode    uint32 `json:"mode,omitempty"`
	UID     uint32 `json:"uid,omitempty"`
	GID     uint32 `json:"gid,omitempty"`
	Rdev    uint64 `json:"rdev,omitempty"`
}

// attributes collects them, in the order in which a tree is read. encode gives them in that of their paths, so that they are the same file from one backup
// to the next. With SELinux, each file has some, and there may be millions: so they are sorted and compressed, some megabytes at a time.
type attributes struct {
	mu       sync.Mutex       // guards what follows
	lines    []line           // the newest
	size     int              // of those, in bytes
	runs     [][]byte         // the others: sorted and compressed
	links    map[inode]string // of a file with several paths, the first in their order: the others are links to it, whichever was read first
	noXattrs bool             // the file system has none
	sockets  map[string]bool  // the paths of those that are left out
	reserved atomic.Bool      // the tree has a file whose name is attributesName, which is left out
}

// inode is a file, whatever its paths are: its device, and its number there. Zero: it has one path.
type inode [2]uint64

// line is what one file has besides, as JSON that ends in a newline, but for its link: which of its paths is the first is known at the end.
type line struct {
	path string
	json []byte
	file inode
}

// runSize is how much is collected before it is compressed.
const runSize = 8 << 20

// keep adds what one file has; mu is held. Of a file with several paths, it is to be called for each of them, with the file.
func (a *attributes) keep(it attribute, file inode) error {
	if file != (inode{}) {
		if a.links == nil {
			a.links = map[inode]string{}
		}
		if first, ok := a.links[file]; !ok || it.Path < first {
			a.links[file] = it.Path
		}
	}
	p := it.Path
	it.Path, it.Xattrs = escapeNames(it.Path), eachKey(it.Xattrs, escapeName)
	b, err := json.Marshal(it)
	if err != nil {
		return err
	}
	a.lines = append(a.lines, line{p, append(b, '\n'), file})
	if a.size += len(p) + len(b) + int(unsafe.Sizeof(line{})); a.size < runSize {
		return nil
	}
	return a.compress()
}

// compress makes a run of the newest lines.
func (a *attributes) compress() error {
	slices.SortStableFunc(a.lines, func(l, m line) int { return strings.Compare(l.path, m.path) })
	var b bytes.Buffer
	z, err := flate.NewWriter(&b, flate.BestSpeed)
	if err != nil {
		return err
	}
	for _, l := range a.lines {
		head := binary.AppendUvarint(binary.AppendUvarint(nil, l.file[0]), l.file[1])
		if _, err := z.Write(append(binary.AppendUvarint(head, uint64(len(l.path))), l.path...)); err != nil {
			return err
		}
		if _, err := z.Write(l.json); err != nil {
			return err
		}
	}
	if err := z.Close(); err != nil {
		return err
	}
	a.runs = append(a.runs, bytes.Clone(b.Bytes()))
	clear(a.lines)
	a.lines, a.size = a.lines[:0], 0
	return nil
}

// run reads one, line by line.
type run struct {
	*bufio.Reader
	line
}

// next goes to the next line; io.EOF: there is none.
func (r *run) next() error {
	var n uint64
	for _, to := range []*uint64{&r.file[0], &r.file[1], &n} {
		var err error
		if *to, err = binary.ReadUvarint(r); err != nil {
			return err
		}
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return err
	}
	r.path = string(p)
	var err error
	r.json, err = r.ReadBytes('\n')
	return err
}

// encode writes the content of the file, in the order of the paths.
func (a *attributes) encode(to io.Writer) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.compress(); err != nil {
		return err
	}
	var runs []*run
	for _, b := range a.runs {
		r := &run{Reader: bufio.NewReader(flate.NewReader(bytes.NewReader(b)))}
		switch err := r.next(); {
		case err == nil:
			runs = append(runs, r)
		case !errors.Is(err, io.EOF):
			return err
		}
	}
	last := ""
	for len(runs) > 0 {
		first := slices.MinFunc(runs, func(r, s *run) int { return strings.Compare(r.path, s.path) })
		if first.path != last { // a directory that was read twice
			b, err := a.linked(first.line)
			if err != nil {
				return err
			}
			if _, err := to.Write(b); err != nil {
				return err
			}
			last = first.path
		}
		switch err := first.next(); {
		case errors.Is(err, io.EOF):
			runs = slices.DeleteFunc(runs, func(r *run) bool { return r == first })
		case err != nil:
			return err
		}
	}
	return nil
}

// linked is the JSON of a line with its link; nothing, if it says nothing more than its path.
func (a *attributes) linked(l line) ([]byte, error) {
	if l.file == (inode{}) {
		return l.json, nil
	}
	var it attribute
	if err := json.Unmarshal(l.json, &it); err != nil {
		return nil, err
	}
	if first := a.links[l.file]; first != l.path {
		it.Link = escapeNames(first)
	}
	if it.empty() {
		return nil, nil
	}
	b, err := json.Marshal(it)
	return append(b, '\n'), err
}

// empty reports whether it says nothing of an ordinary file.
func (it *attribute) empty() bool {
	return it.Link == "" && it.Xattrs == nil && it.Modified.IsZero() && !it.Sparse
}

// decodeAttributes reads what encode wrote.
func decodeAttributes(r io.Reader) (map[string]*attribute, error) {
	all := map[string]*attribute{}
	// Files that have nothing but the same extended attributes share them: with SELinux, these are nearly all.
	alike := map[string]*attribute{}
	const mostAlike = 10_000
	dec := json.NewDecoder(bufio.NewReader(r))
	for {
		var a attribute
		err := dec.Decode(&a)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s of the backup: %w", attributesName, err)
		}
		a.Path, a.Link, a.Xattrs = UnescapePath(a.Path), UnescapePath(a.Link), eachKey(a.Xattrs, unescapeName)
		p := a.Path
		if all[p] = &a; a.Link != "" || a.Special != "" || !a.Modified.IsZero() {
			continue
		}
		a.Path = ""
		key, err := json.Marshal(a)
		if err != nil {
			return nil, err
		}
		if same := alike[string(key)]; same != nil {
			all[p] = same
		} else if len(alike) < mostAlike {
			alike[string(key)] = &a
		}
	}
}

func eachKey(xattrs map[string][]byte, f func(string) string) map[string][]byte {
	for key, value := range xattrs {
		if changed := f(key); changed != key {
			delete(xattrs, key)
			xattrs[changed] = value
		}
	}
	return xattrs
}

// relink names, for what lies below prefix, other paths below it as links, where the one that was kept is elsewhere.
func relink(all map[string]*attribute, prefix string) {
	first := map[string]string{}
	for _, p := range slices.Sorted(maps.Keys(all)) {
		at := *all[p]
		if at.Link == "" || !strings.HasPrefix(p, prefix) || strings.HasPrefix(at.Link, prefix) {
			continue
		}
		if f, ok := first[at.Link]; ok {
			at.Link = f
		} else {
			first[at.Link] = p
			at.Link = ""
		}
		all[p] = &at
	}
}
