// Package mover moves the content of a claim between its volume and the repository, in a Pod that mounts the claim.
//
// The Pod runs 'tidemark mover'. It has no credentials of the object store and none of the cluster: a Broker, in the process that
// wants the content moved, gives it a token that is good for one job and for the files of the repository, as long as the job
// lasts. With it, the mover asks for everything: a store that can (archive.Presigner) lends it the right to one request, with which it
// reads or creates one file itself; all else the Broker does for it. So every store will do, and one set of credentials holds for all.
//
// Whoever takes over a mover, or reads its Secret and asks for the job before the mover does, has the repository's password. While the job lasts, and for
// 15 minutes more where rights were lent, he can read the content of all backups of the cluster. In the job of a backup he can also
// create files. None that is there can be removed or replaced; but a new index can say that content, or a backup, is deleted, and the daemon's
// maintenance believes it and frees that content a day or more later. Only a lock of the bucket's objects is proof against that.
package mover

import (
	"errors"
	"time"

	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// Kind is what a job does.
type Kind string

// The kinds of jobs.
const (
	Backup  Kind = "backup"
	Restore Kind = "restore"
)

var (
	// ErrMover is returned for a job whose Pod did not come to an end, again and again.
	ErrMover = errors.New("the mover failed")
	// errOver is told to a mover whose job is not wanted any more.
	errOver = errors.New("the job is over: it was cancelled, or the daemon that wanted it has ended")
)

// Job is what a mover is to do.
type Job struct {
	Kind Kind `json:"kind"`
	// Cluster is whose repository it is, Password opens it.
	Cluster  string `json:"cluster"`
	Password string `json:"password"`
	// Of a backup.
	Source      repository.Source `json:"source,omitzero"`
	Description string            `json:"description,omitempty"`
	Checkpoint  time.Duration     `json:"checkpoint,omitempty"` // see repository.BackupOptions
	// Blocks of a device are read, and no others. Nil: all.
	Blocks *repository.Blocks `json:"blocks,omitempty"`
	// ReadAll is that of repository.BackupOptions.
	ReadAll bool `json:"readAll,omitempty"`
	// Of a restore.
	ID          string `json:"id,omitempty"`
	Path        string `json:"path,omitempty"`
	DeleteExtra bool   `json:"deleteExtra,omitempty"`
	// Direct says that the store may be gone to. Nil: everything goes through the broker.
	Direct *Direct `json:"direct,omitempty"`
	// Parallel files are worked on at once. Default: 4.
	Parallel int `json:"parallel,omitempty"`
}

// Direct is what a mover needs to know to go to the store itself.
type Direct struct {
	// Trusted are certificates (PEM) by which the store is trusted, besides the system's.
	Trusted []byte `json:"trusted,omitempty"`
}

// Outcome is what became of a job.
type Outcome struct {
	Result   *repository.Result  `json:"result,omitempty"` // of a backup
	Restored repository.Progress `json:"restored,omitzero"`
	Error    string              `json:"error,omitempty"`
}

// The paths within the mover's container, and the names of the files of its Secret.
const (
	volumePath = "/volume"
	devicePath = "/dev/volume"
	secretPath = "/etc/tidemark-mover"
	cachePath  = "/cache"

	urlFile, tokenFile, caFile = "url", "token", "ca.crt"
)

// serverName is the name in the broker's certificate, wherever it is reached.
const serverName = "tidemark-broker"
