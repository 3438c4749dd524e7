package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/tidemark-backup/tidemark/volumes/repository"
)

// A next backup writes no password and no format anew, so that no such advice is given.
func TestAdviceAfterDamage(t *testing.T) {
	const advice = "A next backup writes anew"
	found := repository.Broken(2, errors.New("the password is damaged"))
	if got := afterDamage(found); strings.Contains(got, advice) {
		t.Errorf("where all is damaged: %s", got)
	}
	found.Errors = append(found.Errors, "data-1/a: its content is missing")
	if got := afterDamage(found); !strings.Contains(got, advice) {
		t.Errorf("where one file is: %s", got)
	}
}
