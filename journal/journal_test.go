package journal_test

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tidemark-backup/tidemark/journal"
)

func TestEventsComeBackAfterReopen(t *testing.T) {
	noLeaks(t)
	fs := vfs.NewMem()
	j := openMem(t, fs)
	begin(t, j, configMaps, 10)
	cm := configMaps.GroupResource()
	appendAll(t, j, event(journal.Added, cm, "a", "x", 11, "1"), event(journal.Modified, cm, "a", "x", 12, "2"), event(journal.Deleted, cm, "a", "x", 13, "2"))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = openMem(t, fs)
	defer j.Close()
	all := history(t, j)
	if len(all) != 3 || all[2].Op != journal.Deleted || all[1].Revision != (journal.Revision{Epoch: 1, RV: 12}) {
		t.Fatalf("history after reopen: %+v", all)
	}
	if rv, ok := j.Resume(cm); !ok || rv != 13 {
		t.Fatalf("Resume = %d, %v; want 13, true", rv, ok)
	}
	totals, err := j.Totals()
	if err != nil || totals.Events != 3 {
		t.Fatalf("totals %+v, err %v", totals, err)
	}
}
