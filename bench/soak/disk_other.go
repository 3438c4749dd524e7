//go:build !linux

package main

import (
	"context"
	"errors"
)

// disk is for Linux only: elsewhere no disk becomes slow or full.
type disk struct{ dir, group string }

var errNoDisk = errors.New("file systems of its own are for Linux")

func newDisk(context.Context, string, string) (*disk, error) { return nil, errNoDisk }
func (*disk) limit(int, int, int) error                      { return errNoDisk }
func (*disk) fill(int64) error                               { return errNoDisk }
func (*disk) free() error                                    { return errNoDisk }
func (*disk) close() error                                   { return errNoDisk }
func isolate() (bool, int)                                   { return false, 0 }
func mayMount() bool                                         { return false }
