package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// A next backup writes no password and no format anew, so that no such advice is given.
func TestAdviceAfterDamage(t *testing.T) {
	const advice = "A next backup with --read-all writes anew"
	found := repository.Broken(2, errors.New("the password is damaged"))
	if got := afterDamage(found); strings.Contains(got, advice) {
		t.Errorf("where all is damaged: %s", got)
	}
	found.Errors = append(found.Errors, "data-1/a: its content is missing")
	if got := afterDamage(found); !strings.Contains(got, advice) {
		t.Errorf("where one file is: %s", got)
	}
	found.Hit = []string{"data-1"}
	if got := afterDamage(found); !strings.Contains(got, "1 of 2 backups are hit, data-1: restore from another") {
		t.Errorf("where one of two backups is hit: %s", got)
	}
	found.Hit = []string{"data-1", "data-2"}
	if got := afterDamage(found); !strings.HasPrefix(got, "all of these backups are hit") {
		t.Errorf("where both are: %s", got)
	}
}
