package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"filippo.io/age/plugin"
	"golang.org/x/crypto/ssh"

	"github.com/tidemark-backup/tidemark/journal/durable"
)

// ErrKey is returned for a key or a key file that cannot be used.
var ErrKey = errors.New("cannot use the key")

func keyError(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrKey, fmt.Errorf(format, args...))
}

// ParseRecipient reads a recipient: age1..., the hybrid post-quantum age1pq..., one of a plug-in
// (age1NAME1...), or an SSH public key.
func ParseRecipient(text string) (age.Recipient, error) {
	text = strings.TrimSpace(text)
	switch {
	case strings.HasPrefix(text, "AGE-SECRET-KEY-"), strings.HasPrefix(text, "AGE-PLUGIN-"):
		return nil, keyError("that is an identity, the secret half: keep it away from the cluster, and give the recipient that 'tidemark key show FILE' prints")
	case strings.HasPrefix(text, "age1pq1"):
		r, err := age.ParseHybridRecipient(text)
		if err != nil {
			return nil, keyError("recipient %s: %w", text, err)
		}
		return r, nil
	case strings.HasPrefix(text, "ssh-"):
		r, err := agessh.ParseRecipient(text)
		if err != nil {
			return nil, keyError("SSH recipient: %w", err)
		}
		return r, nil
	case strings.HasPrefix(text, "age1") && strings.Count(text, "1") > 1 && !isNative(text):
		r, err := plugin.NewRecipient(text, silentUI())
		if err != nil {
			return nil, keyError("plug-in recipient %s: %w", text, err)
		}
		return r, nil
	case strings.HasPrefix(text, "age1"):
		r, err := age.ParseX25519Recipient(text)
		if err != nil {
			return nil, keyError("recipient %s: %w", text, err)
		}
		return r, nil
	}
	return nil, keyError("%q is not a recipient: want age1..., as 'tidemark key generate' and 'tidemark key show' print it", text)
}

func isNative(text string) bool {
	_, err := age.ParseX25519Recipient(text)
	return err == nil
}

// silentUI is for plug-ins of a daemon: there is nobody to ask.
func silentUI() *plugin.ClientUI {
	return &plugin.ClientUI{
		DisplayMessage: func(string, string) error { return nil },
		RequestValue: func(name, _ string, _ bool) (string, error) {
			return "", fmt.Errorf("age-plugin-%s asks for input, and nobody is there to answer", name)
		},
		Confirm: func(name, _, _, _ string) (bool, error) {
			return false, fmt.Errorf("age-plugin-%s asks for a confirmation, and nobody is there to give it", name)
		},
		WaitTimer: func(string) {},
	}
}

// ParseRecipients reads recipients, and files that hold one on each line; # begins a comment.
// Post-quantum recipients cannot be mixed with others: the weaker kind would decide. Plug-ins are run
// once, so that one that is missing or wants to be touched is found here and not when a backup is due.
// Without texts and files there are no recipients. What is wrong with a line of a file is told
// without the line, which might be a secret.
func ParseRecipients(texts, files []string) ([]age.Recipient, error) {
	var all []age.Recipient
	for _, text := range texts {
		r, err := ParseRecipient(text)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read recipients: %w", err)
		}
		before := len(all)
		for n, line := range keyLines(b) {
			r, err := ParseRecipient(line)
			if err != nil && strings.HasPrefix(line, "AGE-") {
				return nil, keyError("%s, line %d: that is an identity, the secret half: want the recipient that 'tidemark key show' prints", path, n)
			}
			if err != nil {
				return nil, keyError("%s, line %d is not a recipient: want age1..., as 'tidemark key generate' and 'tidemark key show' print it", path, n)
			}
			all = append(all, r)
		}
		if len(all) == before {
			return nil, keyError("%s holds no recipient", path)
		}
	}
	return all, compatible(all)
}

// keyLines are the lines with their numbers, from 1, without comments and empty ones.
func keyLines(b []byte) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		n := 0
		for line := range strings.Lines(string(b)) {
			n++
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") && !yield(n, line) {
				return
			}
		}
	}
}

// compatible refuses what age would refuse for the first file.
func compatible(all []age.Recipient) error {
	hybrid, classic, plugins := 0, 0, 0
	for _, r := range all {
		switch r.(type) {
		case *age.HybridRecipient:
			hybrid++
		case *plugin.Recipient: // which kind it is, only the plug-in knows
			plugins++
		default:
			classic++
		}
	}
	if hybrid > 0 && classic > 0 {
		return keyError("post-quantum recipients (age1pq...) and others cannot be mixed, because the others would be the weak spot: use one kind")
	}
	if plugins == 0 {
		return nil
	}
	_, err := age.Encrypt(io.Discard, all...)
	if missing, ok := errors.AsType[*plugin.NotFoundError](err); ok {
		return keyError("age-plugin-%s is not installed: put it into a directory of $PATH", missing.Name)
	}
	if err != nil {
		return keyError("encrypt for the recipients: %w", err)
	}
	return nil
}

// maxKeyFile bounds what is read of a key file, in bytes.
const maxKeyFile = 1 << 20

// LoadIdentities reads an identity file: native identities, of both kinds, those of plug-ins, or one SSH
// private key. A file that others can read, and one with a passphrase, is ErrKey.
func LoadIdentities(path string) ([]age.Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	if info.IsDir() { // its mode is that of a directory: to change it would lock others out
		return nil, keyError("%s is a directory: want the identity file itself", path)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, keyError("%s can be read by others (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	if len(b) > maxKeyFile {
		return nil, keyError("%s is no identity file: it has more than %d bytes", path, maxKeyFile)
	}
	start := bytes.TrimSpace(b)
	switch {
	case bytes.HasPrefix(start, []byte("age-encryption.org/")), bytes.HasPrefix(start, []byte(armor.Header)):
		return nil, keyError("%s is encrypted with a passphrase, and nobody is there to give it: decrypt it first with 'age -d -o FILE %s'", path, path)
	case bytes.HasPrefix(start, []byte("-----BEGIN")):
		id, err := agessh.ParseIdentity(b)
		if errors.As(err, new(*ssh.PassphraseMissingError)) {
			return nil, keyError("%s has a passphrase, and nobody is there to give it: use a key without one, or an age identity", path)
		}
		if err != nil {
			return nil, keyError("%s: %w", path, err)
		}
		return []age.Identity{id}, nil
	}
	var all []age.Identity
	for n, line := range keyLines(b) {
		id, err := parseIdentity(line)
		if err != nil {
			return nil, keyError("%s, line %d: %w", path, n, err)
		}
		all = append(all, id)
	}
	if len(all) == 0 {
		return nil, keyError("%s holds no identity: want AGE-SECRET-KEY-..., as 'tidemark key generate' makes it", path)
	}
	return all, nil
}

// parseIdentity never repeats the line, which is a secret.
func parseIdentity(line string) (age.Identity, error) {
	if strings.HasPrefix(line, "age1") || strings.HasPrefix(line, "ssh-") {
		return nil, errors.New("that is a recipient, and reading needs the identity that belongs to it")
	}
	if strings.HasPrefix(line, "AGE-PLUGIN-") {
		id, err := plugin.NewIdentity(line, silentUI())
		if err != nil {
			return nil, errors.New("a plug-in identity is malformed")
		}
		return id, nil
	}
	ids, err := age.ParseIdentities(strings.NewReader(line))
	if err != nil || len(ids) != 1 {
		return nil, errors.New("a line is not an identity: want AGE-SECRET-KEY-..., as 'tidemark key generate' makes it")
	}
	return ids[0], nil
}

// RecipientsOf are the recipients of identities, as far as those tell.
func RecipientsOf(identities []age.Identity) ([]age.Recipient, []string) {
	var all []age.Recipient
	var texts []string
	for _, id := range identities {
		switch id := id.(type) {
		case *age.X25519Identity:
			all, texts = append(all, id.Recipient()), append(texts, id.Recipient().String())
		case *age.HybridIdentity:
			all, texts = append(all, id.Recipient()), append(texts, id.Recipient().String())
		case *agessh.Ed25519Identity:
			all, texts = append(all, id.Recipient()), append(texts, "(an SSH key's: it is the public key, in its .pub file)")
		case *agessh.RSAIdentity:
			all, texts = append(all, id.Recipient()), append(texts, "(an SSH key's: it is the public key, in its .pub file)")
		case *plugin.Identity:
			all, texts = append(all, id.Recipient()), append(texts, "(a plug-in's: it tells its recipient)")
		}
	}
	return all, texts
}

// GenerateIdentity makes a new identity in a file that must not be there yet, with mode 0600, in the
// form of age-keygen, and returns its recipient.
func GenerateIdentity(path string, postQuantum bool, now time.Time) (recipient string, err error) {
	secret := ""
	if postQuantum {
		id, err := age.GenerateHybridIdentity()
		if err != nil {
			return "", err
		}
		recipient, secret = id.Recipient().String(), id.String()
	} else {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			return "", err
		}
		recipient, secret = id.Recipient().String(), id.String()
	}
	err = durable.Create(path, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "# created: %s\n# public key: %s\n%s\n", now.UTC().Format(time.RFC3339), recipient, secret)
		return err
	})
	if errors.Is(err, fs.ErrExist) {
		return "", keyError("%s is there already, and a key is never overwritten: choose another file", path)
	}
	if err != nil {
		return "", fmt.Errorf("make the key %s: %w", path, err)
	}
	return recipient, nil
}
