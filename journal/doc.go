// Package journal keeps every change of every object of one cluster in a local, durable,
// ordered store, and knows exactly which history it holds.
//
// A Journal is opened on a data directory by one process at a time. Events go in through
// Append (what a watch saw) and Compare (what a list showed); watermarks move with them, in
// the same synced batch, so that what a watermark promises is on disk. They come out through
// a View (the versions of objects, newest first) and a Tail (events in the order they were
// observed). The Ledger of each resource tells the spans that are complete and the gaps
// between them.
//
// The package does not talk to Kubernetes (see journal/capture) and does not decide what a
// question means (see replay). The key layout and the crash argument are in docs/design.md.
package journal
