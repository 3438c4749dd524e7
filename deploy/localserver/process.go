package localserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// ErrPortTaken is returned when a server ended, or was not ready, after it logged that another process
// has its port: choose another one and start again.
var ErrPortTaken = errors.New("another process took the port chosen for a server")

// Process is a running server whose output goes to a log file. A nil *Process has ended.
type Process struct {
	name   string
	log    string
	offset int64 // where this run begins in the log
	cmd    *exec.Cmd
	done   chan struct{} // closed when it has ended
}

// Start starts a program with that environment (nil: ours) in a process group of its own, so that a
// Ctrl-C at the terminal reaches only us, and appends its output to the file log. On Linux the program
// is killed when we die; elsewhere it goes on.
func Start(path string, args, env []string, log string) (*Process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	p := &Process{
		name: filepath.Base(path), log: log, offset: info.Size(),
		cmd: exec.Command(path, args...), done: make(chan struct{}),
	}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = env, f, f
	p.cmd.SysProcAttr = sysProcAttr()
	started := make(chan error)
	go p.run(f, started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	return p, nil
}

// Pid is the process's number; 0 for a nil *Process.
func (p *Process) Pid() int {
	if p == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Running reports whether the process has not ended yet.
func (p *Process) Running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Args are the program and its arguments, as everybody on the machine can see them. p is not nil.
func (p *Process) Args() []string { return p.cmd.Args }

// run starts the program and waits for its end on one operating system thread: Linux sends
// the parent-death signal when the starting thread ends, so that thread has to live as long.
func (p *Process) run(log *os.File, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer log.Close()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	_ = p.cmd.Wait() // however it ended: whoever asks looks at ProcessState
	close(p.done)
}

// Await calls ready until it returns nil. It fails when the process ends, when limit has
// passed and when ctx ends, the first two with the last lines of the log, the last with its cause.
// The process is not stopped.
func (p *Process) Await(ctx context.Context, limit time.Duration, ready func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	go func() { // whoever else listens at the port may never answer
		select {
		case <-p.done:
			cancel()
		case <-limited.Done():
		}
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(limited)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
			continue
		case <-limited.Done():
		}
		select {
		case <-p.done:
			return p.failure(fmt.Errorf("%s ended while starting: %v", p.name, p.cmd.ProcessState))
		default:
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return p.failure(fmt.Errorf("%s is not ready after %s: %w", p.name, limit, err))
	}
}

// failure adds the end of the log to err, and ErrPortTaken when the log says so.
func (p *Process) failure(err error) error {
	data, readErr := os.ReadFile(p.log)
	if readErr != nil {
		return fmt.Errorf("%w (%w)", err, readErr)
	}
	data = data[min(p.offset, int64(len(data))):]
	if bytes.Contains(data, []byte("address already in use")) {
		err = fmt.Errorf("%w: %w", ErrPortTaken, err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	lines = lines[max(0, len(lines)-10):]
	for i, line := range lines {
		lines[i] = line[:min(len(line), 300)]
	}
	return fmt.Errorf("%w; its log is %s and ends:\n  %s", err, p.log, strings.Join(lines, "\n  "))
}

// Stop sends sig, kills the process group when the process is still there after limit, and returns
// when it is gone. A nil or ended Process is left as it is.
func (p *Process) Stop(sig syscall.Signal, limit time.Duration) {
	if p == nil {
		return
	}
	// A process that has ended already is what we want; other errors cannot happen to our own child.
	_ = p.cmd.Process.Signal(sig)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.done:
		return
	case <-timer.C:
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}
