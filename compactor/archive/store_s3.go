package archive

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	// singlePut is the size up to which a file is sent with one request.
	singlePut = 64 << 20
	// partSize is the size of the parts of larger ones.
	partSize = 16 << 20
	// s3Tries is how often a request is made that fails for a reason that may pass, besides what
	// the client library tries by itself.
	s3Tries = 4
)

// S3Store keeps files in a bucket of an S3 server that supports conditional writes.
type S3Store struct {
	core   minio.Core
	bucket string
	prefix string // empty, or with a slash at its end
	url    string

	once      sync.Once
	versioned bool
	partAt    int64 // size from which a file is sent in parts
}

var _ Store = (*S3Store)(nil)

func newS3Store(u *url.URL, o StoreOptions) (*S3Store, error) {
	s := &S3Store{bucket: u.Host, prefix: strings.Trim(u.Path, "/"), partAt: singlePut}
	if s.bucket == "" {
		return nil, fmt.Errorf("%q names no bucket: want s3://BUCKET/PREFIX", u.Redacted())
	}
	if u.User != nil {
		return nil, errors.New("credentials do not belong into the URL of an archive: give them with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a credentials file")
	}
	q := u.Query()
	for k := range q {
		if !slices.Contains([]string{"endpoint", "region", "path-style"}, k) {
			return nil, fmt.Errorf("%q: there is no parameter %q: there are endpoint, region and path-style", u.Redacted(), k)
		}
	}
	endpoint := firstOf(q.Get("endpoint"), os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"), "https://s3.amazonaws.com")
	region := firstOf(q.Get("region"), os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"))
	e, err := url.Parse(endpoint)
	if err != nil || e.Host == "" || e.Scheme != "http" && e.Scheme != "https" || strings.Trim(e.Path, "/") != "" {
		return nil, fmt.Errorf("endpoint %q: want https://HOST or http://HOST:PORT", endpoint)
	}
	lookup := minio.BucketLookupAuto
	switch q.Get("path-style") {
	case "true":
		lookup = minio.BucketLookupPath
	case "false":
		lookup = minio.BucketLookupDNS
	case "":
	default:
		return nil, fmt.Errorf("path-style=%s: want true or false", q.Get("path-style"))
	}
	transport, err := s3Transport(e.Scheme == "https", o.CAFile)
	if err != nil {
		return nil, err
	}
	client, err := minio.New(e.Host, &minio.Options{
		Creds: s3Credentials(o, transport), Secure: e.Scheme == "https", Transport: transport, Region: region,
		BucketLookup: lookup, TrailingHeaders: true, MaxRetries: 3,
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", u.Redacted(), err)
	}
	client.SetAppInfo("tidemark", "1")
	s.core = minio.Core{Client: client}
	if s.prefix != "" {
		s.prefix += "/"
	}
	s.url = u.Redacted()
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

func s3Transport(secure bool, caFile string) (*http.Transport, error) {
	t, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, fmt.Errorf("set up the connection to S3: %w", err)
	}
	if caFile == "" {
		return t, nil
	}
	if t.TLSClientConfig == nil {
		return nil, errors.New("a CA file is of no use with an http endpoint")
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read the CA file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the CA file %s holds no certificate in PEM", caFile)
	}
	t.TLSClientConfig.RootCAs = pool
	return t, nil
}

func s3Credentials(o StoreOptions, transport http.RoundTripper) *credentials.Credentials {
	if o.CredentialsFile != "" {
		return credentials.New(&rereadFile{FileAWSCredentials: credentials.FileAWSCredentials{Filename: o.CredentialsFile, Profile: o.Profile}, path: o.CredentialsFile})
	}
	return credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvAWS{}, &credentials.EnvMinio{}, &credentials.FileAWSCredentials{Profile: o.Profile},
		&credentials.IAM{Client: &http.Client{Transport: transport, Timeout: 10 * time.Second}},
	})
}

// rereadFile reads a credentials file again when it was changed, so that keys can be rotated
// without a restart.
type rereadFile struct {
	credentials.FileAWSCredentials
	path string
	mu   sync.Mutex
	read time.Time // when the file was changed that was read
}

func (r *rereadFile) changed() time.Time {
	info, err := os.Stat(r.path)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

func (r *rereadFile) note() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read = r.changed()
}

// Retrieve implements credentials.Provider.
func (r *rereadFile) Retrieve() (credentials.Value, error) {
	r.note()
	return r.FileAWSCredentials.Retrieve()
}

// RetrieveWithCredContext implements credentials.Provider.
func (r *rereadFile) RetrieveWithCredContext(c *credentials.CredContext) (credentials.Value, error) {
	r.note()
	return r.FileAWSCredentials.RetrieveWithCredContext(c)
}

// IsExpired implements credentials.Provider.
func (r *rereadFile) IsExpired() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.FileAWSCredentials.IsExpired() || !r.changed().Equal(r.read)
}

// String is the store's URL.
func (s *S3Store) String() string { return s.url }

func (s *S3Store) key(name string) string { return s.prefix + name }

// trouble turns an answer of the server into the errors of Store.
func (s *S3Store) trouble(doing, name string, err error) error {
	if err == nil {
		return nil
	}
	r := minio.ToErrorResponse(err)
	as := err
	switch {
	case r.Code == "NoSuchBucket":
		return fmt.Errorf("%s: there is no bucket %s: make it, or correct the archive's URL", s, s.bucket)
	case r.StatusCode == http.StatusNotFound, r.Code == "NoSuchKey", r.Code == "NoSuchVersion":
		as = fs.ErrNotExist
	case r.StatusCode == http.StatusPreconditionFailed:
		as = fs.ErrExist
	case r.StatusCode == http.StatusNotImplemented:
		as = ErrNotExclusive
	case r.StatusCode == http.StatusForbidden, r.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("%s %s: %w (%s: %s): check the credentials, and that they may get, put, list and delete under the archive's prefix", doing, name, ErrDenied, r.Code, r.Message)
	}
	return fmt.Errorf("%s %s: %w", doing, name, as)
}

// passing reports whether an error may be gone at the next try.
func passing(err error) bool {
	for _, e := range []error{fs.ErrExist, fs.ErrNotExist, ErrDenied, ErrHeld, ErrNotExclusive, context.Canceled, context.DeadlineExceeded, errors.ErrUnsupported} {
		if errors.Is(err, e) {
			return false
		}
	}
	return minio.ToErrorResponse(err).Code != "NoSuchBucket"
}

// try makes a request, some times if need be.
func (s *S3Store) try(ctx context.Context, f func() error) error {
	for n := 0; ; n++ {
		err := f()
		if err == nil || ctx.Err() != nil || n+1 == s3Tries || !passing(err) {
			return err
		}
		select {
		case <-time.After(time.Duration(float64(200*time.Millisecond<<n) * (0.5 + rand.Float64()))):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Create implements Store. The library's own way of sending in parts forgets the condition, so
// parts are sent here.
func (s *S3Store) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o CreateOptions) error {
	if err := checkFileName(name); err != nil {
		return err
	}
	opts := minio.PutObjectOptions{ContentType: "application/octet-stream", DisableMultipart: true}
	opts.SetMatchETagExcept("*")
	if !o.Lock.IsZero() {
		opts.Mode, opts.RetainUntilDate = minio.Governance, o.Lock.UTC().Truncate(time.Second).Add(time.Second)
		if o.Compliance {
			opts.Mode = minio.Compliance
		}
	}
	if o.Hold {
		opts.LegalHold = minio.LegalHoldEnabled
	}
	if size > s.partAt {
		return s.createInParts(ctx, name, body, size, opts)
	}
	sum, err := checksum(ctx, body, size)
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	opts.UserMetadata = map[string]string{"x-amz-checksum-crc32c": sum}
	return s.try(ctx, func() error {
		_, err := s.core.Client.PutObject(ctx, s.bucket, s.key(name), io.NewSectionReader(body, 0, size), size, opts)
		return s.trouble("create", name, err)
	})
}

func checksum(ctx context.Context, body io.ReaderAt, size int64) (string, error) {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	n, err := io.Copy(h, &contextReader{ctx, io.NewSectionReader(body, 0, size)})
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, h.Sum32())), err
}

func (s *S3Store) createInParts(ctx context.Context, name string, body io.ReaderAt, size int64, opts minio.PutObjectOptions) (err error) {
	if _, err := s.Stat(ctx, name); err == nil { // spares sending it
		return fmt.Errorf("create %s: %w", name, fs.ErrExist)
	}
	id := ""
	if err := s.try(ctx, func() (err error) {
		id, err = s.core.NewMultipartUpload(ctx, s.bucket, s.key(name), opts)
		return s.trouble("create", name, err)
	}); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = s.core.AbortMultipartUpload(context.WithoutCancel(ctx), s.bucket, s.key(name), id)
		}
	}()
	length := max(int64(partSize), (size+9999)/10000)
	var parts []minio.CompletePart
	for off := int64(0); off < size; off += length {
		n := min(length, size-off)
		if err := s.try(ctx, func() error {
			p, err := s.core.PutObjectPart(ctx, s.bucket, s.key(name), id, len(parts)+1, io.NewSectionReader(body, off, n), n, minio.PutObjectPartOptions{})
			if err == nil {
				parts = append(parts, minio.CompletePart{
					PartNumber: p.PartNumber, ETag: p.ETag, ChecksumCRC32C: p.ChecksumCRC32C, ChecksumCRC32: p.ChecksumCRC32,
					ChecksumSHA1: p.ChecksumSHA1, ChecksumSHA256: p.ChecksumSHA256, ChecksumCRC64NVME: p.ChecksumCRC64NVME,
				})
			}
			return s.trouble("create", name, err)
		}); err != nil {
			return err
		}
	}
	var complete minio.PutObjectOptions
	complete.SetMatchETagExcept("*")
	return s.try(ctx, func() error {
		_, err := s.core.CompleteMultipartUpload(ctx, s.bucket, s.key(name), id, parts, complete)
		return s.trouble("create", name, err)
	})
}

// ReadAt implements Store.
func (s *S3Store) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	var opts minio.GetObjectOptions
	opts.Set("Range", "bytes="+strconv.FormatInt(off, 10)+"-"+strconv.FormatInt(off+int64(len(p))-1, 10))
	return s.try(ctx, func() error {
		body, _, _, err := s.core.GetObject(ctx, s.bucket, s.key(name), opts)
		if minio.ToErrorResponse(err).StatusCode == http.StatusRequestedRangeNotSatisfiable {
			return fmt.Errorf("read %s: %w", name, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return s.trouble("read", name, err)
		}
		defer body.Close()
		if _, err := io.ReadFull(body, p); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read %s: %w", name, err)
		}
		return nil
	})
}

// Stat implements Store.
func (s *S3Store) Stat(ctx context.Context, name string) (info FileInfo, err error) {
	return info, s.try(ctx, func() error {
		o, err := s.core.StatObject(ctx, s.bucket, s.key(name), minio.StatObjectOptions{})
		info = FileInfo{Name: name, Size: o.Size, Time: o.LastModified}
		return s.trouble("stat", name, err)
	})
}

// List implements Store.
func (s *S3Store) List(ctx context.Context, prefix, after string) iter.Seq2[FileInfo, error] {
	return func(yield func(FileInfo, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		o := minio.ListObjectsOptions{Prefix: s.key(prefix), Recursive: true}
		if after != "" {
			o.StartAfter = s.key(after)
		}
		for f := range s.core.ListObjectsIter(ctx, s.bucket, o) {
			if f.Err != nil {
				yield(FileInfo{}, s.trouble("list", s.key(prefix), f.Err))
				return
			}
			name := strings.TrimPrefix(f.Key, s.prefix)
			if name <= after { // not every server heeds it
				continue
			}
			if !yield(FileInfo{Name: name, Size: f.Size, Time: f.LastModified}, nil) {
				return
			}
		}
	}
}

// Remove implements Store. In a bucket with versions it removes every version by its ID: a plain
// removal would only hide a locked file behind a marker, and the name would look free.
func (s *S3Store) Remove(ctx context.Context, name string) error {
	s.once.Do(func() {
		v, err := s.core.GetBucketVersioning(ctx, s.bucket)
		s.versioned = err == nil && (v.Enabled() || v.Suspended())
	})
	if !s.versioned {
		return s.try(ctx, func() error {
			return s.removed(name, s.core.RemoveObject(ctx, s.bucket, s.key(name), minio.RemoveObjectOptions{}))
		})
	}
	return s.try(ctx, func() error {
		for f := range s.core.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.key(name), WithVersions: true, Recursive: true}) {
			if f.Err != nil {
				return s.trouble("remove", name, f.Err)
			}
			if f.Key != s.key(name) {
				continue
			}
			err := s.core.RemoveObject(ctx, s.bucket, f.Key, minio.RemoveObjectOptions{VersionID: f.VersionID})
			if err := s.removed(name, err); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *S3Store) removed(name string, err error) error {
	r := minio.ToErrorResponse(err)
	text := strings.ToLower(r.Code + " " + r.Message)
	locked := strings.Contains(text, "lock") || strings.Contains(text, "worm") || strings.Contains(text, "retention") || strings.Contains(text, "legal hold")
	if err != nil && (locked || s.versioned && r.StatusCode == http.StatusForbidden) {
		return fmt.Errorf("remove %s: %w (%s)", name, ErrHeld, r.Code)
	}
	if err = s.trouble("remove", name, err); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Hold implements Store.
func (s *S3Store) Hold(ctx context.Context, name string, on bool) error {
	status := minio.LegalHoldDisabled
	if on {
		status = minio.LegalHoldEnabled
	}
	err := s.core.PutObjectLegalHold(ctx, s.bucket, s.key(name), minio.PutObjectLegalHoldOptions{Status: &status})
	r := minio.ToErrorResponse(err)
	if err != nil && (r.StatusCode == http.StatusNotImplemented || strings.Contains(r.Code, "InvalidRequest") || strings.Contains(r.Code, "ObjectLock")) {
		return fmt.Errorf("hold %s: the bucket has no object lock (%s): %w", name, r.Code, errors.ErrUnsupported)
	}
	return s.trouble("hold", name, err)
}

// Sweep removes uploads in parts that nobody completed within a day.
func (s *S3Store) Sweep(ctx context.Context) error {
	for u := range s.core.ListIncompleteUploads(ctx, s.bucket, s.prefix, true) {
		if u.Err != nil {
			return s.trouble("list uploads of", s.prefix, u.Err)
		}
		if time.Since(u.Initiated) > 24*time.Hour {
			if err := s.core.AbortMultipartUpload(ctx, s.bucket, u.Key, u.UploadID); err != nil {
				return s.trouble("abort the upload of", u.Key, err)
			}
		}
	}
	return nil
}
