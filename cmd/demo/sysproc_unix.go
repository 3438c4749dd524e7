//go:build unix && !linux

package main

import "syscall"

// sysProcAttr keeps a Ctrl-C at the terminal from the daemon, which is stopped in its turn.
func sysProcAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
