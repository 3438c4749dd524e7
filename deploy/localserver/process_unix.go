//go:build unix && !linux

package localserver

import "syscall"

// sysProcAttr puts a server into its own process group.
func sysProcAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
