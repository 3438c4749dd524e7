package repository

import (
	"context"
	"strconv"
	"sync"

	"github.com/kopia/kopia/repo/blob"
	"golang.org/x/sync/singleflight"
)

// A restore reads the content of small files one by one, out of files that hold thousands of them, about in the order in which they
// lie there. With one request for each, a store that is a network away makes it slow. So a restore reads such files in blocks,
// and keeps the last of them. Nothing else does: a verification has to see what the store has.

const (
	blockSize  = 2 << 20 // bytes
	blocksKept = 12
)

type readAheadKey struct{}

// withReadAhead marks the reads of a restore.
func withReadAhead(ctx context.Context) context.Context {
	return context.WithValue(ctx, readAheadKey{}, true)
}

// blocks are the blocks that were read last. What they are of is written once and never changed.
type blocks struct {
	one   singleflight.Group
	mu    sync.Mutex
	kept  []block // the one that was used last is the last
	sizes map[string]int64
}

type block struct {
	key  string
	data []byte
}

// wanted reports whether a read goes through blocks: a small one, of content, for a restore.
func (b *blocks) wanted(ctx context.Context, id blob.ID, length int64) bool {
	return ctx.Value(readAheadKey{}) != nil && len(id) > 0 && id[0] == 'p' && length >= 0 && length <= blockSize/4
}

// read gives length bytes from offset on; false when they do not lie in one block.
func (b *blocks) read(ctx context.Context, s *storage, name string, offset, length int64) ([]byte, bool, error) {
	n := offset / blockSize
	if (offset+length-1)/blockSize != n || length == 0 {
		return nil, false, nil
	}
	key := name + "/" + strconv.FormatInt(n, 10)
	data := b.find(key)
	if data == nil {
		v, err, _ := b.one.Do(key, func() (any, error) {
			if data := b.find(key); data != nil {
				return data, nil
			}
			size, err := b.size(ctx, s, name)
			if err != nil {
				return nil, err
			}
			data := make([]byte, max(0, min(blockSize, size-n*blockSize)))
			if len(data) > 0 {
				err = s.store.ReadAt(ctx, name, data, n*blockSize)
			}
			if err != nil {
				return nil, err
			}
			s.loaded.Add(int64(len(data)))
			b.keep(key, data)
			return data, nil
		})
		if err != nil {
			return nil, false, err
		}
		data, _ = v.([]byte)
	}
	from := offset - n*blockSize
	if from+length > int64(len(data)) {
		return nil, false, nil // the store says what is wrong
	}
	return data[from : from+length], true, nil
}

func (b *blocks) find(key string) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, k := range b.kept {
		if k.key == key {
			copy(b.kept[i:], b.kept[i+1:])
			b.kept[len(b.kept)-1] = k
			return k.data
		}
	}
	return nil
}

func (b *blocks) keep(key string, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.kept) == blocksKept {
		b.kept = append(b.kept[:0], b.kept[1:]...)
	}
	b.kept = append(b.kept, block{key, data})
}

// size is that of a file, which is asked for once.
func (b *blocks) size(ctx context.Context, s *storage, name string) (int64, error) {
	b.mu.Lock()
	n, ok := b.sizes[name]
	b.mu.Unlock()
	if ok {
		return n, nil
	}
	info, err := s.store.Stat(ctx, name)
	if err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sizes == nil || len(b.sizes) > 10_000 {
		b.sizes = map[string]int64{}
	}
	b.sizes[name] = info.Size
	return info.Size, nil
}
