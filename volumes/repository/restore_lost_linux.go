package repository

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// noRead is why content could not be read.
type noRead struct{ error }

func (n *noRead) Unwrap() error { return n.error }

// lose notes a file that does not come back.
func (w *output) lose(rel string, why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost[rel] = true; w.lostWhy == nil {
		w.lostWhy = why
	}
}

// damage is the error of a restore without the files whose content cannot be read.
func (w *output) damage() error {
	names := slices.Sorted(maps.Keys(w.lost))
	if len(names) == 0 {
		return nil
	}
	more := ""
	for i, name := range names {
		names[i] = EscapePath(name)
	}
	if n := len(names) - missedNames; n > 0 {
		names, more = names[:missedNames], fmt.Sprintf(" and %d more", n)
	}
	return fmt.Errorf("restore: the content of %s%s is damaged in the repository, or lost from it; all else is back: restore what is missing from another backup (%w)", strings.Join(names, ", "), more, w.lostWhy)
}
