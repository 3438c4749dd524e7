package replay

import (
	"iter"
	"runtime"
)

const (
	aheadChunk   = 8 // elements that one goroutine takes at a time: handing them over costs nothing beside the work then
	mostForAhead = 4 // goroutines
)

// ahead yields what f makes of each element, in order. It works on the next elements while the caller has the present one, on
// several processors, and never on more than some dozens: what f makes may be large. f must not depend on what the caller does.
func ahead[T, R any](list []T, f func(T) R) iter.Seq2[T, R] {
	return func(yield func(T, R) bool) {
		var begun []chan []R
		next := 0
		begin := func() {
			if next == len(list) {
				return
			}
			part := list[next:min(next+aheadChunk, len(list))]
			next += len(part)
			made := make(chan []R, 1) // so that it ends when nobody asks any more
			begun = append(begun, made)
			go func() {
				out := make([]R, len(part))
				for i, v := range part {
					out[i] = f(v)
				}
				made <- out
			}()
		}
		for range min(runtime.GOMAXPROCS(0), mostForAhead) {
			begin()
		}
		for at := 0; at < len(list); begun = begun[1:] {
			made := <-begun[0]
			begin()
			for _, r := range made {
				if !yield(list[at], r) {
					return
				}
				at++
			}
		}
	}
}
