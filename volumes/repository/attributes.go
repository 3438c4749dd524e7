package repository

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
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
	// Modified is the time of directories and special files.
	Modified time.Time `json:"modified,omitzero"`
	// Special is "fifo", "char" or "block"; the rest is about those.
	Special string `json:"special,omitempty"`
	Mode    uint32 `json:"mode,omitempty"`
	UID     uint32 `json:"uid,omitempty"`
	GID     uint32 `json:"gid,omitempty"`
	Rdev    uint64 `json:"rdev,omitempty"`
}

// attributes collects them.
type attributes struct {
	mu       sync.Mutex
	all      map[string]attribute
	links    map[[2]uint64]string // the first path of a file with several, by device and inode
	noXattrs bool                 // the file system has none
}

// encode gives the content of the file, in the order of the paths; nil when there is nothing to keep.
func (a *attributes) encode() ([]byte, error) {
	if len(a.all) == 0 {
		return nil, nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, p := range slices.Sorted(maps.Keys(a.all)) {
		it := a.all[p]
		it.Path, it.Link, it.Xattrs = escapeNames(it.Path), escapeNames(it.Link), eachKey(it.Xattrs, escapeName)
		if err := enc.Encode(it); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// decodeAttributes reads what encode wrote.
func decodeAttributes(r io.Reader) (map[string]attribute, error) {
	all := map[string]attribute{}
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
		all[a.Path] = a
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
func relink(all map[string]attribute, prefix string) {
	first := map[string]string{}
	for _, p := range slices.Sorted(maps.Keys(all)) {
		at := all[p]
		if at.Link == "" || !strings.HasPrefix(p, prefix) || strings.HasPrefix(at.Link, prefix) {
			continue
		}
		if f, ok := first[at.Link]; ok {
			at.Link = f
		} else {
			first[at.Link] = p
			at.Link = ""
		}
		all[p] = at
	}
}
