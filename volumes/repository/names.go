package repository

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/kopia/kopia/fs"
)

// A name of a file is any bytes, but Kopia's directories, and our attributes, are JSON, in which what is not UTF-8 becomes "\ufffd": names would
// change, and several become one. So such a name is stored escaped, and so is one that looks as if it were.

// escapedPrefix is what escaped names begin with. In what follows, a byte that is no part of UTF-8, and the percent sign, is
// "%" and two hexadecimal digits.
const escapedPrefix = ".tidemark-name."

// escapeName is the name under which a file is stored.
func escapeName(name string) string {
	if utf8.ValidString(name) && !strings.HasPrefix(name, escapedPrefix) {
		return name
	}
	var b strings.Builder
	b.WriteString(escapedPrefix)
	for rest := name; rest != ""; {
		r, n := utf8.DecodeRuneInString(rest)
		if r == utf8.RuneError && n == 1 || r == '%' {
			fmt.Fprintf(&b, "%%%02X", rest[0])
		} else {
			b.WriteString(rest[:n])
		}
		rest = rest[n:]
	}
	return b.String()
}

// unescapeName is the name of a file that is stored under a name. What escapeName cannot have made is taken as it is.
func unescapeName(stored string) string {
	rest, escaped := strings.CutPrefix(stored, escapedPrefix)
	if !escaped {
		return stored
	}
	var b strings.Builder
	for {
		plain, code, found := strings.Cut(rest, "%")
		b.WriteString(plain)
		if !found {
			break
		}
		if len(code) < 2 {
			return stored
		}
		c, err := strconv.ParseUint(code[:2], 16, 8)
		if err != nil {
			return stored
		}
		b.WriteByte(byte(c))
		rest = code[2:]
	}
	if name := b.String(); escapeName(name) == stored && !strings.ContainsAny(name, "/\x00") {
		return name
	}
	return stored
}

// EscapePath is the path under which a file is stored. Backups take such paths and give them: each name in it that is not UTF-8 is escaped, in a way
// that JSON and terminals bear. What is escaped already stays.
func EscapePath(p string) string {
	if utf8.ValidString(p) {
		return p
	}
	return eachName(p, func(name string) string {
		if utf8.ValidString(name) {
			return name
		}
		return escapeName(name)
	})
}

// UnescapePath is the path of a file that is stored under a path.
func UnescapePath(p string) string {
	if !strings.Contains(p, escapedPrefix) {
		return p
	}
	return eachName(p, unescapeName)
}

func escapeNames(p string) string {
	if utf8.ValidString(p) && !strings.Contains(p, escapedPrefix) {
		return p
	}
	return eachName(p, escapeName)
}

func eachName(p string, f func(string) string) string {
	names := strings.Split(p, "/")
	for i, name := range names {
		names[i] = f(name)
	}
	return strings.Join(names, "/")
}

// named gives an entry of a backup, and all below it, the name that it had.
func named(e fs.Entry) fs.Entry {
	name := unescapeName(e.Name())
	switch t := e.(type) {
	case fs.Directory:
		return &namedDirectory{t, name}
	case fs.File:
		if name != e.Name() {
			return &namedFile{t, name}
		}
	case fs.Symlink:
		if name != e.Name() {
			return &namedSymlink{t, name}
		}
	}
	return e
}

type namedFile struct {
	fs.File
	name string
}

// Name implements os.FileInfo.
func (f *namedFile) Name() string { return f.name }

type namedSymlink struct {
	fs.Symlink
	name string
}

// Name implements os.FileInfo.
func (l *namedSymlink) Name() string { return l.name }

type namedDirectory struct {
	fs.Directory
	name string
}

// Name implements os.FileInfo.
func (d *namedDirectory) Name() string { return d.name }

// Child implements fs.Directory.
func (d *namedDirectory) Child(ctx context.Context, name string) (fs.Entry, error) {
	e, err := d.Directory.Child(ctx, escapeName(name))
	if err != nil {
		return nil, err
	}
	return named(e), nil
}

// Iterate implements fs.Directory.
func (d *namedDirectory) Iterate(ctx context.Context) (fs.DirectoryIterator, error) {
	it, err := d.Directory.Iterate(ctx)
	if err != nil {
		return nil, err
	}
	return namedIterator{it}, nil
}

type namedIterator struct{ fs.DirectoryIterator }

// Next implements fs.DirectoryIterator.
func (it namedIterator) Next(ctx context.Context) (fs.Entry, error) {
	e, err := it.DirectoryIterator.Next(ctx)
	if e == nil || err != nil {
		return nil, err
	}
	return named(e), nil
}

// partOf is the path of a part of a backup as the file system has it.
func partOf(p string) string { return path.Clean("/" + UnescapePath(p))[1:] }
