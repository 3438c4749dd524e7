// Package replay answers questions about the past and puts it back.
//
// A question names a moment (At) and a Scope. Source.Resolve turns the moment into an exact
// cut, Source.Fold gives the state of the scope at that cut, and on top of it DiffObjects
// compares, NewPlan says what a restore would do to a live cluster (Target), and Plan.Apply
// does exactly that.
//
// The package reads history through a Source and writes to a cluster with the caller's own
// credentials. It records nothing itself: what a restore changes comes back through capture
// like any other change.
package replay
