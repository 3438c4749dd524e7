package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	recordedLimit = 60 * time.Second // for the daemon to be up to date
	stopLimit     = 10 * time.Second // between SIGTERM and SIGKILL
	pollEvery     = 100 * time.Millisecond
)

// tidemark is the program on show, and its daemon once it runs.
type tidemark struct {
	program    string // absolute path
	kubeconfig string
	dataDir    string
	logFile    string
	daemon     *exec.Cmd
	ended      chan struct{} // closed when the daemon has ended
}

// start starts the daemon.
func (t *tidemark) start() error {
	log, err := os.Create(t.logFile)
	if err != nil {
		return err
	}
	defer log.Close()
	t.daemon = exec.Command(t.program, "run", "--kubeconfig", t.kubeconfig, "--data-dir", t.dataDir)
	t.daemon.Stdout, t.daemon.Stderr = log, log
	t.daemon.SysProcAttr = sysProcAttr()
	if err := t.daemon.Start(); err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	t.ended = make(chan struct{})
	go func() {
		_ = t.daemon.Wait() // how it ended is in its ProcessState
		close(t.ended)
	}()
	return nil
}

// stop ends the daemon as a service manager would, and tells how that went.
func (t *tidemark) stop() error {
	if t.daemon == nil || t.daemon.Process == nil {
		return nil
	}
	_ = t.daemon.Process.Signal(syscall.SIGTERM) // one that has ended already is noticed below
	select {
	case <-t.ended:
	case <-time.After(stopLimit):
		_ = t.daemon.Process.Kill()
		<-t.ended
		return fmt.Errorf("the daemon did not stop within %s of SIGTERM", stopLimit)
	}
	if !t.daemon.ProcessState.Success() {
		return fmt.Errorf("the daemon ended with %s%s", t.daemon.ProcessState, t.logTail())
	}
	return nil
}

// server is where clients find the daemon.
func (t *tidemark) server() string {
	return "unix://" + filepath.Join(t.dataDir, "tidemark.sock")
}

// stateDir is where restores are recorded: not with those of the person's own clusters, as this one will be gone.
func (t *tidemark) stateDir() string { return filepath.Join(filepath.Dir(t.dataDir), "state") }

// command is the program with a client's arguments.
func (t *tidemark) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, t.program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+t.kubeconfig, "TIDEMARK_SERVER="+t.server(), "XDG_STATE_HOME="+t.stateDir())
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = stopLimit
	return cmd
}

// status is the part of `tidemark status -o json` that tells whether all is recorded.
type status struct {
	Condition string `json:"condition"`
	Capture   struct {
		Connected bool   `json:"connected"`
		Error     string `json:"error"`
		Resources []struct {
			Resource string `json:"resource"`
			State    string `json:"state"`
		} `json:"resources"`
	} `json:"capture"`
	Catalog struct {
		From struct {
			Time time.Time `json:"time"`
		} `json:"from"`
	} `json:"catalog"`
}

// missing says what is not recorded yet, or "".
func (s *status) missing(want []string) string {
	switch {
	case s.Condition != "":
		return s.Condition
	case !s.Capture.Connected:
		return "not connected to the API server: " + s.Capture.Error
	case s.Catalog.From.Time.IsZero():
		return "the first lists are running"
	}
	want = slices.Clone(want)
	for _, r := range s.Capture.Resources {
		if r.State != "watching" {
			return r.Resource + " is " + r.State
		}
		want = slices.DeleteFunc(want, func(w string) bool { return w == r.Resource })
	}
	if len(want) > 0 {
		return "not recorded: " + strings.Join(want, ", ")
	}
	return ""
}

// awaitRecording waits until every resource is being watched, among them those of want.
func (t *tidemark) awaitRecording(ctx context.Context, want ...string) error {
	deadline := time.Now().Add(recordedLimit)
	for {
		missing, err := t.missing(ctx, want)
		if err == nil && missing == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not all is recorded after %s: %w%s", recordedLimit, errors.Join(err, errors.New(missing)), t.logTail())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.ended:
			return fmt.Errorf("the daemon ended with %s%s", t.daemon.ProcessState, t.logTail())
		case <-time.After(pollEvery):
		}
	}
}

func (t *tidemark) missing(ctx context.Context, want []string) (string, error) {
	out, err := t.command(ctx, "status", "-o", "json").Output()
	if err != nil {
		return "tidemark status does not answer", err
	}
	var s status
	if err := json.Unmarshal(out, &s); err != nil {
		return "tidemark status -o json cannot be read", err
	}
	return s.missing(want), nil
}

// logTail is the end of the daemon's log, for an error message.
func (t *tidemark) logTail() string {
	data, err := os.ReadFile(t.logFile)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	lines = lines[max(0, len(lines)-8):]
	return "; its log ends:\n  " + strings.Join(lines, "\n  ")
}
