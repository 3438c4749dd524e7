// Package archive keeps the history of one cluster in object storage, and reads it.
//
// An archive is a chain of manifests, each of which says what one step changed: which segments
// and snapshots came, which went, and what the journal knew of itself. Its State is what all of
// them make together. Files are Pebble tables with the journal's own keys, encrypted with age;
// they and the manifests are created once and never changed. Create-only manifests are also
// what keeps two writers apart.
//
// The bytes, the names and the crash argument are in docs/formats.md. What is written when, and
// what is kept for how long, is decided by package compactor.
package archive
