package repository

import (
	"fmt"
	"slices"
	"sync"

	"github.com/kopia/kopia/repo/blob"
)

// Nearly all that a backup writes are packs: files of some 20 MB that hold content, under random names. Nothing needs a pack before an
// index names it, so a pack counts as written once the store has its bytes, and a directory has it on its disk some packs later,
// without anybody having waited for the disk.
//
// Why a loss of power, or kill -9, at any moment loses nothing: an index, and with it a backup, is durable only after all packs that it names. Kopia
// writes an index of packs for which PutBlob has returned; these are all pending, or published, when the index comes. PutBlob of
// whatever is no pack begins with settle, and does nothing when settle fails. What settle has published is synced, has its name, and
// its directory is synced (archive.Stager). Cut off before, there are packs without an index, or files in the making: both are
// removed later, by Kopia's maintenance and by the store.
//
// An error that comes after PutBlob has returned nil is not lost: Kopia believes in that pack, and would name it in an index. So the first
// such error stays, and fails every write, settle and Close from then on, until the repository is opened anew.

// packsBehind is how many packs may be pending, besides those that are being written. Their bytes were on the way to the disk
// since they were staged, so that it takes few for the oldest to be there.
const packsBehind = 4

// behind are the packs that are not durable yet.
type behind struct {
	mu      sync.Mutex // guards what follows
	pending []*pack    // oldest first
	lost    error      // the first error of a pack that Kopia takes to be written
}

type pack struct {
	id      blob.ID
	publish func() error
	once    sync.Once
	err     error // of publish, once it was called
}

// add is for a pack that was staged.
func (b *behind) add(id blob.ID, publish func() error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pending = append(b.pending, &pack{id: id, publish: publish})
}

// room publishes the oldest packs, so that one more may become pending. It fails when any pack ever failed.
func (b *behind) room() error {
	for {
		all, err := b.now()
		if err != nil || len(all) < packsBehind {
			return err
		}
		_ = b.finish(all[0]) // now tells
	}
}

// settle publishes all packs that were added before. It fails when any pack ever failed.
func (b *behind) settle() error {
	all, _ := b.now()
	for _, p := range all {
		_ = b.finish(p)
	}
	_, err := b.now()
	return err
}

// wait publishes one pack if it is pending, so that it can be read.
func (b *behind) wait(id blob.ID) error {
	all, _ := b.now()
	if i := slices.IndexFunc(all, func(p *pack) bool { return p.id == id }); i >= 0 {
		return b.finish(all[i])
	}
	return nil
}

// now are the packs that are pending, and the error of the first that failed.
func (b *behind) now() ([]*pack, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.pending), b.lost
}

// finish publishes a pack, or waits until the goroutine that does so has.
func (b *behind) finish(p *pack) error {
	p.once.Do(func() {
		p.err = p.publish()
		b.mu.Lock()
		defer b.mu.Unlock()
		b.pending = slices.DeleteFunc(b.pending, func(q *pack) bool { return q == p })
		if p.err != nil && b.lost == nil {
			b.lost = fmt.Errorf("content was not stored after all, so that nothing may refer to it: %w", p.err)
		}
	})
	return p.err
}
