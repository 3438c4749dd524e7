package localnode

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// BlocksAudience is who tokens must be meant for that the service of changed blocks takes.
const BlocksAudience = "blocks." + Driver

// blockServices are the objects that say where drivers tell of changed blocks.
var blockServices = schema.GroupVersionResource{Group: "cbt.storage.k8s.io", Version: "v1beta1", Resource: "snapshotmetadataservices"}

// writeBlocksKey makes the certificate of the sidecar.
func (n *Node) writeBlocksKey() error {
	cert, key, err := n.Cluster.ServerCertificate("csi-snapshot-metadata", n.gateway())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(n.dir, "csi", "blocks.crt"), cert, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.dir, "csi", "blocks.key"), key, 0o600)
}

func (n *Node) blocksPort() string { return strconv.Itoa(blocksPort + n.o.Number) }

func (n *Node) blocksAddress() string { return net.JoinHostPort(n.gateway(), n.blocksPort()) }

func (n *Node) blocksArgs(socket string) []string {
	return []string{
		n.bin.blocks, "--kubeconfig=" + n.Cluster.Kubeconfig(), "--csi-address=" + socket, "--port=" + n.blocksPort(), "--http-endpoint=127.0.0.1:0",
		"--tls-cert=" + filepath.Join(n.dir, "csi", "blocks.crt"), "--tls-key=" + filepath.Join(n.dir, "csi", "blocks.key"),
		"--kube-api-qps=100", "--kube-api-burst=200",
	}
}

// AwaitBlocks waits until the sidecar serves.
func (n *Node) AwaitBlocks(ctx context.Context) error {
	return n.until(ctx, "the service of changed blocks", "csi-snapshot-metadata", func() bool {
		c, err := net.DialTimeout("tcp", n.blocksAddress(), time.Second)
		return err == nil && c.Close() == nil
	})
}

// OfferBlocks tells the cluster that the driver tells of changed blocks; the sidecar that does so runs always.
func (n *Node) OfferBlocks(ctx context.Context) error {
	if err := n.AwaitBlocks(ctx); err != nil {
		return err
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "cbt.storage.k8s.io/v1beta1", "kind": "SnapshotMetadataService", "metadata": map[string]any{"name": Driver},
		"spec": map[string]any{"address": n.blocksAddress(), "audience": BlocksAudience, "caCert": base64.StdEncoding.EncodeToString(n.Cluster.Config().CAData)},
	}}
	if _, err := n.Dynamic.Resource(blockServices).Create(ctx, u, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("offer changed blocks: %w", err)
	}
	return nil
}

// WithdrawBlocks takes back what OfferBlocks told.
func (n *Node) WithdrawBlocks(ctx context.Context) error {
	return n.Dynamic.Resource(blockServices).Delete(ctx, Driver, metav1.DeleteOptions{})
}
