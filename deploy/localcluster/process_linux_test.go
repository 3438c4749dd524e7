package localcluster

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestServersDieWithTheProcessThatStartedThem runs this test binary again as the process that
// starts a control plane, and kills it.
func TestServersDieWithTheProcessThatStartedThem(t *testing.T) {
	if os.Getenv("LOCALCLUSTER_TO_BE_KILLED") != "" {
		c, err := Start(t.Context(), Options{NoControllers: true, Dir: os.Getenv("LOCALCLUSTER_TO_BE_KILLED")})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("pids", c.pids())
		<-t.Context().Done() // until killed
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), "LOCALCLUSTER_TO_BE_KILLED="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids [2]int
	lines := bufio.NewScanner(out)
	for pids[0] == 0 && lines.Scan() {
		if _, err := fmt.Sscanf(lines.Text(), "pids [%d %d]", &pids[0], &pids[1]); err != nil {
			t.Logf("child: %s", lines.Text())
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the killed process ended well")
	}
	if pids[0] == 0 {
		t.Fatal("the child did not start a control plane")
	}
	for _, pid := range pids {
		eventually(t, fmt.Sprintf("server %d ended", pid), func(context.Context) bool { return gone(pid) })
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
