package repository

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A process without a cache of its own keeps one in a directory for temporary files, which Close removes. One that is killed leaves it, so
// each holds a lock on its directory, which the kernel gives back when it dies, and the next one removes those that nobody holds.

// temporary is what the names of such directories begin with.
const temporary = "tidemark-volumes-held-"

// unheld is how long a directory may be there before its process has locked it.
const unheld = time.Minute

// newTemporary makes a directory, and removes those of processes that died. It is held until done.
func newTemporary() (dir string, done func(), err error) {
	sweepTemporary(os.TempDir())
	if dir, err = os.MkdirTemp("", temporary); err != nil {
		return "", nil, err
	}
	held, err := os.Open(dir)
	if err == nil {
		// Where the file system has no locks, nobody can take it for unheld either.
		_ = unix.Flock(int(held.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		return dir, func() {
			_ = os.RemoveAll(dir)
			_ = held.Close()
		}, nil
	}
	return "", nil, errors.Join(err, os.RemoveAll(dir))
}

// sweepTemporary removes what is left, as far as it can: it is no matter if it cannot.
func sweepTemporary(in string) {
	all, _ := filepath.Glob(filepath.Join(in, temporary+"*"))
	for _, dir := range all {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < unheld {
			continue
		}
		removeUnheld(dir)
	}
}

func removeUnheld(dir string) {
	// Another user's is not to be opened, or not to be removed from a directory like /tmp; root leaves those alone, too.
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || int(st.Uid) != os.Geteuid() || unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil {
		return
	}
	_ = os.RemoveAll(dir)
}
