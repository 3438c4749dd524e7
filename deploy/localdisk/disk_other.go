//go:build !linux

package localdisk

import (
	"context"
	"errors"
)

// Disk is for Linux only: elsewhere no disk becomes slow or full, or loses its power.
type Disk struct{}

var errNoDisk = errors.New("file systems of its own are for Linux")

// New says that there is none.
func New(context.Context, string, string) (*Disk, error) { return nil, errNoDisk }

// What a disk can do elsewhere.
func (*Disk) CanLimit() bool            { return false }
func (*Disk) Limit(int, int, int) error { return errNoDisk }
func (*Disk) Fill(int64) error          { return errNoDisk }
func (*Disk) Free() error               { return errNoDisk }
func (*Disk) CutPower() error           { return errNoDisk }
func (*Disk) Mount() error              { return errNoDisk }
func (*Disk) Unmount() error            { return errNoDisk }
func (*Disk) Close() error              { return errNoDisk }

// Isolate does nothing.
func Isolate() (bool, int) { return false, 0 }

// Possible is false.
func Possible() bool { return false }
