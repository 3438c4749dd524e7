package repository

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/format"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// initialize makes the repository when it is not there. Kopia's own way breaks it when two do so at once, or one dies in the
// middle. So its two files are made in memory and then created, each of them once: the first is encrypted
// with a key that follows from the password alone, so that it does not matter whose of several is taken.
func (r *Repository) initialize(ctx context.Context) error {
	if _, err := r.storage.GetMetadata(ctx, format.KopiaRepositoryBlobID); err == nil || !errors.Is(err, blob.ErrBlobNotFound) {
		return err
	}
	if err := r.headless(ctx); err != nil {
		return err
	}
	o := &repo.NewRepositoryOptions{
		UniqueID:    r.uniqueID(),
		BlockFormat: format.ContentFormat{Hash: "BLAKE3-256", Encryption: "AES256-GCM-HMAC-SHA256", EnablePasswordChange: true},
	}
	create := archive.CreateOptions{}
	if r.o.Lock > 0 {
		o.RetentionMode, o.RetentionPeriod = blob.Governance, r.o.Lock
		if r.o.Compliance {
			o.RetentionMode = blob.Compliance
		}
		create.Lock, create.Compliance = time.Now().Add(r.o.Lock), r.o.Compliance
	}
	made := memory{}
	if err := repo.Initialize(ctx, made, o, r.o.Password); err != nil {
		return err
	}
	for _, name := range []blob.ID{format.KopiaBlobCfgBlobID, format.KopiaRepositoryBlobID} {
		b, ok := made[name]
		if !ok {
			return fmt.Errorf("kopia made no %s", name)
		}
		if err := r.o.Store.Create(ctx, r.storage.dir+string(name), bytes.NewReader(b), int64(len(b)), create); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// headless returns ErrBroken when there is content, but not the file that says how to read it. To make that anew would hide all there is.
func (r *Repository) headless(ctx context.Context) error {
	for f, err := range r.o.Store.List(ctx, r.storage.dir, "") {
		if err != nil {
			return r.storage.note(ctx, err)
		}
		if name := blob.ID(f.Name[len(r.storage.dir):]); name == format.KopiaRepositoryBlobID || name == format.KopiaBlobCfgBlobID {
			continue
		}
		// It was there before all others: somebody else may just have made it.
		if _, err := r.storage.GetMetadata(ctx, format.KopiaRepositoryBlobID); !errors.Is(err, blob.ErrBlobNotFound) {
			return err
		}
		return fmt.Errorf("%w: %s%s is missing in %s, without which none of what is there can be read: bring it back from a copy or an older version",
			ErrBroken, r.storage.dir, format.KopiaRepositoryBlobID, r.o.Store)
	}
	return nil
}

// uniqueID follows from the password, so that it tells another password from damage.
func (r *Repository) uniqueID() []byte {
	id := sha256.Sum256([]byte("tidemark repository " + r.o.Password))
	return id[:]
}

// headDamage returns ErrBroken when err is for damage of the file that says how to read all others, and nil also where that cannot be told. Kopia takes what is
// still JSON for a wrong password. There is no other copy of that file: Kopia has some in packs only where the password cannot be changed.
func (r *Repository) headDamage(ctx context.Context, err error) error {
	name := r.storage.dir + format.KopiaRepositoryBlobID
	info, statErr := r.o.Store.Stat(ctx, name)
	if statErr != nil {
		return nil //nolint:nilerr // what opening it said is told
	}
	b := make([]byte, min(info.Size, headLimit))
	if r.o.Store.ReadAt(ctx, name, b, 0) != nil {
		return nil
	}
	head, parseErr := format.ParseKopiaRepositoryJSON(b)
	if parseErr == nil && !(errors.Is(err, repo.ErrInvalidPassword) && bytes.Equal(head.UniqueID, r.uniqueID())) {
		return nil
	}
	return fmt.Errorf("%w: %s in %s is damaged, without which none of what is there can be read: bring it back from a copy or an older version", ErrBroken, name, r.o.Store)
}

const headLimit = 1 << 20

// memory takes what Initialize writes.
type memory map[blob.ID][]byte

var _ blob.Storage = memory(nil)

// PutBlob implements blob.Storage.
func (m memory) PutBlob(_ context.Context, id blob.ID, data blob.Bytes, _ blob.PutOptions) error {
	var b bytes.Buffer
	_, err := data.WriteTo(&b)
	m[id] = b.Bytes()
	return err
}

// GetBlob implements blob.Storage.
func (m memory) GetBlob(context.Context, blob.ID, int64, int64, blob.OutputBuffer) error {
	return blob.ErrBlobNotFound // only asked for before anything is there
}

// The rest of blob.Storage is not asked for.

// GetMetadata implements blob.Storage.
func (memory) GetMetadata(context.Context, blob.ID) (blob.Metadata, error) {
	return blob.Metadata{}, blob.ErrBlobNotFound
}

// ListBlobs implements blob.Storage.
func (memory) ListBlobs(context.Context, blob.ID, func(blob.Metadata) error) error { return nil }

// DeleteBlob implements blob.Storage.
func (memory) DeleteBlob(context.Context, blob.ID) error { return nil }

// Close implements blob.Storage.
func (memory) Close(context.Context) error { return nil }

// FlushCaches implements blob.Storage.
func (memory) FlushCaches(context.Context) error { return nil }

// ExtendBlobRetention implements blob.Storage.
func (memory) ExtendBlobRetention(context.Context, blob.ID, blob.ExtendOptions) error { return nil }

// IsReadOnly implements blob.Storage.
func (memory) IsReadOnly() bool { return false }

// GetCapacity implements blob.Storage.
func (memory) GetCapacity(context.Context) (blob.Capacity, error) {
	return blob.Capacity{}, blob.ErrNotAVolume
}

// ConnectionInfo implements blob.Storage.
func (memory) ConnectionInfo() blob.ConnectionInfo { return blob.ConnectionInfo{} }

// DisplayName implements blob.Storage.
func (memory) DisplayName() string { return "memory" }
