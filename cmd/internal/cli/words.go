package cli

import (
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var namespaceKind = schema.GroupResource{Resource: "namespaces"}

// count is "1 file" or "2 files".
func count(n int, what string) string { return english.Plural(n, what, "") }

// counted is "1 file" or "2,000 files".
func counted(n int64, what string) string {
	return humanize.Comma(n) + " " + english.PluralWord(int(n), what, "")
}

// was is "1 was" or "2,000 were".
func was(n int64) string { return humanize.Comma(n) + " " + english.PluralWord(int(n), "was", "were") }

// given are those of the flags, each followed by its value, that have one.
func given(flags ...string) (out []string) {
	for i := 0; i < len(flags); i += 2 {
		if flags[i+1] != "" {
			out = append(out, flags[i], flags[i+1])
		}
	}
	return out
}

// sameNames reports whether all targets have the same names, so that they are one scope.
func sameNames(ts []target) bool {
	for i := range ts {
		for _, n := range ts[i].names {
			if !slices.Contains(ts[0].names, n) {
				return false
			}
		}
		if len(ts[i].names) != len(ts[0].names) {
			return false
		}
	}
	return true
}

// quote makes one word of a shell's command line.
func quote(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=,@%+", r)
	}
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !plain(r) }) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
