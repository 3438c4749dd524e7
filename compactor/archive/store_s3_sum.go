package archive

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash/crc32"
	"io"
)

// contentSum is what a server can check content by. It is known before the content is sent: sums
// that come after it are not understood by every server.
type contentSum struct {
	sha256 string // hexadecimal; it is signed
	crc32c string // base64; the server keeps it
}

// addTo adds the headers of a request to metadata.
func (s contentSum) addTo(metadata map[string]string) { metadata["x-amz-checksum-crc32c"] = s.crc32c }

// sumOf reads all of a body.
func sumOf(ctx context.Context, body io.ReaderAt, size int64) (contentSum, error) {
	sha, crc := sha256.New(), crc32.New(crc32.MakeTable(crc32.Castagnoli))
	if err := copyBody(ctx, io.MultiWriter(sha, crc), body, size); err != nil {
		return contentSum{}, err
	}
	return contentSum{sha256: hex.EncodeToString(sha.Sum(nil)), crc32c: base64.StdEncoding.EncodeToString(crc.Sum(nil))}, nil
}
