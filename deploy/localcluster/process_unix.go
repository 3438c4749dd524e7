//go:build unix && !linux

package localcluster

import "syscall"

// sysProcAttr puts a server into its own process group.
func sysProcAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
