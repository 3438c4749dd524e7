package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Which blocks of a snapshot hold data, or differ from those of another one, is found out from the files themselves.

// blockSize is the unit in which differences are told.
const blockSize = 64 << 10

// lister sends ranges of a volume in messages of as many as the client wants.
type lister struct {
	send    func([]*csi.BlockMetadata) error
	from    int64 // what ends before is left out
	limit   int
	pending []*csi.BlockMetadata
}

func (l *lister) add(offset, length int64) error {
	if offset+length <= l.from {
		return nil
	}
	l.pending = append(l.pending, &csi.BlockMetadata{ByteOffset: offset, SizeBytes: length})
	if len(l.pending) < l.limit {
		return nil
	}
	return l.flush()
}

func (l *lister) flush() error {
	if len(l.pending) == 0 {
		return nil
	}
	err := l.send(l.pending)
	l.pending = nil
	return err
}

func newLister(from int64, limit int32, send func([]*csi.BlockMetadata) error) *lister {
	if limit <= 0 || limit > 256 {
		limit = 256
	}
	return &lister{send: send, from: from, limit: int(limit)}
}

// blockSnapshot finds a snapshot of a block volume.
func (d *driver) blockSnapshot(id string, from int64) (kept, error) {
	if id == "" {
		return kept{}, invalid("a snapshot is needed")
	}
	if err := d.trouble("fail-blocks"); err != nil {
		return kept{}, err
	}
	k, ok := d.load(snapshot, id)
	switch {
	case !ok:
		return k, status.Errorf(codes.NotFound, "there is no snapshot %q", id)
	case !k.Block:
		return k, invalid("it is no snapshot of a block volume")
	case from < 0 || from >= k.Size:
		return k, status.Errorf(codes.OutOfRange, "the snapshot has %d bytes", k.Size)
	}
	return k, nil
}

// GetMetadataAllocated tells which parts of a snapshot's file are no holes.
func (d *driver) GetMetadataAllocated(q *csi.GetMetadataAllocatedRequest, stream csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	k, err := d.blockSnapshot(q.GetSnapshotId(), q.GetStartingOffset())
	if err != nil {
		return err
	}
	f, err := os.Open(d.path(snapshot, k.ID))
	if err != nil {
		return internal(err)
	}
	defer f.Close()
	l := newLister(q.StartingOffset, q.MaxResults, func(b []*csi.BlockMetadata) error {
		return stream.Send(&csi.GetMetadataAllocatedResponse{BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: k.Size, BlockMetadata: b})
	})
	const seekData, seekHole = 3, 4
	for at := int64(0); at < k.Size; {
		start, err := f.Seek(at, seekData)
		if errors.Is(err, syscall.ENXIO) {
			break
		}
		if err != nil {
			return internal(err)
		}
		if at, err = f.Seek(start, seekHole); err != nil {
			return internal(err)
		}
		if err := l.add(start, at-start); err != nil {
			return err
		}
	}
	return l.flush()
}

// GetMetadataDelta tells in which blocks two snapshots of a volume differ. The file "forget-blocks" has it leave out the last one.
func (d *driver) GetMetadataDelta(q *csi.GetMetadataDeltaRequest, stream csi.SnapshotMetadata_GetMetadataDeltaServer) error {
	base, err := d.blockSnapshot(q.GetBaseSnapshotId(), 0)
	if err != nil {
		return err
	}
	k, err := d.blockSnapshot(q.GetTargetSnapshotId(), q.GetStartingOffset())
	if err != nil {
		return err
	}
	if base.Source != k.Source {
		return invalid("the snapshots are of different volumes")
	}
	var changed []int64
	if err := differences(d.path(snapshot, base.ID), d.path(snapshot, k.ID), func(offset int64) { changed = append(changed, offset) }); err != nil {
		return internal(err)
	}
	if _, err := os.Stat(filepath.Join(d.dir, "forget-blocks")); err == nil && len(changed) > 0 {
		changed = changed[:len(changed)-1]
	}
	l := newLister(q.StartingOffset, q.MaxResults, func(b []*csi.BlockMetadata) error {
		return stream.Send(&csi.GetMetadataDeltaResponse{BlockMetadataType: csi.BlockMetadataType_FIXED_LENGTH, VolumeCapacityBytes: k.Size, BlockMetadata: b})
	})
	for _, offset := range changed {
		if err := l.add(offset, blockSize); err != nil {
			return err
		}
	}
	return l.flush()
}

// differences compares two files block by block; what one lacks is zero.
func differences(a, b string, found func(offset int64)) error {
	var in [2]*os.File
	for i, name := range []string{a, b} {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		in[i] = f
	}
	var buf [2][blockSize]byte
	for offset := int64(0); ; offset += blockSize {
		most := 0
		for i, f := range in {
			n, err := f.ReadAt(buf[i][:], offset)
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			clear(buf[i][n:])
			most = max(most, n)
		}
		if most == 0 {
			return nil
		}
		if !bytes.Equal(buf[0][:], buf[1][:]) {
			found(offset)
		}
	}
}
