package repository

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kopia/kopia/repo/blob"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// What an index listed looks, once the index is lost from the store, as if no backup needed it: backups that do need it are found not to be whole, but
// maintenance would free the packs, and bringing the index back would no longer help. Nothing of Kopia's says which indexes there should be. So we note
// the names: a backup those that it wrote, a maintenance, before anything else, all there are, in place of the notes that it found. One that
// is noted and missing is lost unless what is there supersedes it, and then a maintenance stops before it does anything.
//
// Why no alarm is false: in Kopia 0.22.3, indexes are removed in two places. CleanupSupersededIndexes, which only maintenance calls, removes those of
// an epoch (xnEPOCH_) some hours after a complete compaction of it (xsEPOCH_) was written; nothing removes compactions, of epochs or of ranges (xr).
// CleanupMarkers removes the marker of an epoch (xe) when there are newer ones. Writers compact nothing; one that was too slow takes
// back the index that it just wrote, which our storage leaves where it is: what it lists is there. So the rule needs no note of what was removed, and
// a kill at any moment leaves nothing that looks lost:
//   - A note is written after the indexes that it names are durable. Killed before it, an index is not noted until the next maintenance.
//   - Notes have random names, are created once, and those of all count together: writers side by side overwrite nothing.
//   - A maintenance writes its note before it removes those that it has read. Killed in between, old ones say what is superseded, or true.
//
// What it does not see: an index that is lost before it is noted, or while the maintenance runs that compacts its epoch.

// ErrLostIndex is returned by Maintain while an index is missing that no maintenance removed.
var ErrLostIndex = errors.New("an index of the repository of volumes is lost from the store")

const (
	// notePrefix is what the names of notes begin with, among Kopia's files: movers may create files nowhere else.
	notePrefix = "tidemark-indexes-"
	noteLimit  = 16 << 20
	// noteGone begins the lines of what is not missed any more, though a note names it that cannot be removed: a lock may hold it.
	noteGone = "gone "
	// noteSum begins the last line of a note: a damaged one must not name what never was.
	noteSum = "sha256 "
)

// kinds are the indexes that are noted: of an epoch, compactions of one and of several, and the markers of epochs. Watermarks (xw) only spare work.
var kinds = []string{"xn", "xs", "xr", "xe"}

func isNotable(id blob.ID) bool {
	return slices.ContainsFunc(kinds, func(k string) bool { return strings.HasPrefix(string(id), k) })
}

// wrote takes down that an index is in the store.
func (s *storage) wrote(id blob.ID) {
	if !isNotable(id) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.indexes = append(s.indexes, id)
}

// noteIndexes notes the indexes that this process wrote since it last did. Without it they are noted by the next maintenance.
func (r *Repository) noteIndexes(ctx context.Context) {
	s := r.storage
	s.mu.Lock()
	ids := s.indexes
	s.indexes = nil
	s.mu.Unlock()
	if len(ids) == 0 {
		return
	}
	if err := r.writeNote(ctx, ids, nil); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.indexes = append(s.indexes, ids...)
	}
}

func (r *Repository) writeNote(ctx context.Context, ids, gone []blob.ID) error {
	b := encodeNote(ids, gone)
	err := r.o.Store.Create(ctx, r.storage.dir+notePrefix+rand.Text(), bytes.NewReader(b), int64(len(b)), archive.CreateOptions{})
	if err != nil {
		return fmt.Errorf("note which indexes there are: %w", err)
	}
	return nil
}

func encodeNote(ids, gone []blob.ID) []byte {
	var b bytes.Buffer
	for _, id := range ids {
		b.WriteString(string(id) + "\n")
	}
	for _, id := range gone {
		b.WriteString(noteGone + string(id) + "\n")
	}
	sum := sha256.Sum256(b.Bytes())
	b.WriteString(noteSum + hex.EncodeToString(sum[:]) + "\n")
	return b.Bytes()
}

// decodeNote reads what encodeNote wrote. A note that is damaged says nothing.
func decodeNote(b []byte) (ids, gone []blob.ID) {
	at := bytes.LastIndex(b, []byte(noteSum))
	if at < 0 {
		return nil, nil
	}
	for line := range strings.Lines(string(b[:at])) {
		name := strings.TrimSuffix(line, "\n")
		if not, ok := strings.CutPrefix(name, noteGone); ok {
			gone = append(gone, blob.ID(not))
		} else {
			ids = append(ids, blob.ID(name))
		}
	}
	if !bytes.Equal(encodeNote(ids, gone), b) {
		return nil, nil
	}
	return ids, gone
}

// notes are what all notes say.
type notes struct {
	named, gone map[blob.ID]bool
	files       []string // damaged ones too
}

// noted reads the notes.
func (r *Repository) noted(ctx context.Context) (n *notes, err error) {
	n = &notes{named: map[blob.ID]bool{}, gone: map[blob.ID]bool{}}
	for f, err := range r.o.Store.List(ctx, r.storage.dir+notePrefix, "") {
		if err != nil {
			return nil, r.storage.note(ctx, err)
		}
		n.files = append(n.files, f.Name)
		if f.Size > noteLimit {
			continue
		}
		b := make([]byte, f.Size)
		if err := r.o.Store.ReadAt(ctx, f.Name, b, 0); err != nil {
			// A maintenance may just have removed it, in favour of another one, which the next look finds.
			if err := r.storage.note(ctx, err); !errors.Is(err, blob.ErrBlobNotFound) {
				return nil, fmt.Errorf("read which indexes there were: %w", err)
			}
			continue
		}
		ids, gone := decodeNote(b)
		for _, id := range ids {
			n.named[id] = true
		}
		for _, id := range gone {
			n.gone[id] = true
		}
	}
	return n, nil
}

// missed are those that are to be there, or superseded.
func (n *notes) missed() (ids []blob.ID) {
	for id := range n.named {
		if !n.gone[id] {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// lostIndexes are the indexes that are noted, missing and not superseded. With it come all that are there, and the notes.
func (r *Repository) lostIndexes(ctx context.Context) (lost, there []blob.ID, n *notes, err error) {
	n, err = r.noted(ctx) // first: what is noted is there already
	if err != nil {
		return nil, nil, nil, err
	}
	if err := r.storage.ListBlobs(ctx, "x", func(m blob.Metadata) error {
		if isNotable(m.BlobID) {
			there = append(there, m.BlobID)
		}
		return nil
	}); err != nil {
		return nil, nil, nil, fmt.Errorf("list the indexes: %w", err)
	}
	for _, id := range unaccounted(n.missed(), there) {
		_, err := r.storage.GetMetadata(ctx, id) // a list may lag
		if errors.Is(err, blob.ErrBlobNotFound) {
			lost = append(lost, id)
			continue
		}
		if err != nil {
			return nil, nil, nil, err
		}
		there = append(there, id)
	}
	return lost, there, n, nil
}

// startIndexes refuses to go on when indexes are lost, unless that is accepted, and notes all there are.
func (r *Repository) startIndexes(ctx context.Context, accept bool) (accepted []string, err error) {
	lost, there, n, err := r.lostIndexes(ctx)
	if err != nil {
		return nil, err
	}
	if len(lost) > 0 && !accept {
		return nil, fmt.Errorf("%w (%s), so that nothing is freed: what it listed looks as if no backup needed it. Bring the file back from a copy or an older version of the store; or, for good without it: "+
			"'tidemark volumes verify --read 0' says which backups lost content, back their volumes up anew, and 'tidemark volumes maintain --accept-lost-index' goes on",
			ErrLostIndex, r.nameIndexes(lost))
	}
	for _, id := range lost {
		accepted, n.gone[id] = append(accepted, string(id)), true
	}
	var gone []blob.ID // as long as a note names them that a lock may keep
	for id := range n.gone {
		if n.named[id] {
			gone = append(gone, id)
		}
	}
	slices.Sort(gone)
	if err := r.writeNote(ctx, there, gone); err != nil {
		return nil, err
	}
	for _, name := range n.files {
		if err := r.o.Store.Remove(ctx, name); err != nil && !errors.Is(err, archive.ErrHeld) {
			return nil, fmt.Errorf("remove an old note of indexes: %w", err)
		}
	}
	return accepted, nil
}

// LostIndexes names an index that is lost, and how many more there are; empty: none is. What only they listed is not found, nor are backups that it was of.
func (r *Repository) LostIndexes(ctx context.Context) (string, error) {
	lost, _, _, err := r.lostIndexes(ctx)
	if err != nil || len(lost) == 0 {
		return "", r.failed(err)
	}
	return r.nameIndexes(lost), nil
}

// nameIndexes names the first, and counts the others.
func (r *Repository) nameIndexes(ids []blob.ID) string {
	name := r.storage.dir + string(ids[0])
	if more := len(ids) - 1; more > 0 {
		name += fmt.Sprintf(" and %d more", more)
	}
	return name
}

// indexName is the name of an index, in its parts.
type indexName struct {
	kind      string // of kinds
	low, high int    // epochs
	set       string // of several files that are of use together; empty: it is alone
	count     int    // of those
}

// parseIndex takes a name apart: xn1_HASH-sSET-cCOUNT, xs1_..., xr1_7_..., xe1.
func parseIndex(id blob.ID) (n indexName, ok bool) {
	if !isNotable(id) {
		return n, false
	}
	n.kind, n.count = string(id[:2]), 1
	parts := strings.Split(string(id[2:]), "_")
	var err error
	if n.low, err = strconv.Atoi(parts[0]); err != nil {
		return n, false
	}
	n.high = n.low
	if n.kind == "xr" {
		if len(parts) < 3 {
			return n, false
		}
		if n.high, err = strconv.Atoi(parts[1]); err != nil {
			return n, false
		}
	}
	if s := strings.Split(parts[len(parts)-1], "-"); len(s) >= 3 && strings.HasPrefix(s[1], "s") && strings.HasPrefix(s[2], "c") {
		if c, err := strconv.Atoi(s[2][1:]); err == nil {
			n.set, n.count = s[1], c
		}
	}
	return n, true
}

// unaccounted are the noted indexes that are not there, although nothing that is there supersedes them: an epoch is superseded by a complete
// compaction of it, or of a range that it lies in, and so is a compaction by another one that holds as much; a marker is by a later one.
func unaccounted(noted, there []blob.ID) (lost []blob.ID) {
	have := map[blob.ID]bool{}
	files := map[indexName]int{}
	newest := -1 // epoch that has a marker
	for _, id := range there {
		have[id] = true
		n, ok := parseIndex(id)
		switch {
		case ok && n.kind == "xe":
			newest = max(newest, n.low)
		case ok && n.kind != "xn":
			files[n]++
		}
	}
	for _, id := range noted {
		n, ok := parseIndex(id)
		if !ok || have[id] || n.kind == "xe" && newest > n.low {
			continue
		}
		superseded := false
		for c, count := range files {
			superseded = superseded || n.kind != "xe" && count >= c.count && c.low <= n.low && c.high >= n.high
		}
		if !superseded {
			lost = append(lost, id)
		}
	}
	return lost
}

// verifyIndexes tells of indexes that are lost, for which it need not be seen in backups: those of what was forgotten matter to none.
func (r *Repository) verifyIndexes(ctx context.Context, v *Verified) error {
	lost, _, _, err := r.lostIndexes(ctx)
	if len(lost) > 0 {
		v.Errors = append(v.Errors, fmt.Sprintf(OfAll+"%v (%s); maintenance frees nothing until it is brought back from a copy or an older version of the store, or 'tidemark volumes maintain --accept-lost-index' goes on without it",
			ErrLostIndex, r.nameIndexes(lost)))
	}
	return err
}
