package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node}, nil
}

func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

func mounted(path string) bool {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	return strings.Contains(string(b), " "+path+" ")
}

func (d *driver) NodePublishVolume(_ context.Context, q *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.GetVolumeId() == "" || q.GetTargetPath() == "" || q.GetVolumeCapability() == nil {
		return nil, invalid("a volume, a target and a capability are needed")
	}
	k, ok := d.load(volume, q.VolumeId)
	if !ok {
		return nil, status.Error(codes.NotFound, "no such volume")
	}
	if mounted(q.TargetPath) {
		return &csi.NodePublishVolumeResponse{}, nil
	}
	source := d.path(volume, k.ID)
	if k.Block {
		device, err := loopDevice(source, q.GetReadonly())
		if err != nil {
			return nil, internal(err)
		}
		source = device
		if err := os.MkdirAll(filepath.Dir(q.TargetPath), 0o755); err != nil {
			return nil, internal(err)
		}
		f, err := os.OpenFile(q.TargetPath, os.O_CREATE, 0o600)
		if err != nil {
			return nil, internal(err)
		}
		f.Close()
	} else if err := os.MkdirAll(q.TargetPath, 0o755); err != nil {
		return nil, internal(err)
	}
	if err := syscall.Mount(source, q.TargetPath, "", syscall.MS_BIND, ""); err != nil {
		return nil, internal(err)
	}
	if q.GetReadonly() && !k.Block {
		if err := syscall.Mount("", q.TargetPath, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
			return nil, internal(err)
		}
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// loopDevice makes a file a block device.
func loopDevice(file string, readOnly bool) (string, error) {
	args := []string{"--find", "--show", file}
	if readOnly {
		args = append([]string{"--read-only"}, args...)
	}
	out, err := exec.Command("losetup", args...).Output()
	if err != nil {
		return "", fmt.Errorf("losetup: %w", err)
	}
	return string(bytes.TrimSpace(out)), nil
}

// freeLoops gives back the loop devices of a file.
func freeLoops(file string) error {
	out, err := exec.Command("losetup", "--noheadings", "--output", "NAME", "--associated", file).Output()
	if err != nil {
		return fmt.Errorf("losetup: %w", err)
	}
	for device := range strings.FieldsSeq(string(out)) {
		if err := exec.Command("losetup", "--detach", device).Run(); err != nil {
			return fmt.Errorf("losetup --detach %s: %w", device, err)
		}
	}
	return nil
}

func (d *driver) NodeUnpublishVolume(_ context.Context, q *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.GetVolumeId() == "" || q.GetTargetPath() == "" {
		return nil, invalid("a volume and a target are needed")
	}
	for mounted(q.TargetPath) {
		if err := syscall.Unmount(q.TargetPath, 0); err != nil {
			return nil, internal(err)
		}
	}
	if err := os.Remove(q.TargetPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, internal(err)
	}
	if k, ok := d.load(volume, q.VolumeId); ok && k.Block {
		return &csi.NodeUnpublishVolumeResponse{}, internal(freeLoops(d.path(volume, k.ID)))
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}
