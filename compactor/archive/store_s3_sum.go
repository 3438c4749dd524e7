package archive

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
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

// sumOf reads n bytes of body from off on.
func sumOf(ctx context.Context, body io.ReaderAt, off, n int64) (contentSum, error) {
	sha, crc := sha256.New(), crc32.New(crc32.MakeTable(crc32.Castagnoli))
	read, err := io.Copy(io.MultiWriter(sha, crc), &contextReader{ctx, io.NewSectionReader(body, off, n)})
	if err == nil && read != n {
		err = fmt.Errorf("its content ends after %d of %d bytes: %w", off+read, off+n, io.ErrUnexpectedEOF)
	}
	return contentSum{sha256: hex.EncodeToString(sha.Sum(nil)), crc32c: base64.StdEncoding.EncodeToString(crc.Sum(nil))}, err
}
