package archive

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark-backup/tidemark/journal"
)

// The versions of what an archive holds. A reader refuses what it does not know; every version
// that was ever released stays readable.
const (
	formatVersion     = "tidemark-archive/1"
	manifestVersion   = "tidemark-manifest/1"
	checkpointVersion = "tidemark-checkpoint/1"
)

// formatFile is the file "format": it is made before anything else, and says whose archive it is.
type formatFile struct {
	Format  string    `json:"format"`
	Cluster string    `json:"cluster"`
	Created time.Time `json:"created"`
}

// File is one immutable file of an archive.
type File struct {
	Name   string `json:"name"` // below the archive's directory
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // of the file as it is stored, in hex
}

// Segment is a file of all events of one span.
type Segment struct {
	File
	Level   int              `json:"level"` // see Levels
	From    journal.Position `json:"from"`  // not included
	To      journal.Position `json:"to"`
	Entries int              `json:"entries"` // of the time index: events and ticks
	// Least is the lowest revision of the main counter in it. A cut at or above it needs the
	// segment, even when the segment begins after the cut: a slow watch brings late events.
	Least journal.Revision `json:"least"`
	// Own is set when it holds events of resources with a counter of their own.
	Own bool          `json:"own,omitempty"`
	Age time.Duration `json:"age"` // the archive's age at To; see Manifest
}

// Snapshot is a file of the state at one position.
type Snapshot struct {
	File
	ID       string           `json:"id"`
	Label    string           `json:"label,omitempty"` // the name people gave it
	Position journal.Position `json:"position"`
	Objects  int              `json:"objects"`
	// State is the hash of its content; two snapshots of the same state have the same.
	State string `json:"state"`
	// Scope says what of the cluster is in it; nil: everything. Only such a snapshot can be
	// what later moments are built on.
	Scope   *SnapshotScope `json:"scope,omitempty"`
	Origin  string         `json:"origin"` // "begin", "compactor", "manual", "schedule/NAME"
	Created time.Time      `json:"created"`
	Age     time.Duration  `json:"age"`           // the archive's age when it was made
	TTL     time.Duration  `json:"ttl,omitempty"` // zero: none
	Pinned  bool           `json:"pinned,omitempty"`
	Held    bool           `json:"held,omitempty"` // by a legal hold
}

// SnapshotScope is a part of the cluster, in the words of replay.Scope; namespaces may be patterns such as team-*.
type SnapshotScope struct {
	Namespaces []string `json:"namespaces,omitempty"`
	Resources  []string `json:"resources,omitempty"`
	Selector   string   `json:"selector,omitempty"`
}

// Stretch is what a segment covers, without its file.
type Stretch struct {
	From  journal.Position `json:"from"`
	To    journal.Position `json:"to"`
	Least journal.Revision `json:"least"`
}

// Change is what one step did to the archive.
type Change struct {
	Step string `json:"step"` // "begin", "seal", "merge", "snapshot", "retain", ...: for people
	// TakeOver makes the manifest's journal the one whose events the archive takes from now on.
	TakeOver bool `json:"takeOver,omitempty"`
	// Gone are segments and snapshots (by name and ID) that are no longer part of the archive.
	// It is done before Segments and Snapshots come.
	Gone      []string   `json:"gone,omitempty"`
	Segments  []Segment  `json:"segments,omitempty"`
	Snapshots []Snapshot `json:"snapshots,omitempty"` // new ones, or in place of those with the same ID
	Known     *Known     `json:"known,omitempty"`
	// Follows is the newest segment before this step. A reader that does not have it knows by it what
	// a damaged manifest has cost.
	Follows *Stretch `json:"follows,omitempty"`
	// Lost are stretches whose segment is lost for good.
	Lost []Stretch `json:"lost,omitempty"`
	// Freed are files, gone before, that were removed from the store.
	Freed []string `json:"freed,omitempty"`
	// ChainFrom says that the manifests up to it were removed; there is a checkpoint of it.
	ChainFrom uint64 `json:"chainFrom,omitempty"`
}

// Known is what is different in what the journal knows of itself.
type Known struct {
	Position   *journal.Position      `json:"position,omitempty"`
	Began      *journal.Cut           `json:"began,omitempty"`
	Ledgers    []journal.Ledger       `json:"ledgers,omitempty"` // whole, in place of those of the same resource
	Watermarks map[string]journal.Cut `json:"watermarks,omitempty"`
	LeftOut    *[]journal.LeftOut     `json:"leftOut,omitempty"`
	Outages    []journal.Outage       `json:"outages,omitempty"` // new ones
	Marks      []journal.Mark         `json:"marks,omitempty"`   // new or moved ones
}

// Manifest is one link of the chain: it commits one change.
type Manifest struct {
	Format  string `json:"format"`
	Cluster string `json:"cluster"`
	Seq     uint64 `json:"seq"`
	// Prev is the SHA-256 of the manifest before, in hex; empty in the first.
	Prev string `json:"prev,omitempty"`
	// Checkpoint is the newest checkpoint when the manifest was written.
	Checkpoint *Link  `json:"checkpoint,omitempty"`
	ID         string `json:"id"`               // random: what tells a writer its own manifest from another's
	Journal    string `json:"journal"`          // ID of the journal that it was written for; empty: by hand
	Writer     string `json:"writer,omitempty"` // host and process, for people
	// Time is the writer's clock; nothing is decided by it.
	Time time.Time `json:"time"`
	// Age is how long the archive has lived, counted so that a clock that jumps cannot make it
	// older than it is: retention goes by it.
	Age    time.Duration `json:"age"`
	Change Change        `json:"change"`
	// Before is the manifest before, without its own Before: one manifest that is damaged costs
	// nothing, because the next says the same. It is missing when the writer did not know it.
	Before *Manifest `json:"before,omitempty"`
}

// Link names a file of the chain and the hash of its bytes.
type Link struct {
	Seq    uint64 `json:"seq"`
	SHA256 string `json:"sha256"`
}

// DamageError is returned for a file of an archive whose bytes are not what they were.
type DamageError struct {
	File string
	Err  error
	// Repeated is set for a manifest of which the next one says the same: nothing is lost.
	Repeated bool
}

// Error names the file and the next step.
func (e *DamageError) Error() string {
	if e.Repeated {
		return fmt.Sprintf("archive file %s is damaged: %v: nothing is lost, the manifest after it says the same", e.File, e.Err)
	}
	return fmt.Sprintf("archive file %s is damaged: %v: 'tidemark verify' tells what that costs and what is still restorable", e.File, e.Err)
}

// Unwrap gives the cause.
func (e *DamageError) Unwrap() error { return e.Err }

const seqDigits = 20

func manifestName(seq uint64) string   { return fmt.Sprintf("manifests/%0*d.json", seqDigits, seq) }
func checkpointName(seq uint64) string { return fmt.Sprintf("checkpoints/%0*d.json", seqDigits, seq) }

// seqOf reads the number from the name of a manifest or checkpoint.
func seqOf(name string) (uint64, error) {
	digits, found := strings.CutSuffix(path.Base(name), ".json")
	if !found || len(digits) != seqDigits {
		return 0, fmt.Errorf("%s is not a file of this archive", name)
	}
	return strconv.ParseUint(digits, 10, 64)
}

// segmentName makes a new name: the position is for people, the rest keeps two writers, or two
// tries of one, from meeting.
func segmentName(level int, to journal.Position) string {
	return fmt.Sprintf("segments/%d/%0*d-%s.sst.age", level, seqDigits, to.Time.UnixNano(), randomHex(8))
}

func snapshotName(at journal.Position) string {
	return fmt.Sprintf("snapshots/%0*d-%s.sst.age", seqDigits, at.Time.UnixNano(), randomHex(8))
}

// NewID makes the ID of a snapshot, which says when it was made.
func NewID(now time.Time) string { return now.UTC().Format("20060102-150405-") + randomHex(3) }

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// A file of the chain is its body and the hash of the body, in this exact form, so that a
// flipped byte is found without any other file.
const (
	envelopeSum  = `{"sha256":"`
	envelopeBody = `","body":`
	envelopeEnd  = "}\n"
)

func wrap(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return slices.Concat([]byte(envelopeSum), []byte(hashOf(body)), []byte(envelopeBody), body, []byte(envelopeEnd)), nil
}

// unwrap reads what wrap made, of the version given.
func unwrap(name string, b []byte, version string, v any) error {
	const head = len(envelopeSum) + 2*sha256.Size + len(envelopeBody)
	if len(b) < head+len(envelopeEnd) || string(b[:len(envelopeSum)]) != envelopeSum ||
		string(b[head-len(envelopeBody):head]) != envelopeBody || string(b[len(b)-len(envelopeEnd):]) != envelopeEnd {
		return &DamageError{File: name, Err: errors.New("it does not look like one")}
	}
	body := b[head : len(b)-len(envelopeEnd)]
	if string(b[len(envelopeSum):head-len(envelopeBody)]) != hashOf(body) {
		return &DamageError{File: name, Err: errors.New("its hash is wrong")}
	}
	// The version first: in a newer one the fields may have other types.
	var what struct {
		Format string `json:"format"`
	}
	if err := json.Unmarshal(body, &what); err != nil {
		return &DamageError{File: name, Err: err}
	}
	if what.Format != version {
		return unknownFormat(name, what.Format)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return &DamageError{File: name, Err: err}
	}
	return nil
}

// parseManifest reads a manifest and checks that it is the one asked for.
func parseManifest(name string, b []byte, cluster string) (*Manifest, error) {
	var m Manifest
	if err := unwrap(name, b, manifestVersion, &m); err != nil {
		return nil, err
	}
	if name != manifestName(m.Seq) {
		return nil, &DamageError{File: name, Err: fmt.Errorf("it says that it is number %d", m.Seq)}
	}
	if m.Cluster != cluster {
		return nil, fmt.Errorf("%s: %w", name, ErrOtherCluster)
	}
	return &m, nil
}

// ErrFormat is returned for a file that a newer Tidemark wrote.
var ErrFormat = errors.New("the archive was written by a newer tidemark")

func unknownFormat(name, format string) error {
	if !strings.HasPrefix(format, "tidemark-") {
		return &DamageError{File: name, Err: errors.New("it does not say what it is")}
	}
	return fmt.Errorf("%w: %s has format %q: use that version", ErrFormat, name, format)
}
