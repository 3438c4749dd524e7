package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestFinderFindsNearAndFar looks up ascending keys, in runs and with leaps so many that the iterator rests in between.
func TestFinderFindsNearAndFar(t *testing.T) {
	db, err := pebble.Open("", &pebble.Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	key := func(i int) []byte { return fmt.Appendf(nil, "%c%06d", prefixVersion, i) }
	const n = 20_000
	for i := range n {
		if i%7 == 3 { // not there
			continue
		}
		if err := db.Set(key(i), fmt.Appendf(nil, "v%d", i), pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	}
	s := db.NewSnapshot()
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 9))
		f, err := newFinder(s)
		if err != nil {
			t.Fatal(err)
		}
		ways := map[bool]int{}
		for i := 0; i < n; {
			got := ""
			err := f.find(key(i), func(v []byte) error { got = string(v); return nil })
			ways[f.near]++
			switch {
			case i%7 == 3:
				if !errors.Is(err, ErrTrimmed) || got != "" {
					t.Fatalf("seed %d: %d is found: %q, %v", seed, i, got, err)
				}
			case err != nil || got != fmt.Sprintf("v%d", i):
				t.Fatalf("seed %d: %d: %q, %v", seed, i, got, err)
			}
			if random.IntN(300) == 0 {
				i += 50
			}
			i += []int{1, 1 + random.IntN(12), 9}[i/2000%3]
		}
		if ways[true] == 0 || ways[false] == 0 {
			t.Errorf("seed %d: only one way was gone: %v", seed, ways)
		}
		f.close()
	}
	if err := errors.Join(s.Close(), db.Close()); err != nil {
		t.Fatal(err)
	}
}
