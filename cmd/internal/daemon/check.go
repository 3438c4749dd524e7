package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"

	"filippo.io/age"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/journal/capture"
)

// OptionsError is returned for options that cannot work, whatever the cluster and the archives say.
type OptionsError struct{ err error }

func (e *OptionsError) Error() string { return e.err.Error() }
func (e *OptionsError) Unwrap() error { return e.err }

// Check finds what Run would refuse before anything is opened or made: an OptionsError, unless it is a file or directory that cannot be read. It reads
// the files of keys and certificates, and asks nobody.
func (o *Options) Check(ctx context.Context) error {
	for _, check := range []func(context.Context) error{o.checkPlaces, o.checkArchives, o.checkListeners} {
		err := check(ctx)
		if errors.As(err, new(*fs.PathError)) {
			return err
		}
		if err != nil {
			return &OptionsError{err}
		}
	}
	return nil
}

func (o *Options) checkPlaces(context.Context) error {
	if o.DataDir == "" {
		return errors.New("no data directory: give one with --data-dir DIR")
	}
	if _, err := os.Stat(o.DataDir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return dataDirTrouble(err)
	}
	return (&capture.Options{Include: o.Include, Exclude: o.Exclude, Selector: o.Selector}).Check()
}

func (o *Options) checkArchives(ctx context.Context) error {
	names, places := map[string]bool{}, map[string]string{}
	for _, l := range o.Archives {
		l.Name = l.name()
		if names[l.Name] {
			return fmt.Errorf("two archives are called %q: give each a name of its own", l.Name)
		}
		names[l.Name] = true
		store, err := archive.OpenStore(ctx, l.URL, l.Store)
		if err != nil {
			return fmt.Errorf("archive %s: %w", l.Name, err)
		}
		place := store.String()
		if u, err := url.Parse(place); err == nil {
			u.Path = strings.TrimRight(u.Path, "/")
			place = u.String()
		}
		if other, twice := places[place]; twice {
			return fmt.Errorf("the archives %s and %s are at one place, %s: leave one of them out", other, l.Name, store)
		}
		places[place] = l.Name
		if _, dir := store.(*archive.DirStore); dir && l.Lock > 0 {
			return fmt.Errorf("archive %s: a directory has no object lock: use a bucket with object lock, or none for this archive", l.Name)
		}
		if _, _, err := l.given(); err != nil {
			return fmt.Errorf("archive %s: %w", l.Name, err)
		}
	}
	return nil
}

func (o *Options) checkListeners(context.Context) error {
	if _, _, err := o.https(); err != nil {
		return err
	}
	if o.MetricsListen == "" {
		return nil
	}
	return api.CheckLoopback(o.MetricsListen)
}

// name is what the location is called.
func (l *Archive) name() string {
	if l.Name == "" {
		return "main"
	}
	return l.Name
}

// given reads the keys that the location was given; neither kind: none was.
func (l *Archive) given() (recipients []age.Recipient, identities []age.Identity, err error) {
	if recipients, err = archive.ParseRecipients(l.Recipients, l.RecipientFiles); err != nil || l.IdentityFile == "" {
		return recipients, nil, err
	}
	identities, recipients, err = withIdentity(l.IdentityFile, recipients)
	return recipients, identities, err
}

// withIdentity reads an identity, for which files are encrypted if there are no other recipients.
func withIdentity(path string, recipients []age.Recipient) ([]age.Identity, []age.Recipient, error) {
	identities, err := archive.LoadIdentities(path)
	if err != nil {
		return nil, nil, err
	}
	if len(recipients) == 0 {
		if recipients, _ = archive.RecipientsOf(identities); len(recipients) == 0 {
			return nil, nil, fmt.Errorf("the identity in %s does not tell its recipient: give it with --recipient", path)
		}
	}
	return identities, recipients, nil
}
