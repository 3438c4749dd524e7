package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

var (
	// ErrUnavailable is what calls return that were not done: as when a server answers 503.
	ErrUnavailable = errors.New("503 Slow Down (made by storetest)")
	// ErrLost is what calls return that were done: as when a connection breaks before the answer.
	ErrLost = errors.New("connection reset before the answer (made by storetest)")
)

// Faulty is a store with faults. With none set it does what the store in it does. Faults are
// switched on and off while it is used; those that are counted end by themselves. When several
// apply, a call is first slow, then denied, down, failed or lost.
type Faulty struct {
	// Store is the store that works.
	archive.Store
	// Seed of the faults that Rates makes by chance.
	Seed uint64
	// Rates of faults by chance. Default: none.
	Rates Rates

	mu           sync.Mutex // guards what follows
	random       *rand.Rand
	down, denied bool
	replaces     bool
	slow         time.Duration
	fail, lose   int
	short, flip  int
	lag          int
	frozen       bool
	fresh        []string // what was created, oldest first
	hidden       map[string]bool
	calls        map[string]int
}

// Rates are probabilities of faults, from 0 to 1.
type Rates struct {
	Fail float64 // a call is not done, and fails with ErrUnavailable
	Lose float64 // a Create, Remove or Hold is done, and fails with ErrLost
	Cut  float64 // a ReadAt ends early with io.ErrUnexpectedEOF
	Flip float64 // a ReadAt gives a wrong bit
}

var _ archive.Store = (*Faulty)(nil)

// Down makes every call fail with ErrUnavailable until it is switched off.
func (f *Faulty) Down(on bool) { f.set(func() { f.down = on }) }

// Deny makes every call fail with archive.ErrDenied until it is switched off, as when
// credentials have expired.
func (f *Faulty) Deny(on bool) { f.set(func() { f.denied = on }) }

// Replace makes Create ignore that a name is taken, until it is switched off.
func (f *Faulty) Replace(on bool) { f.set(func() { f.replaces = on }) }

// Slow makes every call wait first, for its context at most.
func (f *Faulty) Slow(d time.Duration) { f.set(func() { f.slow = d }) }

// Fail makes the next n calls fail with ErrUnavailable. They are not done.
func (f *Faulty) Fail(n int) { f.set(func() { f.fail = n }) }

// Lose makes the next n calls of Create, Remove and Hold that succeed return ErrLost.
func (f *Faulty) Lose(n int) { f.set(func() { f.lose = n }) }

// Cut makes the next n calls of ReadAt end early with io.ErrUnexpectedEOF.
func (f *Faulty) Cut(n int) { f.set(func() { f.short = n }) }

// Flip makes the next n calls of ReadAt give a wrong bit.
func (f *Faulty) Flip(n int) { f.set(func() { f.flip = n }) }

// Lag makes List omit the newest n files that were created through f.
func (f *Faulty) Lag(n int) { f.set(func() { f.lag = n }) }

// Freeze makes List omit what is created from now on, until it is switched off.
func (f *Faulty) Freeze(on bool) {
	f.set(func() {
		f.frozen = on
		f.hidden = nil
	})
}

// Calls is how often a method was called, by its name.
func (f *Faulty) Calls(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[method]
}

func (f *Faulty) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// takes counts *n down, or throws the dice. The caller holds mu.
func (f *Faulty) takes(n *int, rate float64) bool {
	if *n > 0 {
		*n--
		return true
	}
	return f.chance(rate)
}

func (f *Faulty) chance(rate float64) bool {
	if rate <= 0 {
		return false
	}
	return f.dice().Float64() < rate
}

func (f *Faulty) dice() *rand.Rand {
	if f.random == nil {
		f.random = rand.New(rand.NewPCG(f.Seed, 0))
	}
	return f.random
}

// before is what every call begins with.
func (f *Faulty) before(ctx context.Context, method string) error {
	f.mu.Lock()
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	f.calls[method]++
	slow, down, denied := f.slow, f.down, f.denied
	fails := !down && !denied && f.takes(&f.fail, f.Rates.Fail)
	f.mu.Unlock()
	if slow > 0 {
		timer := time.NewTimer(slow)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	switch {
	case denied:
		return fmt.Errorf("%s: %w (ExpiredToken, made by storetest)", method, archive.ErrDenied)
	case down, fails:
		return fmt.Errorf("%s: %w", method, ErrUnavailable)
	}
	return nil
}

// after is what every call ends with that changes something.
func (f *Faulty) after(method string, err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && f.takes(&f.lose, f.Rates.Lose) {
		return fmt.Errorf("%s: %w", method, ErrLost)
	}
	return err
}

// Create implements archive.Store.
func (f *Faulty) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	if err := f.before(ctx, "Create"); err != nil {
		return err
	}
	err := f.Store.Create(ctx, name, body, size, o)
	f.mu.Lock()
	replaces := f.replaces
	f.mu.Unlock()
	for replaces && errors.Is(err, fs.ErrExist) { // another writer may be faster, and is replaced as well
		if err = f.Store.Remove(ctx, name); err == nil {
			err = f.Store.Create(ctx, name, body, size, o)
		}
	}
	if err == nil {
		f.set(func() {
			f.fresh = append(f.fresh, name)
			if f.frozen {
				if f.hidden == nil {
					f.hidden = map[string]bool{}
				}
				f.hidden[name] = true
			}
		})
	}
	return f.after("Create", err)
}

// ReadAt implements archive.Store.
func (f *Faulty) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := f.before(ctx, "ReadAt"); err != nil {
		return err
	}
	if err := f.Store.ReadAt(ctx, name, p, off); err != nil || len(p) == 0 {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.takes(&f.short, f.Rates.Cut) {
		clear(p[f.dice().IntN(len(p)):])
		return fmt.Errorf("read %s: %w (made by storetest)", name, io.ErrUnexpectedEOF)
	}
	if f.takes(&f.flip, f.Rates.Flip) {
		p[f.dice().IntN(len(p))] ^= 1 << f.dice().IntN(8)
	}
	return nil
}

// Stat implements archive.Store.
func (f *Faulty) Stat(ctx context.Context, name string) (archive.FileInfo, error) {
	if err := f.before(ctx, "Stat"); err != nil {
		return archive.FileInfo{}, err
	}
	return f.Store.Stat(ctx, name)
}

// List implements archive.Store. What it omits is decided at its beginning.
func (f *Faulty) List(ctx context.Context, prefix, after string) iter.Seq2[archive.FileInfo, error] {
	return func(yield func(archive.FileInfo, error) bool) {
		if err := f.before(ctx, "List"); err != nil {
			yield(archive.FileInfo{}, err)
			return
		}
		omit := f.omitted()
		for info, err := range f.Store.List(ctx, prefix, after) {
			if err == nil && omit[info.Name] {
				continue
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

func (f *Faulty) omitted() map[string]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	omit := map[string]bool{}
	for name := range f.hidden {
		omit[name] = true
	}
	for _, name := range f.fresh[max(0, len(f.fresh)-f.lag):] {
		omit[name] = true
	}
	return omit
}

// Remove implements archive.Store.
func (f *Faulty) Remove(ctx context.Context, name string) error {
	if err := f.before(ctx, "Remove"); err != nil {
		return err
	}
	err := f.Store.Remove(ctx, name)
	if err == nil {
		f.set(func() {
			f.fresh = slices.DeleteFunc(f.fresh, func(s string) bool { return s == name })
			delete(f.hidden, name)
		})
	}
	return f.after("Remove", err)
}

// Hold implements archive.Store.
func (f *Faulty) Hold(ctx context.Context, name string, on bool) error {
	if err := f.before(ctx, "Hold"); err != nil {
		return err
	}
	return f.after("Hold", f.Store.Hold(ctx, name, on))
}
