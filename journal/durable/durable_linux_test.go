package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/tidemark-backup/tidemark/deploy/localdisk"
)

func TestMain(m *testing.M) {
	if again, code := localdisk.Isolate(); again {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, s)
		return err
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsMadeOutlivesAPowerCut(t *testing.T) {
	if !localdisk.Possible() {
		t.Skip(localdisk.Needs)
	}
	base := filepath.Join(t.TempDir(), "disk")
	disk, err := localdisk.New(t.Context(), base+".img", base)
	ok(t, err)
	defer func() { ok(t, disk.Close()) }()
	dir := filepath.Join(base, "a/b/c")
	for round, made := range []func() error{
		func() error { return MkdirAll(dir) },
		func() error { return Create(dir+"/file", text("one")) },
		func() error { return Replace(dir+"/file", text("two")) },
		func() error { return errors.Join(os.WriteFile(dir+"/more", []byte("more"), 0o600), SyncTree(dir)) },
	} {
		ok(t, made())
		ok(t, disk.CutPower())
		ok(t, disk.Mount())
		have := ""
		for _, name := range []string{"file", "more"} {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				have += fmt.Sprintf("%s %s ", name, b)
			}
		}
		if _, err := os.Stat(dir); err != nil || have != []string{"", "file one ", "file two ", "file two more more "}[round] {
			t.Errorf("round %d: %q, %v", round, have, err)
		}
	}
}

func TestFilesAreWholeOrNotThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	ok(t, MkdirAll(dir))
	ok(t, MkdirAll(dir))
	path := filepath.Join(dir, "file")
	trouble := errors.New("no more")
	failing := func(w io.Writer) error { return errors.Join(text("half")(w), trouble) }
	if err := Create(path, failing); !errors.Is(err, trouble) {
		t.Errorf("Create: %v", err)
	}
	ok(t, Create(path, text("one")))
	if err := Create(path, text("two")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create of what is there: %v", err)
	}
	if err := Replace(path, failing); !errors.Is(err, trouble) {
		t.Errorf("Replace: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "one" {
		t.Errorf("%q, %v", b, err)
	}
	ok(t, Replace(path, text("two")))
	info, err := os.Stat(path)
	ok(t, err)
	if all, err := os.ReadDir(dir); err != nil || len(all) != 1 || info.Mode() != 0o600 {
		t.Errorf("%v with mode %v, %v", all, info.Mode(), err)
	}
	if err := MkdirAll(path); err == nil {
		t.Error("a file is taken for a directory")
	}
	if err := MkdirAll(filepath.Join(path, "c")); err == nil {
		t.Error("a directory in a file")
	}
}
