//go:build tools

// Package kwok pins the fake kubelet of the soak. It is a module of its own so that its
// dependencies never reach the product's go.mod.
package kwok

import _ "sigs.k8s.io/kwok/cmd/kwok"
