package journal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidemark-backup/tidemark/journal"
)

const canary = "canary-5f2b9c-do-not-leak"

func TestSecretsAreNowhereOnTheDiskInTheClear(t *testing.T) {
	noLeaks(t)
	dir := t.TempDir()
	j := mustOpenDir(t, dir)
	begin(t, j, configMaps, 10)
	begin(t, j, secrets, 10)
	sec := secrets.GroupResource()
	var want []string
	for rv := uint64(11); rv < 200; rv++ {
		e := event(journal.Modified, sec, "ns", fmt.Sprint("s", rv%5), rv, strings.Repeat(canary, int(rv%4)+1))
		want = append(want, string(e.Object))
		if err := j.Append(context.Background(), e); err != nil {
			t.Fatal(err)
		}
	}
	appendAll(t, j, event(journal.Added, configMaps.GroupResource(), "ns", "plain", 200, "in the clear"))
	// A comparison writes Secrets on two more ways: inferred changes and inferred deletions.
	e := event(journal.Added, sec, "ns", "s0", 210, canary)
	relist(t, j, secrets, 220, "test", e)
	want = append(want, string(e.Object))

	clear := scanFiles(t, dir, canary)
	if len(clear) > 0 {
		t.Errorf("the Secret's text is in %v", clear)
	}
	if len(scanFiles(t, dir, "in the clear")) == 0 {
		t.Error("the scan finds nothing at all: it proves nothing")
	}
	closeJournal(t, j)
	j = mustOpenDir(t, dir) // the log has become a table
	defer closeJournal(t, j)
	if clear := scanFiles(t, dir, canary); len(clear) > 0 {
		t.Errorf("after reopen, the Secret's text is in %v", clear)
	}
	var got []string
	deleted := 0
	for _, e := range history(t, j) {
		if e.Resource == sec && e.Op != journal.Deleted {
			got = append(got, string(e.Object))
		}
		if e.Op == journal.Deleted {
			deleted++
			if !bytes.Contains(e.Object, []byte(canary)) {
				t.Errorf("the last state of the deleted %s is lost", e.ID())
			}
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || deleted != 4 {
		t.Errorf("the Secrets did not come back exactly (%d of %d; %d deletions, want 4)", len(got), len(want), deleted)
	}
}

func scanFiles(t *testing.T, dir, text string) (found []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // an obsolete file that was just deleted
		}
		if bytes.Contains(b, []byte(text)) || strings.Contains(path, text) {
			found = append(found, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return found
}
