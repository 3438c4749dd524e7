// Package capture streams every change of every resource of a cluster into a journal.
//
// A Capture finds the resources, and runs one client-go Reflector for each. The Reflector
// keeps its usual work (watch, retry, back off, list after 410 Gone), but the objects do not
// go into a cache: its store is the journal, and what it calls a list is a comparison that is
// streamed into the journal, or no request at all when the journal's watermark lets the watch
// go on where it stopped.
//
// Objects stay bytes: a frame of the watch is cut at its newline, a few fields of its metadata
// are scanned out, and the rest is never parsed.
package capture
