package journal_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidemark-backup/tidemark/journal"
)

func openDir(dir string, change ...func(*journal.Options)) (*journal.Journal, error) {
	o := journal.Options{Free: plenty}
	for _, f := range change {
		f(&o)
	}
	return journal.Open(dir, o)
}

func mustOpenDir(t *testing.T, dir string, change ...func(*journal.Options)) *journal.Journal {
	t.Helper()
	j, err := openDir(dir, change...)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestASecondDaemonOnTheSameDirectoryIsRefused(t *testing.T) {
	noLeaks(t)
	dir := t.TempDir()
	j := mustOpenDir(t, dir)
	_, err := openDir(dir)
	wantError(t, err, journal.ErrLocked)
	if !strings.Contains(err.Error(), dir) {
		t.Errorf("%v does not name the directory", err)
	}
	begin(t, j, configMaps, 10) // the refused one has not hurt the first
	closeJournal(t, j)
	closeJournal(t, j) // a second Close is harmless
	closeJournal(t, mustOpenDir(t, dir))
}

func TestADirectoryThatCannotBeLockedIsNotSaidToBeInUse(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "journal", "LOCK"), 0o700); err != nil { // a directory in the lock's place
		t.Fatal(err)
	}
	if _, err := openDir(dir); err == nil || errors.Is(err, journal.ErrLocked) {
		t.Fatalf("error %v, want one that is not ErrLocked", err)
	}
}

func TestAJournalOfAnotherClusterIsRefused(t *testing.T) {
	noLeaks(t)
	dir := t.TempDir()
	j := mustOpenDir(t, dir)
	if j.Bind(context.Background(), "") == nil {
		t.Error("bound to a cluster without an id")
	}
	for range 2 {
		if err := j.Bind(context.Background(), "one"); err != nil {
			t.Fatal(err)
		}
	}
	wantError(t, j.Bind(context.Background(), "two"), journal.ErrOtherCluster)
	closeJournal(t, j)
	j = mustOpenDir(t, dir)
	defer closeJournal(t, j)
	wantError(t, j.Bind(context.Background(), "two"), journal.ErrOtherCluster)
	if err := j.Bind(context.Background(), "one"); err != nil || j.ClusterID() != "one" {
		t.Fatalf("bind after reopen: %v, id %q", err, j.ClusterID())
	}
}

func TestTheKeyFileIsMadeForTheOwnerAlone(t *testing.T) {
	noLeaks(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "journal.key")
	if err := os.WriteFile(path+".tmp", []byte("left by a crash"), 0o644); err != nil {
		t.Fatal(err)
	}
	closeJournal(t, mustOpenDir(t, dir))
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %04o, want 0600", info.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b))); err != nil || len(key) != 32 {
		t.Errorf("the key file holds %d bytes, err %v", len(key), err)
	}
	if info, err = os.Stat(filepath.Join(dir, "journal")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the store's directory: %v, err %v, want mode 0700", info.Mode(), err)
	}
}

func TestKeysThatDoNotFitAreRefused(t *testing.T) {
	noLeaks(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "journal.key")
	closeJournal(t, mustOpenDir(t, dir))
	key, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other.key")
	if err := os.WriteFile(other, []byte(base64.StdEncoding.EncodeToString(testKey)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = openDir(dir, func(o *journal.Options) { o.KeyFile = other })
	wantError(t, err, journal.ErrWrongKey)
	_, err = openDir(dir, func(o *journal.Options) { o.Key = testKey })
	wantError(t, err, journal.ErrWrongKey)

	for name, content := range map[string]string{"short": "QUJD\n", "not base64": "%%%", "empty": "", "long": base64.StdEncoding.EncodeToString(make([]byte, 33))} {
		if err := os.WriteFile(other, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openDir(dir, func(o *journal.Options) { o.KeyFile = other }); err == nil || content != "" && strings.Contains(err.Error(), strings.TrimSpace(content)) {
			t.Errorf("%s key file: error %v; want one that does not quote it", name, err)
		} else if strings.Contains(err.Error(), "openssl") || !strings.Contains(err.Error(), "put the one back") { // a new key would not fit
			t.Errorf("%s key file: error %v; want the next step that leads on", name, err)
		}
	}

	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := openDir(dir); err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) {
		t.Errorf("key file that all can read: error %v", err)
	}

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := openDir(dir); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("missing key file: error %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a new key was made for an old journal: its Secrets would be lost")
	}

	if err := os.WriteFile(path, key, 0o600); err != nil {
		t.Fatal(err)
	}
	closeJournal(t, mustOpenDir(t, dir))
}

// filled makes a closed journal with tables and a write-ahead log, and returns its files.
func filled(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	j := mustOpenDir(t, dir, func(o *journal.Options) { o.Key = testKey })
	begin(t, j, configMaps, 10)
	rv := uint64(10)
	for range 2 { // each open turns the log before it into a table
		for range 300 {
			rv++
			if err := j.Append(context.Background(), event(journal.Modified, configMaps.GroupResource(), "ns", fmt.Sprint("o", rv%7), rv, strings.Repeat("text ", 100))); err != nil {
				t.Fatal(err)
			}
			if rv%20 == 0 {
				flush(t, j)
			}
		}
		closeJournal(t, j)
		j = mustOpenDir(t, dir, func(o *journal.Options) { o.Key = testKey })
	}
	for range 300 {
		rv++
		appendAll(t, j, event(journal.Modified, configMaps.GroupResource(), "ns", fmt.Sprint("o", rv%7), rv, strings.Repeat("text ", 100)))
	}
	closeJournal(t, j)
	return readAll(t, filepath.Join(dir, "journal"))
}

func readAll(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// TestDamagedFilesAreRefusedByName flips bytes in each kind of file. Open must refuse and name
// a file of the journal, or what it opens must be what was there.
func TestDamagedFilesAreRefusedByName(t *testing.T) {
	dir := t.TempDir()
	files := filled(t, dir)
	refused := map[string]int{}
	for name, content := range files {
		kind := filepath.Ext(name)
		if strings.HasPrefix(name, "MANIFEST") && files[name] != nil && inUse(files, name) {
			kind = "MANIFEST"
		}
		if len(content) == 0 || kind != ".sst" && kind != ".log" && kind != "MANIFEST" {
			continue
		}
		for i := range 14 {
			at := (len(content) - 1) * (i + 1) / 14
			damaged := bytes.Clone(content)
			damaged[at] ^= 0x41
			if bytes.Equal(bytes.Trim(content[at:], "\x00"), nil) {
				continue // the unused rest of a log
			}
			err := openDamaged(t, files, name, damaged)
			if used := len(bytes.TrimRight(content, "\x00")); kind == ".log" && at >= used-32<<10 && errors.Is(err, errPrefix) {
				continue // in its last block a damaged log cannot be told from a torn one
			}
			if err != nil {
				refused[kind]++
				var c *journal.CorruptionError
				if !errors.As(err, &c) || c.File == "" || !strings.Contains(err.Error(), "damaged") {
					t.Errorf("%s, byte %d of %d: error %v; want a CorruptionError that names the file", name, at, len(content), err)
				}
			} else {
				t.Errorf("%s, byte %d of %d flipped: not noticed", name, at, len(content))
			}
		}
	}
	for _, kind := range []string{".sst", ".log", "MANIFEST"} {
		if refused[kind] == 0 {
			t.Errorf("no %s was refused: %v", kind, refused)
		}
	}
}

// inUse reports whether a marker names the manifest: older ones are only waiting to be deleted.
func inUse(files map[string][]byte, manifest string) bool {
	for name := range files {
		if strings.HasPrefix(name, "marker.manifest.") && strings.HasSuffix(name, manifest) {
			return true
		}
	}
	return false
}

func openDamaged(t *testing.T, files map[string][]byte, name string, damaged []byte) error {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "journal"), 0o700); err != nil {
		t.Fatal(err)
	}
	for n, content := range files {
		if n == name {
			content = damaged
		}
		if content == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "journal", n), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j, err := openDir(dir, func(o *journal.Options) { o.Key = testKey })
	if err != nil {
		return err
	}
	defer closeJournal(t, j)
	all := history(t, j)
	if mark := ledger(t, j, configMaps).Watermark.RV; mark != all[len(all)-1].Revision.RV || mark != uint64(10+len(all)) {
		return fmt.Errorf("opened with %d events and watermark %d", len(all), mark)
	}
	if len(all) != 900 {
		return errPrefix
	}
	return nil
}

// errPrefix: opened without the newest events, and without their watermark, so that they are
// watched again or become a gap.
var errPrefix = errors.New("opened with a part of the events")

func TestTheTornTailOfTheLogIsRepairedInSilence(t *testing.T) {
	dir := t.TempDir()
	files := filled(t, dir)
	log := ""
	for name, content := range files {
		if strings.HasSuffix(name, ".log") && len(bytes.TrimRight(content, "\x00")) > 10000 {
			log = name
		}
	}
	used := len(bytes.TrimRight(files[log], "\x00"))
	for _, cut := range []int{1, 5, 300, 5000} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "journal"), 0o700); err != nil {
			t.Fatal(err)
		}
		for n, content := range files {
			if n == log {
				content = content[:used-cut]
			}
			if err := os.WriteFile(filepath.Join(dir, "journal", n), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		j, err := openDir(dir, func(o *journal.Options) { o.Key = testKey })
		if err != nil {
			t.Fatalf("log without its last %d bytes: %v", cut, err)
		}
		all := history(t, j)
		if mark := ledger(t, j, configMaps).Watermark.RV; len(all) < 850 || mark != all[len(all)-1].Revision.RV {
			t.Errorf("log without its last %d bytes: %d events, watermark %d, newest %s", cut, len(all), mark, all[len(all)-1].Revision)
		}
		closeJournal(t, j)
	}
}

func TestAMissingTableIsRefusedByName(t *testing.T) {
	files := filled(t, t.TempDir())
	for name := range files {
		if strings.HasSuffix(name, ".sst") {
			var c *journal.CorruptionError
			if err := openDamaged(t, files, name, nil); !errors.As(err, &c) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s is gone: error %v", name, err)
			}
		}
	}
}

func TestAMarkerThatNamesNoManifestIsRefused(t *testing.T) {
	files := filled(t, t.TempDir())
	for name, content := range files {
		if strings.HasPrefix(name, "marker.manifest") {
			changed := map[string][]byte{}
			maps.Copy(changed, files)
			delete(changed, name)
			changed["marker.manifest.000099.MANIFEST-000099"] = content
			var c *journal.CorruptionError
			if err := openDamaged(t, changed, "", nil); !errors.As(err, &c) {
				t.Errorf("marker of a manifest that is not there: error %v", err)
			}
		}
	}
}
