package archive

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"
	"go.uber.org/zap"
)

const (
	// singlePut is the size up to which a file is sent with one request.
	singlePut = 64 << 20
	// partSize is the size of the parts of larger ones.
	partSize = 16 << 20
	// s3Patience is how long a call tries again when the server is busy or out of reach.
	s3Patience = 10 * time.Second
	// uploadLife is how long an upload in parts may take; an older one belongs to a process that died.
	uploadLife = 24 * time.Hour
)

// S3Store keeps files in a bucket of an S3 server that supports conditional writes.
//
// A bucket with object lock keeps versions. There a plain DELETE hides a file, even a locked one,
// behind a marker, and its name looks free although the file is still there. So Remove removes
// versions by their IDs and needs s3:ListBucketVersions and s3:DeleteObjectVersion. Whoever else
// deletes in the bucket can still hide files; what is hidden so, Stat and List do not show.
type S3Store struct {
	core     minio.Core
	keys     *credentials.Credentials
	log      *zap.Logger
	bucket   string
	prefix   string // empty, or with a slash at its end
	url      string
	endpoint string
	trusted  []byte // certificates besides the system's, PEM

	partAt, partSize     int64
	patience, uploadLife time.Duration

	seen    atomic.Int64 // when the bucket was last known to be there, in Unix nanoseconds
	renewed atomic.Int64 // when the credentials were last thrown away, likewise
	locks   atomic.Bool  // the bucket is known to have object lock

	mu      sync.Mutex // guards what follows
	keeps   bool       // the bucket keeps versions
	askedAt time.Time  // when the server said so
}

var (
	_ Store   = (*S3Store)(nil)
	_ Sweeper = (*S3Store)(nil)

	_ Presigner = (*S3Store)(nil)
)

func newS3Store(u *url.URL, o StoreOptions) (*S3Store, error) {
	if u.User != nil {
		return nil, errors.New("credentials do not belong into the URL of an archive: give them with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a credentials file")
	}
	s := &S3Store{
		bucket: u.Host, prefix: strings.Trim(u.Path, "/"), url: u.String(), log: o.Logger,
		partAt: singlePut, partSize: partSize, patience: s3Patience, uploadLife: uploadLife,
	}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	if s.bucket == "" {
		return nil, fmt.Errorf("%q names no bucket: write s3://BUCKET/PREFIX", s.url)
	}
	if err := s3utils.CheckValidBucketName(s.bucket); err != nil {
		return nil, fmt.Errorf("%q cannot be the name of a bucket: %w: correct the archive's URL", s.bucket, err)
	}
	if s.prefix != "" {
		if err := checkFileName(s.prefix); err != nil {
			return nil, fmt.Errorf("the prefix %q cannot be one: write s3://BUCKET/PREFIX", s.prefix)
		}
		s.prefix += "/"
	}
	q := u.Query()
	for k, v := range q {
		if !slices.Contains([]string{"endpoint", "region", "path-style"}, k) {
			return nil, fmt.Errorf("the archive's URL has a parameter %q that does not exist: there are endpoint, region and path-style", k)
		}
		if len(v) > 1 {
			return nil, fmt.Errorf("the archive's URL has the parameter %s twice: remove one", k)
		}
	}
	lookup, ok := map[string]minio.BucketLookupType{"": minio.BucketLookupAuto, "true": minio.BucketLookupPath, "false": minio.BucketLookupDNS}[q.Get("path-style")]
	if !ok {
		return nil, fmt.Errorf("path-style=%s in the archive's URL: write true or false", q.Get("path-style"))
	}
	s.endpoint = firstOf(q.Get("endpoint"), os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"), "https://s3.amazonaws.com")
	region := firstOf(q.Get("region"), os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"))
	e, err := url.Parse(s.endpoint)
	if err != nil || e.Host == "" || e.User != nil || e.RawQuery != "" || e.Scheme != "http" && e.Scheme != "https" || strings.Trim(e.Path, "/") != "" {
		return nil, errors.New("the endpoint of the archive's URL (or AWS_ENDPOINT_URL) is not one: write https://HOST, or http://HOST:PORT")
	}
	if o.CAFile != "" {
		if s.trusted, err = readCertificates(o.CAFile, e.Scheme == "https"); err != nil {
			return nil, err
		}
	}
	transport, err := s3Transport(e.Scheme == "https", s.trusted)
	if err != nil {
		return nil, err
	}
	s.keys = credentials.New(newKeySource(o, region))
	client, err := minio.New(e.Host, &minio.Options{
		Creds: s.keys, Secure: e.Scheme == "https", Transport: transport, Region: region, BucketLookup: lookup,
		MaxRetries: 1, // we try again ourselves, for longer and knowing what is worth it
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w: correct the archive's URL", s.url, err)
	}
	client.SetAppInfo("tidemark", "1")
	s.core = minio.Core{Client: client}
	return s, nil
}

func firstOf(all ...string) string {
	for _, s := range all {
		if s != "" {
			return s
		}
	}
	return ""
}

// readCertificates reads the CA file of a store.
func readCertificates(caFile string, secure bool) ([]byte, error) {
	if !secure {
		return nil, errors.New("a CA file is of no use with an http endpoint: write https, or leave the CA file away")
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read the CA file: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the CA file %s holds no certificate: it must be PEM, with BEGIN CERTIFICATE", caFile)
	}
	return pem, nil
}

// s3Transport connects to S3 servers, and trusts these certificates (PEM) besides the system's.
func s3Transport(secure bool, trusted []byte) (*http.Transport, error) {
	t, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, fmt.Errorf("set up the connection to S3: %w", err)
	}
	if len(trusted) == 0 || t.TLSClientConfig == nil {
		return t, nil
	}
	pool := t.TLSClientConfig.RootCAs // of SSL_CERT_FILE
	if pool == nil {
		if pool, err = x509.SystemCertPool(); err != nil {
			pool = x509.NewCertPool()
		}
	}
	if !pool.AppendCertsFromPEM(trusted) {
		return nil, errors.New("the certificates to trust for S3 cannot be read")
	}
	t.TLSClientConfig.RootCAs = pool
	return t, nil
}

// String is the store's URL.
func (s *S3Store) String() string { return s.url }

func (s *S3Store) key(name string) string { return s.prefix + name }

// nonceKey is the metadata by which a file is known as our own when the answer was lost.
const nonceKey = "Tidemark-Nonce"

// Create implements Store. Up to 64 MiB it is one PUT with If-None-Match. When the server says
// that the name is taken after an answer of it was lost, the file may be our own, which its
// metadata tells.
func (s *S3Store) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o CreateOptions) error {
	if err := checkFileName(name); err != nil {
		return err
	}
	opts, err := s.createOptions(ctx, name, o)
	if err != nil {
		return err
	}
	nonce := rand.Text()
	opts.UserMetadata[nonceKey] = nonce
	if size > s.partAt && !o.Replace { // what is replaced is small
		return s.createInParts(ctx, name, body, size, nonce, opts)
	}
	sum, err := sumOf(ctx, body, size)
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	sum.addTo(opts.UserMetadata)
	tries := 0
	return s.try(ctx, "create", name, size, func(ctx context.Context) error {
		tries++
		_, err := s.core.PutObject(ctx, s.bucket, s.key(name), io.NewSectionReader(body, 0, size), size, "", sum.sha256, opts)
		return s.unlessOwn(ctx, name, nonce, tries, err)
	})
}

// createOptions are what a request that makes a file has besides its content.
func (s *S3Store) createOptions(ctx context.Context, name string, o CreateOptions) (minio.PutObjectOptions, error) {
	opts := minio.PutObjectOptions{ContentType: "application/octet-stream", DisableContentSha256: true, UserMetadata: map[string]string{}}
	if !o.Replace {
		opts.SetMatchETagExcept("*")
	}
	if !o.Lock.IsZero() {
		opts.Mode, opts.RetainUntilDate = minio.Governance, o.Lock.Add(time.Second-1).Truncate(time.Second) // S3 counts in seconds
		if o.Compliance {
			opts.Mode = minio.Compliance
		}
	}
	if o.Hold {
		opts.LegalHold = minio.LegalHoldEnabled
	}
	if !o.Lock.IsZero() || o.Hold {
		// Not every server refuses before it has made the file.
		if err := s.needLocks(ctx, "lock", name); err != nil {
			return opts, err
		}
	}
	return opts, nil
}

// unlessOwn forgets an error of Create when an earlier try made the file.
func (s *S3Store) unlessOwn(ctx context.Context, name, nonce string, tries int, err error) error {
	if tries == 1 || answer(err).StatusCode != http.StatusPreconditionFailed {
		return err
	}
	info, statErr := s.core.StatObject(ctx, s.bucket, s.key(name), minio.StatObjectOptions{})
	switch {
	case statErr != nil && answer(statErr).StatusCode != http.StatusNotFound:
		return statErr // another try tells
	case statErr == nil && info.UserMetadata[nonceKey] == nonce:
		return nil
	}
	return err
}

// createInParts sends a large file. The library's own way of doing so forgets the condition,
// which S3 heeds when the upload is completed.
func (s *S3Store) createInParts(ctx context.Context, name string, body io.ReaderAt, size int64, nonce string, opts minio.PutObjectOptions) error {
	if _, err := s.Stat(ctx, name); err == nil { // spares sending it
		return fmt.Errorf("create %s: %w", name, fs.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	opts.UserMetadata["x-amz-checksum-algorithm"] = "CRC32C"
	for tries := 1; ; tries++ {
		err := s.upload(ctx, name, body, size, nonce, opts)
		// Others wrote the same name at the same moment: S3 wants a new upload then.
		if again := answer(err); tries == 3 || ctx.Err() != nil || again.StatusCode != http.StatusConflict && again.Code != "NoSuchUpload" {
			return err
		}
		if err := sleep(ctx, backoff(tries)); err != nil {
			return fmt.Errorf("create %s: %w", name, err)
		}
	}
}

// upload is one upload in parts. What fails is aborted, so that nobody pays for its parts.
func (s *S3Store) upload(ctx context.Context, name string, body io.ReaderAt, size int64, nonce string, opts minio.PutObjectOptions) (err error) {
	key, id := s.key(name), ""
	err = s.try(ctx, "create", name, 0, func(ctx context.Context) (err error) {
		id, err = s.core.NewMultipartUpload(ctx, s.bucket, key, opts)
		return err
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			// The caller may be gone already. What this leaves behind, Sweep finds.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			_ = s.core.AbortMultipartUpload(ctx, s.bucket, key, id)
		}
	}()
	length := max(s.partSize, (size+9999)/10000) // S3 takes 10,000 parts
	var parts []minio.CompletePart
	for off := int64(0); off < size; off += length {
		n := min(length, size-off)
		sum, err := sumOf(ctx, io.NewSectionReader(body, off, n), n)
		if err != nil {
			return fmt.Errorf("create %s: %w", name, err)
		}
		part := minio.CompletePart{PartNumber: len(parts) + 1, ChecksumCRC32C: sum.crc32c}
		o := minio.PutObjectPartOptions{Sha256Hex: sum.sha256, DisableContentSha256: true, CustomHeader: http.Header{"X-Amz-Checksum-Crc32c": {sum.crc32c}}}
		err = s.try(ctx, "create", name, n, func(ctx context.Context) error {
			p, err := s.core.PutObjectPart(ctx, s.bucket, key, id, part.PartNumber, io.NewSectionReader(body, off, n), n, o)
			part.ETag = p.ETag
			return err
		})
		if err != nil {
			return err
		}
		parts = append(parts, part)
	}
	tries := 0
	return s.try(ctx, "create", name, size, func(ctx context.Context) error {
		tries++
		var complete minio.PutObjectOptions
		complete.SetMatchETagExcept("*")
		_, err := s.core.CompleteMultipartUpload(ctx, s.bucket, key, id, parts, complete)
		if tries > 1 && answer(err).Code == "NoSuchUpload" { // it was completed, maybe by the try before
			err = minio.ErrorResponse{StatusCode: http.StatusPreconditionFailed, Code: minio.PreconditionFailed}
		}
		return s.unlessOwn(ctx, name, nonce, tries, err)
	})
}
