package archive

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/minio/minio-go/v7"
	"go.uber.org/zap"
)

const (
	firstWait, lastWait = 100 * time.Millisecond, 2 * time.Second
	// slowest is the bytes per second below which a request is given up and made anew.
	slowest = 64 << 10
	// renewEvery is how often at most credentials are thrown away because the server refused them.
	renewEvery = 10 * time.Second
	// seenLife is how long a bucket is believed to be there.
	seenLife = time.Minute
)

// final marks an error that another try would only repeat.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// answer is the server's answer in an error; the zero answer when there is none.
func answer(err error) minio.ErrorResponse {
	var r minio.ErrorResponse
	_ = errors.As(err, &r)
	return r
}

// try makes a request of about size bytes, and makes it again for some seconds when that can help.
func (s *S3Store) try(ctx context.Context, doing, name string, size int64, request func(context.Context) error) error {
	begin := time.Now()
	for tries := 1; ; tries++ {
		limited, cancel := context.WithTimeout(ctx, patienceFor(size))
		err := request(limited)
		cancel()
		if err == nil {
			s.seen.Store(time.Now().UnixNano())
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s %s: %w", doing, name, context.Cause(ctx))
		}
		again, told := s.trouble(doing, name, err)
		if s.renewKeys(err) {
			continue
		}
		if !again {
			return told
		}
		if time.Since(begin) > s.patience {
			return fmt.Errorf("%w (tried %d times in %s: see whether %s can be reached and is well)", told, tries, time.Since(begin).Round(time.Second), s.endpoint)
		}
		s.log.Debug("a request to the archive's store failed and is made again", zap.String("request", doing), zap.Int("tries", tries), zap.Error(err))
		if err := sleep(ctx, backoff(tries)); err != nil {
			return fmt.Errorf("%s %s: %w", doing, name, err)
		}
	}
}

// patienceFor is how long a request of about size bytes may take.
func patienceFor(size int64) time.Duration {
	return 30*time.Second + time.Duration(size/slowest)*time.Second
}

// backoff is how long to wait after a number of tries: somewhere below a time that doubles, so
// that many clients do not come back at once.
func backoff(tries int) time.Duration {
	return firstWait/2 + rand.N(min(firstWait<<min(tries, 10), lastWait))
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// renewKeys throws credentials away that the server refuses, as they may have been replaced since
// they were read. It reports whether another try makes sense.
func (s *S3Store) renewKeys(err error) bool {
	r := answer(err)
	// The answer to a HEAD has no code.
	if !denied(r) && (r.StatusCode != http.StatusBadRequest || r.Code != http.StatusText(r.StatusCode) && r.Code != "400 Bad Request") || errors.As(err, new(final)) {
		return false
	}
	now, last := time.Now().UnixNano(), s.renewed.Load()
	if now-last < int64(renewEvery) || !s.renewed.CompareAndSwap(last, now) {
		return false
	}
	s.keys.Expire()
	return true
}

func denied(r minio.ErrorResponse) bool {
	switch r.Code {
	case "ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch":
		return true
	}
	return r.StatusCode == http.StatusForbidden || r.StatusCode == http.StatusUnauthorized
}

// trouble reports whether another try may help, and turns an error into one of Store.
func (s *S3Store) trouble(doing, name string, err error) (again bool, told error) {
	say := func(as error, hint string) error {
		if hint != "" {
			hint = ": " + hint
		}
		return fmt.Errorf("%s %s: %w%s", doing, name, as, hint)
	}
	if f := new(final); errors.As(err, f) {
		return false, say(f.error, "")
	}
	r := answer(err)
	why := fmt.Errorf("%s (%s)", r.Message, r.Code)
	switch {
	case r.StatusCode == 0:
		return s.networkTrouble(say, err)
	case r.Code == minio.NoSuchBucket:
		return false, s.noBucket()
	case r.Code == "NoSuchUpload":
		return false, say(err, "")
	case r.StatusCode == http.StatusNotFound:
		return false, say(fs.ErrNotExist, "")
	case r.StatusCode == http.StatusPreconditionFailed:
		return false, say(fs.ErrExist, "")
	case r.Code == "InvalidObjectState":
		return false, say(why, "the bucket has moved the file to cold storage: fetch it back, and exempt the archive from that rule")
	case r.Code == "RequestTimeTooSkewed":
		return false, say(fmt.Errorf("%w: %w", ErrDenied, why), "set this machine's clock")
	case denied(r):
		return false, say(fmt.Errorf("%w: %w", ErrDenied, why), "see whether the credentials are right, and may get, put, list and delete under "+s.url)
	case r.StatusCode == http.StatusNotImplemented && doing == "create":
		return false, say(fmt.Errorf("%w: %w", ErrNotExclusive, why), "use a store that supports If-None-Match, as AWS S3, MinIO, Ceph and versitygw do")
	case r.StatusCode == http.StatusNotImplemented:
		return false, say(fmt.Errorf("%w: %w", errors.ErrUnsupported, why), "")
	case r.StatusCode >= 300 && r.StatusCode < 400, r.Code == "AuthorizationHeaderMalformed", r.Code == "InvalidRegion":
		return false, say(why, fmt.Sprintf("bucket %s is in another region: write region=%s into the archive's URL", s.bucket, firstOf(r.Region, "REGION")))
	}
	return passing(r), say(why, "")
}

// passing reports whether a server may answer otherwise the next time.
func passing(r minio.ErrorResponse) bool {
	return r.StatusCode >= 500 || r.StatusCode < 300 /* an error after the server said OK */ ||
		slices.Contains([]int{http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests, 499}, r.StatusCode) ||
		slices.Contains([]string{"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}, r.Code)
}

// networkTrouble tells of errors that are no answer of the server.
func (s *S3Store) networkTrouble(say func(error, string) error, err error) (again bool, told error) {
	var (
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
	)
	switch {
	case errors.Is(err, ErrDenied):
		return false, say(err, "")
	case errors.As(err, &unknown):
		return false, say(err, "give the certificate of its authority as the CA file")
	case errors.As(err, &host), errors.As(err, &invalid):
		return false, say(err, "correct the endpoint of the archive's URL, or the server's certificate")
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return false, say(err, "the server does not speak TLS: write http:// into the endpoint of the archive's URL")
	}
	return true, say(err, "")
}

func (s *S3Store) noBucket() error {
	return fmt.Errorf("%s: there is no bucket %s at %s: make it, or correct the archive's URL", s.url, s.bucket, s.endpoint)
}

// needBucket tells a missing bucket from a missing file.
func (s *S3Store) needBucket(ctx context.Context) error {
	if time.Since(time.Unix(0, s.seen.Load())) < seenLife {
		return nil
	}
	there, err := s.core.BucketExists(ctx, s.bucket)
	switch {
	case err == nil && !there:
		return final{s.noBucket()}
	case err == nil:
		s.seen.Store(time.Now().UnixNano())
	case !denied(answer(err)): // who may not ask is told of the file
		return err
	}
	return nil
}
