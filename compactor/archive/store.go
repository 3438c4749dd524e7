package archive

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

var (
	// ErrHeld is returned by Store.Remove for a file that object lock or a legal hold keeps.
	// It is not a fault: the file is removed by a later try.
	ErrHeld = errors.New("the store keeps the file: it is locked")
	// ErrDenied is returned when the store refuses the credentials, or what they may do.
	ErrDenied = errors.New("the store denies access")
	// ErrNotExclusive is returned by Probe for a store that replaces existing files although it was asked not to.
	ErrNotExclusive = errors.New("the store does not keep a file from being replaced")
)

// Store keeps the files of archives under names with slashes, such as
// "<cluster id>/manifests/00000000000000000017.json". A file is whole or not there, and it is
// never changed once it is there, but for CreateOptions.Replace. All methods may be called from several goroutines; all try
// again for some seconds when a store is busy, and end early with their context.
//
// Errors about a name are fs.ErrNotExist and fs.ErrExist, about rights ErrDenied; anything else
// is trouble that may pass.
type Store interface {
	// Create makes a file of the size bytes that body holds. A name that is taken is
	// fs.ErrExist and stays as it is, also when many writers race for it. When the answer to
	// an earlier try was lost, the name may be taken by the caller's own file: names or
	// contents must tell.
	Create(ctx context.Context, name string, body io.ReaderAt, size int64, o CreateOptions) error
	// ReadAt fills p from offset off on, with one request. What ends before is
	// io.ErrUnexpectedEOF.
	ReadAt(ctx context.Context, name string, p []byte, off int64) error
	// Stat tells of one file.
	Stat(ctx context.Context, name string) (FileInfo, error)
	// List yields the files whose names begin with prefix, in the order of their names, those
	// after the name after. A store may not list yet what was just created.
	List(ctx context.Context, prefix, after string) iter.Seq2[FileInfo, error]
	// Remove removes a file, and in a store that keeps versions all of its versions. A file that is not
	// there is no error; one that a lock or a hold keeps is ErrHeld.
	Remove(ctx context.Context, name string) error
	// Hold sets a legal hold on a file, or lifts it; errors.ErrUnsupported where there is no
	// such thing.
	Hold(ctx context.Context, name string, on bool) error
	// String is the store's URL, without any secret.
	String() string
}

// FileInfo tells of one file.
type FileInfo struct {
	Name string
	Size int64
	Time time.Time // when it was created, by the store's clock
}

// CreateOptions are what a file can be given besides its content.
type CreateOptions struct {
	// Lock keeps the file from being removed until then; zero: it is not locked. A store
	// without object lock refuses with errors.ErrUnsupported.
	Lock time.Time
	// Compliance makes the lock one that nobody can lift ("compliance"); otherwise special
	// rights can ("governance").
	Compliance bool
	// Hold sets a legal hold.
	Hold bool
	// Replace puts the file in the place of one that has its name; readers see one or the other, whole. Archives
	// never do: it is for the few files of volume repositories that are rewritten.
	Replace bool
}

// Stager is a Store in which Create can be parted into reading the content, and the wait until it is durable.
type Stager interface {
	// Stage begins to create a file: it reads body, which the caller may then use for something else, and refuses what Create
	// refuses, except that a name is taken. The file is there, whole and durable, once publish has returned nil. Publish
	// must be called, once; it may be from another goroutine, and cannot be made to end early. A file that was never published, because the
	// process died, is not there; nor is one whose publish failed, and as with Create, it may be there after all.
	Stage(ctx context.Context, name string, body io.ReaderAt, size int64, o CreateOptions) (publish func() error, err error)
}

// Stage begins to create a file in any store; see Stager. In a store that is none, it creates it, and publish is nil.
func Stage(ctx context.Context, s Store, name string, body io.ReaderAt, size int64, o CreateOptions) (publish func() error, err error) {
	if s, ok := s.(Stager); ok {
		return s.Stage(ctx, name, body, size, o)
	}
	return nil, s.Create(ctx, name, body, size, o)
}
