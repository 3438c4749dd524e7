// Package localserver builds servers from Go modules of their own, once per machine, and runs them on
// loopback: what deploy/localcluster and deploy/locals3 have in common.
package localserver
