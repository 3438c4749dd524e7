package journal

import (
	"context"
	"errors"
	"fmt"
	"regexp"

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

// storeFile finds a file of the store in one of Pebble's messages.
var storeFile = regexp.MustCompile(`\b(\d{6}\.(?:log|sst|blob)|MANIFEST-\d{6}|OPTIONS-\d{6}|marker\.[a-z-]+\.\d+\.\S+)\b`)

// openStore opens Pebble and tells damage from other trouble. Pebble panics on some kinds of it.
func openStore(store string, p *pebble.Options) (db *pebble.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &CorruptionError{File: store, Err: fmt.Errorf("%v", r)}
		}
		if err != nil && (pebble.IsCorruptionError(err) || storeFile.MatchString(err.Error())) {
			file := store
			if name := storeFile.FindString(err.Error()); name != "" {
				file = p.FS.PathJoin(store, name)
			}
			err = &CorruptionError{File: file, Err: err}
		} else if err != nil {
			err = fmt.Errorf("open journal %s: %w", store, err)
		}
	}()
	return pebble.Open(store, p)
}

// verifyTables reads every table once and checks the checksum of each block, so that damage is
// found before anything is answered from it.
func verifyTables(db *pebble.DB, fs vfs.FS, store string) error {
	levels, err := db.SSTables()
	if err != nil {
		return err
	}
	for _, level := range levels {
		for _, t := range level {
			path := fs.PathJoin(store, fmt.Sprintf("%06d.sst", uint64(t.BackingSSTNum)))
			if err := verifyTable(fs, path); err != nil {
				return &CorruptionError{File: path, Err: err}
			}
		}
	}
	return nil
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
}

func (s *storeLog) Infof(format string, args ...any) {
	s.log.Debug("store", zap.String("detail", fmt.Sprintf(format, args...)))
}

func (s *storeLog) Errorf(format string, args ...any) {
	s.log.Warn("store", zap.String("detail", fmt.Sprintf(format, args...)))
}

func (s *storeLog) Fatalf(format string, args ...any) {
	s.journal.fail(fmt.Errorf(format, args...))
	select {}
}

func (s *storeLog) events() *pebble.EventListener {
	return &pebble.EventListener{
		BackgroundError: func(err error) { s.log.Warn("store: work in the background failed, it is tried again", zap.Error(err)) },
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			s.journal.fail(&CorruptionError{File: i.Path, Err: i.Details})
		},
		WriteStallBegin: func(i pebble.WriteStallBeginInfo) { s.log.Warn("store: writes stall", zap.String("why", i.Reason)) },
		DiskSlow:        func(i pebble.DiskSlowInfo) { s.log.Warn("store: slow disk", zap.Duration("took", i.Duration)) },
	}
}
