package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// storageType is the name under which Kopia finds our stores again. Its configuration file holds no more than this
// and a number, and no secret.
const storageType = "tidemark"

// storageConfig is what Kopia writes down of a storage.
type storageConfig struct {
	Number uint64 `json:"number"`
}

// stores are the storages of repositories that are open in this process, by number.
var (
	stores     sync.Map
	lastNumber atomic.Uint64
)

func init() {
	blob.AddSupportedStorage(storageType, storageConfig{}, func(_ context.Context, c *storageConfig, _ bool) (blob.Storage, error) {
		s, ok := stores.Load(c.Number)
		if !ok {
			return nil, errors.New("this repository is not open")
		}
		return s.(blob.Storage), nil
	})
}

// storage is an archive's store as Kopia wants one: same credentials, retries and limits.
type storage struct {
	blob.DefaultProviderImplementation
	store        archive.Store
	dir          string // ends in a slash
	number       uint64
	readOnly     bool
	sent, loaded atomic.Int64
	ahead        blocks
	behind       behind

	mu       sync.Mutex
	onTop    map[*func(error)]bool // told when the store does not take a file
	first    error                 // that reading failed with, other than that the store has not what is asked for
	failures int                   // how often it did
	indexes  []blob.ID             // that were written and are not noted yet

	maintaining atomic.Bool // indexes may be removed
}

// note takes an error of reading down, in the storage's own words.
func (s *storage) note(ctx context.Context, err error) error {
	if err != nil && ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, io.ErrUnexpectedEOF) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.first = cmp.Or(s.first, err)
		s.failures++
	}
	return blobError(err)
}

// trouble is why the store did not give something that it may have; nil: it gave all that it has.
func (s *storage) trouble() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first
}

// errUnread marks what failed while the store did not give something that it may have, and so may be whole.
var errUnread = errors.New("the store fails")

// judged marks an error of f with errUnread if it may be for that.
func (s *storage) judged(f func() error) error {
	failures := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.failures
	}
	before := failures()
	err := f()
	if err != nil && failures() > before {
		return fmt.Errorf("%w: %w", errUnread, err)
	}
	return err
}

// whenItFails has f told of the first file that the store does not take, until stop. The store has tried it for as long as it does; Kopia would take it for
// trouble with the file that is being read, and try the same with all others.
func (s *storage) whenItFails(f func(error)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.onTop == nil {
		s.onTop = map[*func(error)]bool{}
	}
	s.onTop[&f] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.onTop, &f)
	}
}

// refused tells of a file that the store did not take.
func (s *storage) refused(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.onTop {
		(*f)(err)
	}
	return err
}

var _ blob.Storage = (*storage)(nil)

func newStorage(store archive.Store, dir string, readOnly bool) *storage {
	s := &storage{store: store, dir: dir, number: lastNumber.Add(1), readOnly: readOnly}
	stores.Store(s.number, s)
	return s
}

func (s *storage) forget() { stores.Delete(s.number) }

func blobError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w (%w)", blob.ErrBlobNotFound, err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w (%w)", blob.ErrInvalidRange, err)
	}
	return err
}

// PutBlob implements blob.Storage.
func (s *storage) PutBlob(ctx context.Context, id blob.ID, data blob.Bytes, o blob.PutOptions) error {
	return s.refused(ctx, s.put(ctx, id, data, o))
}

func (s *storage) put(ctx context.Context, id blob.ID, data blob.Bytes, o blob.PutOptions) error {
	if !o.SetModTime.IsZero() {
		return blob.ErrSetTimeUnsupported
	}
	if o.DoNotRecreate {
		return blob.ErrUnsupportedPutBlobOption
	}
	size := int64(data.Length())
	r := data.Reader()
	defer r.Close()
	create := archive.CreateOptions{Replace: true}
	if o.RetentionPeriod > 0 {
		create.Lock, create.Compliance = time.Now().Add(o.RetentionPeriod), o.RetentionMode == blob.Compliance
	}
	name, body := s.dir+string(id), &blobBody{data: data, r: r}
	if isPack(id) && o.GetModTime == nil {
		return s.putPack(ctx, id, name, body, size, create)
	}
	if err := s.behind.settle(); err != nil {
		return err
	}
	if err := s.store.Create(ctx, name, body, size, create); err != nil {
		return blobError(err)
	}
	s.sent.Add(size)
	s.wrote(id)
	if o.GetModTime != nil {
		info, err := s.store.Stat(ctx, name)
		if err != nil {
			return blobError(err)
		}
		*o.GetModTime = info.Time
	}
	return nil
}

// isPack reports whether a file holds content, so that nothing needs it before an index names it.
func isPack(id blob.ID) bool {
	return strings.HasPrefix(string(id), string(content.PackBlobIDPrefixRegular)) || strings.HasPrefix(string(id), string(content.PackBlobIDPrefixSpecial))
}

// putPack writes a pack, which becomes durable in the background; see behind.
func (s *storage) putPack(ctx context.Context, id blob.ID, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	if err := s.behind.room(); err != nil {
		return err
	}
	publish, err := archive.Stage(ctx, s.store, name, body, size, o)
	if err != nil {
		return blobError(err)
	}
	if publish != nil {
		s.behind.add(id, publish)
	}
	s.sent.Add(size)
	return nil
}

// blobBody is what a blob holds, as a store wants it: it is read anywhere, or written as a whole, without a copy of it in between.
type blobBody struct {
	data blob.Bytes
	mu   sync.Mutex // guards r
	r    io.ReadSeeker
}

// WriteBody implements archive.BodyWriter.
func (b *blobBody) WriteBody(w io.Writer) (int64, error) { return b.data.WriteTo(w) }

// ReadAt implements io.ReaderAt.
func (b *blobBody) ReadAt(p []byte, off int64) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := b.r.Seek(off, io.SeekStart); err != nil {
		return 0, err
	}
	n, err := io.ReadFull(b.r, p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

// GetBlob implements blob.Storage.
func (s *storage) GetBlob(ctx context.Context, id blob.ID, offset, length int64, out blob.OutputBuffer) error {
	out.Reset()
	if err := s.behind.wait(id); err != nil {
		return s.note(ctx, err)
	}
	name := s.dir + string(id)
	if length < 0 {
		info, err := s.store.Stat(ctx, name)
		if err != nil {
			return s.note(ctx, err)
		}
		offset, length = 0, info.Size
	}
	if offset < 0 {
		return blob.ErrInvalidRange
	}
	if s.ahead.wanted(ctx, id, length) {
		b, ok, err := s.ahead.read(ctx, s, name, offset, length)
		if err != nil {
			return s.note(ctx, err)
		}
		if ok {
			_, err := out.Write(b)
			return err
		}
	}
	b, free := readBuffer(length)
	defer free()
	if length > 0 {
		if err := s.store.ReadAt(ctx, name, b, offset); err != nil {
			return s.note(ctx, err)
		}
	} else if _, err := s.store.Stat(ctx, name); err != nil {
		return s.note(ctx, err)
	}
	s.loaded.Add(length)
	_, err := out.Write(b)
	return err
}

// readBuffers are for content of the usual size: Kopia cuts files into pieces of at most 8 MiB.
var readBuffers = sync.Pool{New: func() any { return new([8<<20 + 4<<10]byte) }}

// readBuffer gives a buffer until free is called. Large ones are used again: to make one costs as much as to read into it.
func readBuffer(length int64) (b []byte, free func()) {
	if length < 64<<10 || length > 8<<20+4<<10 {
		return make([]byte, length), func() {}
	}
	all := readBuffers.Get().(*[8<<20 + 4<<10]byte) //nolint:forcetypeassert // of New
	return all[:length], func() { readBuffers.Put(all) }
}

// GetMetadata implements blob.Storage.
func (s *storage) GetMetadata(ctx context.Context, id blob.ID) (blob.Metadata, error) {
	if err := s.behind.wait(id); err != nil {
		return blob.Metadata{}, s.note(ctx, err)
	}
	info, err := s.store.Stat(ctx, s.dir+string(id))
	if err != nil {
		return blob.Metadata{}, s.note(ctx, err)
	}
	return blob.Metadata{BlobID: id, Length: info.Size, Timestamp: info.Time}, nil
}

// ListBlobs implements blob.Storage.
func (s *storage) ListBlobs(ctx context.Context, prefix blob.ID, f func(blob.Metadata) error) error {
	if err := s.behind.settle(); err != nil {
		return err
	}
	for info, err := range s.store.List(ctx, s.dir+string(prefix), "") {
		if err != nil {
			return s.note(ctx, err)
		}
		if err := f(blob.Metadata{BlobID: blob.ID(info.Name[len(s.dir):]), Length: info.Size, Timestamp: info.Time}); err != nil {
			return err
		}
	}
	return nil
}

// DeleteBlob implements blob.Storage. What a lock keeps is tried again by a later maintenance. Indexes go in a maintenance only; see indexes.go.
func (s *storage) DeleteBlob(ctx context.Context, id blob.ID) error {
	if isNotable(id) && !s.maintaining.Load() {
		return nil
	}
	if err := s.behind.settle(); err != nil { // it may be removed because others hold the same content
		return err
	}
	if err := s.store.Remove(ctx, s.dir+string(id)); err != nil && !errors.Is(err, archive.ErrHeld) {
		return blobError(err)
	}
	return nil
}

// FlushCaches implements blob.Storage.
func (s *storage) FlushCaches(context.Context) error { return s.behind.settle() }

// Close implements blob.Storage.
func (s *storage) Close(context.Context) error { return s.behind.settle() }

// ConnectionInfo implements blob.Storage.
func (s *storage) ConnectionInfo() blob.ConnectionInfo {
	return blob.ConnectionInfo{Type: storageType, Config: &storageConfig{s.number}}
}

// DisplayName implements blob.Storage.
func (s *storage) DisplayName() string { return s.store.String() + "/" + s.dir }

// IsReadOnly implements blob.Storage.
func (s *storage) IsReadOnly() bool { return s.readOnly }
