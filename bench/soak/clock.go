package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A clock that jumps: Go programs take no other clock than the machine's, and that of a whole machine is not ours to set. So the
// daemon that is tried is compiled with a time package whose wall clock is off by what a file says, as after a step
// of NTP or a machine that was resumed; the monotonic clock, which timers and durations go by, is left alone. What is
// compiled differently is two files, made here and put in the compiler's way (go build -overlay): neither Go's
// installation nor the program that is shipped has any of it.

// clockEnv names the file that holds how many seconds the clock is off.
const clockEnv = "TIDEMARK_SOAK_CLOCK"

const clockReader = `package main

import (
	"os"
	"strconv"
	"strings"
	"time"
)

func init() {
	go func() {
		for ; ; time.Sleep(20 * time.Millisecond) {
			text, _ := os.ReadFile(os.Getenv("` + clockEnv + `"))
			n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			if err == nil {
				time.SetSoakSkew(n)
			}
		}
	}()
}
`

// buildSkewed builds the program with the clock that can be set. Everything is compiled anew the first time.
func buildSkewed(ctx context.Context, dir, to string) error {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("ask for Go's installation: %w", err)
	}
	original := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	text, err := os.ReadFile(original)
	if err != nil {
		return err
	}
	const reads = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(text), reads) != 1 {
		return errors.New("this version of Go reads the clock in another way than bench/soak/clock.go knows: give a program with --tidemark, to do without jumps")
	}
	skewed := strings.Replace(string(text), reads, reads+"\tsec += soakSkew\n", 1) + "\nvar soakSkew int64\n\nfunc SetSoakSkew(sec int64) { soakSkew = sec }\n"
	files := map[string]string{"time.go": skewed, "clock.go": clockReader}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	command, err := filepath.Abs("cmd/tidemark")
	if err != nil {
		return err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{
		original: filepath.Join(dir, "time.go"), filepath.Join(command, "clock.go"): filepath.Join(dir, "clock.go"),
	}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", to, "./cmd/tidemark").CombinedOutput(); err != nil {
		return fmt.Errorf("build tidemark: %w\n%s", err, out)
	}
	return nil
}

// setClock puts the daemon's clock off by so much.
func (r *rig) setClock(by time.Duration) error {
	name := filepath.Join(r.dir, "clock")
	if err := os.WriteFile(name+".new", []byte(strconv.FormatInt(int64(by/time.Second), 10)), 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// The clock jumps by minutes: by more than 15, an S3 server refuses what is signed, which "store errors" are for.

func (b *breaker) clockAhead(ctx context.Context, d time.Duration) error {
	return b.jump(ctx, d, 60*d)
}

func (b *breaker) clockBehind(ctx context.Context, d time.Duration) error {
	return b.jump(ctx, d, -60*d)
}

func (b *breaker) jump(ctx context.Context, d, by time.Duration) error {
	if err := b.setClock(by); err != nil {
		return err
	}
	hold(ctx, d)
	return b.setClock(0)
}
