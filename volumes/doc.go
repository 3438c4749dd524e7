// Package volumes backs up the content of volumes, so that each backup belongs to a moment of history: it is recorded as an
// event, with the cuts of the cluster's state right before and right after it.
//
// A Keeper makes backups, forgets them, and writes their content back. What keeps content is package
// volumes/repository.
package volumes
