package archive_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/compactor/archive/storetest"
)

func TestMemStoreConforms(t *testing.T) {
	storetest.Conformance(t, func(*testing.T) archive.Store { return archive.NewMemStore() })
}

func TestZeroMemStoreConforms(t *testing.T) {
	storetest.Conformance(t, func(*testing.T) archive.Store { return &archive.MemStore{} })
}

func TestDirStoreConforms(t *testing.T) {
	storetest.Conformance(t, func(t *testing.T) archive.Store {
		return openStore(t, "dir://"+t.TempDir()+"/not%20there%20yet", archive.StoreOptions{})
	})
}

func TestFaultyStoreWithoutFaultsConforms(t *testing.T) {
	storetest.Conformance(t, func(*testing.T) archive.Store { return &storetest.Faulty{Store: archive.NewMemStore()} })
}

func TestS3StoreConforms(t *testing.T) {
	server := startS3(t)
	for bucket, lock := range map[string]bool{"plain": false, "locked": true} {
		makeBucket(t, server, bucket, lock)
		t.Run(bucket+" bucket", func(t *testing.T) {
			storetest.Conformance(t, func(t *testing.T) archive.Store {
				s := openStore(t, server.URL(bucket, "some/prefix"), archive.StoreOptions{CredentialsFile: server.CredentialsFile()})
				archive.SetPartSize(s, 5<<20)
				return s
			})
		})
	}
}

func TestProbeFindsOutWhetherAStoreIsExclusive(t *testing.T) {
	f := &storetest.Faulty{Store: archive.NewMemStore()}
	if err := archive.Probe(t.Context(), f, "cluster/"); err != nil {
		t.Errorf("an exclusive store: %v", err)
	}
	for info, err := range f.List(t.Context(), "", "") {
		t.Errorf("Probe leaves %s, %v", info.Name, err)
	}
	f.Replace(true)
	if err := archive.Probe(t.Context(), f, "cluster/"); !errors.Is(err, archive.ErrNotExclusive) || !strings.Contains(err.Error(), "use a store") {
		t.Errorf("a store that replaces: %v, want ErrNotExclusive with a hint", err)
	}
	for info, err := range f.List(t.Context(), "", "") {
		t.Errorf("Probe leaves %s, %v", info.Name, err)
	}
	f.Replace(false)
	f.Down(true)
	if err := archive.Probe(t.Context(), f, "cluster/"); !errors.Is(err, storetest.ErrUnavailable) || errors.Is(err, archive.ErrNotExclusive) {
		t.Errorf("a store that is down: %v, want that error", err)
	}
}

// racy is a store that refuses names that are taken, but has no eye on writers at the same moment.
type racy struct{ archive.Store }

func (r racy) Create(ctx context.Context, name string, body io.ReaderAt, size int64, o archive.CreateOptions) error {
	if strings.HasSuffix(name, "-race") {
		_ = r.Remove(ctx, name)
	}
	return r.Store.Create(ctx, name, body, size, o)
}

func TestProbeRacesWriters(t *testing.T) {
	if err := archive.Probe(t.Context(), racy{archive.NewMemStore()}, ""); !errors.Is(err, archive.ErrNotExclusive) {
		t.Errorf("Probe of a store with a race: %v, want ErrNotExclusive", err)
	}
}

func TestURLThatCannotBeOpenedIsExplained(t *testing.T) {
	t.Setenv("AWS_ENDPOINT_URL", "")
	for url, want := range map[string]string{
		"":                                       "write s3://",
		"/abs/path":                              "write s3://",
		"gs://bucket/x":                          "write s3://",
		"dir://relative/path":                    "write dir:///",
		"dir:relative":                           "write s3://",
		"dir:///":                                "write dir:///",
		"dir:///a?b=c":                           "write dir:///",
		"s3:///prefix":                           "names no bucket",
		"s3://bucket/a/../b":                     "prefix",
		"s3://bucket/p?regoin=x":                 "regoin",
		"s3://bucket/p?region=a&region=b":        "twice",
		"s3://bucket/p?path-style=yes":           "true or false",
		"s3://bucket/p?endpoint=host:9000":       "write https://",
		"s3://bucket/p?endpoint=ftp://host":      "write https://",
		"s3://bucket/p?endpoint=http://host/sub": "write https://",
		"s3://b/p":                               "correct the archive's URL",
		"s3://key:topsecret@bucket/p":            "AWS_SECRET_ACCESS_KEY",
		"dir://key:topsecret@/p":                 "write dir:///",
		"gs://key:topsecret@bucket/p":            "write s3://",
		"s3://bucket/p?endpoint=http://key:topsecret@host": "write https://",
		"s3://bucket/%zztopsecret":                         "write s3://",
	} {
		_, err := archive.OpenStore(t.Context(), url, archive.StoreOptions{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("OpenStore %q: %v, want an error with %q", url, err, want)
		} else if strings.Contains(err.Error(), "topsecret") {
			t.Errorf("OpenStore %q shows the secret: %v", url, err)
		}
	}
	for _, o := range []archive.StoreOptions{{CAFile: "/does/not/exist"}, {CAFile: "store_test.go"}} {
		if _, err := archive.OpenStore(t.Context(), "s3://bucket/p", o); err == nil || !strings.Contains(err.Error(), "CA file") {
			t.Errorf("OpenStore with %+v: %v, want an error about the CA file", o, err)
		}
	}
}

func TestEnvironmentGivesWhatTheURLLeavesOut(t *testing.T) {
	server := startS3(t)
	makeBucket(t, server, "bucket", false)
	access, secret := server.Credentials()
	t.Setenv("AWS_ACCESS_KEY_ID", access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	t.Setenv("AWS_REGION", "us-east-1")
	t.Setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
	t.Setenv("AWS_ENDPOINT_URL_S3", server.Endpoint())
	s := openStore(t, "s3://bucket", archive.StoreOptions{})
	if err := archive.Probe(t.Context(), s, ""); err != nil {
		t.Error(err)
	}
	if _, err := s.Stat(t.Context(), "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat: %v", err)
	}
}
