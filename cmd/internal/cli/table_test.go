package cli

import "testing"

func TestFileNamesCanBeTypedAgain(t *testing.T) {
	for name, want := range map[string]string{
		"var/lib/a b":      "var/lib/a b",
		"é/日本/🙂":           "é/日本/🙂",
		`back\slash`:       `back\slash`,
		"a\nb\t\x1b[31m":   `"a\nb\t\x1b[31m"`,
		"abc\u202egpj.exe": `"abc\u202egpj.exe"`,
		`"in quotes"`:      `"\"in quotes\""`,
	} {
		if got := shownName(name); got != want {
			t.Errorf("%q is shown as %s, want %s", name, got, want)
		}
	}
}
