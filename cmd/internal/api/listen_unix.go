//go:build unix

package api

import (
	"net"
	"syscall"
)

// listenPrivately makes a socket that is its owner's from its first moment on. The mask is the
// process's: what else is made just then becomes more private as well, and nothing worse.
func listenPrivately(path string) (net.Listener, error) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	return net.Listen("unix", path)
}
