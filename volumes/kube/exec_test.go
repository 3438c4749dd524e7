package kube

import (
	"strings"
	"sync"
	"testing"
)

// TestTailOfTwoStreams writes both streams of a program at once, and reads meanwhile, as is done when it took too long.
func TestTailOfTwoStreams(t *testing.T) {
	var out tail
	var wg sync.WaitGroup
	for _, s := range []string{"out\n", "err\n"} {
		wg.Go(func() {
			for range 2000 {
				_, _ = out.Write([]byte(strings.Repeat(s, 300)))
			}
		})
	}
	for range 100 {
		if n := len(out.String()); n > maxOutput {
			t.Errorf("%d bytes are kept", n)
		}
	}
	wg.Wait()
}

func TestTailKeepsTheEnd(t *testing.T) {
	var out tail
	all := ""
	for _, n := range []int{1, 100, maxOutput - 1, 5, 2 * maxOutput, 0, maxOutput, 7, 3000, 3000} {
		p := strings.Repeat(string(rune('a'+n%26)), n) + "."
		if w, err := out.Write([]byte(p)); w != len(p) || err != nil {
			t.Fatalf("wrote %d of %d, %v", w, len(p), err)
		}
		all += p
		if got, want := out.String(), all[max(0, len(all)-maxOutput):]; got != want {
			t.Fatalf("after %d bytes it keeps %d, and not the last %d", len(all), len(got), len(want))
		}
		if cap(out.b) > 2*maxOutput {
			t.Fatalf("room for %d bytes is kept", cap(out.b))
		}
	}
	_, _ = out.Write([]byte{0xff})
	if !strings.HasSuffix(out.String(), "?") {
		t.Error("what is no text is kept as it is")
	}
}
