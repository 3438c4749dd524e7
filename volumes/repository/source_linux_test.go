package repository

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Which path of a file is the first must not follow from the order in which they are read, which is another one each time: content that is lost is only
// written anew if it is the same.
func TestLinksDoNotDependOnTheOrderOfReading(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/b", "shared")
	names := []string{"b", "a\xff", "c", "d"}
	for _, name := range names[1:] {
		ok(t, os.Link(dir+"/b", dir+"/"+name))
	}
	f, err := os.Open(dir)
	ok(t, err)
	defer f.Close()
	want := `{"path":"b","link":".tidemark-name.a%FF"}` + "\n" + `{"path":"c","link":".tidemark-name.a%FF"}` + "\n" + `{"path":"d","link":".tidemark-name.a%FF"}` + "\n"
	for range 20 {
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		var kept attributes
		for _, name := range append(names, names[0]) { // one of them twice
			var st unix.Stat_t
			ok(t, unix.Fstatat(int(f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW))
			ok(t, kept.add(int(f.Fd()), name, name, &st))
			if name == names[1] {
				ok(t, kept.compress())
			}
		}
		var out bytes.Buffer
		ok(t, kept.encode(&out))
		if out.String() != want {
			t.Fatalf("read in the order %q:\n%s", names, out.String())
		}
	}
}
