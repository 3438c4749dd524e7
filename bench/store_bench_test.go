package bench

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/tidemark-backup/tidemark/journal"
)

// openJournal opens a journal in dir; it must be closed.
func openJournal(b *testing.B, dir string, o journal.Options) *journal.Journal {
	b.Helper()
	j, err := journal.Open(dir, o)
	if err != nil {
		b.Fatal(err)
	}
	return j
}

// beginRecording gives each resource a first, empty list at rv.
func beginRecording(b *testing.B, j *journal.Journal, rv uint64, infos ...journal.ResourceInfo) {
	b.Helper()
	for _, info := range infos {
		c, err := j.Compare(context.Background(), journal.Recording{ResourceInfo: info}, rv, "")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Commit(context.Background(), rv); err != nil {
			b.Fatal(err)
		}
	}
}

// storeOptions are the options that the journal in dir gave its store, read back from the
// store itself, so that what is measured beside it runs under the same ones.
func storeOptions(b *testing.B, dir string) *pebble.Options {
	b.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "journal", "OPTIONS-*"))
	if err != nil || len(files) == 0 {
		b.Fatalf("no options in %s: %v", dir, err)
	}
	text, err := os.ReadFile(files[len(files)-1])
	if err != nil {
		b.Fatal(err)
	}
	o := &pebble.Options{Logger: quiet{b}}
	if err := o.Parse(string(text), &pebble.ParseHooks{SkipUnknown: func(string, string) bool { return true }}); err != nil {
		b.Fatal(err)
	}
	return o
}

// openStore opens the store of a closed journal, as Pebble sees it.
func openStore(b *testing.B, dir string) *pebble.DB {
	b.Helper()
	db, err := pebble.Open(filepath.Join(dir, "journal"), storeOptions(b, dir))
	if err != nil {
		b.Fatal(err)
	}
	return db
}

// compact brings the store of a closed journal to rest: everything in its last level.
func compact(b *testing.B, dir string) {
	b.Helper()
	db := openStore(b, dir)
	if err := db.Compact(context.Background(), []byte{0}, []byte{0xff}, false); err != nil {
		b.Fatal(err)
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
}

// dirBytes is the size of all files below dir.
func dirBytes(b *testing.B, dir string) int64 {
	b.Helper()
	var sum int64
	if err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return err
	}); err != nil {
		b.Fatal(err)
	}
	return sum
}

// quiet is a Pebble logger that only lets errors through.
type quiet struct{ b *testing.B }

func (quiet) Infof(string, ...any)                {}
func (q quiet) Errorf(format string, args ...any) { q.b.Logf(format, args...) }
func (q quiet) Fatalf(format string, args ...any) { q.b.Fatalf(format, args...) }
