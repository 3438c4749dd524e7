// Package durable makes files and directories that are there as a whole or not at all, also after a power cut: a file system keeps what was synced, and a name
// once its directory was synced.
package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// SyncDir makes the names in a directory durable. One that may not be read is somebody else's, whose names are too.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EROFS) { // some network file systems cannot, and need not; nor need one that is not written to
		err = nil
	}
	return errors.Join(err, d.Close())
}

// MkdirAll makes a directory for its owner only, and those above it that are missing. One that is there may have been made by a process that died
// before it was durable.
func MkdirAll(dir string) error {
	parent := filepath.Dir(dir)
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err := MkdirAll(parent); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o700)
		if errors.Is(err, fs.ErrExist) {
			info, err = os.Stat(dir) // another process was faster
		}
	}
	if err != nil {
		return err
	}
	if info != nil && !info.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	}
	return SyncDir(parent)
}

// Create makes a file for its owner only, with what write writes. One that has the name is left alone: fs.ErrExist. Where there are no hard links,
// such as on a memory stick, two processes that make it at the same time may both succeed.
func Create(path string, write func(io.Writer) error) error {
	return place(path, write, func(temp string) error {
		err := os.Link(temp, path)
		if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EPERM) {
			if _, err = os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
				return os.Rename(temp, path)
			}
			return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
		}
		return errors.Join(err, os.Remove(temp))
	})
}

// Replace makes a file for its owner only, with what write writes, in place of what has the name.
func Replace(path string, write func(io.Writer) error) error {
	return place(path, write, func(temp string) error { return os.Rename(temp, path) })
}

// TempPrefix is what the names of files begin with that are being written, beside what they are to be.
const TempPrefix = ".tmp-"

func place(path string, write func(io.Writer) error, name func(temp string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), TempPrefix)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = name(f.Name())
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return SyncDir(filepath.Dir(path))
}
