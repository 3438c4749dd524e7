package repository

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/kopia/kopia/repo/blob"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// kopiaFile finds the index or pack that an error of Kopia's names.
var kopiaFile = regexp.MustCompile(`\b(x[nsr][0-9]+_[0-9a-f_]{16,}|[pq][0-9a-f]{32})[-0-9a-z]*`)

// brokenFile is ErrBroken for damage of an index, or of a pack that the list of backups is in, in words of ours where the error names the file.
func (r *Repository) brokenFile(err error) error {
	file := kopiaFile.FindString(err.Error())
	if file == "" {
		return fmt.Errorf("%w: what is needed to find anything in %s is damaged: bring it back from a copy or an older version: %w", ErrBroken, r.o.Store, err)
	}
	how := "damaged"
	if errors.Is(err, blob.ErrBlobNotFound) {
		how = "missing"
	}
	text := fmt.Sprintf("%s%s in %s is %s, without which nothing can be found: bring it back from a copy or an older version", r.storage.dir, file, r.o.Store, how)
	if isNotable(blob.ID(file)) && how == "damaged" {
		text += "; if there is none, move it out of kopia/, and do what 'tidemark volumes maintain --help' says of a lost index"
	}
	return fmt.Errorf("%w: %s", ErrBroken, text)
}

// stopped adds to why a maintenance failed which backups lost content, and what to do, if any did.
func (r *Repository) stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil || r.storage.trouble() != nil || errors.Is(err, ErrBroken) || errors.Is(err, archive.ErrDenied) {
		return err
	}
	all, listErr := r.List(ctx)
	if errors.Is(listErr, ErrBroken) {
		return fmt.Errorf("nothing more is freed: %w", listErr)
	}
	var wanted []Wanted
	for _, b := range all {
		wanted = append(wanted, Wanted{b.ID, b.Tags["backup"]})
	}
	if listErr != nil || len(wanted) == 0 {
		return err
	}
	v, verifyErr := r.Verify(ctx, 0, wanted...)
	if verifyErr != nil || len(v.Hit) == 0 {
		return err
	}
	return fmt.Errorf("nothing more is freed, because content that backups need is lost from the store: of %s. 'tidemark volumes verify --read 0' says what. Bring its files back from a copy or an older version; or back the volumes up anew, "+
		"delete those backups that are still hit ('tidemark volumes delete'), and maintain again (%w)", strings.Join(v.Hit, ", "), err)
}
