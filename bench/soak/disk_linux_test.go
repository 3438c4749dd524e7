package main

import (
	"os"
	"path/filepath"
	"testing"
)

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
	if left, err := filepath.Glob(filepath.Join(root, "tidemark-soak-*")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
