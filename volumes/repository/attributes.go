package repository

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
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

// add looks at a file: name in the directory that is open as dir.
func (a *attributes) add(dir int, name, path string, st *unix.Stat_t) error {
	it := attribute{Path: path}
	kind := st.Mode & unix.S_IFMT
	switch kind {
	case unix.S_IFIFO:
		it.Special = "fifo"
	case unix.S_IFCHR:
		it.Special = "char"
	case unix.S_IFBLK:
		it.Special = "block"
	case unix.S_IFREG:
		it.Sparse = st.Blocks*512 < st.Size
	}
	if it.Special != "" {
		it.Mode, it.UID, it.GID, it.Rdev = st.Mode&0o7777, st.Uid, st.Gid, st.Rdev
	}
	if it.Special != "" || kind == unix.S_IFDIR {
		it.Modified = time.Unix(st.Mtim.Unix()).UTC()
	}
	if kind != unix.S_IFSOCK {
		var err error
		if it.Xattrs, err = a.xattrs(dir, name); err != nil {
			return err
		}
	}
	shared := kind != unix.S_IFDIR && st.Nlink > 1
	if !shared && it.Xattrs == nil && it.Modified.IsZero() && !it.Sparse {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.all == nil {
		a.all, a.links = map[string]attribute{}, map[[2]uint64]string{}
	}
	if shared {
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := a.links[id]; ok && first != path {
			it.Link = first
		} else {
			a.links[id] = path
		}
	}
	if it.Link != "" || it.Xattrs != nil || !it.Modified.IsZero() || it.Sparse {
		a.all[path] = it
	}
	return nil
}

// xattrs reads the extended attributes of a file. It goes through the open directory, so that no
// path is followed.
func (a *attributes) xattrs(dir int, name string) (map[string][]byte, error) {
	a.mu.Lock()
	none := a.noXattrs
	a.mu.Unlock()
	if none {
		return nil, nil
	}
	p := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	var small [1024]byte
	list := small[:]
	n, err := unix.Llistxattr(p, list)
	for errors.Is(err, unix.ERANGE) {
		list = make([]byte, 2*len(list))
		n, err = unix.Llistxattr(p, list)
	}
	switch {
	case errors.Is(err, unix.ENOTSUP):
		a.mu.Lock()
		a.noXattrs = true
		a.mu.Unlock()
		return nil, nil
	case errors.Is(err, unix.ENOENT):
		return nil, nil // deleted meanwhile
	case err != nil:
		return nil, fmt.Errorf("list its extended attributes: %w", err)
	case n == 0:
		return nil, nil
	}
	all := map[string][]byte{}
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10) // the kernel's limit
		n, err := unix.Lgetxattr(p, key, value)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
			continue // gone meanwhile, or not for us to see
		}
		if err != nil {
			return nil, fmt.Errorf("read its extended attribute %s: %w", key, err)
		}
		all[key] = bytes.Clone(value[:n])
	}
	if len(all) == 0 {
		return nil, nil
	}
	return all, nil
}

// encode gives the content of the file, in the order of the paths; nil when there is nothing to keep.
func (a *attributes) encode() ([]byte, error) {
	if len(a.all) == 0 {
		return nil, nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, p := range slices.Sorted(maps.Keys(a.all)) {
		if err := enc.Encode(a.all[p]); err != nil {
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
		all[a.Path] = a
	}
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

// parentOf opens the directory that holds a path, and gives the last part of it.
func parentOf(root *os.Root, p string) (*os.File, string, error) {
	f, err := root.OpenFile(path.Dir(p), os.O_RDONLY|unix.O_DIRECTORY, 0)
	return f, path.Base(p), err
}
