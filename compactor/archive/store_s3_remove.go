package archive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
)

// versionsAsked is how long it is believed what a server said about versions.
const versionsAsked = 10 * time.Minute

// Remove implements Store. In a bucket that keeps versions it removes every version of the file by
// its ID, and delete markers last: a plain removal would only hide a file, even a locked one.
func (s *S3Store) Remove(ctx context.Context, name string) error {
	if err := checkFileName(name); err != nil {
		return err
	}
	err := s.try(ctx, "remove", name, 0, func(ctx context.Context) error {
		keeps, err := s.keepsVersions(ctx)
		if err != nil {
			return err
		}
		if !keeps {
			return s.core.RemoveObject(ctx, s.bucket, s.key(name), minio.RemoveObjectOptions{})
		}
		return s.removeVersions(ctx, s.key(name))
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// keepsVersions asks whether the bucket does, now and then.
func (s *S3Store) keepsVersions(ctx context.Context) (bool, error) {
	s.mu.Lock()
	keeps, asked := s.keeps, s.askedAt
	s.mu.Unlock()
	if time.Since(asked) < versionsAsked {
		return keeps, nil
	}
	v, err := s.core.GetBucketVersioning(ctx, s.bucket)
	switch r := answer(err); {
	case r.StatusCode == http.StatusNotImplemented, r.StatusCode == http.StatusMethodNotAllowed:
		keeps = false
	case r.StatusCode == http.StatusForbidden:
		keeps = true // not known: looking for versions is right in either case
	case err != nil:
		return false, err
	default:
		keeps = v.Enabled() || v.Suspended()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keeps, s.askedAt = keeps, time.Now()
	return keeps, nil
}

// removeVersions removes the versions of one key, and then the markers that hide them.
func (s *S3Store) removeVersions(ctx context.Context, key string) error {
	var files, markers []string
	for v := range s.core.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: key, WithVersions: true, Recursive: true}) {
		if v.Err != nil {
			return v.Err
		}
		if v.Key > key { // other names that begin alike come after it
			break
		}
		if v.IsDeleteMarker {
			markers = append(markers, v.VersionID)
		} else {
			files = append(files, v.VersionID)
		}
	}
	if err := context.Cause(ctx); err != nil { // the library ends silently
		return err
	}
	for _, id := range append(files, markers...) {
		err := s.core.RemoveObject(ctx, s.bucket, key, minio.RemoveObjectOptions{VersionID: id})
		if err != nil && s.held(ctx, key, id, err) {
			return final{ErrHeld}
		}
		if err != nil && answer(err).StatusCode != http.StatusNotFound {
			return err
		}
	}
	return nil
}

// held reports whether a version was not removed because it is locked. Servers answer it like
// missing rights, and most of them tell in words; otherwise the version's headers do.
func (s *S3Store) held(ctx context.Context, key, id string, err error) bool {
	r := answer(err)
	text := strings.ToLower(r.Code + " " + r.Message)
	for _, word := range []string{"object lock", "objectlock", "worm", "retention", "legal hold"} {
		if strings.Contains(text, word) {
			return true
		}
	}
	if r.StatusCode != http.StatusForbidden {
		return false
	}
	info, err := s.core.StatObject(ctx, s.bucket, key, minio.StatObjectOptions{VersionID: id})
	if err != nil {
		return false
	}
	until, err := time.Parse(time.RFC3339, info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"))
	return err == nil && until.After(time.Now()) || info.Metadata.Get("X-Amz-Object-Lock-Legal-Hold") == "ON"
}

// needLocks finds out whether the bucket has object lock.
func (s *S3Store) needLocks(ctx context.Context, doing, name string) error {
	if s.locks.Load() {
		return nil
	}
	return s.try(ctx, doing, name, 0, func(ctx context.Context) error {
		state, _, _, _, err := s.core.GetObjectLockConfig(ctx, s.bucket)
		switch r := answer(err); {
		case err == nil && state == "Enabled":
			s.locks.Store(true)
			return nil
		case r.StatusCode == http.StatusForbidden: // it may be there all the same
			return nil
		case err == nil, r.Code != minio.NoSuchBucket && r.StatusCode >= 400 && r.StatusCode < 500 && r.StatusCode != http.StatusTooManyRequests, r.StatusCode == http.StatusNotImplemented:
			return final{fmt.Errorf("bucket %s has no object lock: %w: make one with object lock, or leave the lock away", s.bucket, errors.ErrUnsupported)}
		}
		return err
	})
}

// Hold implements Store.
func (s *S3Store) Hold(ctx context.Context, name string, on bool) error {
	if err := checkFileName(name); err != nil {
		return err
	}
	if err := s.needLocks(ctx, "hold", name); err != nil {
		return err
	}
	status := minio.LegalHoldDisabled
	if on {
		status = minio.LegalHoldEnabled
	}
	return s.try(ctx, "hold", name, 0, func(ctx context.Context) error {
		return s.core.PutObjectLegalHold(ctx, s.bucket, s.key(name), minio.PutObjectLegalHoldOptions{Status: &status})
	})
}

// Sweep aborts uploads in parts under the prefix that began more than a day ago: their process
// died, and their parts cost money.
func (s *S3Store) Sweep(ctx context.Context) error {
	for u := range s.core.ListIncompleteUploads(ctx, s.bucket, s.prefix, true) {
		if u.Err != nil {
			_, err := s.trouble("list unfinished uploads under", s.prefix, u.Err)
			return err
		}
		if time.Since(u.Initiated) < s.uploadLife {
			continue
		}
		err := s.try(ctx, "abort the upload of", u.Key, 0, func(ctx context.Context) error {
			return s.core.AbortMultipartUpload(ctx, s.bucket, u.Key, u.UploadID)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return context.Cause(ctx)
}
