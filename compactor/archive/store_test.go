package archive_test

import (
	"testing"

	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/compactor/archive/storetest"
	"github.com/tidemark-backup/tidemark/deploy/locals3"
)

func TestMemStoreConforms(t *testing.T) {
	storetest.Conformance(t, func(*testing.T) archive.Store { return archive.NewMemStore() })
}

func TestDirStoreConforms(t *testing.T) {
	storetest.Conformance(t, func(t *testing.T) archive.Store { return openStore(t, "dir://"+t.TempDir(), archive.StoreOptions{}) })
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

func openStore(t *testing.T, url string, o archive.StoreOptions) archive.Store {
	t.Helper()
	s, err := archive.OpenStore(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// startS3 starts an S3 server that ends with the test.
func startS3(t *testing.T) *locals3.Server {
	t.Helper()
	s, err := locals3.Start(t.Context(), locals3.Options{Output: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func makeBucket(t *testing.T, s *locals3.Server, name string, objectLock bool) {
	t.Helper()
	if err := s.MakeBucket(t.Context(), name, objectLock); err != nil {
		t.Fatal(err)
	}
}
