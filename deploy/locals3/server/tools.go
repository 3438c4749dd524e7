//go:build tools

// Package server pins the S3 server of the tests. It is a module of its own so that its
// dependencies never reach the product's go.mod.
package server

import _ "github.com/versity/versitygw/cmd/versitygw"
