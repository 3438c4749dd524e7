package archive_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/plugin"
	"golang.org/x/crypto/ssh"

	"github.com/tidemark-backup/tidemark/compactor/archive"
)

// put writes a file of that mode and returns its path.
func put(t *testing.T, text string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// keys are a pair of each native kind.
func keys(t *testing.T) (*age.X25519Identity, *age.HybridIdentity) {
	t.Helper()
	classic, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return classic, hybrid
}

// sshKey is a new SSH key: the public line, and the private file.
func sshKey(t *testing.T, passphrase string) (public, private string) {
	t.Helper()
	pub, secret, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(secret, "me@home")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(secret, "me@home", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(p))) + " me@home", string(pem.EncodeToMemory(block))
}

// refused wants an ErrKey with all of the texts.
func refused(t *testing.T, err error, texts ...string) {
	t.Helper()
	if !errors.Is(err, archive.ErrKey) {
		t.Fatalf("got %v, want ErrKey", err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%v: want %q in it", err, text)
		}
	}
}

// mustPass encrypts for the recipients and decrypts with the identities.
func mustPass(t *testing.T, recipients []age.Recipient, identities []age.Identity) {
	t.Helper()
	var b bytes.Buffer
	w, err := age.Encrypt(&b, recipients...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "history"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := age.Decrypt(&b, identities...)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "history" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestGeneratedIdentityOpensWhatItsRecipientClosed(t *testing.T) {
	for _, pq := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "key")
		now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.FixedZone("", 3600))
		recipient, err := archive.GenerateIdentity(path, pq, now)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(recipient, "age1pq1") != pq {
			t.Errorf("post-quantum %t: %.20s", pq, recipient)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		b, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(b), "# created: 2026-11-25T11:00:00Z\n# public key: "+recipient+"\nAGE-SECRET-KEY-") || strings.Count(string(b), "\n") != 3 {
			t.Errorf("%.60q, %v", b, err)
		}
		ids, err := archive.LoadIdentities(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, texts := archive.RecipientsOf(ids); !slices.Equal(texts, []string{recipient}) {
			t.Errorf("recipients %q", texts)
		}
		recipients, err := archive.ParseRecipients([]string{recipient}, nil)
		if err != nil {
			t.Fatal(err)
		}
		mustPass(t, recipients, ids)
		_, err = archive.GenerateIdentity(path, pq, now)
		refused(t, err, "never overwritten")
		if again, err := os.ReadFile(path); err != nil || !bytes.Equal(b, again) {
			t.Error("the key was overwritten")
		}
	}
	if _, err := archive.GenerateIdentity(filepath.Join(t.TempDir(), "no", "key"), false, time.Now()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestParseRecipients(t *testing.T) {
	classic, hybrid := keys(t)
	one, pq := classic.Recipient().String(), hybrid.Recipient().String()
	public, private := sshKey(t, "")
	file := put(t, "# ours\r\n\r\n  "+one+"  \r\n"+public+"\n", 0o644)
	got, err := archive.ParseRecipients([]string{one}, []string{file})
	if err != nil || len(got) != 3 {
		t.Fatalf("%d recipients, %v", len(got), err)
	}
	mustPass(t, got, []age.Identity{classic})
	ids, err := archive.LoadIdentities(put(t, private, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	mustPass(t, got, ids)
	recipients, texts := archive.RecipientsOf(ids)
	if len(texts) != 1 {
		t.Errorf("recipients of an SSH key: %q", texts)
	}
	mustPass(t, recipients, ids)
	if got, err = archive.ParseRecipients([]string{pq}, []string{put(t, pq, 0o600)}); err != nil || len(got) != 2 {
		t.Errorf("%d recipients, %v", len(got), err)
	}
	if got, err = archive.ParseRecipients(nil, nil); err != nil || len(got) != 0 {
		t.Errorf("%d recipients, %v", len(got), err)
	}

	for name, c := range map[string]struct{ text, file, want string }{
		"a mix":                  {text: one, file: pq, want: "cannot be mixed"},
		"a mix with SSH":         {text: public, file: pq, want: "cannot be mixed"},
		"an identity":            {text: classic.String(), want: "key show"},
		"an identity in a file":  {file: one + "\n" + classic.String(), want: "line 2: that is an identity"},
		"a typing error":         {text: one[:len(one)-1] + "b", want: "recipient"},
		"one too short":          {text: one[:20], want: "recipient"},
		"nonsense":               {text: "hello", want: "want age1"},
		"nothing":                {text: " ", want: "want age1"},
		"nonsense in a file":     {file: "\nhello", want: "line 2 is not a recipient"},
		"an empty file":          {file: "# nobody\n", want: "holds no recipient"},
		"an SSH key of a type":   {text: "ssh-dss AAAAB3NzaC1kc3MAAACBAA==", want: "SSH recipient"},
		"a plug-in's, malformed": {text: "age1yubikey1qqqq", want: "plug-in"},
	} {
		t.Run(name, func(t *testing.T) {
			var texts, files []string
			if c.text != "" {
				texts = []string{c.text}
			}
			if c.file != "" {
				files = []string{put(t, c.file, 0o644)}
			}
			_, err := archive.ParseRecipients(texts, files)
			refused(t, err, c.want)
			if strings.Contains(err.Error(), "AGE-SECRET-KEY-1") {
				t.Errorf("it tells the secret: %v", err)
			}
		})
	}
	if _, err := archive.ParseRecipients(nil, []string{filepath.Join(t.TempDir(), "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestLoadIdentitiesRefuses(t *testing.T) {
	classic, _ := keys(t)
	secret := classic.String()
	for _, mode := range []fs.FileMode{0o644, 0o604, 0o602, 0o601} {
		path := put(t, secret, mode)
		_, err := archive.LoadIdentities(path)
		refused(t, err, "chmod 600 "+path, fmt.Sprintf("%04o", mode))
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	_, err := archive.LoadIdentities(dir)
	refused(t, err, "is a directory")
	if strings.Contains(err.Error(), "chmod") {
		t.Errorf("it would have a directory closed to others: %v", err)
	}
	_, private := sshKey(t, "a passphrase")
	for name, c := range map[string]struct{ text, want string }{
		"encrypted":            {"age-encryption.org/v1\n-> scrypt", "age -d"},
		"encrypted, as text":   {"\n-----BEGIN AGE ENCRYPTED FILE-----\n", "age -d"},
		"SSH, encrypted":       {private, "has a passphrase"},
		"SSH, damaged":         {"-----BEGIN OPENSSH PRIVATE KEY-----\n", "key"},
		"a recipient":          {classic.Recipient().String(), "line 1: that is a recipient"},
		"nothing":              {"# public key: x\n", "holds no identity"},
		"nonsense":             {"# \n\nhello", "line 3"},
		"a typing error":       {secret[:len(secret)-1] + "B", "not an identity"},
		"a plug-in's, damaged": {"AGE-PLUGIN-TEST-1QQQQ", "malformed"},
		"a large file":         {strings.Repeat("# \n", 1<<19), "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := archive.LoadIdentities(put(t, c.text, 0o600))
			refused(t, err, c.want)
			if strings.Contains(err.Error(), secret[20:40]) {
				t.Errorf("it tells the secret: %v", err)
			}
		})
	}
}

// pluginSource is a plug-in whose key is the identity of its data; "ask..." wants a PIN first.
const pluginSource = `package main

import (
	"bytes"
	"errors"
	"os"

	"filippo.io/age"
	"filippo.io/age/plugin"
)

func main() {
	p, err := plugin.New("test")
	if err != nil {
		panic(err)
	}
	ask := func(data []byte) error {
		if !bytes.HasPrefix(data, []byte("ask")) {
			return nil
		}
		if _, err := p.RequestValue("PIN?", true); err != nil {
			return err
		}
		return errors.New("somebody answered")
	}
	p.HandleRecipient(func(data []byte) (age.Recipient, error) {
		if err := ask(data); err != nil {
			return nil, err
		}
		id, err := age.ParseX25519Identity(string(data))
		if err != nil {
			return nil, err
		}
		return id.Recipient(), nil
	})
	p.HandleIdentity(func(data []byte) (age.Identity, error) {
		return age.ParseX25519Identity(string(data))
	})
	os.Exit(p.Main())
}
`

func TestPluginKeys(t *testing.T) {
	classic, hybrid := keys(t)
	recipient := plugin.EncodeRecipient("test", []byte(classic.String()))
	dir := t.TempDir()
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	_, err := archive.ParseRecipients([]string{recipient}, nil)
	refused(t, err, "age-plugin-test is not installed")

	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte(pluginSource), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "age-plugin-test"), source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	recipients, err := archive.ParseRecipients([]string{recipient}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := archive.LoadIdentities(put(t, "# a key in hardware\n"+plugin.EncodeIdentity("test", []byte(classic.String())), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	mustPass(t, recipients, ids)

	_, err = archive.ParseRecipients([]string{recipient, hybrid.Recipient().String()}, nil)
	refused(t, err, "post-quantum")
	_, err = archive.ParseRecipients([]string{plugin.EncodeRecipient("test", []byte("ask me"))}, nil)
	refused(t, err, "test plugin")
}
