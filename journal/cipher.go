package journal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/tidemark-backup/tidemark/journal/durable"
)

// keyLen is the length of the journal's key in bytes.
const keyLen = 32

// maxBody bounds what a sealed body may grow to when it is opened: far above the largest
// object an API server accepts (a few MiB), so that a forged length cannot eat the memory.
const maxBody = 64 << 20

// bodyCipher seals the bodies of versions: zstd, then AES-256-GCM with a random nonce. The key
// of the version is bound in as additional data, so bodies cannot be swapped between objects.
type bodyCipher struct {
	aead cipher.AEAD
	enc  *zstd.Encoder
	dec  *zstd.Decoder
}

func newBodyCipher(key []byte) (*bodyCipher, error) {
	if len(key) != keyLen {
		return nil, fmt.Errorf("the journal's key must have %d bytes, not %d", keyLen, len(key))
	}
	derived, err := hkdf.Key(sha256.New, key, nil, "tidemark journal bodies v1", keyLen)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	c := &bodyCipher{}
	if c.aead, err = cipher.NewGCMWithRandomNonce(block); err != nil {
		return nil, err
	}
	if c.enc, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest)); err != nil {
		return nil, err
	}
	c.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBody))
	return c, err
}

func (c *bodyCipher) seal(dst, key, body []byte) []byte {
	return c.aead.Seal(dst, nil, c.enc.EncodeAll(body, nil), key)
}

func (c *bodyCipher) open(key, sealed []byte) ([]byte, error) {
	packed, err := c.aead.Open(nil, nil, sealed, key)
	if err != nil {
		return nil, errors.New("cannot decrypt: damaged, or sealed with another key")
	}
	return c.dec.DecodeAll(packed, nil)
}

// loadKey reads the key file, or makes it (mode 0600) when it is missing and create is set.
// The file holds the key in base64 on one line.
func loadKey(path string, create bool) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if !create {
			return nil, fmt.Errorf("%w: put it back, or begin with a new --data-dir (without the key the recorded Secrets cannot be read)", err)
		}
		return makeKey(path)
	}
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key file %s can be read by others (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(key) != keyLen {
		advice := "make one with 'openssl rand -base64 32'"
		if !create { // another key would only lead to the next error
			advice = "put the one back that the journal was made with"
		}
		return nil, fmt.Errorf("key file %s: want %d bytes in base64 on one line (%s)", path, keyLen, advice)
	}
	return key, nil
}

func makeKey(path string) ([]byte, error) {
	key := make([]byte, keyLen)
	rand.Read(key)
	if err := durable.Replace(path, func(w io.Writer) error {
		_, err := io.WriteString(w, base64.StdEncoding.EncodeToString(key)+"\n")
		return err
	}); err != nil {
		return nil, fmt.Errorf("write key file %s: %w", path, err)
	}
	return key, nil
}
