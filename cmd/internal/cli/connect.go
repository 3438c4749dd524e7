package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/cmd/internal/daemon"
	"github.com/tidemark-backup/tidemark/compactor/archive"
	"github.com/tidemark-backup/tidemark/replay"
)

// serverFlags say where history is read from: a daemon, or an archive without one.
type serverFlags struct {
	server, tokenFile, ca string
	archive               readArchiveFlags
}

// source is where commands read history.
type source interface {
	replay.Source
	Close()
}

func (f *serverFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.server, "server", "", "the daemon: unix:///DIR/tidemark.sock or https://HOST:PORT (default: $TIDEMARK_SERVER, else the socket in the default data directory)")
	fs.StringVar(&f.tokenFile, "token-file", "", "file with the token for an https daemon (default: $TIDEMARK_TOKEN)")
	fs.StringVar(&f.ca, "server-ca", "", "PEM file of the CA that signed the https daemon's certificate")
	f.archive.add(fs)
}

// open is the daemon, or the archive when one is named.
func (f *serverFlags) open(ctx context.Context) (source, error) {
	if f.archive.url == "" {
		return f.connect()
	}
	if f.server != "" {
		return nil, usage("--server and --archive are two places to read from: give one")
	}
	a, err := f.archive.open(ctx)
	if err != nil {
		return nil, err
	}
	h := a.History()
	h.OnLost = func(d *archive.DamageError) {
		fmt.Fprintf(os.Stderr, "# warning: %v; 'tidemark repair' mends what can be mended\n", d)
	}
	return closable{replay.NewArchived(h)}, nil
}

// closable is a source that holds nothing open.
type closable struct{ replay.Source }

// Close does nothing.
func (closable) Close() {}

// readArchiveFlags say which archive is read, and with which key.
type readArchiveFlags struct {
	url, identity, cluster string
	store                  archive.StoreOptions
}

func (f *readArchiveFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.url, "archive", "", "work on this archive, and ask no daemon: s3://BUCKET/PREFIX or dir:///PATH")
	fs.StringVar(&f.identity, "identity", "", "key file to read the archive with (default: $TIDEMARK_IDENTITY)")
	fs.StringVar(&f.cluster, "cluster", "", "id of the archive's cluster, when several are under the URL")
	addStoreFlags(fs, &f.store)
}

// options are the archive's options, and its store.
func (f *readArchiveFlags) options(ctx context.Context) (archive.Options, archive.Store, error) {
	o := archive.Options{Cluster: f.cluster}
	path := f.identity
	if path == "" {
		path = os.Getenv("TIDEMARK_IDENTITY")
	}
	if path != "" {
		var err error
		if o.Identities, err = archive.LoadIdentities(path); err != nil {
			return o, nil, usage("--identity: %v", err)
		}
	}
	store, err := archive.OpenStore(ctx, f.url, f.store)
	if err != nil {
		return o, nil, usage("--archive: %v", err)
	}
	return o, store, nil
}

// open opens the archive to read it. What is damaged is told, and the rest is read.
func (f *readArchiveFlags) open(ctx context.Context) (*archive.Archive, error) {
	o, store, err := f.options(ctx)
	if err != nil {
		return nil, err
	}
	a, err := archive.Open(ctx, store, o)
	if err != nil {
		return nil, err
	}
	for _, d := range a.Damage() {
		fmt.Fprintf(os.Stderr, "# warning: %v\n", d)
	}
	return a, nil
}

// connect makes a client. No connection is made before the first question.
func (f *serverFlags) connect() (*api.Client, error) {
	o := api.ClientOptions{Server: f.server, CAFile: f.ca, Token: os.Getenv("TIDEMARK_TOKEN")}
	if o.Server == "" {
		o.Server = os.Getenv("TIDEMARK_SERVER")
	}
	if o.Server == "" {
		dir, err := defaultDataDir()
		if err != nil {
			return nil, usage("%v; say where the daemon is with --server", err)
		}
		o.Server = "unix://" + filepath.Join(dir, daemon.SocketName)
	}
	if f.tokenFile != "" {
		b, err := os.ReadFile(f.tokenFile)
		if err != nil {
			return nil, usage("read --token-file: %v", err)
		}
		o.Token = strings.TrimSpace(string(b))
	}
	c, err := api.NewClient(o)
	if err != nil {
		return nil, usage("%v", err)
	}
	return c, nil
}

// defaultDataDir is where a daemon keeps its journal unless told otherwise.
func defaultDataDir() (string, error) {
	if dir := os.Getenv("TIDEMARK_DATA_DIR"); dir != "" {
		return filepath.Abs(dir)
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "tidemark"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the default data directory: %w", err)
	}
	return filepath.Join(home, ".local", "share", "tidemark"), nil
}
