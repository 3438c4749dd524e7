package localserver

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestServerDiesWithTheProcessThatStartedIt runs this test binary again as the process that
// starts a server, and kills it.
func TestServerDiesWithTheProcessThatStartedIt(t *testing.T) {
	if log := os.Getenv("LOCALSERVER_TO_BE_KILLED"); log != "" {
		p := startShell(t, "exec sleep 300", log)
		fmt.Println("pid", p.Pid())
		<-t.Context().Done() // until killed
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), "LOCALSERVER_TO_BE_KILLED="+t.TempDir()+"/log")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	lines := bufio.NewScanner(out)
	for pid == 0 && lines.Scan() {
		if _, err := fmt.Sscanf(lines.Text(), "pid %d", &pid); err != nil {
			t.Logf("child: %s", lines.Text())
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the killed process ended well")
	}
	if pid == 0 {
		t.Fatal("the child did not start a server")
	}
	for deadline := time.Now().Add(20 * time.Second); !gone(pid); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("server %d still runs", pid)
		}
	}
}

// gone reports whether the process ended; one that its new parent has not yet reaped has.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X")
}
