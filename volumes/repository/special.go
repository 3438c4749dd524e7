package repository

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kopia/kopia/fs"
)

// tagSockets says of a backup how many sockets it left out: they are made anew by those who listen.
const tagSockets = "sockets"

// tagReserved says of a backup that it left out a file in its root whose name is that of the attributes.
const tagReserved = "reserved"

// Reserved is the name of a file that the backup left out because it is one of ours; empty: there was none.
func (b *Backup) Reserved() string {
	if b.Tags[tagReserved] == "" {
		return ""
	}
	return attributesName
}

// Sockets is how many the backup left out.
func (b *Backup) Sockets() int {
	n, _ := strconv.Atoi(b.Tags[tagSockets])
	return n
}

// besides is what a list of files has from the attributes, as Kopia has it not, or wrong.
type besides struct {
	special map[string][]File    // pipes and devices, by their directory, of which "" is the root
	times   map[string]time.Time // of directories, and those that Kopia cannot hold
}

// besides reads it from the attributes, of which there may be one for each file, for the paths that are wanted.
func (r *Repository) besides(ctx context.Context, top fs.Entry, wanted func(p string) bool) (all besides, err error) {
	root, ok := top.(fs.Directory)
	if !ok {
		return all, nil
	}
	in, err := r.openAttributes(ctx, root)
	if in == nil || err != nil {
		return all, err
	}
	defer in.Close()
	all = besides{map[string][]File{}, map[string]time.Time{}}
	for b := bufio.NewReaderSize(&contextReader{ctx, in}, 256<<10); ; {
		text, err := b.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return all, r.failed(err)
		}
		if !bytes.Contains(text, []byte(`"special":"`)) && !bytes.Contains(text, []byte(`"modified":"`)) {
			continue
		}
		var a attribute
		if err := json.Unmarshal(text, &a); err != nil {
			return all, err
		}
		if !wanted(a.Path) {
			continue
		}
		if a.Special != "" {
			dir := parent(a.Path)
			all.special[dir] = append(all.special[dir], a.file())
		} else if !a.Modified.IsZero() {
			all.times[a.Path] = a.Modified
		}
	}
	for _, files := range all.special {
		slices.SortFunc(files, func(f, g File) int { return strings.Compare(f.Path, g.Path) })
	}
	return all, nil
}

// parent is the directory that a path is in; "" is the root.
func parent(p string) string {
	if dir := path.Dir(p); dir != "." {
		return dir
	}
	return ""
}

// file is a pipe or a device as a file.
func (a *attribute) file() File {
	mode := map[string]os.FileMode{"fifo": os.ModeNamedPipe, "char": os.ModeDevice | os.ModeCharDevice, "block": os.ModeDevice}[a.Special] | os.FileMode(a.Mode&0o777)
	for bit, flag := range map[uint32]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if a.Mode&bit != 0 {
			mode |= flag
		}
	}
	return File{Path: a.Path, Mode: lsMode(mode), Modified: a.Modified, UID: a.UID, GID: a.GID}
}

// at is the pipe or device at a path.
func (b *besides) at(part string) (File, bool) {
	for _, f := range b.special[parent(part)] {
		if f.Path == part {
			return f, true
		}
	}
	return File{}, false
}

// lsMode is a mode as ls(1) shows it; Go's own letters are others.
func lsMode(m os.FileMode) string {
	b := []byte("-" + m.Perm().String()[1:])
	switch m.Type() {
	case os.ModeDir:
		b[0] = 'd'
	case os.ModeSymlink:
		b[0] = 'l'
	case os.ModeNamedPipe:
		b[0] = 'p'
	case os.ModeSocket:
		b[0] = 's'
	case os.ModeDevice:
		b[0] = 'b'
	case os.ModeDevice | os.ModeCharDevice:
		b[0] = 'c'
	}
	for _, s := range [...]struct {
		flag      os.FileMode
		at        int
		with, not byte // x as well, or not
	}{{os.ModeSetuid, 3, 's', 'S'}, {os.ModeSetgid, 6, 's', 'S'}, {os.ModeSticky, 9, 't', 'T'}} {
		if m&s.flag == 0 {
			continue
		}
		if b[s.at] == 'x' {
			b[s.at] = s.with
		} else {
			b[s.at] = s.not
		}
	}
	return string(b)
}
