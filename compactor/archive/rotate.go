package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"filippo.io/age"
)

// Reencrypt uploads a copy of a file that is encrypted for the archive's recipients, under a new
// name; the caller commits it in place of the old one. ErrNoIdentity: the file is whole, and for others than the archive's identities.
func (a *Archive) Reencrypt(ctx context.Context, f File) (File, error) {
	if len(a.o.Identities) == 0 {
		return File{}, ErrNoIdentity
	}
	remote := &remoteFile{ctx: ctx, store: a.store, name: f.Name, path: a.dir + f.Name, size: f.Size, cache: newPages(4 << 20)}
	plain, err := age.Decrypt(io.NewSectionReader(remote, 0, f.Size), a.o.Identities...)
	if _, others := errors.AsType[*age.NoIdentityMatchError](err); others {
		sum := sha256.New()
		if _, unread := io.Copy(sum, io.NewSectionReader(remote, 0, f.Size)); unread != nil {
			return File{}, fileTrouble(f.Name, unread)
		}
		if hex.EncodeToString(sum.Sum(nil)) == f.SHA256 {
			return File{}, fmt.Errorf("%w: %s was encrypted for others than the identities given", ErrNoIdentity, f.Name)
		}
	}
	if err != nil {
		return File{}, fileTrouble(f.Name, err)
	}
	s := &spool{dir: a.o.SpoolDir, sum: sha256.New()}
	defer s.close()
	w, err := age.Encrypt(s, a.o.Recipients...)
	if err != nil {
		return File{}, fmt.Errorf("encrypt for the new recipients: %w", err)
	}
	if _, err := io.Copy(w, plain); err != nil {
		return File{}, fileTrouble(f.Name, err)
	}
	if err := w.Close(); err != nil {
		return File{}, fmt.Errorf("encrypt for the new recipients: %w", err)
	}
	stem, _, _ := strings.Cut(path.Base(f.Name), "-")
	out := File{Name: path.Dir(f.Name) + "/" + stem + "-" + randomHex(8) + ".sst.age", Size: s.size, SHA256: hex.EncodeToString(s.sum.Sum(nil))}
	return out, a.upload(ctx, out, s)
}
