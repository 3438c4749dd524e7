package locals3

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// process is a running server whose output goes to a log file.
type process struct {
	log    string
	offset int64 // where this run begins in the log
	cmd    *exec.Cmd
	done   chan struct{} // closed when it has ended
}

// startProcess starts a program in a process group of its own, so that a Ctrl-C at the
// terminal reaches only us, and appends its output to the file log.
func startProcess(path string, args, env []string, log string) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	p := &process{log: log, offset: info.Size(), cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = env, f, f
	p.cmd.SysProcAttr = sysProcAttr()
	started := make(chan error)
	go p.run(f, started)
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// run starts the program and waits for its end on one operating system thread: Linux sends
// the parent-death signal when the starting thread ends, so that thread has to live as long.
func (p *process) run(log *os.File, started chan<- error) {
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

// await calls ready until it returns nil. It fails when the process ends, when limit has
// passed and when ctx ends, the first two with the last lines of the log.
func (p *process) await(ctx context.Context, limit time.Duration, ready func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(limited)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return p.failure(fmt.Errorf("versitygw ended while starting: %v", p.cmd.ProcessState))
		case <-tick.C:
		case <-limited.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return p.failure(fmt.Errorf("versitygw is not ready after %s: %w", limit, err))
		}
	}
}

// failure adds the end of the log to err, and errPortTaken when the log says so.
func (p *process) failure(err error) error {
	data, readErr := os.ReadFile(p.log)
	if readErr != nil {
		return fmt.Errorf("%w (%w)", err, readErr)
	}
	data = data[min(p.offset, int64(len(data))):]
	if bytes.Contains(data, []byte("address already in use")) {
		err = fmt.Errorf("%w: %w", errPortTaken, err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return fmt.Errorf("%w; its log is %s and ends:\n  %s", err, p.log, strings.Join(lines[max(0, len(lines)-10):], "\n  "))
}

// stop sends sig, kills the process group when it is still there after limit, and returns
// when the process is gone.
func (p *process) stop(sig syscall.Signal, limit time.Duration) {
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
