package archive

import (
	"container/list"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	pageSize = 64 << 10
	// maxAhead bounds how much one request reads ahead, in pages. A reader that goes on in order gets
	// half of what it has read so far, so that at most about that half is read in vain.
	maxAhead = 32
	// smallFile is the size below which a file is read as a whole.
	smallFile = 4 * pageSize
	// tailPages are what is read of the end of a file first: a table's index is there.
	tailPages = 2
)

// pages caches pieces of an archive's files, as they are stored, which is encrypted. Files never change.
type pages struct {
	limit int64

	mu     sync.Mutex // guards what follows
	size   int64
	byPage map[pageKey]*list.Element
	recent list.List // of *page, most recently used first

	requests, bytes atomic.Int64 // asked of the store
}

type pageKey struct {
	file  string
	index int64
}

type page struct {
	pageKey
	data []byte
}

func newPages(limit int64) *pages {
	return &pages{limit: limit, byPage: map[pageKey]*list.Element{}}
}

func (c *pages) get(k pageKey) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byPage[k]
	if e == nil {
		return nil
	}
	c.recent.MoveToFront(e)
	return e.Value.(*page).data
}

func (c *pages) put(k pageKey, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byPage[k] != nil {
		return
	}
	c.byPage[k] = c.recent.PushFront(&page{k, data})
	c.size += int64(len(data))
	for c.size > c.limit && c.recent.Len() > 1 {
		last := c.recent.Back()
		old := c.recent.Remove(last).(*page)
		delete(c.byPage, old.pageKey)
		c.size -= int64(len(old.data))
	}
}

// forget drops the pages of a file: one that was damaged on its way here may be right the next time.
func (c *pages) forget(file string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, e := range c.byPage {
		if k.file == file {
			c.recent.Remove(e)
			c.size -= int64(len(e.Value.(*page).data))
			delete(c.byPage, k)
		}
	}
}

// remoteFile reads one file of the store through the cache. Pebble and age read it in turn, in
// pieces of any size; they are the reason for the read-ahead.
type remoteFile struct {
	ctx   context.Context // of whoever opened it: an io.ReaderAt has none of its own
	store Store
	name  string // below the cluster's directory
	path  string
	size  int64
	cache *pages

	mu   sync.Mutex
	next int64 // page after the last one read
	run  int64 // pages read in order
}

// ReadAt implements io.ReaderAt.
func (f *remoteFile) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		if off >= f.size {
			return n, io.EOF
		}
		index := off / pageSize
		data, err := f.page(index)
		if err != nil {
			return n, err
		}
		m := copy(p[n:], data[off-index*pageSize:])
		n += m
		off += int64(m)
	}
	return n, nil
}

// forget makes the next read ask the store again.
func (f *remoteFile) forget() { f.cache.forget(f.path) }

func (f *remoteFile) page(index int64) ([]byte, error) {
	if data := f.cache.get(pageKey{f.path, index}); data != nil {
		return data, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if data := f.cache.get(pageKey{f.path, index}); data != nil { // somebody else was reading it
		return data, nil
	}
	last := (f.size - 1) / pageSize
	from, to := index, index
	switch {
	case f.size <= smallFile:
		from, to = 0, last
	case index == last:
		from = max(0, last-tailPages+1)
	case index == f.next:
		to = min(index+min(max(f.run/2, 1), maxAhead)-1, last)
	default:
		f.run = 0
	}
	f.run += to - from + 1
	f.next = to + 1
	return f.fetch(from, to, index)
}

// fetch reads pages from the store with one request and gives the wanted one.
func (f *remoteFile) fetch(from, to, want int64) ([]byte, error) {
	begin, end := from*pageSize, min((to+1)*pageSize, f.size)
	b := make([]byte, end-begin)
	f.cache.requests.Add(1)
	f.cache.bytes.Add(int64(len(b)))
	if err := f.store.ReadAt(f.ctx, f.path, b, begin); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, &DamageError{File: f.name, Err: errors.New("it is shorter than when it was written")}
		}
		return nil, &StoreError{File: f.name, Err: err}
	}
	var wanted []byte
	for i := from; i <= to; i++ {
		data := b[(i-from)*pageSize : min((i-from+1)*pageSize, int64(len(b)))]
		data = slices.Clip(data)
		f.cache.put(pageKey{f.path, i}, data)
		if i == want {
			wanted = data
		}
	}
	return wanted, nil
}

// ageChunk is what age decrypts at once.
const ageChunk = 64 << 10

// tableFile gives Pebble a decrypted file. Pebble reads a block of a few KiB at a time, and age
// decrypts a whole chunk, into a new buffer, for each: so the newest chunk is kept.
type tableFile struct {
	plain  io.ReaderAt
	name   string
	size   int64
	forget func() // lets go of what was read before; nil: nothing is kept

	mu    sync.Mutex // guards what follows
	index int64      // of chunk
	chunk []byte     // nil: none yet
}

// ReadAt implements io.ReaderAt, other than that a full read up to the end is no io.EOF, which Pebble
// does not want.
func (f *tableFile) ReadAt(p []byte, off int64) (n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n < len(p) {
		if off < 0 || off >= f.size {
			return n, fileTrouble(f.name, io.ErrUnexpectedEOF)
		}
		if index := off / ageChunk; f.chunk == nil || f.index != index {
			b := f.chunk[:0]
			if b == nil {
				b = make([]byte, 0, min(ageChunk, f.size))
			}
			b = b[:min(ageChunk, f.size-index*ageChunk)]
			f.chunk = nil
			m, err := f.plain.ReadAt(b, index*ageChunk)
			if m < len(b) && f.forget != nil && isDamage(fileTrouble(f.name, err)) { // perhaps on its way only
				f.forget()
				m, err = f.plain.ReadAt(b, index*ageChunk)
			}
			if m < len(b) {
				return n, fileTrouble(f.name, err)
			}
			f.chunk, f.index = b, index
		}
		m := copy(p[n:], f.chunk[off-f.index*ageChunk:])
		n += m
		off += int64(m)
	}
	return n, nil
}

func (f *tableFile) Close() error                { return nil }
func (f *tableFile) Stat() (vfs.FileInfo, error) { return tableInfo{f}, nil }

type tableInfo struct{ f *tableFile }

func (i tableInfo) Name() string         { return i.f.name }
func (i tableInfo) Size() int64          { return i.f.size }
func (tableInfo) Mode() os.FileMode      { return 0o400 }
func (tableInfo) ModTime() time.Time     { return time.Time{} }
func (tableInfo) IsDir() bool            { return false }
func (tableInfo) Sys() any               { return nil }
func (tableInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }
