package main

import "syscall"

// sysProcAttr keeps a Ctrl-C at the terminal from the daemon, which is stopped in its turn,
// and has the kernel end it when the demo is killed.
func sysProcAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
