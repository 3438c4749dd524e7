package repository

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// disks are the file systems that a restore writes to, each by a directory that is open since before the first write: so syncing one tells of every write that
// did not reach it.
type disks struct {
	mu     sync.Mutex // guards what follows
	open   map[uint64]*os.File
	closed bool // there are some that may not be opened
}

// add notes the file system of a directory that is there.
func (d *disks) add(root *os.Root, dir string, device uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[device] != nil {
		return nil
	}
	f, err := root.Open(dir)
	if errors.Is(err, iofs.ErrPermission) { // it may be written to all the same
		d.closed = true
		return nil
	}
	if err != nil {
		return err
	}
	if d.open == nil {
		d.open = map[uint64]*os.File{}
	}
	d.open[device] = f
	return nil
}

// sync makes all that was written outlive a power cut: who asked for a restore begins to use it, and counts it as done.
func (d *disks) sync() error {
	if d.closed {
		unix.Sync() // all there are; it tells of no errors
	}
	for _, f := range d.open {
		if err := unix.Syncfs(int(f.Fd())); err != nil {
			return fmt.Errorf("not all that was written has reached the disk: %w", err)
		}
	}
	return nil
}

func (d *disks) close() {
	for _, f := range d.open {
		f.Close()
	}
}
