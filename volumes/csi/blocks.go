package csi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tidemark-backup/tidemark/volumes/kube"
)

// blockServices say where drivers tell of changed blocks.
var blockServices = schema.GroupVersionResource{Group: "cbt.storage.k8s.io", Version: "v1beta1", Resource: "snapshotmetadataservices"}

// BlockService is where a driver tells which blocks of a snapshot hold data, or differ from those of another one: the SnapshotMetadata
// service of its sidecar external-snapshot-metadata.
type BlockService struct {
	Spec struct {
		Address  string `json:"address"`
		Audience string `json:"audience"` // whom the tokens must be meant for that it takes
		CA       []byte `json:"caCert"`
	} `json:"spec"`
}

// Blocks finds the service of a driver; nil: it has none.
func Blocks(ctx context.Context, c *kube.Client, driver string) (*BlockService, error) {
	return kube.Get[BlockService](ctx, c, blockServices, "", driver)
}

// BlockQuery says what is wanted to be known.
type BlockQuery struct {
	// Token is one of a ServiceAccount that may get VolumeSnapshots in the namespace.
	Token string
	// Namespace and Snapshot name a VolumeSnapshot.
	Namespace, Snapshot string
	// Base is the handle of an earlier snapshot of the volume: what differs from it is told. Without it, what holds data.
	Base string
}

// blockMessage is an answer of either kind.
type blockMessage interface {
	GetVolumeCapacityBytes() int64
	GetBlockMetadata() []*api.BlockMetadata
}

// List calls each with parts of the volume, in their order, and its size. An answer that is cut off is asked for again from where it ended.
func (s *BlockService) List(ctx context.Context, q BlockQuery, each func(size, offset, length int64) error) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(s.Spec.CA) {
		return errors.New("the certificate of the service of changed blocks cannot be read")
	}
	host, _, err := net.SplitHostPort(s.Spec.Address)
	if err != nil {
		return fmt.Errorf("the address of the service of changed blocks: %w", err)
	}
	conn, err := grpc.NewClient("passthrough:///"+s.Spec.Address, grpc.WithNoProxy(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS12})))
	if err != nil {
		return err
	}
	defer conn.Close()
	client, from := api.NewSnapshotMetadataClient(conn), int64(0)
	for {
		at := from
		err := s.stream(ctx, client, q, from, func(size, offset, length int64) error {
			if offset < at { // the answer may begin within a part
				offset, length = at, offset+length-at
			}
			from = offset + length
			return each(size, offset, length)
		})
		switch code := status.Code(err); {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case from > at && (code == codes.Unavailable || code == codes.DeadlineExceeded): // it got on
			continue
		}
		return fmt.Errorf("ask %s for blocks: %w", s.Spec.Address, err)
	}
}

func (s *BlockService) stream(ctx context.Context, client api.SnapshotMetadataClient, q BlockQuery, from int64, each func(size, offset, length int64) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if q.Base == "" {
		in, err := client.GetMetadataAllocated(ctx, &api.GetMetadataAllocatedRequest{
			SecurityToken: q.Token, Namespace: q.Namespace, SnapshotName: q.Snapshot, StartingOffset: from,
		})
		if err != nil {
			return err
		}
		return receive(in.Recv, each)
	}
	in, err := client.GetMetadataDelta(ctx, &api.GetMetadataDeltaRequest{
		SecurityToken: q.Token, Namespace: q.Namespace, TargetSnapshotName: q.Snapshot, BaseSnapshotId: q.Base, StartingOffset: from,
	})
	if err != nil {
		return err
	}
	return receive(in.Recv, each)
}

func receive[M blockMessage](next func() (M, error), each func(size, offset, length int64) error) error {
	for {
		m, err := next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, b := range m.GetBlockMetadata() {
			if err := each(m.GetVolumeCapacityBytes(), b.GetByteOffset(), b.GetSizeBytes()); err != nil {
				return err
			}
		}
	}
}
