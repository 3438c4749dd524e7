package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidemark-backup/tidemark/bench/soak/checker"
	"github.com/tidemark-backup/tidemark/deploy/localdisk"
	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

func TestWhatIsDoneFollowsFromTheSeed(t *testing.T) {
	steps := func(seed uint64) (out []step) {
		for next := churn(seed); len(out) < 1000; out = append(out, next()) {
		}
		return out
	}
	wrong := func(seed uint64) (out []fault) {
		for next := faults(seed); len(out) < 100; out = append(out, next()) {
		}
		return out
	}
	if !slices.Equal(steps(7), steps(7)) || !slices.Equal(wrong(7), wrong(7)) {
		t.Error("one seed gives two sequences")
	}
	if slices.Equal(steps(7), steps(8)) || slices.Equal(wrong(7), wrong(8)) {
		t.Error("two seeds give one sequence")
	}
}

func TestEveryDeedAndEveryFaultHappens(t *testing.T) {
	done := map[string]int{}
	next := churn(1)
	for range 2000 {
		done[next().Op]++
	}
	for _, d := range deeds {
		if done[d.op] == 0 {
			t.Errorf("%s is never done", d.op)
		}
	}
	dealt := map[string]int{}
	deal := faults(1)
	for range 2 * len(faultKinds) {
		dealt[deal().Kind]++
	}
	for _, k := range faultKinds {
		if dealt[k.kind] != 2 {
			t.Errorf("%s comes up %d times in two decks", k.kind, dealt[k.kind])
		}
	}
}

func TestProxyPassesOnUntilItIsSpoilt(t *testing.T) {
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, r.Host+" "+string(body))
	}))
	defer store.Close()
	p, err := newProxy(store.URL, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	ask := func() (string, int, error) {
		resp, err := http.Post("http://"+p.addr+"/x", "text/plain", strings.NewReader("hello"))
		if err != nil {
			return "", 0, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), resp.StatusCode, err
	}
	if text, code, err := ask(); text != p.addr+" hello" || code != http.StatusOK || err != nil {
		t.Errorf("%q, %d, %v: the store must see the host that the client signed", text, code, err)
	}
	p.spoil(true)
	codes := map[int]int{}
	for range 12 {
		_, code, err := ask()
		if err != nil {
			code = -1
		}
		codes[code]++
	}
	if codes[-1] == 0 || codes[http.StatusServiceUnavailable]+codes[http.StatusInternalServerError] == 0 {
		t.Errorf("a spoilt proxy answers %v, want errors of both kinds", codes)
	}
	p.spoil(false)
	if _, code, err := ask(); code != http.StatusOK || err != nil {
		t.Errorf("afterwards: %d, %v", code, err)
	}
}

func TestADaemonThatEndedByItselfIsSeenThoughItIsStartedAtOnce(t *testing.T) {
	dir := t.TempDir()
	r := &rig{dir: dir, program: "/bin/sleep"}
	end := func() {
		t.Helper()
		r.daemon, _ = localserver.Start(r.program, []string{"0"}, nil, filepath.Join(dir, "log"))
		for r.daemon.Running() {
			time.Sleep(time.Millisecond)
		}
	}
	end() // nobody wanted that one
	if r.daemonFell() {
		t.Error("a daemon that was stopped counts as fallen")
	}
	r.wanted = true
	r.stopDaemon(syscall.SIGKILL)
	if !r.daemonFell() {
		t.Error("who kills a daemon that has just ended by itself hides that it did")
	}
}

func TestWhatEndedARunIsTold(t *testing.T) {
	difference := &checker.Difference{RV: 7}
	for want, err := range map[string]error{
		"0": nil, "1": fmt.Errorf("fault 3: %w", errors.Join(difference, errors.New("and more"))), "0, but it was interrupted": context.Canceled,
		"0, but it failed: no etcd": errors.New("no etcd\nits log"),
	} {
		if have := verdict(err); have != want {
			t.Errorf("%q, want %q", have, want)
		}
	}
}

func TestARunTellsHowToRepeatItAndWhatItLeavesOut(t *testing.T) {
	o := options{seed: 7, length: time.Minute, given: "/bin/tidemark", tamper: "file"}
	text := o.replay(t.Context())
	for _, want := range []string{"--seed 7 --for 1m0s --tidemark /bin/tidemark --tamper file\n", "# commit ", runtime.Version(), "root"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
	if left := (&rig{clock: true, disk: &localdisk.Disk{}}).leftOut(); len(left) != 1 || !strings.HasPrefix(left[0], "slow disk (wants control groups") {
		t.Errorf("left out: %v", left)
	}
	if left := strings.Join((&rig{}).leftOut(), ", "); strings.Count(left, "(wants root)") != 4 || strings.Count(left, "clock") != 2 {
		t.Errorf("left out: %s", left)
	}
}

// TestWhatTriesTheCheckerDoesSomething: an answer that cannot be spoilt does not count.
func TestWhatTriesTheCheckerDoesSomething(t *testing.T) {
	few, many := []byte("{1,\n2}"), []byte("{1,\n2,\n\"same\":\"xxxx\",\n4}")
	for what, spoil := range map[string]func([]byte) []byte{"drop": dropAnObject(), "change": changeAByte()} {
		for i, list := range [][]byte{few, many, few, many, few, many, many} {
			if have := spoil(slices.Clone(list)); bytes.Equal(have, list) == (i == 5) {
				t.Errorf("%s, answer %d: %q", what, i, have)
			}
		}
	}
}
