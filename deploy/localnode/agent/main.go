// Agent is all that a local node needs of our own, in one static program without a C library, so that it can be the
// only file of an image:
//
//	agent node SPEC    is the first process of the node's own namespaces, and runs the node's programs
//	agent driver ...   is a CSI driver whose volumes are directories or files of this machine
//	agent pause        holds the namespaces of a Pod
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("want node, driver or pause"))
	}
	switch args := os.Args[2:]; os.Args[1] {
	case "node":
		fail(runNode(args))
	case "driver":
		fail(runDriver(args))
	case "pause":
		pause()
	default:
		fail(fmt.Errorf("%q is neither node, driver nor pause", os.Args[1]))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}
