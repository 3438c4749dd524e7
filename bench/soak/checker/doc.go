// Package checker tells whether Tidemark's answers are true. It is a second reader of the cluster, slow and simple on
// purpose: it uses nothing but Go's standard library, imports no package of the project and none of Kubernetes
// (TestNothingIsShared), and asks Tidemark what a user asks it, through the command line.
//
//   - A Model watches every resource by itself and keeps the hash of every version that it sees.
//   - A Moment is what the API server says the cluster was at one exact revision, hash by hash.
//   - An Answer is what `tidemark get` says of the same revision, from the daemon or from the archive alone.
//   - History compares every single version of the Model with `tidemark log` and the gaps of the ledger, and the objects of some.
//   - Chain reads the files of an archive as docs/formats.md describes them, and follows their hashes.
//   - Restored compares a namespace that was put back with the Moment it was put back to.
//
// A Difference is an error that says what was expected, by whom, and what was found.
package checker
