// Package compactor brings the history of a journal into archives, and keeps archives in order:
// it seals segments, takes full snapshots, merges small segments into larger ones, removes what
// retention does not keep, verifies, repairs, and makes a new journal out of an archive.
//
// A Shipper does this for one journal and one archive. Each of its steps has a method that takes
// one round and returns (Seal, Merge, Snapshot, Retain); Run calls them in turn until its context
// ends. A step uploads files first and then commits them with one manifest, so a step that is cut
// off anywhere leaves at worst files that nobody knows, and is simply taken again.
package compactor
