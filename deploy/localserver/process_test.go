package localserver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startShell runs a shell script as a server that the test stops.
func startShell(t *testing.T, script, log string) *Process {
	t.Helper()
	p, err := Start("/bin/sh", []string{"-c", script}, nil, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(syscall.SIGKILL, time.Minute) })
	return p
}

func never(context.Context) error { return errors.New("no answer") }

func TestServerThatEndsWhileStartingShowsItsLog(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	// Servers append to their log: what an earlier run met is not this one's trouble.
	for _, run := range []struct {
		says  string
		taken bool
	}{{"listen: address already in use", true}, {"unknown flag", false}} {
		p := startShell(t, "echo '"+run.says+"'; exit 3", log)
		err := p.Await(t.Context(), time.Minute, never)
		if err == nil {
			t.Fatal("an ended server is ready")
		}
		for _, want := range []string{"sh ended while starting: exit status 3", log, "\n  " + run.says} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error does not hold %q:\n%v", want, err)
			}
		}
		if errors.Is(err, ErrPortTaken) != run.taken {
			t.Errorf("a server that says %q: %v; ErrPortTaken wanted: %v", run.says, err, run.taken)
		}
	}
}

func TestEndOfAServerEndsAQuestionThatNobodyAnswers(t *testing.T) {
	p := startShell(t, "exit 3", filepath.Join(t.TempDir(), "log"))
	began := time.Now()
	err := p.Await(t.Context(), time.Minute, func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	})
	if err == nil || time.Since(began) > 30*time.Second {
		t.Errorf("Await = %v after %s", err, time.Since(began))
	}
}

func TestWaitingForAServerEnds(t *testing.T) {
	p := startShell(t, "exec sleep 60", filepath.Join(t.TempDir(), "log"))
	if err := p.Await(t.Context(), 50*time.Millisecond, never); err == nil || !strings.Contains(err.Error(), "sh is not ready after 50ms: no answer") {
		t.Errorf("after the limit: %v", err)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := p.Await(ctx, time.Minute, never); !errors.Is(err, cause) {
		t.Errorf("after the context's end: %v, want its cause", err)
	}
	asked := 0
	err := p.Await(t.Context(), time.Minute, func(ctx context.Context) error {
		if asked++; asked < 3 {
			return never(ctx)
		}
		return nil
	})
	if err != nil || asked != 3 {
		t.Errorf("asked %d times: %v; want nil at the third answer", asked, err)
	}
}

func TestServerThatIgnoresTheSignalIsKilled(t *testing.T) {
	ready := filepath.Join(t.TempDir(), "ready")
	p := startShell(t, "trap '' TERM; touch "+ready+"; while :; do sleep 0.1; done", filepath.Join(t.TempDir(), "log"))
	if err := p.Await(t.Context(), time.Minute, func(context.Context) error {
		_, err := os.Stat(ready)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	p.Stop(syscall.SIGTERM, 100*time.Millisecond)
	if err := syscall.Kill(p.Pid(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d after Stop: %v, want none", p.Pid(), err)
	}
	p.Stop(syscall.SIGTERM, time.Minute) // has ended
	(*Process)(nil).Stop(syscall.SIGTERM, time.Minute)
	if pid := (*Process)(nil).Pid(); pid != 0 {
		t.Errorf("a nil process has the number %d", pid)
	}
}

func TestServerGetsOnlyTheEnvironmentItWasGiven(t *testing.T) {
	t.Setenv("OURS", "ours")
	for _, c := range []struct {
		env  []string
		want string
	}{{nil, "ours,"}, {[]string{"THEIRS=theirs"}, ",theirs"}} {
		log := filepath.Join(t.TempDir(), "log")
		p, err := Start("/bin/sh", []string{"-c", `echo "$OURS,$THEIRS"`}, c.env, log)
		if err != nil {
			t.Fatal(err)
		}
		<-p.done
		if text, err := os.ReadFile(log); err != nil || string(text) != c.want+"\n" {
			t.Errorf("with environment %v the server sees %q, %v; want %q", c.env, text, err, c.want)
		}
	}
}
