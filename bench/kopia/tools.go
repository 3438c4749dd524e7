//go:build tools

// Package kopia pins the kopia command line that benchmarks run beside ours.
package kopia

import _ "github.com/kopia/kopia"
