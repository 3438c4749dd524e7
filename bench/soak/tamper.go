package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
)

// spoil makes Tidemark lie, to show that the checker sees it.
func (s *session) spoil(how string) error {
	switch how {
	case "":
		return nil
	case "answer":
		s.daemon.Tamper = dropAnObject()
		return nil
	case "archive-answer":
		s.judge.archive.Tamper = changeAByte()
		return nil
	case "journal":
		s.breaker.onStop = s.forgetAVersion
		return nil
	case "file":
		s.breaker.onStop = s.flipABit
		return nil
	}
	return fmt.Errorf("--tamper %s: want answer, archive-answer, journal or file", how)
}

// dropAnObject leaves out one object of the third answer that has several.
func dropAnObject() func([]byte) []byte {
	var n atomic.Int32
	return func(list []byte) []byte {
		lines := bytes.Split(list, []byte(",\n"))
		if len(lines) < 4 || n.Add(1) != 3 {
			return list
		}
		return bytes.Join(append(lines[:len(lines)/2:len(lines)/2], lines[len(lines)/2+1:]...), []byte(",\n"))
	}
}

// changeAByte changes one letter of the third answer that has it.
func changeAByte() func([]byte) []byte {
	var n atomic.Int32
	return func(list []byte) []byte {
		was := []byte(`"same":"xxx`)
		if !bytes.Contains(list, was) || n.Add(1) != 3 {
			return list
		}
		return bytes.Replace(list, was, []byte(`"same":"xyx`), 1)
	}
}

// forgetAVersion removes the newest version of one object from the journal of a daemon that does not run.
func (s *session) forgetAVersion() error {
	db, err := pebble.Open(filepath.Join(s.data(), "journal"), &pebble.Options{FormatMajorVersion: pebble.FormatNewest})
	if err != nil {
		return err
	}
	defer db.Close()
	for i := range churnNamespaces {
		lower := fmt.Appendf(nil, "vsoak-%d\x00configmaps\x00o", i)
		upper := fmt.Appendf(nil, "vsoak-%d\x00configmaps\x00p", i)
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
		if err != nil {
			return err
		}
		var key []byte
		if it.First() {
			key = bytes.Clone(it.Key())
		}
		if err := it.Close(); err != nil {
			return err
		}
		if key == nil {
			continue
		}
		s.log.note("fault", 0, "a version was taken out of the journal", fmt.Sprintf("%q", key), nil)
		s.breaker.onStop = nil
		return db.Delete(key, pebble.Sync)
	}
	return errors.New("there is no version to take out of the journal")
}

// flipABit damages a segment of the archive.
func (s *session) flipABit() error {
	all, err := filepath.Glob(filepath.Join(s.chain.Dir, "segments", "*", "*.age"))
	if err != nil || len(all) == 0 {
		return fmt.Errorf("the archive has no segment: %w", err)
	}
	f, err := os.OpenFile(all[len(all)-1], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 400); err != nil {
		return err
	}
	b[0] ^= 1
	s.log.note("fault", 0, "a bit was flipped", filepath.Base(f.Name()), nil)
	s.breaker.onStop = nil
	_, err = f.WriteAt(b, 400)
	return err
}

// killTampered is killDaemon, with what is to happen to a daemon's files while it is down.
func (b *breaker) killTampered(ctx context.Context) error {
	b.stopDaemon(syscall.SIGKILL)
	if b.onStop == nil {
		return nil
	}
	return errors.Join(b.onStop(), ctx.Err())
}
