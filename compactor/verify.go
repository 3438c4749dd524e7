package compactor

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal"
)

// Level says how much Verify reads.
type Level struct {
	// Checksum reads files and compares their hashes; Percent of them, chosen at random.
	Checksum bool
	Percent  int
	// Full decrypts every file, reads every key, and makes every full snapshot again out of what
	// came before it.
	Full bool
}

// ParseLevel reads "list", "checksum", "sample N%" or "full".
func ParseLevel(text string) (Level, error) {
	switch text {
	case "list":
		return Level{}, nil
	case "checksum":
		return Level{Checksum: true, Percent: 100}, nil
	case "full":
		return Level{Checksum: true, Percent: 100, Full: true}, nil
	}
	if n, ok := strings.CutPrefix(text, "sample"); ok {
		p, err := strconv.Atoi(strings.TrimSuffix(strings.Trim(n, " =:"), "%"))
		if err == nil && p > 0 && p <= 100 {
			return Level{Checksum: true, Percent: p}, nil
		}
	}
	return Level{}, fmt.Errorf("level %q: want list, checksum, \"sample N%%\" or full", text)
}

// Problem is something that is not as it should be.
type Problem struct {
	File string `json:"file,omitempty"`
	What string `json:"what"`
	// Cost says what is lost by it; empty: nothing.
	Cost string `json:"cost,omitempty"`
	// From and To bound the history that is lost, for all recorded resources.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
	// Bad are the names (segments) or IDs (snapshots) that cannot be used.
	Bad []string `json:"-"`
}

// Report is what Verify found.
type Report struct {
	Archive  string    `json:"archive"`
	Cluster  string    `json:"cluster"`
	Chain    int       `json:"manifests"` // read
	Files    int       `json:"files"`     // of them, so many bytes were read
	Read     int64     `json:"bytesRead"`
	Proven   int       `json:"snapshotsProven"` // made again out of history, and equal
	Problems []Problem `json:"problems"`
	// Lost is what the archive knows to be lost, from a repair most of all: nothing new has happened.
	Lost []Problem `json:"lost,omitempty"`
	// Closed are files that were encrypted for other keys than those given: their hashes are right, and no more is known.
	Closed []string `json:"otherKeys,omitempty"`
	// Restorable is what can be restored, given the problems; oldest first.
	Restorable []archive.Range `json:"restorable"`
	// Unknown files are in the archive's directory, and nothing refers to them: what a step that
	// was cut off left behind. 'tidemark repair' removes them once they are old enough (orphanAge).
	Unknown []string      `json:"unknownFiles,omitempty"`
	Took    time.Duration `json:"tookNanoseconds"`
}

// Damaged reports whether anything is lost that was not known to be.
func (r *Report) Damaged() bool { return len(r.Problems) > 0 }

// Verify checks an archive as far as the level says. It changes nothing. Without an identity it can
// check hashes, and not decrypt.
func Verify(ctx context.Context, a *archive.Archive, level Level) (*Report, error) {
	began := time.Now()
	v := &verifier{a: a, s: a.State(), level: level, seed: maphash.MakeSeed(), bad: map[string]bool{}, closed: map[string]bool{}, prints: map[string]uint64{}}
	v.r = Report{Archive: a.Store().String(), Cluster: a.Cluster(), Problems: []Problem{}}
	if level.Full && !a.CanRead() {
		return nil, fmt.Errorf("%w: --level full decrypts everything, give a key with --identity FILE, or use --level checksum", archive.ErrNoIdentity)
	}
	if level.Full { // all would look damaged, after hours
		if err := a.Fits(ctx); err != nil {
			return nil, err
		}
	}
	for _, step := range []func(context.Context) error{v.chain, v.list, v.files, v.states} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	v.holes()
	v.r.Restorable = v.without().Ranges()
	if len(v.r.Restorable) == 0 && len(v.r.Problems) == 0 && v.s.Known.Position.Count > 0 {
		v.problem(Problem{What: "nothing of what was archived can be restored any more: 'tidemark snapshot create' begins anew"})
	}
	slices.Sort(v.r.Closed)
	slices.SortStableFunc(v.r.Problems, func(a, b Problem) int { return a.From.Compare(b.From) })
	v.r.Took = time.Since(began)
	return &v.r, nil
}

type verifier struct {
	a     *archive.Archive
	s     *archive.State
	level Level

	seed maphash.Seed

	mu     sync.Mutex // guards what follows
	r      Report
	bad    map[string]bool   // names of files that cannot be used
	closed map[string]bool   // names of files that no identity given can decrypt
	prints map[string]uint64 // name of a snapshot's file -> fingerprint of its content
	sample [][]byte          // keys at which versions of some objects begin
}

// fingerprint adds up the hashes of keys and values, in any order. It tells two states of one run
// apart, other than by a chance of 2^-64; that of a file is compared with what the archive recorded
// by SHA-256.
type fingerprint struct {
	h   maphash.Hash
	sum uint64
}

func newFingerprint(seed maphash.Seed) *fingerprint {
	f := &fingerprint{}
	f.h.SetSeed(seed)
	return f
}

func (f *fingerprint) add(k, v []byte) {
	f.h.Reset()
	_, _ = f.h.Write(k) // it never fails
	_, _ = f.h.Write(v)
	_ = f.h.WriteByte(byte(len(k)))
	f.sum += f.h.Sum64()
}

func (v *verifier) problem(p Problem) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.r.Problems = append(v.r.Problems, p)
}

func (v *verifier) isBad(file string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.bad[file]
}

// lost notes a file that cannot be used, and what that costs.
func (v *verifier) lost(file, what string) {
	v.mu.Lock()
	v.bad[file] = true
	v.mu.Unlock()
	p := Problem{File: file, What: what}
	for _, g := range v.s.Segments {
		if g.Name == file {
			p.From, p.To, p.Bad = g.From.Time, g.To.Time, append(p.Bad, g.Name)
			p.Cost = fmt.Sprintf("changes of all recorded resources from %s to %s, and the state at any moment after that up to the next full snapshot", clock(g.From.Time), clock(g.To.Time))
		}
	}
	for _, q := range v.s.Snapshots {
		if q.Name == file {
			p.From, p.To, p.Bad = q.Position.Time, q.Position.Time, append(p.Bad, q.ID)
			p.Cost = "snapshot " + q.ID + "; moments after it are built on an older one where there is one"
			if q.Scope != nil {
				p.Cost = "snapshot " + q.ID + ", of a part of the cluster"
			}
		}
	}
	v.problem(p)
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "the beginning"
	}
	return t.UTC().Format(time.RFC3339)
}

// chain reads every manifest and checkpoint again, and checks that each follows the one before.
func (v *verifier) chain(ctx context.Context) error {
	n, problems, err := v.a.CheckChain(ctx)
	v.r.Chain = n
	for _, d := range problems {
		p := Problem{File: d.File, What: d.Err.Error(), Cost: "what that one step brought, if no checkpoint tells of it"}
		if d.Repeated {
			p.Cost = "nothing: the manifest after it says the same"
		}
		v.problem(p)
	}
	return err
}

// list compares the files that are there with those that should be.
func (v *verifier) list(ctx context.Context) error {
	there, err := v.a.List(ctx)
	if err != nil {
		return err
	}
	known := v.s.Files()
	for _, f := range known {
		info, ok := there[f.Name]
		if !ok { // lists may lag
			info, err = v.a.Stat(ctx, f.Name)
			if errors.Is(err, fs.ErrNotExist) {
				v.lost(f.Name, "it is missing")
				continue
			}
			if err != nil {
				return err
			}
		}
		if info.Size != f.Size {
			v.lost(f.Name, fmt.Sprintf("it has %d bytes, and had %d when it was written", info.Size, f.Size))
		}
		v.r.Files++
	}
	for _, g := range v.s.Garbage {
		known[g.Name] = g.File
	}
	for name := range there {
		if _, ok := known[name]; !ok && (strings.HasPrefix(name, "segments/") || strings.HasPrefix(name, "snapshots/")) {
			v.r.Unknown = append(v.r.Unknown, name)
		}
	}
	slices.Sort(v.r.Unknown)
	return nil
}

// files reads files, as far as the level says.
func (v *verifier) files(ctx context.Context) error {
	if !v.level.Checksum {
		return nil
	}
	parallel := 4 // what is waited for is the store
	if v.level.Full {
		parallel = runtime.GOMAXPROCS(0) // ... or the CPU, and each file is in memory as a whole
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	entries := map[string]int{}
	for _, s := range v.s.Segments {
		entries[s.Name] = s.Entries
	}
	states := map[string]string{}
	for _, p := range v.s.Snapshots {
		states[p.Name] = p.State
	}
	all := slices.SortedFunc(maps.Values(v.s.Files()), func(a, b archive.File) int { return cmp.Compare(b.Size, a.Size) })
	for _, f := range all { // the largest first, so that none is left for the end
		if v.isBad(f.Name) || v.level.Percent < 100 && rand.IntN(100) >= v.level.Percent {
			continue
		}
		g.Go(func() error {
			b, err := v.a.ReadFile(ctx, f)
			if d, ok := errors.AsType[*archive.DamageError](err); ok {
				v.lost(f.Name, d.Err.Error())
				return nil
			}
			if err != nil {
				return err
			}
			v.mu.Lock()
			v.r.Read += f.Size
			v.mu.Unlock()
			if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != f.SHA256 {
				v.lost(f.Name, "its hash is wrong")
				return nil
			}
			if !v.level.Full {
				return nil
			}
			return v.content(ctx, f, b, entries, states)
		})
	}
	return g.Wait()
}

// content decrypts a file. Of a segment it reads the time index: its versions are read when states are
// made again. Of a snapshot it reads everything.
func (v *verifier) content(ctx context.Context, f archive.File, b []byte, entries map[string]int, states map[string]string) error {
	t, err := v.a.TablesOf(f, b)
	if errors.Is(err, archive.ErrNoIdentity) { // whoever has the key can read it: it is not lost
		v.mu.Lock()
		v.closed[f.Name] = true
		v.r.Closed = append(v.r.Closed, f.Name)
		v.mu.Unlock()
		return nil
	}
	want, segment := entries[f.Name]
	sum, print, n := archive.NewContentHash(), newFingerprint(v.seed), 0
	var sample [][]byte
	switch {
	case err != nil:
	case segment:
		n, err = t.Entries(func(key []byte) { sample = append(sample, key) })
	default:
		_, err = t.All(func(k, val []byte) error {
			sum.Add(k, val)
			print.add(k, val)
			return errors.Join(context.Cause(ctx), journal.CheckEntry(k, val))
		})
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch {
	case err != nil:
		v.lost(f.Name, err.Error())
	case segment && n != want:
		v.lost(f.Name, fmt.Sprintf("it has %d entries, and had %d when it was written", n, want))
	case !segment && sum.String() != states[f.Name]:
		v.lost(f.Name, "the state in it is not the one that was recorded")
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.prints[f.Name] = print.sum
	v.sample = append(v.sample, sample...)
	return nil
}

// states makes every full snapshot again out of the oldest one of its stretch and what happened since,
// in one pass over each stretch, and compares. It reads every version that there is.
func (v *verifier) states(ctx context.Context) error {
	if !v.level.Full {
		return nil
	}
	usable := v.without()
	usable.Segments = slices.DeleteFunc(usable.Segments, func(g archive.Segment) bool { return v.closed[g.Name] })
	usable.Snapshots = slices.DeleteFunc(usable.Snapshots, func(p archive.Snapshot) bool { return v.closed[p.Name] })
	slices.SortFunc(v.sample, bytes.Compare)
	for _, c := range usable.Chains() {
		if len(c.Segments) == 0 {
			continue
		}
		sums, err := v.remake(ctx, &c)
		if _, trouble := errors.AsType[*archive.StoreError](err); trouble || ctx.Err() != nil {
			return fmt.Errorf("make states again: %w", err)
		}
		first, last := c.Segments[0], c.Segments[len(c.Segments)-1]
		if err != nil {
			p := Problem{What: fmt.Sprintf("the history of this stretch cannot be read to its end: %v", err), From: first.From.Time, To: last.To.Time, Cost: "moments in it, from where it cannot be read"}
			if d, ok := errors.AsType[*archive.DamageError](err); ok {
				p.File = d.File
			}
			v.problem(p)
			continue
		}
		for i, p := range c.Over {
			if sums[i] == v.prints[p.Name] {
				v.r.Proven++
				continue
			}
			v.problem(Problem{
				File: p.Name, What: fmt.Sprintf("snapshot %s is not what its past says it must be", p.ID), From: p.Position.Time, To: p.Position.Time,
				Cost: "either the snapshot or the history before it is wrong; nothing tells which",
			})
		}
	}
	return nil
}

// remake reads a stretch, several parts of it at once, and gives the fingerprints of the states that
// its snapshots must have.
func (v *verifier) remake(ctx context.Context, c *archive.Chain) ([]uint64, error) {
	at := make([]journal.Position, len(c.Over))
	for i, p := range c.Over {
		at[i] = p.Position
	}
	if len(at) == 0 { // its versions are to be read all the same
		at = []journal.Position{c.Segments[len(c.Segments)-1].To}
	}
	t, err := v.a.Tables(ctx, c.Segments, c.Under)
	if err != nil {
		return nil, err
	}
	sums := make([]uint64, len(at))
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	parts := 4 * runtime.GOMAXPROCS(0)
	var from []byte
	for i := 1; i <= parts; i++ {
		var to []byte
		if i < parts && len(v.sample) > 0 {
			to = v.sample[i*len(v.sample)/parts]
		}
		if i < parts && bytes.Compare(to, from) <= 0 {
			continue
		}
		q := journal.States{At: at, From: from, To: to}
		g.Go(func() error {
			prints := make([]*fingerprint, len(at))
			for i := range prints {
				prints[i] = newFingerprint(v.seed)
			}
			err := t.ExportStates(ctx, q, func(i int, k, val []byte) error {
				prints[i].add(k, val)
				return nil
			})
			mu.Lock()
			defer mu.Unlock()
			for i, p := range prints {
				sums[i] += p.sum
			}
			return err
		})
		from = to
	}
	return sums, g.Wait()
}

// without is the state without what cannot be used.
func (v *verifier) without() *archive.State {
	n := *v.s
	n.Segments = slices.DeleteFunc(slices.Clone(v.s.Segments), func(g archive.Segment) bool { return v.bad[g.Name] })
	n.Snapshots = slices.DeleteFunc(slices.Clone(v.s.Snapshots), func(p archive.Snapshot) bool { return v.bad[p.Name] })
	return &n
}

// holes tells of stretches between segments that no file covers: those that are known to be lost apart from others.
func (v *verifier) holes() {
	for i := 1; i < len(v.s.Segments); i++ {
		a, b := v.s.Segments[i-1], v.s.Segments[i]
		if !b.From.Time.After(a.To.Time) {
			continue
		}
		p := Problem{
			What: "no segment covers this stretch", From: a.To.Time, To: b.From.Time,
			Cost: fmt.Sprintf("changes of all recorded resources from %s to %s", clock(a.To.Time), clock(b.From.Time)),
		}
		if !v.s.GivenUp(p.From, p.To) {
			v.problem(p)
			continue
		}
		p.What = "it is known to be lost"
		v.r.Lost = append(v.r.Lost, p)
	}
}
