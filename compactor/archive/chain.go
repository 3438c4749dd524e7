package archive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// readFormat checks the file "format"; the hash is empty when it is damaged.
func (a *Archive) readFormat(ctx context.Context) (hash string, err error) {
	b, err := a.readAll(ctx, "format")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var f formatFile
	bad := unwrap("format", b, formatVersion, &f)
	if errors.Is(bad, ErrFormat) {
		return "", bad
	}
	if err != nil || bad != nil { // the directory's name tells the cluster as well
		a.damaged("format", errors.Join(err, bad))
		return "", nil
	}
	if f.Cluster != a.o.Cluster {
		return "", fmt.Errorf("%s%s: %w, %s", a.dir, "format", ErrOtherCluster, f.Cluster)
	}
	return hashOf(b), nil
}

// load reads the newest checkpoint and the manifests after it.
func (a *Archive) load(ctx context.Context, format string) error {
	s, check, err := a.newestCheckpoint(ctx)
	if err != nil {
		return err
	}
	if s == nil {
		s = &State{Format: checkpointVersion, Cluster: a.o.Cluster, Hash: format, FormatHash: format, Broken: format == ""}
	}
	if format != "" && s.FormatHash != format {
		a.damaged("format", errors.New("it is not the one that the archive began with"))
	}
	listed := s.Seq
	for f, err := range a.store.List(ctx, a.dir+"manifests/", a.dir+manifestName(s.Seq)) {
		if err != nil {
			return fmt.Errorf("list manifests: %w", err)
		}
		if seq, err := seqOf(f.Name); err == nil {
			listed = max(listed, seq)
		}
	}
	if s, err = a.readOn(ctx, s, listed); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state, a.check = s, check
	a.age = s.Age
	a.looked = a.o.Clock()
	if !s.Time.IsZero() { // since then nobody has counted
		a.age += min(max(a.looked.Sub(s.Time), 0), maxLeap)
	}
	return nil
}

// newestCheckpoint is the newest one that can be read; nil when there is none.
func (a *Archive) newestCheckpoint(ctx context.Context) (*State, *Link, error) {
	var names []string
	for f, err := range a.store.List(ctx, a.dir+"checkpoints/", "") {
		if err != nil {
			return nil, nil, fmt.Errorf("list checkpoints: %w", err)
		}
		names = append(names, strings.TrimPrefix(f.Name, a.dir))
	}
	var first *DamageError
	for _, name := range slices.Backward(names) {
		s, link, err := a.readCheckpoint(ctx, name)
		if err == nil {
			return s, link, nil
		}
		damage, ok := errors.AsType[*DamageError](err)
		if !ok {
			return nil, nil, err
		}
		a.damaged(name, damage.Err)
		first = damage
	}
	if first != nil {
		if _, err := a.store.Stat(ctx, a.dir+manifestName(1)); errors.Is(err, fs.ErrNotExist) {
			return nil, nil, first // the chain does not reach back to its beginning
		}
	}
	return nil, nil, nil
}

func (a *Archive) readCheckpoint(ctx context.Context, name string) (*State, *Link, error) {
	seq, err := seqOf(name)
	if err != nil {
		return nil, nil, &DamageError{File: name, Err: err}
	}
	b, err := a.readAll(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	link := &Link{Seq: seq, SHA256: hashOf(b)}
	// The manifest after it vouches for it, if there is one.
	next, err := a.readAll(ctx, manifestName(seq+1))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	if m, bad := parseManifest(manifestName(seq+1), next, a.o.Cluster); err == nil && bad == nil && m.Checkpoint != nil && m.Checkpoint.Seq == seq && *m.Checkpoint != *link {
		return nil, nil, &DamageError{File: name, Err: errors.New("it is not the one that the chain names")}
	}
	var s State
	if err := unwrap(name, b, checkpointVersion, &s); err != nil {
		return nil, nil, err
	}
	if s.Cluster != a.o.Cluster {
		return nil, nil, fmt.Errorf("%s: %w", name, ErrOtherCluster)
	}
	if s.Seq != seq {
		return nil, nil, &DamageError{File: name, Err: errors.New("it says that it is another one")}
	}
	return &s, link, nil
}

// readOn applies the manifests after s. Lists may lag, so after the last one listed the next
// numbers are tried until there is none. A manifest that is damaged or missing is passed over:
// what it brought is not there, and nothing else.
func (a *Archive) readOn(ctx context.Context, s *State, listed uint64) (*State, error) {
	const atOnce = 16
	for {
		n := 1
		if listed > s.Seq {
			n = int(min(listed-s.Seq, atOnce))
		}
		texts := make([][]byte, n)
		g, ctx := errgroup.WithContext(ctx)
		for i := range texts {
			g.Go(func() error {
				b, err := a.readAll(ctx, manifestName(s.Seq+1+uint64(i)))
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				if _, bad := parseManifest(manifestName(s.Seq+1+uint64(i)), b, a.o.Cluster); err == nil && bad != nil {
					b, err = a.readAll(ctx, manifestName(s.Seq+1+uint64(i))) // it may have been the way here
				}
				texts[i] = b
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		if listed <= s.Seq && texts[0] == nil {
			return s, nil
		}
		for _, b := range texts {
			var err error
			if s, err = a.readOne(s, b); err != nil {
				return nil, err
			}
		}
	}
}

// readOne applies the manifest after s, of which b is the text; nil: it is missing.
func (a *Archive) readOne(s *State, b []byte) (*State, error) {
	n, m, err := a.next(s, b)
	if err == nil {
		a.mu.Lock()
		a.last = m
		a.unheard = a.unheard || m != nil && a.tried[m.ID]
		a.mu.Unlock()
	}
	return n, err
}

// next is readOne, which gives the manifest as well; it is nil when it is damaged.
func (a *Archive) next(s *State, b []byte) (*State, *Manifest, error) {
	name := manifestName(s.Seq + 1)
	m, err := parseManifest(name, b, a.o.Cluster)
	if b == nil {
		err = &DamageError{File: name, Err: errors.New("it is missing")}
	}
	if damage, ok := errors.AsType[*DamageError](err); ok {
		a.damaged(name, damage.Err)
		n := *s
		n.Seq, n.Hash, n.Broken = s.Seq+1, hashOf(b), true
		return &n, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	switch {
	case s.Broken && m.Before != nil && m.Before.Seq == s.Seq:
		s = s.apply(m.Before, m.Prev)
		a.repeated(manifestName(s.Seq))
	case m.Prev == s.Hash || s.Broken:
	case s.Seq == 0:
		a.damaged("format", errors.New("it is not the one that the archive began with"))
	default:
		a.damaged(manifestName(s.Seq), errors.New("it is not the one that the next manifest follows"))
	}
	return s.apply(m, hashOf(b)), m, nil
}

// repeated notes that of a damaged manifest the next one says the same.
func (a *Archive) repeated(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d := a.damage[name]; d != nil {
		a.damage[name] = &DamageError{File: d.File, Err: d.Err, Repeated: true}
	}
}

// Broken reports whether a file of the chain is damaged and nothing else says the same.
func (a *Archive) Broken() bool {
	return slices.ContainsFunc(a.Damage(), func(d *DamageError) bool { return !d.Repeated })
}

// damaged notes that a file is not what it was.
func (a *Archive) damaged(name string, why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.damage[name] == nil {
		a.damage[name] = &DamageError{File: name, Err: why}
		a.log.Warn("a file of the archive is damaged", zap.String("file", name), zap.Error(why))
	}
}

// Damage tells which files of the chain of manifests were found to be damaged or missing, by name.
func (a *Archive) Damage() []*DamageError {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []*DamageError
	for _, name := range slices.Sorted(maps.Keys(a.damage)) {
		all = append(all, a.damage[name])
	}
	return all
}

// Checkpoints are the numbers of the checkpoints, oldest first.
func (a *Archive) Checkpoints(ctx context.Context) ([]uint64, error) {
	var all []uint64
	for f, err := range a.store.List(ctx, a.dir+"checkpoints/", "") {
		if err != nil {
			return nil, fmt.Errorf("list checkpoints: %w", err)
		}
		if seq, err := seqOf(f.Name); err == nil {
			all = append(all, seq)
		}
	}
	return all, nil
}

// CheckpointAge is the archive's age at a checkpoint.
func (a *Archive) CheckpointAge(ctx context.Context, seq uint64) (time.Duration, error) {
	s, _, err := a.readCheckpoint(ctx, checkpointName(seq))
	if err != nil {
		return 0, err
	}
	return s.Age, nil
}

// Superseded are the manifests and checkpoints that the checkpoint State.ChainFrom speaks for.
func (a *Archive) Superseded(ctx context.Context) ([]string, error) {
	from := a.State().ChainFrom
	var all []string
	for _, dir := range []string{"manifests/", "checkpoints/"} {
		for f, err := range a.store.List(ctx, a.dir+dir, "") {
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", dir, err)
			}
			seq, err := seqOf(f.Name)
			if err != nil {
				continue
			}
			if seq > from || seq == from && dir == "checkpoints/" {
				break
			}
			all = append(all, strings.TrimPrefix(f.Name, a.dir))
		}
	}
	return all, nil
}
