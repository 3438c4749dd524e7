//go:build tools

// Package velero pins the Velero server, and its plug-in for S3, that benchmarks run beside ours.
package velero

import (
	_ "github.com/vmware-tanzu/velero-plugin-for-aws/velero-plugin-for-aws"
	_ "github.com/vmware-tanzu/velero/cmd/velero"
)
