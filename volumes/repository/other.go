//go:build !linux

package repository

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/kopia/kopia/fs"
)

// errNotLinux is returned where files cannot be read and written with all that belongs to them.
var errNotLinux = fmt.Errorf("directories are backed up and restored on Linux only: let the daemon do it, without --archive: %w", errors.ErrUnsupported)

func openTree(string, bool) (fs.Directory, *attributes, func() error, error) {
	return nil, nil, nil, errNotLinux
}

func (*Repository) restoreTree(context.Context, fs.Directory, string, RestoreOptions) (Progress, error) {
	return Progress{}, errNotLinux
}

// newTemporary makes a directory for temporary files. What a killed process left is not looked for.
func newTemporary() (dir string, done func(), err error) {
	dir, err = os.MkdirTemp("", "tidemark-volumes-")
	return dir, func() { _ = os.RemoveAll(dir) }, err
}
