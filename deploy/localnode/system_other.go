//go:build !linux

package localnode

import (
	"errors"
	"io"
)

type agent struct{}

var errLinux = errors.New("a node needs Linux")

func startAgent(string, string, io.Writer) (*agent, error) { return nil, errLinux }

func (a *agent) do(string) error { return errLinux }

func (a *agent) kill() {}

func (n *Node) gateway() string       { return "" }
func (n *Node) podNet() string        { return "" }
func (n *Node) serviceNet() string    { return "10.96.0.0/16" }
func (n *Node) bridge() string        { return "" }
func (n *Node) cgroup() string        { return "" }
func (n *Node) freezer() string       { return "" }
func (n *Node) makeNetwork() error    { return errLinux }
func (n *Node) cleanUp()              {}
func (n *Node) freeLoops()            {}
func command(string, ...string) error { return errLinux }
