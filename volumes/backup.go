package volumes

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/volumes/csi"
	"github.com/tidemark-backup/tidemark/volumes/hooks"
	"github.com/tidemark-backup/tidemark/volumes/policy"
)

// Info is the resource that backups are recorded as.
var Info = journal.ResourceInfo{
	Group: journal.OwnGroup, Version: "v1alpha1", Resource: "volumebackups", Singular: "volumebackup", Kind: "VolumeBackup",
	ShortNames: []string{"vb"}, Namespaced: true,
}

// Phase says how far a backup is.
type Phase string

// The phases of a backup.
const (
	Running Phase = "Running"
	Done    Phase = "Done"
	Failed  Phase = "Failed"
	// Deleting is a backup that is not to be used any more: perhaps some of it is gone already.
	Deleting Phase = "Deleting"
)

// Consistency says what a backup may be relied on to hold.
type Consistency string

// The classes of consistency, weakest first.
const (
	// Live files were read one after another while they may have been written to.
	Live Consistency = "live"
	// Crash is all of one volume at one instant, as after a loss of power.
	Crash Consistency = "crash-consistent"
	// CrashGroup is several volumes at one instant.
	CrashGroup Consistency = "crash-consistent-group"
	// Application is what hooks made of it: the application had brought its files into order.
	Application Consistency = "application-consistent"
)

// Backup is one backup of one volume, as an object of history.
type Backup struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   Meta   `json:"metadata"`
	Spec       Spec   `json:"spec"`
	Status     Status `json:"status"`
}

// Meta names a backup. Namespace is that of the claim; empty for a path.
type Meta struct {
	Name      string    `json:"name"`
	Namespace string    `json:"namespace,omitempty"`
	Created   time.Time `json:"creationTimestamp"`
}

// Spec says what was asked for.
type Spec struct {
	Claim string `json:"claim,omitempty"` // a PersistentVolumeClaim
	Path  string `json:"path,omitempty"`  // or a path on the daemon's machine
	// Run is shared by all backups that were made together, and names them for people.
	Run string `json:"run"`
	// Origin is "manual", or Scheduled.
	Origin string `json:"origin"`
	// TTL is how long it is to be kept; zero: not said. Pinned keeps it whatever retention says.
	TTL    time.Duration `json:"ttl,omitempty"`
	Pinned bool          `json:"pinned,omitempty"`
	// Action is how a claim is backed up, and Reason who said so.
	Action policy.Action `json:"action,omitempty"`
	Reason string        `json:"reason,omitempty"`
	// Source is what the claim was like, for a volume that is made of the backup.
	Source *Source `json:"source,omitempty"`
}

// Source is a claim's volume.
type Source struct {
	StorageClass string `json:"storageClass,omitempty"`
	Driver       string `json:"driver,omitempty"` // of CSI
	Handle       string `json:"handle,omitempty"` // the driver's name of the volume
	Volume       string `json:"volume,omitempty"` // name of the PersistentVolume
	Capacity     int64  `json:"capacity"`         // bytes
	Mode         string `json:"volumeMode,omitempty"`
}

// Hook is what became of a program that was to be run around a backup.
type Hook struct {
	hooks.Hook
	Pod  string `json:"pod"`
	UID  string `json:"uid,omitempty"`
	When string `json:"when"` // "pre" or "post"
	// State is Pending until it was run. A post hook that is pending is owed, whatever happens.
	State    HookState `json:"state"`
	Exit     int       `json:"exit,omitempty"`
	Output   string    `json:"output,omitempty"` // the end of it
	Error    string    `json:"error,omitempty"`
	Duration string    `json:"duration,omitempty"`
}

// HookState says how far a hook is.
type HookState string

// The states of a hook.
const (
	HookPending HookState = "Pending"
	HookDone    HookState = "Done"
	HookFailed  HookState = "Failed"
	HookLeftOut HookState = "LeftOut" // because one before it failed, or its Pod is gone
)

// Status says what became of it.
type Status struct {
	Phase Phase `json:"phase"`
	// Age is Options.Age when it was begun; zero: not known.
	Age time.Duration `json:"age,omitempty"`
	// Before and After enclose the instant of the content: the state of the cluster at either is what belongs to it.
	Before journal.Cut `json:"before"`
	After  journal.Cut `json:"after"`
	// Taken is that instant, as well as it is known.
	Taken       time.Time   `json:"taken,omitzero"`
	Finished    time.Time   `json:"finished,omitzero"`
	Consistency Consistency `json:"consistency,omitempty"`
	// Snapshot is what the storage system has, Content what the repository has; either or both.
	Snapshot *csi.Handle `json:"snapshot,omitempty"`
	Content  *Content    `json:"content,omitempty"`
	// Base is a snapshot that is kept only so that the next backup can ask what has changed since; it goes when that is done.
	Base *csi.Handle `json:"base,omitempty"`
	// Left is what is still to be removed in the cluster.
	Left  *Left  `json:"left,omitempty"`
	Hooks []Hook `json:"hooks,omitempty"`
	Error string `json:"error,omitempty"`
	// Notes are what a person should know of it.
	Notes []string `json:"notes,omitempty"`
}

// Content is where the repository has the content.
type Content struct {
	Location string `json:"location"` // URL of the store
	ID       string `json:"id"`       // Kopia's manifest
	Files    int64  `json:"files"`
	Bytes    int64  `json:"bytes"`
	// Unchanged files were taken from the backup before.
	Unchanged int64 `json:"unchanged,omitempty"`
	// Sent is what the store got for it, in bytes; 0 also where no daemon kept the record: it is then stored before that is known.
	Sent int64 `json:"sent,omitempty"`
	// Read is what was read of a device, in bytes.
	Read int64 `json:"read,omitempty"`
	// Listed counts the backups of a device, up to this one, that rely on the driver's lists of blocks, since the last one that read all.
	Listed int `json:"listed,omitempty"`
	// Wrong is what such a list left out, in bytes, as was found when all was read.
	Wrong int64 `json:"wrong,omitempty"`
}

// Volume names what was backed up, for people: "shop/data" or a path.
func (b *Backup) Volume() string {
	if b.Spec.Claim == "" {
		return b.Spec.Path
	}
	return b.Metadata.Namespace + "/" + b.Spec.Claim
}

// Duration is how long it took; zero while it runs.
func (b *Backup) Duration() time.Duration {
	if b.Status.Finished.IsZero() {
		return 0
	}
	return b.Status.Finished.Sub(b.Metadata.Created)
}

// newBackup makes the record of a backup that begins.
func newBackup(namespace string, spec Spec, now time.Time) *Backup {
	base := spec.Claim
	if base == "" {
		base = strings.Trim(nameLike(spec.Path), "-")
	}
	return &Backup{
		APIVersion: Info.Group + "/" + Info.Version, Kind: Info.Kind,
		Metadata: Meta{Name: backupName(base, now), Namespace: namespace, Created: now.UTC()},
		Spec:     spec, Status: Status{Phase: Running},
	}
}

// newBackup makes it with the age that the count has now.
func (k *Keeper) newBackup(namespace string, spec Spec) *Backup {
	b := newBackup(namespace, spec, k.o.Clock())
	if k.o.Age != nil {
		b.Status.Age, _ = k.o.Age() // where it cannot be told, the clock says how old it is
	}
	return b
}

func backupName(base string, now time.Time) string {
	const room = 40
	if len(base) > room {
		base = base[len(base)-room:]
	}
	if base = strings.Trim(base, "-."); base == "" {
		base = "root"
	}
	return fmt.Sprintf("%s-%s-%04x", base, now.UTC().Format("20060102-150405"), rand.N(1<<16))
}

// nameLike makes a path something that can be part of a name.
func nameLike(path string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, path)
}

// Event is the backup as it is recorded.
func (b *Backup) Event(op journal.Op) (journal.Event, error) {
	body, err := json.Marshal(b)
	return journal.Event{Resource: Info.GroupResource(), Namespace: b.Metadata.Namespace, Name: b.Metadata.Name, UID: b.Metadata.Name, Op: op, Object: body}, err
}

// Parse reads a recorded backup.
func Parse(object []byte) (*Backup, error) {
	b := &Backup{}
	if err := json.Unmarshal(object, b); err != nil {
		return nil, fmt.Errorf("read the record of a volume backup: %w", err)
	}
	return b, nil
}

// Sort puts backups into the order of their moments.
func Sort(all []*Backup) {
	slices.SortFunc(all, func(a, b *Backup) int {
		return cmp.Or(a.Metadata.Created.Compare(b.Metadata.Created), cmp.Compare(a.Metadata.Name, b.Metadata.Name))
	})
}
