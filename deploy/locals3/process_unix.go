//go:build unix && !linux

package locals3

import "syscall"

// sysProcAttr puts the server into its own process group.
func sysProcAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
