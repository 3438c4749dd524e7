package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// driver is a CSI driver for one node. A volume is a directory, or for block volumes a file with a loop device; a snapshot is a copy of
// it, made while the Pods' processes are frozen, so that it is of one instant. Publishing is a bind mount.
//
// A file in the driver's directory makes it fail on purpose: "fail-snapshots" (its text is the error),
// "never-ready" (snapshots stay not ready to use), "no-volumes" (volumes cannot be made), "fail-blocks" (it tells of no blocks; its text is the
// error), "forget-blocks" (it tells of all changed blocks but the last).
//
// Snapshots and groups that are made with a secret are told of and deleted only with the same one.
type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedGroupControllerServer
	csi.UnimplementedNodeServer
	csi.UnimplementedSnapshotMetadataServer
	registration.UnimplementedRegistrationServer

	name, node, dir, socket, freezer string
	delay                            time.Duration // until a snapshot is ready to use
	mu                               sync.Mutex
}

// The kinds of what is kept, each a folder.
const (
	volume   = "volumes"
	snapshot = "snapshots"
	group    = "groups"
)

// kept is the record of a volume, a snapshot or a group, a file beside it.
type kept struct {
	ID, Name string
	Size     int64
	Source   string // what it was made from
	Block    bool
	Made     time.Time
	Members  []string // of a group: its snapshots
	Group    string   // of a snapshot
	Key      string   // of a snapshot or a group: what its maker showed
}

func runDriver(args []string) error {
	d := &driver{}
	fs := flag.NewFlagSet("driver", flag.ContinueOnError)
	fs.StringVar(&d.name, "name", "local.csi.tidemark.dev", "name of the driver")
	fs.StringVar(&d.node, "node", "node", "name of the node")
	fs.StringVar(&d.dir, "dir", "", "where volumes and snapshots are kept")
	fs.StringVar(&d.socket, "socket", "", "where to serve CSI")
	fs.StringVar(&d.freezer, "freezer", "", "control group whose processes are frozen while a snapshot is made")
	fs.DurationVar(&d.delay, "snapshot-delay", 0, "how long a new snapshot is not ready to use")
	register := fs.String("registration", "", "where to serve the kubelet's plug-in registration; empty: nowhere")
	if err := fs.Parse(args); err != nil {
		return err
	}
	for _, kind := range []string{volume, snapshot, group} {
		if err := os.MkdirAll(filepath.Join(d.dir, kind), 0o755); err != nil {
			return err
		}
	}
	var servers []*grpc.Server
	for socket, serve := range map[string]func(*grpc.Server){
		d.socket: func(s *grpc.Server) {
			csi.RegisterIdentityServer(s, d)
			csi.RegisterControllerServer(s, d)
			csi.RegisterGroupControllerServer(s, d)
			csi.RegisterNodeServer(s, d)
			csi.RegisterSnapshotMetadataServer(s, d)
		},
		*register: func(s *grpc.Server) { registration.RegisterRegistrationServer(s, d) },
	} {
		if socket == "" {
			continue
		}
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		l, err := net.Listen("unix", socket)
		if err != nil {
			return err
		}
		s := grpc.NewServer(grpc.UnaryInterceptor(logged), grpc.StreamInterceptor(streamLogged))
		serve(s)
		servers = append(servers, s)
		go func() {
			if err := s.Serve(l); err != nil {
				log.Print(err)
			}
		}()
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	<-signals
	for _, s := range servers {
		s.Stop()
	}
	return nil
}

func logged(ctx context.Context, q any, i *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	r, err := h(ctx, q)
	if m := filepath.Base(i.FullMethod); err != nil || m != "Probe" && !strings.HasPrefix(m, "Get") {
		log.Printf("%s: %v", m, err)
	}
	return r, err
}

func streamLogged(server any, stream grpc.ServerStream, i *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	err := h(server, stream)
	log.Printf("%s: %v", filepath.Base(i.FullMethod), err)
	return err
}

// Records.

func (d *driver) path(kind, id string) string { return filepath.Join(d.dir, kind, id) }

func (d *driver) load(kind, id string) (kept, bool) {
	var k kept
	if id == "" || filepath.Base(id) != id {
		return k, false
	}
	b, err := os.ReadFile(d.path(kind, id) + ".json")
	return k, err == nil && json.Unmarshal(b, &k) == nil
}

func (d *driver) save(kind string, k kept) error {
	b, err := json.Marshal(k)
	if err == nil {
		err = os.WriteFile(d.path(kind, k.ID)+".json", b, 0o600)
	}
	return internal(err)
}

func (d *driver) all(kind string) (all []kept) {
	names, _ := filepath.Glob(d.path(kind, "*.json"))
	slices.Sort(names)
	for _, n := range names {
		if k, ok := d.load(kind, strings.TrimSuffix(filepath.Base(n), ".json")); ok {
			all = append(all, k)
		}
	}
	return all
}

func (d *driver) named(kind, name string) (kept, bool) {
	for _, k := range d.all(kind) {
		if k.Name == name {
			return k, true
		}
	}
	return kept{}, false
}

func (d *driver) remove(kind, id string) error {
	if _, ok := d.load(kind, id); !ok {
		return nil
	}
	if err := os.RemoveAll(d.path(kind, id)); err != nil {
		return internal(err)
	}
	return internal(os.Remove(d.path(kind, id) + ".json"))
}

func newID(kind, name string) string {
	id := strings.TrimSuffix(kind, "s") + "-" + name
	if len(id) > 120 || filepath.Base(id) != id {
		id = fmt.Sprintf("%s-%x", strings.TrimSuffix(kind, "s"), time.Now().UnixNano())
	}
	return id
}

// trouble is the error that a file in the directory asks for.
func (d *driver) trouble(name string) error {
	b, err := os.ReadFile(filepath.Join(d.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return status.Error(codes.Internal, strings.TrimSpace(string(b)))
}

// key is what a request shows of itself.
func key(secrets map[string]string) string { return secrets["key"] }

// guarded is the error for a request that does not show what the maker of a snapshot or a group showed.
func (d *driver) guarded(kind, id string, secrets map[string]string) error {
	if k, ok := d.load(kind, id); ok && k.Key != "" && k.Key != key(secrets) {
		return status.Errorf(codes.PermissionDenied, "%s was made with a secret, and this is not it", id)
	}
	return nil
}

func internal(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Internal, err.Error())
}

func invalid(what string) error { return status.Error(codes.InvalidArgument, what) }

// Identity and registration.

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.name, VendorVersion: "test"}, nil
}

func (d *driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	r := &csi.GetPluginCapabilitiesResponse{}
	for _, t := range []csi.PluginCapability_Service_Type{csi.PluginCapability_Service_CONTROLLER_SERVICE, csi.PluginCapability_Service_GROUP_CONTROLLER_SERVICE, csi.PluginCapability_Service_SNAPSHOT_METADATA_SERVICE} {
		r.Capabilities = append(r.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: t}}})
	}
	return r, nil
}

func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (d *driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: d.name, Endpoint: d.socket, SupportedVersions: []string{"1.0.0"}}, nil
}

func (d *driver) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	log.Printf("registered with the kubelet: %v %s", s.PluginRegistered, s.Error)
	return &registration.RegistrationStatusResponse{}, nil
}
