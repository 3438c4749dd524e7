package repository

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"filippo.io/age"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// The password of a repository is random, and kept beside it in files "keys/NUMBER.age", encrypted for the recipients of the archive.
// The one with the highest number counts. They are created once, so of two that make a repository at the same
// moment both use the same password.

const passwordFileLimit = 1 << 16

// password reads the password, or makes it when there is none and create is set.
func password(ctx context.Context, store archive.Store, dir string, o *Options, create bool) (string, error) {
	for {
		names, err := keyFiles(ctx, store, dir)
		if err != nil {
			return "", err
		}
		if len(names) == 0 {
			held, err := hasFiles(ctx, store, dir+"kopia/")
			if err != nil {
				return "", err
			}
			if held { // the password was there first: somebody else may just have made both
				if names, err = keyFiles(ctx, store, dir); err != nil {
					return "", err
				}
				if len(names) > 0 {
					continue
				}
				return "", fmt.Errorf("%w: its password is missing, as there is no %skeys/NUMBER.age in %s, and nothing can be read without it: bring the file back from a copy or an older version",
					ErrBroken, dir, store)
			}
			if !create {
				return "", fmt.Errorf("%w in %s", ErrNoRepository, store)
			}
			err = putPassword(ctx, store, dir+keyName(1), rand.Text()+rand.Text(), o.Recipients)
			if err != nil && !errors.Is(err, fs.ErrExist) {
				return "", err
			}
			continue
		}
		return readPassword(ctx, store, names[len(names)-1], o.Identities)
	}
}

func keyName(n int) string { return fmt.Sprintf("keys/%08d.age", n) }

// keyFiles are their names, the one that counts last. A list that lags cannot hide the first of them for long: who makes it
// anew is told that it exists.
func keyFiles(ctx context.Context, store archive.Store, dir string) ([]string, error) {
	var names []string
	for f, err := range store.List(ctx, dir+"keys/", "") {
		if err != nil {
			return nil, fmt.Errorf("look for the repository's password: %w", err)
		}
		names = append(names, f.Name)
	}
	if len(names) == 0 {
		if _, err := store.Stat(ctx, dir+keyName(1)); err == nil {
			names = append(names, dir+keyName(1))
		}
	}
	slices.Sort(names)
	return names, nil
}

func hasFiles(ctx context.Context, store archive.Store, prefix string) (bool, error) {
	for _, err := range store.List(ctx, prefix, "") {
		return err == nil, err
	}
	return false, nil
}

func putPassword(ctx context.Context, store archive.Store, name, password string, recipients []age.Recipient) error {
	if len(recipients) == 0 {
		return errors.New("a repository of volumes needs a key to encrypt its password for: give --recipient or --identity")
	}
	var b bytes.Buffer
	w, err := age.Encrypt(&b, recipients...)
	if err != nil {
		return fmt.Errorf("encrypt the repository's password: %w", err)
	}
	if _, err := io.WriteString(w, password); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := store.Create(ctx, name, bytes.NewReader(b.Bytes()), int64(b.Len()), archive.CreateOptions{}); err != nil {
		return fmt.Errorf("keep the repository's password: %w", err)
	}
	return nil
}

func readPassword(ctx context.Context, store archive.Store, name string, identities []age.Identity) (string, error) {
	if len(identities) == 0 {
		return "", fmt.Errorf("the content of volumes is read and written with the archive's identity, and there is none: give it with --identity: %w", archive.ErrKey)
	}
	info, err := store.Stat(ctx, name)
	if err != nil {
		return "", err
	}
	b := make([]byte, min(info.Size, passwordFileLimit))
	if err := store.ReadAt(ctx, name, b, 0); err != nil {
		return "", err
	}
	r, err := age.Decrypt(bytes.NewReader(b), identities...)
	if _, other := errors.AsType[*age.NoIdentityMatchError](err); other {
		return "", fmt.Errorf("%w: the identity is not the one that %s was encrypted for, or the head of that file is damaged, which is so if the same identity reads the archive (%w)", archive.ErrKey, name, err)
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(r)
	}
	if err != nil || len(text) == 0 {
		return "", fmt.Errorf("%w: its password, in %s in %s, is damaged, and nothing can be read without it: bring that file back from a copy or an older version", ErrBroken, name, store)
	}
	return string(text), nil
}

// Rewrap encrypts the password for other recipients, whose identities are then needed to open the repository; old ones are not
// enough any more. Who has read the password before still knows it. It may be cut off and run again: what is not for the identities given is left, and
// it tells whether there was a password at all. ErrKey: there is, and not for them.
func Rewrap(ctx context.Context, o Options) (bool, error) {
	dir := o.dir()
	names, err := keyFiles(ctx, o.Store, dir)
	if err != nil || len(names) == 0 {
		return false, err
	}
	ours, text := -1, ""
	for i, name := range slices.Backward(names) {
		text, err = readPassword(ctx, o.Store, name, o.Identities)
		if errors.Is(err, archive.ErrKey) {
			continue
		}
		if err != nil {
			return true, err
		}
		ours = i
		break
	}
	if ours < 0 {
		return true, err
	}
	last := names[len(names)-1] // perhaps for the same recipients, by an earlier run
	n, err := strconv.Atoi(strings.TrimSuffix(last[len(dir+"keys/"):], ".age"))
	if err != nil {
		return true, fmt.Errorf("%s is not a name of ours", last)
	}
	if err := putPassword(ctx, o.Store, dir+keyName(n+1), text, o.Recipients); err != nil {
		return true, err
	}
	for _, name := range names[:ours+1] {
		if err := o.Store.Remove(ctx, name); err != nil && !errors.Is(err, archive.ErrHeld) {
			return true, err
		}
	}
	return true, nil
}
