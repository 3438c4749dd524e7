package locals3

import (
	"context"
	"io"
	"path/filepath"
	"regexp"
	"runtime"

	"github.com/tidemark-backup/tidemark/deploy/localserver"
)

var serverVersion = regexp.MustCompile(`(?m)^(?:require)?\s*github\.com/versity/versitygw (v\S+)`)

// Binary returns the path of versitygw in the user's cache directory, in a folder named after
// the version. When it is not there it is built; see localserver.Build.
func Binary(ctx context.Context, progress io.Writer) (string, error) {
	_, source, _, _ := runtime.Caller(0)
	b := localserver.Build{
		What: "the S3 server", Module: "deploy/locals3/server", Source: source, Cache: "s3",
		Version: func(gomod []byte) (version, ldflags string) {
			if m := serverVersion.FindSubmatch(gomod); m != nil {
				version = string(m[1])
			}
			return version, "-s -w"
		},
		Programs: []localserver.Program{{Name: "versitygw", Package: "github.com/versity/versitygw/cmd/versitygw"}},
		Takes:    "about 3 minutes on 2 cores",
	}
	dir, err := b.Dir(ctx, progress)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "versitygw"), nil
}
