package replay

import (
	"sync/atomic"
	"testing"
)

func TestAheadYieldsAllInOrder(t *testing.T) {
	for _, n := range []int{0, 1, aheadChunk - 1, aheadChunk, aheadChunk + 1, 1000} {
		list := make([]int, n)
		for i := range list {
			list[i] = i
		}
		at := 0
		for v, double := range ahead(list, func(v int) int { return 2 * v }) {
			if v != at || double != 2*at {
				t.Fatalf("%d elements: element %d is %d, %d", n, at, v, double)
			}
			at++
		}
		if at != n {
			t.Errorf("%d of %d elements", at, n)
		}
	}
}

func TestAheadIsNeverFarAhead(t *testing.T) {
	list := make([]int, 1000)
	var made atomic.Int64
	for range ahead(list, func(int) struct{} { made.Add(1); return struct{}{} }) {
		break
	}
	if n := made.Load(); n > aheadChunk*(mostForAhead+1) {
		t.Errorf("%d elements were made for the first", n)
	}
}
