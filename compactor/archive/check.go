package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"

	"github.com/tidemark-backup/tidemark/journal"
)

// CheckChain reads all manifests and checkpoints again and checks that each follows the one before it,
// and that together they make the state that is known. It returns how many manifests it read.
func (a *Archive) CheckChain(ctx context.Context) (n int, problems []*DamageError, err error) {
	c := newArchive(a.store, a.o)
	c.dir, c.o.Cluster = a.dir, a.o.Cluster
	format, err := c.readFormat(ctx)
	if err != nil {
		return 0, nil, err
	}
	known := a.State()
	s := &State{Format: checkpointVersion, Cluster: a.o.Cluster, Hash: format, FormatHash: format, Broken: format == ""}
	if known.ChainFrom > 0 {
		s, _, err = c.readCheckpoint(ctx, checkpointName(known.ChainFrom))
		if d, ok := errors.AsType[*DamageError](err); ok {
			return 0, append(c.Damage(), d), nil
		}
		if err != nil {
			return 0, nil, err
		}
		if format != "" && s.FormatHash != format {
			c.damaged("format", errors.New("it is not the one that the archive began with"))
		}
	}
	points, err := c.Checkpoints(ctx)
	if err != nil {
		return 0, nil, err
	}
	for s.Seq < known.Seq {
		b, err := c.readAll(ctx, manifestName(s.Seq+1))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return n, nil, err
		}
		if s, err = c.readOne(s, b); err != nil {
			return n, nil, err
		}
		n++
		if slices.Contains(points, s.Seq) && !s.Broken {
			if err := c.compareCheckpoint(ctx, s); err != nil {
				return n, nil, err
			}
		}
	}
	for _, d := range a.Damage() { // found when it was opened, and perhaps not in the chain any more
		if !slices.ContainsFunc(c.Damage(), func(o *DamageError) bool { return o.File == d.File }) {
			c.damaged(d.File, d.Err)
		}
	}
	return n, c.Damage(), nil
}

// compareCheckpoint checks that a checkpoint says what the chain up to it makes.
func (a *Archive) compareCheckpoint(ctx context.Context, s *State) error {
	name := checkpointName(s.Seq)
	got, _, err := a.readCheckpoint(ctx, name)
	if d, ok := errors.AsType[*DamageError](err); ok {
		a.damaged(name, d.Err)
		return nil
	}
	if err != nil {
		return err
	}
	want, err := wrap(s)
	if err != nil {
		return err
	}
	have, err := wrap(got)
	if err == nil && !bytes.Equal(want, have) && !a.Broken() {
		a.damaged(name, errors.New("it does not say what the manifests up to it make"))
	}
	return err
}

// List are all files of the archive, by name.
func (a *Archive) List(ctx context.Context) (map[string]FileInfo, error) {
	all := map[string]FileInfo{}
	for f, err := range a.store.List(ctx, a.dir, "") {
		if err != nil {
			return nil, fmt.Errorf("list the archive: %w", err)
		}
		f.Name = strings.TrimPrefix(f.Name, a.dir)
		all[f.Name] = f
	}
	return all, nil
}

// Stat tells of one file.
func (a *Archive) Stat(ctx context.Context, name string) (FileInfo, error) {
	return a.store.Stat(ctx, a.dir+name)
}

// ReadFile reads a whole file into memory. What has not the size that it was written with is a
// *DamageError.
func (a *Archive) ReadFile(ctx context.Context, f File) ([]byte, error) {
	const piece = 8 << 20
	b := make([]byte, f.Size)
	for off := int64(0); off < f.Size; off += piece {
		err := a.store.ReadAt(ctx, a.dir+f.Name, b[off:min(off+piece, f.Size)], off)
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, fs.ErrNotExist) {
			return nil, &DamageError{File: f.Name, Err: err}
		}
		if err != nil {
			return nil, &StoreError{File: f.Name, Err: err}
		}
	}
	return b, nil
}

// TablesOf makes a history of one file that was read into memory.
func (a *Archive) TablesOf(f File, b []byte) (*journal.Tables, error) {
	if len(a.o.Identities) == 0 {
		return nil, ErrNoIdentity
	}
	plain, size, err := age.DecryptReaderAt(bytes.NewReader(b), int64(len(b)), a.o.Identities...)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return nil, fmt.Errorf("%w: %s was encrypted for others than the identities given", ErrNoIdentity, f.Name)
	}
	if err != nil {
		return nil, fileTrouble(f.Name, err)
	}
	return journal.NewTables(func(o *pebble.IterOptions) (*pebble.Iterator, error) {
		return mergeTables([][]sstable.ReadableFile{{&tableFile{plain: plain, name: f.Name, size: size}}}, o)
	}), nil
}

// Fits returns ErrNoIdentity when the identities are not the archive's: when they decrypt none of its first and last files,
// though these are as they were written.
func (a *Archive) Fits(ctx context.Context) error {
	s, wrong := a.State(), false
	var ends []File
	if n := len(s.Segments); n > 0 {
		ends = append(ends, s.Segments[n-1].File, s.Segments[0].File)
	}
	if n := len(s.Snapshots); n > 0 {
		ends = append(ends, s.Snapshots[n-1].File, s.Snapshots[0].File)
	}
	for _, f := range ends {
		b, err := a.ReadFile(ctx, f)
		if isDamage(err) { // others tell of it
			continue
		}
		if err != nil {
			return err
		}
		_, err = a.TablesOf(f, b)
		if err == nil {
			return nil
		}
		wrong = wrong || errors.Is(err, ErrNoIdentity) && hashOf(b) == f.SHA256
	}
	if !wrong {
		return nil
	}
	given := "what was given tells no recipient"
	if _, texts := RecipientsOf(a.o.Identities); len(texts) > 0 {
		given = "what was given is the key of " + strings.Join(texts, ", ")
	}
	return fmt.Errorf("%w: %s, and none of the files that were tried was encrypted for that: nothing is said about damage; give the right key with --identity FILE ('tidemark key show FILE' tells whose it is)", ErrNoIdentity, given)
}

// Chain is a stretch of history without a hole: what it begins with, the segments that lead on, and the full
// snapshots over it, which the rest must make again.
type Chain struct {
	Under    *Snapshot // nil: the beginning
	Segments []Segment // oldest first
	Over     []Snapshot
}

// Chains are the stretches of history, oldest first.
func (s *State) Chains() []Chain {
	var all []Chain
	var reach time.Time
	for _, b := range slices.Backward(s.bases()) { // oldest first
		if n := len(all); n > 0 && !b.position.Time.After(reach) {
			all[n-1].Over = append(all[n-1].Over, *b.snapshot)
			continue
		}
		c := Chain{Under: b.snapshot}
		c.Segments, _ = s.follow(b.position, b.position.Time)
		reach = b.position.Time
		if n := len(c.Segments); n > 0 {
			reach = c.Segments[n-1].To.Time
		}
		all = append(all, c)
	}
	return all
}

// ContentHash is the hash of keys and values in their order, each after its length.
type ContentHash struct {
	h   hash.Hash
	buf []byte
}

// NewContentHash begins one.
func NewContentHash() *ContentHash { return &ContentHash{h: sha256.New()} }

// Add adds a key.
func (c *ContentHash) Add(k, v []byte) {
	c.buf = binary.AppendUvarint(c.buf[:0], uint64(len(k)))
	c.buf = append(c.buf, k...)
	c.buf = binary.AppendUvarint(c.buf, uint64(len(v)))
	c.h.Write(c.buf)
	c.h.Write(v)
}

// String is the hash in hex.
func (c *ContentHash) String() string { return hex.EncodeToString(c.h.Sum(nil)) }
