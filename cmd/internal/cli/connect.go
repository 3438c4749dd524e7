package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidemark-backup/tidemark/cmd/internal/api"
	"github.com/tidemark-backup/tidemark/cmd/internal/daemon"
)

// serverFlags say where the daemon is.
type serverFlags struct {
	server, tokenFile, ca string
}

func (f *serverFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.server, "server", "", "the daemon: unix:///DIR/tidemark.sock or https://HOST:PORT (default: $TIDEMARK_SERVER, else the socket in the default data directory)")
	fs.StringVar(&f.tokenFile, "token-file", "", "file with the token for an https daemon (default: $TIDEMARK_TOKEN)")
	fs.StringVar(&f.ca, "server-ca", "", "PEM file of the CA that signed the https daemon's certificate")
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
