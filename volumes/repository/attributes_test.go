package repository

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// Under SELinux, each file has an extended attribute. What is kept of millions of files must not take all memory, neither when they are
// read nor when they are restored.
func TestAttributesOfManyFilesStaySmall(t *testing.T) {
	const files = 100_000
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	path := func(i int) string { return fmt.Sprintf("var/lib/data/%03d/file-%08d", i%1000, i) }
	label := []byte("system_u:object_r:container_file_t:s0:c123,c456\x00")
	var out bytes.Buffer
	collect := func() {
		before := heap()
		kept := new(attributes)
		for _, i := range append(rand.New(rand.NewPCG(1, 1)).Perm(files), 7) { // one of them twice
			ok(t, kept.keep(attribute{Path: path(i), Xattrs: map[string][]byte{"security.selinux": bytes.Clone(label)}}, inode{}))
		}
		if used := (heap() - before) / files; used > 150 {
			t.Errorf("%d bytes of memory for each file that is read", used)
		}
		ok(t, kept.encode(&out))
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != files || !slices.IsSorted(lines) {
			t.Errorf("%d lines, in their order: %t", len(lines), slices.IsSorted(lines))
		}
	}
	collect()
	before := heap()
	all, err := decodeAttributes(&out)
	ok(t, err)
	if used := (heap() - before) / files; used > 200 {
		t.Errorf("%d bytes of memory for each file that is restored", used)
	}
	for i := range files {
		if !bytes.Equal(all[path(i)].Xattrs["security.selinux"], label) {
			t.Fatalf("%s has %+v", path(i), all[path(i)])
		}
	}
	runtime.KeepAlive(&out)
}
