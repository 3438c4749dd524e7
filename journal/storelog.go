package journal

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"regexp"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

// CorruptionError is returned when a file of the journal is damaged.
type CorruptionError struct {
	File string // path of the damaged file, or of the directory when Pebble did not name it
	Err  error
}

// Error names the file and the next step.
func (e *CorruptionError) Error() string {
	return fmt.Sprintf("journal file %s is damaged: %v: put the data directory back from a copy, or move it away and start anew (recording begins again from now)", e.File, e.Err)
}

// Unwrap gives the cause.
func (e *CorruptionError) Unwrap() error { return e.Err }

// makeDir makes the directory and makes sure that a power loss does not take it away: an entry
// of a directory is durable only when that directory was synced.
func makeDir(fs vfs.FS, dir string) error {
	var above []string
	for d := fs.PathDir(dir); ; d = fs.PathDir(d) {
		above = append(above, d)
		if _, err := fs.Stat(d); err == nil || d == fs.PathDir(d) {
			break
		}
	}
	if len(above) == 1 { // dir may be there already, but made by a process that died before the sync
		above = append(above, fs.PathDir(above[0]))
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, d := range above {
		f, err := fs.OpenDir(d)
		if errors.Is(err, iofs.ErrNotExist) || errors.Is(err, iofs.ErrPermission) {
			continue // "." of a file system in memory; a parent that is not ours to read
		}
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("sync %s: %w", d, err)
		}
	}
	return nil
}

// lockDir takes the data directory. What keeps the lock's file from being made is not ErrLocked.
func lockDir(fs vfs.FS, dir, store string) (*pebble.Lock, error) {
	lock, err := pebble.LockDirectory(store, fs)
	if _, ok := errors.AsType[*iofs.PathError](err); ok {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: stop that daemon first, or choose another --data-dir (%w)", ErrLocked, dir, err)
	}
	return lock, nil
}

// storeFile finds a file of the store in one of Pebble's messages.
var storeFile = regexp.MustCompile(`\b(\d{6}\.(?:log|sst|blob)|MANIFEST-\d{6}|OPTIONS-\d{6}|marker\.[a-z-]+\.\d+\.\S+)\b`)

// lostTable is how Pebble names a table that is not there.
var lostTable = regexp.MustCompile(`\bfile (\d{6}) \(type sstable\)`)

// damaged is the file of the store that the error names; empty when it names none.
func damaged(err error) string {
	text := err.Error()
	if m := lostTable.FindStringSubmatch(text); m != nil {
		return m[1] + ".sst"
	}
	return storeFile.FindString(text)
}

// openStore opens Pebble and tells damage from other trouble. Pebble panics on some kinds of it.
func openStore(store string, p *pebble.Options) (db *pebble.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &CorruptionError{File: store, Err: fmt.Errorf("%v", r)}
		}
		if err != nil && !isTrouble(err) && (pebble.IsCorruptionError(err) || damaged(err) != "") {
			err = &CorruptionError{File: p.FS.PathJoin(store, damaged(err)), Err: err}
		} else if err != nil {
			err = fmt.Errorf("open journal %s: %w", store, err)
		}
	}()
	return pebble.Open(store, p)
}

// isTrouble reports whether the machine, and not the file, is to blame for an error.
func isTrouble(err error) bool {
	for _, e := range []error{iofs.ErrPermission, syscall.ENOSPC, syscall.EROFS, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// verifyTables reads every table once and checks the checksum of each block, so that damage is
// found before anything is answered from it.
func verifyTables(db *pebble.DB, fs vfs.FS, store string) error {
	levels, err := db.SSTables()
	if err != nil {
		return err
	}
	return verifyListed(db, fs, store, levels)
}

func verifyListed(db *pebble.DB, fs vfs.FS, store string, levels [][]pebble.SSTableInfo) error {
	for _, level := range levels {
		for _, t := range level {
			path := fs.PathJoin(store, fmt.Sprintf("%06d.sst", uint64(t.BackingSSTNum)))
			err := verifyTable(fs, path)
			if errors.Is(err, iofs.ErrNotExist) {
				live, listErr := isLive(db, t)
				if listErr != nil {
					return listErr
				}
				if !live { // compacted into others, and deleted, since it was listed
					continue
				}
			}
			if isTrouble(err) {
				return fmt.Errorf("verify %s: %w", path, err)
			}
			if err != nil {
				return &CorruptionError{File: path, Err: err}
			}
		}
	}
	return nil
}

// verifyIndex checks that the time index counts every event. A manifest whose newest entry is
// damaged looks like one that was torn: Pebble goes on without the table that it named, and with
// what came after it.
func (j *Journal) verifyIndex(store string) error {
	began, count := false, uint64(0)
	return j.scan([]byte{prefixTime}, func(k, v []byte) error {
		e, _, err := decodeIndexHead(v) // the rest would take most of a start
		if err != nil {
			return &CorruptionError{File: store, Err: fmt.Errorf("index entry %x: %w", k, err)}
		}
		want := count
		if e.op != 0 {
			want++
		}
		if began && e.count != want {
			return &CorruptionError{File: store, Err: fmt.Errorf("events %d to %d are missing", want, e.count-1)}
		}
		began, count = true, e.count
		return nil
	})
}

func isLive(db *pebble.DB, t pebble.SSTableInfo) (bool, error) {
	levels, err := db.SSTables()
	for _, level := range levels {
		for _, now := range level {
			if now.BackingSSTNum == t.BackingSSTNum {
				return true, err
			}
		}
	}
	return false, err
}

func verifyTable(fs vfs.FS, path string) error {
	f, err := fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return err
	}
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r, err := sstable.NewReader(context.Background(), readable, sstable.ReaderOptions{})
	if err != nil {
		return errors.Join(err, readable.Close())
	}
	return errors.Join(r.ValidateBlockChecksums(), r.Close())
}

// storeLog takes Pebble's messages. Its Fatalf must not return: Pebble would go on as if the
// write had worked. The process is told through Journal.Failed and ends; the goroutine stays.
type storeLog struct {
	journal *Journal
	log     *zap.Logger
	stuck   chan struct{} // closed once a goroutine of the store is held in Fatalf
	once    sync.Once

	opened  atomic.Bool  // Open has returned
	failing atomic.Int64 // errors in the background since something last worked
}

func (s *storeLog) Infof(format string, args ...any) {
	s.log.Debug("store", zap.String("detail", fmt.Sprintf(format, args...)))
}

func (s *storeLog) Errorf(format string, args ...any) {
	s.log.Warn("store", zap.String("detail", fmt.Sprintf(format, args...)))
}

func (s *storeLog) Fatalf(format string, args ...any) {
	s.journal.fail(fmt.Errorf(format, args...))
	s.once.Do(func() { close(s.stuck) })
	select {}
}

// background is told of work that failed. Pebble tries it again at once and for ever, in a loop
// that would take a whole CPU, and Open waits for it; so each error costs a moment, and after
// many of them the journal has failed.
func (s *storeLog) background(err error) {
	n, limit := s.failing.Add(1), int64(20)
	if !s.opened.Load() {
		limit = 5
	}
	if n >= limit {
		s.Fatalf("work in the background keeps failing: %w", err)
	}
	s.log.Warn("store: work in the background failed, it is tried again", zap.Error(err))
	time.Sleep(time.Duration(min(n, 10)) * 10 * time.Millisecond)
}

func (s *storeLog) worked(err error) {
	if err == nil {
		s.failing.Store(0)
	}
}

func (s *storeLog) events() *pebble.EventListener {
	return &pebble.EventListener{
		BackgroundError: s.background,
		FlushEnd:        func(i pebble.FlushInfo) { s.worked(i.Err) },
		CompactionEnd:   func(i pebble.CompactionInfo) { s.worked(i.Err) },
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			s.journal.fail(&CorruptionError{File: i.Path, Err: i.Details})
		},
		WriteStallBegin: func(i pebble.WriteStallBeginInfo) { s.log.Warn("store: writes stall", zap.String("why", i.Reason)) },
		DiskSlow:        func(i pebble.DiskSlowInfo) { s.log.Warn("store: slow disk", zap.Duration("took", i.Duration)) },
	}
}
