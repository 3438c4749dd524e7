// Package daemon wires what 'tidemark run' runs: the journal, the capture that fills it, the
// API that answers from it, and the hourly trim, under one errgroup. Run blocks until its
// context ends (a clean stop) or one of the parts cannot go on (an error that says which).
//
// The parts know nothing of each other; what connects them is here and nowhere else.
package daemon
