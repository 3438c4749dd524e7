package repository

import (
	"testing"
	"unicode/utf8"
)

func TestPathsThatAreNotUTF8AreDifferentSources(t *testing.T) {
	one, other := Source{Name: "/srv/d\xe9"}.info("c"), Source{Name: "/srv/d\xff"}.info("c")
	if one == other || !utf8.ValidString(one.Path) || (Source{Name: "/srv/d"}).info("c").Path != "/srv/d" {
		t.Errorf("%q and %q", one, other)
	}
}

func FuzzNames(f *testing.F) {
	for _, name := range []string{"plain", "bad\xff", "100%\xff", escapedPrefix, escapedPrefix + "x", escapedPrefix + "%2F", escapedPrefix + "%", "\ufffd", escapedPrefix + "%ff"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		stored := escapeName(name)
		if !utf8.ValidString(stored) {
			t.Errorf("%q is stored as %q", name, stored)
		}
		if got := UnescapePath(escapeNames(name)); got != name {
			t.Errorf("%q is stored as %q and comes back as %q", name, escapeNames(name), got)
		}
		if again := unescapeName(name); again != name && escapeName(again) != name {
			t.Errorf("%q is taken for an escaped %q", name, again)
		}
	})
}
