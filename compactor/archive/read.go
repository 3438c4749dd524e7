package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/tidemark-backup/tidemark/journal"
)

// readers is how many files are opened at once.
const readers = 8

// openFile makes a file of the archive readable, without reading more than its ends.
func (a *Archive) openFile(ctx context.Context, f File) (sstable.ReadableFile, error) {
	if len(a.o.Identities) == 0 {
		return nil, fmt.Errorf("%w: give one with --identity FILE", ErrNoIdentity)
	}
	remote := &remoteFile{ctx: ctx, store: a.store, name: f.Name, path: a.dir + f.Name, size: f.Size, cache: a.cache}
	t, err := decrypted(f.Name, remote, f.Size, a.o.Identities)
	if isDamage(err) { // perhaps on its way only
		remote.forget()
		t, err = decrypted(f.Name, remote, f.Size, a.o.Identities)
	}
	if err != nil {
		return nil, err
	}
	t.forget = remote.forget
	return t, nil
}

func isDamage(err error) bool {
	_, ok := errors.AsType[*DamageError](err)
	return ok
}

func decrypted(name string, r io.ReaderAt, size int64, identities []age.Identity) (*tableFile, error) {
	plain, n, err := age.DecryptReaderAt(r, size, identities...)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return nil, fmt.Errorf("%w: %s was encrypted for others than the identities given", ErrNoIdentity, name)
	}
	if err != nil {
		return nil, fileTrouble(name, err)
	}
	return &tableFile{plain: plain, name: name, size: n}, nil
}

// fileTrouble tells damage from a store that does not answer. age and Pebble have no type for it.
func fileTrouble(name string, err error) error {
	if _, ok := errors.AsType[*DamageError](err); ok {
		return err
	}
	if s, ok := errors.AsType[*StoreError](err); ok { // in its own words: age and Pebble add theirs
		if errors.Is(s, fs.ErrNotExist) {
			return &DamageError{File: name, Err: errMissing}
		}
		return s
	}
	return &DamageError{File: name, Err: err}
}

var errMissing = errors.New("it is missing")

// StoreError is returned when the store did not give a part of a file.
type StoreError struct {
	File string
	Err  error
}

// Error names the file.
func (e *StoreError) Error() string { return fmt.Sprintf("read archive file %s: %v", e.File, e.Err) }

// Unwrap gives the cause.
func (e *StoreError) Unwrap() error { return e.Err }

// tables makes one history of some files, the newest first. It opens all of them at once, and,
// with seek, reads where that key is: one after the other they would each cost a round trip.
func (a *Archive) tables(ctx context.Context, files []File, seek []byte) (*journal.Tables, error) {
	g, opening := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for _, f := range files {
		g.Go(func() error {
			if err := opening.Err(); err != nil {
				return err
			}
			it, err := a.iterate(ctx, []File{f}, &pebble.IterOptions{LowerBound: seek})
			if err != nil {
				return err
			}
			if seek != nil {
				it.First()
			}
			return errors.Join(fileError(f.Name, it.Error()), it.Close())
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return journal.NewTables(func(o *pebble.IterOptions) (*pebble.Iterator, error) { return a.iterate(ctx, files, o) }), nil
}

func fileError(name string, err error) error {
	if err == nil {
		return nil
	}
	return fileTrouble(name, err)
}

// iterate merges files, the newest first.
func (a *Archive) iterate(ctx context.Context, files []File, o *pebble.IterOptions) (*pebble.Iterator, error) {
	levels := make([][]sstable.ReadableFile, len(files))
	for i, f := range files {
		r, err := a.openFile(ctx, f)
		if err != nil {
			return nil, err
		}
		levels[i] = []sstable.ReadableFile{r}
	}
	return mergeTables(levels, o)
}

func mergeTables(levels [][]sstable.ReadableFile, o *pebble.IterOptions) (it *pebble.Iterator, err error) {
	defer func() {
		if p := recover(); p != nil { // Pebble trusts tables more than a table from afar deserves
			it, err = nil, &DamageError{File: levels[0][0].(*tableFile).name, Err: fmt.Errorf("%v", p)}
		}
	}()
	it, err = pebble.NewExternalIter(tableOptions(), o, levels)
	if err != nil {
		name := levels[0][0].(*tableFile).name
		return nil, fileTrouble(name, err)
	}
	return it, nil
}

// History reads the archive as it was when it was made, as journal.Journal reads a journal. A file that turns out to be lost
// costs what only it holds: the rest is read as if it had been taken out of the archive.
type History struct {
	a *Archive
	// OnLost is told of each file that turns out to be lost; nil: the archive's logger is, and a walk over changes, which would leave
	// some out without a word to who asked, fails.
	OnLost func(*DamageError)

	mu    sync.Mutex // guards what follows
	state *State
}

// History is the history up to the newest known state.
func (a *Archive) History() *History { return &History{a: a, state: a.State()} }

// State is the state that is read: without the files that turned out to be lost.
func (h *History) State() *State {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

// lacks does without a file that is lost; false when the error is another one, or nothing is gained.
func (h *History) lacks(ctx context.Context, err error) bool {
	d, ok := errors.AsType[*DamageError](err)
	if !ok {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, used := h.state.Files()[d.File]; !used { // somebody else found out, or it is a file of the chain
		return strings.HasPrefix(d.File, "segments/") || strings.HasPrefix(d.File, "snapshots/")
	}
	if err := h.a.Refresh(ctx); err == nil {
		if now := h.a.State(); now.Files()[d.File].Name == "" { // it was merged into another one meanwhile
			h.state = now
			return true
		}
	}
	h.state = h.state.Without(d.File)
	if h.OnLost != nil {
		h.OnLost(d)
	} else {
		h.a.log.Warn("a file of the archive is lost, and what only it holds is left out", zap.String("file", d.File), zap.Error(d.Err))
	}
	return true
}

// View opens a view of all versions that a fold at the cut needs. near, when not nil, is a
// namespace that will be read first.
func (h *History) View(ctx context.Context, cut journal.Cut, near *string) (v *journal.View, err error) {
	for again := true; again; again = h.lacks(ctx, err) {
		v, err = h.view(ctx, cut, near)
	}
	return v, err
}

func (h *History) view(ctx context.Context, cut journal.Cut, near *string) (*journal.View, error) {
	segments, under, err := h.State().plan(cut)
	if err != nil {
		return nil, err
	}
	var seek []byte
	if near != nil {
		seek = journal.NamespaceKey(*near)
	}
	t, err := h.a.tables(ctx, filesOf(segments, under), seek)
	if err != nil {
		return nil, err
	}
	return t.View()
}

// FilesAt tells how many files a fold at the cut opens, and their sizes together.
func (h *History) FilesAt(cut journal.Cut) (files int, bytes int64, err error) {
	segments, under, err := h.State().plan(cut)
	for _, f := range filesOf(segments, under) {
		files++
		bytes += f.Size
	}
	return files, bytes, err
}

func filesOf(segments []Segment, under *Snapshot) []File {
	files := make([]File, 0, len(segments)+1)
	for _, g := range segments {
		files = append(files, g.File)
	}
	if under != nil {
		files = append(files, under.File)
	}
	return files
}

// Tail opens a walk over the events observed after from and up to to. What happened in a hole
// of the archive is not told; see State.Ranges.
func (h *History) Tail(ctx context.Context, from, to time.Time) (t *journal.Tail, err error) {
	for again := true; again; again = h.OnLost != nil && h.lacks(ctx, err) {
		t, err = h.tail(ctx, from, to)
	}
	return t, err
}

func (h *History) tail(ctx context.Context, from, to time.Time) (*journal.Tail, error) {
	var files []File
	var under *Snapshot
	state := h.State()
	for i := range state.Snapshots { // what came before the first changes
		if p := &state.Snapshots[i]; p.Scope == nil && !p.Position.Time.After(from) {
			under = p
		}
	}
	for i := len(state.Segments) - 1; i >= 0; i-- {
		g := &state.Segments[i]
		if g.From.Time.Before(to) && (under == nil || g.To.Time.After(under.Position.Time)) {
			files = append(files, g.File)
		}
	}
	if under != nil {
		files = append(files, under.File)
	}
	if len(files) == 0 {
		return journal.NewTables(noTables).Tail(from, to)
	}
	t, err := h.a.tables(ctx, files, nil)
	if err != nil {
		return nil, err
	}
	return t.Tail(from, to)
}

func noTables(o *pebble.IterOptions) (*pebble.Iterator, error) {
	return pebble.NewExternalIter(tableOptions(), o, nil)
}

// CutAt is the cut a moment stands for; the zero Cut when the archive does not cover it. Nothing
// is known of what came after the last moment archived.
func (h *History) CutAt(ctx context.Context, t time.Time) (cut journal.Cut, err error) {
	for again := true; again; again = h.lacks(ctx, err) {
		cut, err = h.cutAt(ctx, t)
	}
	return cut, err
}

func (h *History) cutAt(ctx context.Context, t time.Time) (journal.Cut, error) {
	state := h.State()
	last := state.Known.Position
	if !t.Before(last.Time) {
		return journal.Cut{Revision: last.Revision, Time: t.UTC()}, nil
	}
	var within *Segment
	for i := range state.Segments {
		g := &state.Segments[i]
		if g.From.Time.After(t) {
			break
		}
		if t.Before(g.To.Time) {
			within = g
			break
		}
		within = nil
	}
	if within == nil { // a snapshot that stands alone, or a hole
		for i := len(state.Snapshots) - 1; i >= 0; i-- {
			if p := &state.Snapshots[i]; p.Position.Time.Equal(t) {
				return p.Position.Cut, nil
			}
		}
		for i := range state.Segments {
			if g := &state.Segments[i]; g.To.Time.Equal(t) {
				return g.To.Cut, nil
			}
		}
		return journal.Cut{}, nil
	}
	tables, err := h.a.tables(ctx, []File{within.File}, nil)
	if err != nil {
		return journal.Cut{}, err
	}
	r, found, err := tables.RevisionAt(t)
	if err != nil {
		return journal.Cut{}, fileError(within.Name, err)
	}
	if !found {
		if within.From.Time.IsZero() {
			return journal.Cut{}, nil
		}
		r = within.From.Revision
	}
	return journal.Cut{Revision: r, Time: t.UTC()}, nil
}

// CutOf is the cut of a revision of the main counter, as Journal.CutOf. The zero Cut means that
// the archive does not know when the counter stood there.
func (h *History) CutOf(ctx context.Context, r journal.Revision) (cut journal.Cut, err error) {
	for again := true; again; again = h.lacks(ctx, err) {
		cut, err = h.cutOf(ctx, r)
	}
	return cut, err
}

func (h *History) cutOf(ctx context.Context, r journal.Revision) (journal.Cut, error) {
	state := h.State()
	last := state.Known.Position
	if r.Epoch == 0 {
		r.Epoch = last.Epoch
	}
	if r.Compare(last.Revision) > 0 {
		return journal.Cut{}, nil
	}
	for i := range state.Segments {
		g := &state.Segments[i]
		if g.To.Revision.Compare(r) < 0 {
			continue
		}
		if !g.From.Time.IsZero() && g.From.Revision.Compare(r) >= 0 { // it was passed in what is gone
			return journal.Cut{Revision: r, Time: g.From.Time}, nil
		}
		tables, err := h.a.tables(ctx, []File{g.File}, nil)
		if err != nil {
			return journal.Cut{}, err
		}
		at, err := tables.FirstReaching(r)
		return journal.Cut{Revision: r, Time: at}, fileError(g.Name, err)
	}
	return journal.Cut{}, nil
}

// Tables makes one history of some segments, the oldest first, and a snapshot under them, if any.
func (a *Archive) Tables(ctx context.Context, segments []Segment, under *Snapshot) (*journal.Tables, error) {
	files := make([]File, 0, len(segments)+1)
	for _, g := range slices.Backward(segments) {
		files = append(files, g.File)
	}
	if under != nil {
		files = append(files, under.File)
	}
	return a.tables(ctx, files, nil)
}

// CanRead reports whether there is an identity to read files with.
func (a *Archive) CanRead() bool { return len(a.o.Identities) > 0 }

// Remove removes a file that is no longer part of the archive; ErrHeld when a lock keeps it.
func (a *Archive) Remove(ctx context.Context, name string) error {
	return a.store.Remove(ctx, a.dir+name)
}

// Hold sets a legal hold on a file, or lifts it.
func (a *Archive) Hold(ctx context.Context, name string, on bool) error {
	return a.store.Hold(ctx, a.dir+name, on)
}
