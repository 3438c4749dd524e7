package storetest

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

func put(t *testing.T, s archive.Store, name, text string) error {
	t.Helper()
	return s.Create(t.Context(), name, strings.NewReader(text), int64(len(text)), archive.CreateOptions{})
}

// every calls each method once on a file that is there.
func every(t *testing.T, ctx context.Context, f *Faulty) map[string]error { //nolint:revive // t comes first in tests
	t.Helper()
	errs := map[string]error{}
	errs["Create"] = f.Create(ctx, "new", strings.NewReader("x"), 1, archive.CreateOptions{})
	errs["ReadAt"] = f.ReadAt(ctx, "there", make([]byte, 1), 0)
	_, errs["Stat"] = f.Stat(ctx, "there")
	errs["Hold"] = f.Hold(ctx, "there", false)
	for _, err := range f.List(ctx, "", "") {
		errs["List"] = err
	}
	errs["Remove"] = f.Remove(ctx, "there")
	return errs
}

func TestFaultyFailsWithoutDoing(t *testing.T) {
	for name, c := range map[string]struct {
		on, off func(*Faulty)
		want    error
	}{
		"down":   {func(f *Faulty) { f.Down(true) }, func(f *Faulty) { f.Down(false) }, ErrUnavailable},
		"denied": {func(f *Faulty) { f.Deny(true) }, func(f *Faulty) { f.Deny(false) }, archive.ErrDenied},
		"some":   {func(f *Faulty) { f.Fail(6) }, func(*Faulty) {}, ErrUnavailable},
		"chance": {func(f *Faulty) { f.Rates.Fail = 1 }, func(f *Faulty) { f.Rates.Fail = 0 }, ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			f := &Faulty{Store: archive.NewMemStore()}
			if err := put(t, f, "there", "x"); err != nil {
				t.Fatal(err)
			}
			c.on(f)
			for method, err := range every(t, t.Context(), f) {
				if !errors.Is(err, c.want) {
					t.Errorf("%s: %v, want %v", method, err, c.want)
				}
			}
			c.off(f)
			if got, want := names(t, f, "", ""), []string{"there"}; !slices.Equal(got, want) {
				t.Errorf("the failed calls left %q, want %q", got, want)
			}
			for method, err := range every(t, t.Context(), f) {
				if err != nil {
					t.Errorf("%s without faults: %v", method, err)
				}
			}
			if n := f.Calls("Create"); n != 3 {
				t.Errorf("%d calls of Create were counted, want 3", n)
			}
		})
	}
}

func TestFaultyLosesAnswersOfWhatIsDone(t *testing.T) {
	f := &Faulty{Store: archive.NewMemStore()}
	f.Lose(2)
	if err := put(t, f, "a", "x"); !errors.Is(err, ErrLost) {
		t.Errorf("Create: %v, want ErrLost", err)
	}
	if err := put(t, f, "a", "x"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Create: %v, want fs.ErrExist, as the first was done", err)
	}
	if err := f.Remove(t.Context(), "a"); !errors.Is(err, ErrLost) {
		t.Errorf("Remove: %v, want ErrLost", err)
	}
	if _, err := f.Stat(t.Context(), "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat: %v, want that Remove was done", err)
	}
}

func TestFaultyReadsBadly(t *testing.T) {
	f := &Faulty{Store: archive.NewMemStore(), Seed: 7}
	text := strings.Repeat("a", 100)
	if err := put(t, f, "a", text); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(text))
	f.Cut(1)
	if err := f.ReadAt(t.Context(), "a", b, 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut: %v", err)
	}
	f.Flip(1)
	if err := f.ReadAt(t.Context(), "a", b, 0); err != nil || string(b) == text {
		t.Errorf("flipped: %q, %v; want another text", b, err)
	}
	if err := f.ReadAt(t.Context(), "a", b, 0); err != nil || string(b) != text {
		t.Errorf("afterwards: %q, %v", b, err)
	}
}

func TestFaultyListLags(t *testing.T) {
	f := &Faulty{Store: archive.NewMemStore()}
	list := func(when string, want ...string) {
		t.Helper()
		if got := names(t, f, "", ""); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	for _, name := range []string{"c", "a", "b"} {
		if err := put(t, f, name, "x"); err != nil {
			t.Fatal(err)
		}
	}
	f.Lag(2)
	list("without the newest two", "c")
	f.Lag(9)
	list("without more than there are")
	f.Lag(0)
	f.Freeze(true)
	if err := put(t, f, "d", "x"); err != nil {
		t.Fatal(err)
	}
	list("frozen", "a", "b", "c")
	f.Freeze(false)
	list("at last", "a", "b", "c", "d")
}

func TestFaultyReplacesAndIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &Faulty{Store: archive.NewMemStore()}
		f.Replace(true)
		for _, text := range []string{"first", "second"} {
			if err := put(t, f, "a", text); err != nil {
				t.Fatal(err)
			}
		}
		if got := content(t, f, "a"); string(got) != "second" {
			t.Errorf("content is %q, want second", got)
		}
		f.Slow(time.Minute)
		begin := time.Now()
		if _, err := f.Stat(t.Context(), "a"); err != nil || time.Since(begin) != time.Minute {
			t.Errorf("Stat: %v after %v, want a minute", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for method, err := range every(t, ctx, f) {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v, want that it ends with its context", method, err)
			}
		}
	})
}

func TestFaultyChanceDependsOnTheSeedAlone(t *testing.T) {
	run := func(seed uint64) (faults string) {
		f := &Faulty{Store: archive.NewMemStore(), Seed: seed, Rates: Rates{Fail: 0.3, Lose: 0.3}}
		for range 40 {
			switch err := f.Remove(t.Context(), "a"); {
			case errors.Is(err, ErrUnavailable):
				faults += "f"
			case errors.Is(err, ErrLost):
				faults += "l"
			default:
				faults += "."
			}
		}
		return faults
	}
	if a, b, c := run(1), run(1), run(2); a != b || a == c || !strings.Contains(a, "f") || !strings.Contains(a, "l") || !strings.Contains(a, ".") {
		t.Errorf("faults of seeds 1, 1, 2:\n%s\n%s\n%s", a, b, c)
	}
}
