package archive

import (
	"os"
	"syscall"
)

// startWriting has the system send what was written to f to the disk, and does not wait for it. A sync that comes later then finds
// little to do. It changes nothing else, so that errors do not matter: the sync will tell.
func startWriting(f *os.File) {
	const write = 2 // SYNC_FILE_RANGE_WRITE
	_ = syscall.SyncFileRange(int(f.Fd()), 0, 0, write)
}
