package localdisk

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestMain(m *testing.M) {
	if again, code := Isolate(); again {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// TestAPowerCutLosesWhatWasNotSynced: were the disk gentler, no test with it would prove anything.
func TestAPowerCutLosesWhatWasNotSynced(t *testing.T) {
	if !Possible() {
		t.Skip(Needs)
	}
	dir := filepath.Join(t.TempDir(), "disk")
	d, err := New(t.Context(), dir+".img", dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	for round := range 2 { // it can lose its power again and again
		kept, lost := filepath.Join(dir, "kept"), filepath.Join(dir, "lost")
		if err := os.WriteFile(lost, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(kept)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteString("synced, ")
		err = errors.Join(err, f.Sync())
		parent, opened := os.Open(dir)
		if err = errors.Join(err, opened, parent.Sync(), parent.Close()); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(lost, []byte("not synced"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("not synced"); err != nil {
			t.Fatal(err)
		}
		if err := d.CutPower(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "late"), nil, 0o600); !errors.Is(err, syscall.EIO) {
			t.Errorf("writing to a disk without power: %v", err)
		}
		if err := errors.Join(f.Close(), d.Mount()); err != nil {
			t.Fatal(err)
		}
		if have, err := os.ReadFile(kept); err != nil || string(have) != "synced, " {
			t.Errorf("round %d: kept: %q, %v", round, have, err)
		}
		if have, err := os.ReadFile(lost); string(have) == "not synced" {
			t.Errorf("round %d: what was not synced is there: %q, %v", round, have, err)
		}
	}
}

func TestLimitsAreWrittenAsTheKernelReadsThem(t *testing.T) {
	for name, c := range map[string]struct{ file, slow, free string }{
		"version 1": {"blkio.throttle.write_bps_device", "7:3 98304", "7:3 0"},
		"version 2": {"io.max", "7:3 wbps=98304 wiops=40", "7:3 wbps=max wiops=max"},
	} {
		group := t.TempDir()
		file := filepath.Join(group, c.file)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, one := range []struct {
			bytes, times int
			want         string
		}{{96 << 10, 40, c.slow}, {0, 0, c.free}} {
			if err := os.Truncate(file, 0); err != nil { // the kernel takes each write by itself
				t.Fatal(err)
			}
			if err := limitGroup(group, "7:3", one.bytes, one.times); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			have, err := os.ReadFile(file)
			if err != nil || string(have) != one.want {
				t.Errorf("%s: %q, want %q; %v", name, have, one.want, err)
			}
		}
	}
	root := t.TempDir() // where the kernel makes no files, there is no group
	if group := newGroup(root, "7:3"); group != "" {
		t.Errorf("made %s", group)
	}
	if left, err := filepath.Glob(filepath.Join(root, "tidemark-disk-*")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
