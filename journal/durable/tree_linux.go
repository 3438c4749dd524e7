package durable

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// SyncTree makes all that is in a directory durable, and with it whatever else is on its file system.
func SyncTree(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}
