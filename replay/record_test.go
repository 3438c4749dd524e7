package replay

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// What a record that was cut off leaves is removed, and nothing else, whatever directory the records are kept in.
func TestSweepRemovesOnlyWhatIsLeftOfRecords(t *testing.T) {
	dir := t.TempDir()
	long := time.Now().Add(-25 * time.Hour)
	made := func(name string, at time.Time, files ...string) {
		t.Helper()
		ok(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		for _, f := range files {
			ok(t, os.WriteFile(filepath.Join(dir, name, f), nil, 0o600))
		}
		ok(t, os.Chtimes(filepath.Join(dir, name), at, at))
	}
	made("cut-off", long, "progress.jsonl", ".tmp-1")
	made("being-removed", long, "progress.jsonl")
	made("being-made", time.Now(), "progress.jsonl", ".tmp-1")
	made("a-record", long, "progress.jsonl", "plan.json.zst")
	made("somebody-elses", long, "progress.jsonl", "notes")
	made("empty", long)
	OpenRecords(dir).sweep()
	left, err := os.ReadDir(dir)
	ok(t, err)
	var have []string
	for _, d := range left {
		have = append(have, d.Name())
	}
	if want := []string{"a-record", "being-made", "empty", "somebody-elses"}; !slices.Equal(have, want) {
		t.Errorf("left %v, want %v", have, want)
	}
}
