package archive

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/plugin"
)

// ErrKey is returned for a key or a key file that cannot be used.
var ErrKey = errors.New("cannot use the key")

func keyError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrKey, fmt.Errorf(format, args...))
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
// Post-quantum recipients cannot be mixed with others: the weaker kind would decide.
func ParseRecipients(texts, files []string) ([]age.Recipient, error) {
	var lines []string
	lines = append(lines, texts...)
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read recipients: %w", err)
		}
		n := len(lines)
		for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
			if line := strings.TrimSpace(s.Text()); line != "" && !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
		if len(lines) == n {
			return nil, keyError("%s holds no recipient", path)
		}
	}
	var all []age.Recipient
	hybrid := 0
	for _, line := range lines {
		r, err := ParseRecipient(line)
		if err != nil {
			return nil, err
		}
		if _, ok := r.(*age.HybridRecipient); ok {
			hybrid++
		}
		all = append(all, r)
	}
	if hybrid > 0 && hybrid < len(all) {
		return nil, keyError("post-quantum recipients (age1pq...) and others cannot be mixed, because the others would be the weak spot: use one kind")
	}
	return all, nil
}

// LoadIdentities reads an identity file: native identities, of both kinds, and those of plug-ins.
// A file that others can read is refused.
func LoadIdentities(path string) ([]age.Identity, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, keyError("%s can be read by everybody on this machine: chmod 600 %s", path, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	if bytes.HasPrefix(b, []byte("age-encryption.org/")) || bytes.HasPrefix(b, []byte("-----BEGIN AGE ENCRYPTED FILE")) {
		return nil, keyError("%s is encrypted with a passphrase: decrypt it first with 'age -d %s'", path, path)
	}
	if bytes.HasPrefix(b, []byte("-----BEGIN")) {
		id, err := agessh.ParseIdentity(b)
		if err != nil {
			return nil, keyError("%s: %w", path, err)
		}
		return []age.Identity{id}, nil
	}
	var all []age.Identity
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, err := parseIdentity(line)
		if err != nil {
			return nil, keyError("%s: %w", path, err)
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
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return "", keyError("%s is there already, and a key is never overwritten: choose another file", path)
	}
	if err != nil {
		return "", fmt.Errorf("make a key: %w", err)
	}
	_, err = io.WriteString(f, fmt.Sprintf("# created: %s\n# public key: %s\n%s\n", now.UTC().Format(time.RFC3339), recipient, secret))
	if err = errors.Join(err, f.Sync(), f.Close(), syncDir(filepath.Dir(path))); err != nil {
		return "", fmt.Errorf("write key %s: %w", path, err)
	}
	return recipient, nil
}
