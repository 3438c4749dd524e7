//go:build tools

// Package blocks pins the sidecar that tells clients which blocks of a snapshot a driver knows as changed. It wants an older csi-test than the
// other sidecars.
package blocks

import _ "github.com/kubernetes-csi/external-snapshot-metadata/cmd/csi-snapshot-metadata"
