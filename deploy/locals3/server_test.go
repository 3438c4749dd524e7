package locals3

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
)

// start returns a server that the test stops.
func start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Start(t.Context(), o)
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

func TestServerKeepsItsDataOverKillAndRestart(t *testing.T) {
	s := start(t, Options{})
	if err := s.MakeBucket(t.Context(), "first", false); err != nil {
		t.Fatal(err)
	}
	const text = "kept"
	if _, err := s.Client().PutObject(t.Context(), "first", "a/b", strings.NewReader(text), int64(len(text)), minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	url := s.URL("first", "p")
	s.Kill()
	if pid := s.Pid(); pid != 0 {
		t.Errorf("process %d runs after Kill", pid)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.healthy(ctx); err == nil {
		t.Error("a killed server answers")
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.URL("first", "p") != url {
		t.Errorf("URL became %s, was %s", s.URL("first", "p"), url)
	}
	o, err := s.Client().GetObject(t.Context(), "first", "a/b", minio.GetObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(o); err != nil || string(b) != text {
		t.Errorf("object is %q, %v after the restart", b, err)
	}
}

func TestBucketWithObjectLockKeepsVersions(t *testing.T) {
	s := start(t, Options{})
	for bucket, lock := range map[string]bool{"plain": false, "locked": true} {
		if err := s.MakeBucket(t.Context(), bucket, lock); err != nil {
			t.Fatal(err)
		}
		v, err := s.Client().GetBucketVersioning(t.Context(), bucket)
		if err != nil || v.Enabled() != lock {
			t.Errorf("bucket %s: versions %v, %v; want %v", bucket, v.Enabled(), err, lock)
		}
	}
}

func TestStopLeavesNothingUnlessAsked(t *testing.T) {
	for _, keep := range []bool{false, true} {
		s := start(t, Options{Dir: filepath.Join(t.TempDir(), "s3"), Keep: keep})
		pid := s.Pid()
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := s.Stop(); err != nil {
			t.Errorf("second stop: %v", err)
		}
		if _, err := os.Stat(s.Dir()); errors.Is(err, os.ErrNotExist) == keep {
			t.Errorf("keep %v: directory after stop: %v", keep, err)
		}
		if pid == 0 || s.Pid() != 0 {
			t.Errorf("pid was %d, is %d", pid, s.Pid())
		}
		if err := s.Restart(t.Context()); !errors.Is(err, errStopped) {
			t.Errorf("restart after stop: %v", err)
		}
	}
}

func TestDirectoryWithFilesIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), Options{Dir: dir})
	if err == nil {
		_ = s.Stop()
	}
	if err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("Start = %v, want an error", err)
	}
}

func TestCredentialsAreInNoArgumentAndNoLog(t *testing.T) {
	s := start(t, Options{})
	_, secret := s.Credentials()
	log, err := os.ReadFile(filepath.Join(s.Dir(), "versitygw.log"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(log, []byte(secret)) || strings.Contains(strings.Join(s.proc.Args(), " "), secret) || strings.Contains(s.URL("b", ""), secret) {
		t.Error("the secret key is shown")
	}
	info, err := os.Stat(s.CredentialsFile())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("credentials file: %v, %v; want mode 0600", info, err)
	}
}
