package main

import (
	"bytes"
	"context"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func (d *driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	r := &csi.ControllerGetCapabilitiesResponse{}
	for _, c := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
	} {
		r.Capabilities = append(r.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{
			Rpc: &csi.ControllerServiceCapability_RPC{Type: c},
		}})
	}
	return r, nil
}

func (d *driver) CreateVolume(_ context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.GetName() == "" || len(q.GetVolumeCapabilities()) == 0 {
		return nil, invalid("a name and capabilities are needed")
	}
	if err := d.trouble("no-volumes"); err != nil {
		return nil, err
	}
	kind, source := volume, q.GetVolumeContentSource().GetVolume().GetVolumeId()
	if id := q.GetVolumeContentSource().GetSnapshot().GetSnapshotId(); id != "" {
		kind, source = snapshot, id
	}
	want := kept{Name: q.Name, Size: max(q.GetCapacityRange().GetRequiredBytes(), 1<<20), Source: source, Made: time.Now()}
	want.Block = slices.ContainsFunc(q.VolumeCapabilities, func(c *csi.VolumeCapability) bool { return c.GetBlock() != nil })
	answer := func(k kept) *csi.CreateVolumeResponse {
		return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: k.ID, CapacityBytes: k.Size, ContentSource: q.VolumeContentSource}}
	}
	if k, ok := d.named(volume, q.Name); ok {
		if limit := q.GetCapacityRange().GetLimitBytes(); k.Size < want.Size || limit > 0 && k.Size > limit || k.Source != source {
			return nil, status.Error(codes.AlreadyExists, "a volume of that name exists with other properties")
		}
		return answer(k), nil
	}
	want.ID = newID(volume, q.Name)
	to := d.path(volume, want.ID)
	if q.VolumeContentSource != nil {
		from, ok := d.load(kind, source)
		switch {
		case !ok:
			return nil, status.Errorf(codes.NotFound, "there is no %s %q", kind, source)
		case want.Size < from.Size:
			return nil, status.Errorf(codes.OutOfRange, "the source has %d bytes", from.Size)
		case from.Block != want.Block:
			return nil, invalid("the source is of the other mode")
		}
		if err := replicate(d.path(kind, source), to); err != nil {
			return nil, err
		}
	}
	if err := prepare(to, want); err != nil {
		return nil, internal(err)
	}
	return answer(want), d.save(volume, want)
}

// prepare makes an empty volume, or one that was copied large enough.
func prepare(path string, k kept) error {
	if k.Block {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Truncate(k.Size)
	}
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	if k.Source != "" {
		return nil // it has the mode of its source
	}
	return os.Chmod(path, 0o777)
}

// replicate copies a volume with all that its files have.
func replicate(from, to string) error {
	args := []string{"-a", "--sparse=always", "--reflink=auto", from, to}
	if info, err := os.Stat(from); err == nil && info.IsDir() {
		if err := os.RemoveAll(to); err != nil { // of a try that was cut off
			return internal(err)
		}
		args = []string{"-aT", "--reflink=auto", from, to}
	}
	if out, err := exec.Command("cp", args...).CombinedOutput(); err != nil {
		_ = os.RemoveAll(to)
		return status.Errorf(codes.Internal, "copy: %v: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func (d *driver) DeleteVolume(_ context.Context, q *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.GetVolumeId() == "" {
		return nil, invalid("a volume is needed")
	}
	return &csi.DeleteVolumeResponse{}, d.remove(volume, q.VolumeId)
}

func (d *driver) ValidateVolumeCapabilities(_ context.Context, q *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if q.GetVolumeId() == "" || len(q.GetVolumeCapabilities()) == 0 {
		return nil, invalid("a volume and capabilities are needed")
	}
	if _, ok := d.load(volume, q.VolumeId); !ok {
		return nil, status.Error(codes.NotFound, "no such volume")
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: q.VolumeCapabilities}}, nil
}

func (d *driver) tell(k kept) *csi.Snapshot {
	ready := time.Since(k.Made) >= d.delay
	if _, err := os.Stat(filepath.Join(d.dir, "never-ready")); err == nil {
		ready = false
	}
	return &csi.Snapshot{
		SnapshotId: k.ID, SourceVolumeId: k.Source, SizeBytes: k.Size, CreationTime: timestamppb.New(k.Made), ReadyToUse: ready, GroupSnapshotId: k.Group,
	}
}

// frozen does something while no process of a Pod runs.
func (d *driver) frozen(do func() error) error {
	if d.freezer == "" {
		return do()
	}
	set := func(state, v2 string) error {
		for file, text := range map[string]string{"freezer.state": state, "cgroup.freeze": v2} {
			path := filepath.Join(d.freezer, file)
			if _, err := os.Stat(path); err == nil {
				return os.WriteFile(path, []byte(text), 0o600)
			}
		}
		return status.Errorf(codes.Internal, "%s cannot freeze", d.freezer)
	}
	defer func() {
		if err := set("THAWED", "0"); err != nil {
			log.Print("thaw: ", err)
		}
	}()
	if err := set("FROZEN", "1"); err != nil {
		return internal(err)
	}
	for range 200 { // it takes a moment
		b, err := os.ReadFile(filepath.Join(d.freezer, "freezer.state"))
		if err != nil || bytes.HasPrefix(b, []byte("FROZEN")) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return do()
}

// take makes the snapshot of one volume.
func (d *driver) take(name, source, group, key string) (kept, error) {
	v, ok := d.load(volume, source)
	if !ok {
		return kept{}, status.Error(codes.NotFound, "no such volume")
	}
	k := kept{ID: newID(snapshot, name), Name: name, Size: v.Size, Source: v.ID, Block: v.Block, Made: time.Now(), Group: group, Key: key}
	if err := replicate(d.path(volume, v.ID), d.path(snapshot, k.ID)); err != nil {
		return k, err
	}
	return k, d.save(snapshot, k)
}

func (d *driver) CreateSnapshot(_ context.Context, q *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.GetName() == "" || q.GetSourceVolumeId() == "" {
		return nil, invalid("a name and a volume are needed")
	}
	if err := d.trouble("fail-snapshots"); err != nil {
		return nil, err
	}
	if k, ok := d.named(snapshot, q.Name); ok {
		if k.Source != q.SourceVolumeId {
			return nil, status.Error(codes.AlreadyExists, "a snapshot of that name has another source")
		}
		return &csi.CreateSnapshotResponse{Snapshot: d.tell(k)}, nil
	}
	var k kept
	err := d.frozen(func() (err error) {
		k, err = d.take(q.Name, q.SourceVolumeId, "", key(q.Secrets))
		return err
	})
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: d.tell(k)}, nil
}

func (d *driver) DeleteSnapshot(_ context.Context, q *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.GetSnapshotId() == "" {
		return nil, invalid("a snapshot is needed")
	}
	if err := d.guarded(snapshot, q.SnapshotId, q.Secrets); err != nil {
		return nil, err
	}
	return &csi.DeleteSnapshotResponse{}, d.remove(snapshot, q.SnapshotId)
}

func (d *driver) ListSnapshots(_ context.Context, q *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.guarded(snapshot, q.GetSnapshotId(), q.GetSecrets()); err != nil {
		return nil, err
	}
	var found []kept
	for _, k := range d.all(snapshot) {
		if (q.GetSnapshotId() == "" || q.SnapshotId == k.ID) && (q.GetSourceVolumeId() == "" || q.SourceVolumeId == k.Source) {
			found = append(found, k)
		}
	}
	from := 0
	if token := q.GetStartingToken(); token != "" {
		var err error
		if from, err = strconv.Atoi(token); err != nil || from < 0 || from > len(found) {
			return nil, status.Error(codes.Aborted, "no such token")
		}
	}
	r := &csi.ListSnapshotsResponse{}
	for i, k := range found[from:] {
		if q.GetMaxEntries() > 0 && i == int(q.MaxEntries) {
			r.NextToken = strconv.Itoa(from + i)
			break
		}
		r.Entries = append(r.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: d.tell(k)})
	}
	return r, nil
}

// Groups.

func (d *driver) GroupControllerGetCapabilities(context.Context, *csi.GroupControllerGetCapabilitiesRequest) (*csi.GroupControllerGetCapabilitiesResponse, error) {
	return &csi.GroupControllerGetCapabilitiesResponse{Capabilities: []*csi.GroupControllerServiceCapability{{Type: &csi.GroupControllerServiceCapability_Rpc{
		Rpc: &csi.GroupControllerServiceCapability_RPC{Type: csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT},
	}}}}, nil
}

func (d *driver) tellGroup(g kept) *csi.VolumeGroupSnapshot {
	r := &csi.VolumeGroupSnapshot{GroupSnapshotId: g.ID, CreationTime: timestamppb.New(g.Made), ReadyToUse: true}
	for _, id := range g.Members {
		if k, ok := d.load(snapshot, id); ok {
			s := d.tell(k)
			r.Snapshots, r.ReadyToUse = append(r.Snapshots, s), r.ReadyToUse && s.ReadyToUse
		}
	}
	return r
}

func (d *driver) CreateVolumeGroupSnapshot(_ context.Context, q *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.GetName() == "" || len(q.GetSourceVolumeIds()) == 0 {
		return nil, invalid("a name and volumes are needed")
	}
	if err := d.trouble("fail-snapshots"); err != nil {
		return nil, err
	}
	if g, ok := d.named(group, q.Name); ok {
		return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: d.tellGroup(g)}, nil
	}
	g := kept{ID: newID(group, q.Name), Name: q.Name, Made: time.Now(), Key: key(q.Secrets)}
	err := d.frozen(func() error {
		for i, source := range q.SourceVolumeIds {
			k, err := d.take(q.Name+"-"+strconv.Itoa(i), source, g.ID, g.Key)
			if err != nil {
				return err
			}
			g.Members = append(g.Members, k.ID)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: d.tellGroup(g)}, d.save(group, g)
}

func (d *driver) DeleteVolumeGroupSnapshot(_ context.Context, q *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.GetGroupSnapshotId() == "" {
		return nil, invalid("a group is needed")
	}
	g, ok := d.load(group, q.GroupSnapshotId)
	if !ok {
		return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
	}
	if err := d.guarded(group, g.ID, q.Secrets); err != nil {
		return nil, err
	}
	for _, id := range g.Members {
		if err := d.remove(snapshot, id); err != nil {
			return nil, err
		}
	}
	return &csi.DeleteVolumeGroupSnapshotResponse{}, d.remove(group, g.ID)
}

func (d *driver) GetVolumeGroupSnapshot(_ context.Context, q *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.GetGroupSnapshotId() == "" {
		return nil, invalid("a group is needed")
	}
	g, ok := d.load(group, q.GroupSnapshotId)
	if !ok {
		return nil, status.Error(codes.NotFound, "no such group")
	}
	if err := d.guarded(group, g.ID, q.Secrets); err != nil {
		return nil, err
	}
	return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: d.tellGroup(g)}, nil
}
