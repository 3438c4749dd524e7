package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

const (
	// ArchiveKeyName is the name of the identity that is made in the data directory when a daemon
	// is given none.
	ArchiveKeyName = "archive.key"
	// SavedSuffix ends the name of the file which says that a key was copied to a safe place, with its recipient.
	SavedSuffix = ".saved"
	// ownKeyNote is the note of the journal that holds the recipient of the key in the data directory.
	ownKeyNote = "archive-key"
	// lookTime bounds the look into an archive for what a key is needed for.
	lookTime = 30 * time.Second
)

// ownKey is the path of the daemon's own key, which is made at the first start. One that is lost is never replaced: a
// new one would look as good, and what was archived before could not be read with it.
func (d *daemon) ownKey(ctx context.Context, l *Archive) (string, error) {
	path := filepath.Join(d.o.DataDir, ArchiveKeyName)
	before, err := d.journal.Note(ownKeyNote)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if len(before) > 0 {
			return "", fmt.Errorf("the key %s (of %s) is gone, and without it nothing that was archived can be read: put it back; "+
				"or, if there is no copy, archive to a new place with a new key, which 'tidemark key generate -o %s' makes", path, before, path)
		}
		if err := d.needsNoKey(ctx, l, path); err != nil {
			return "", err
		}
		if _, err := archive.GenerateIdentity(path, false, time.Now()); err != nil {
			return "", err
		}
		d.o.Logger.Info("made a key for the archive; copy it to a safe place apart from this machine", zap.String("key", path))
	} else if err != nil {
		return "", fmt.Errorf("look for the archive's key: %w", err)
	}
	return path, d.noteKey(ctx, path, string(before))
}

// noteKey keeps the recipient of the key in the journal, so that the loss of the key is noticed.
func (d *daemon) noteKey(ctx context.Context, path, before string) error {
	ids, err := archive.LoadIdentities(path)
	if err != nil {
		return err
	}
	_, texts := archive.RecipientsOf(ids)
	if len(texts) == 0 || texts[0] == before {
		return nil
	}
	if before != "" {
		d.o.Logger.Warn("the archive's key is another one than before; what was archived until now is read with the key of the old recipient",
			zap.String("key", path), zap.String("recipient", texts[0]), zap.String("before", before))
	}
	return d.journal.SetNote(ctx, ownKeyNote, []byte(texts[0]))
}

// needsNoKey refuses to make a key for an archive that has files already: they were encrypted for another one, of
// a data directory that was lost, or for recipients that are not given any more.
func (d *daemon) needsNoKey(ctx context.Context, l *Archive, path string) error {
	cluster := d.journal.ClusterID()
	if cluster == "" { // a journal that is new; an archive that is not is refused when it is opened
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	store, err := archive.OpenStore(ctx, l.URL, l.Store)
	if err != nil {
		return err
	}
	a, err := archive.Open(ctx, store, archive.Options{Cluster: cluster})
	switch {
	case errors.Is(err, archive.ErrNoArchive):
		return nil
	case err != nil:
		return fmt.Errorf("a key would be made, if it was known that %s needs none yet: %w; give the key with --identity FILE, or recipients with --recipient", store, err)
	case len(a.State().Files()) > 0:
		return fmt.Errorf("%s was encrypted with a key that is not here, and a new one could not read it: put that key at %s, or give it with --identity FILE, "+
			"or go on without reading it with --recipient", store, path)
	}
	return nil
}

// keyWarnings tell of keys whose loss would lose an archive.
func (d *daemon) keyWarnings() []string {
	if d.ownKeyPath == "" || saved(d.ownKeyPath) {
		return nil
	}
	return []string{fmt.Sprintf("the only key of the archive is %s, on this machine: whoever loses it loses every backup; copy it to a safe place apart, then say so with 'tidemark key saved %s'", d.ownKeyPath, d.ownKeyPath)}
}

// saved reports whether somebody said that this key, and not one that was here before it, is in a safe place.
func saved(path string) bool {
	b, err := os.ReadFile(path + SavedSuffix)
	if err != nil {
		return false
	}
	ids, err := archive.LoadIdentities(path)
	if err != nil {
		return false
	}
	_, texts := archive.RecipientsOf(ids)
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "age1") {
			return slices.Contains(texts, line)
		}
	}
	return true // by an older version
}
