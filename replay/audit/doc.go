// Package audit proves, again and again, that the journal holds what the cluster holds.
//
// An Auditor visits every recorded resource once per cycle. It asks the API server for what the resource
// held at exactly the revision up to which the journal says that it is complete, page by page and slowly, and
// compares that with the fold of the journal at the same revision. Equal is a proof, kept with its time.
// What differs is asked for once more, and then told: in the status, in the metrics and in the log.
// What could not be compared proves nothing, and the proof before it grows old.
//
// It changes nothing, neither in the cluster nor in history.
package audit
