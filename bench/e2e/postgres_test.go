package e2e

import (
	"os"
	"os/exec"
	"path/filepath"

	"github.com/tidemark-backup/tidemark/deploy/localnode"
)

// postgresRef is an image of PostgreSQL out of Debian's packages.
const postgresRef = "docker.io/library/postgres:test"

// postgresImage makes the image once per machine.
func postgresImage() (localnode.Image, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return localnode.Image{}, err
	}
	layer := filepath.Join(cache, "tidemark", "images", "postgres.tar")
	if _, err := os.Stat(layer); err == nil {
		return localnode.Image{Ref: postgresRef, Layer: layer}, nil
	}
	if err := os.MkdirAll(filepath.Dir(layer), 0o755); err != nil {
		return localnode.Image{}, err
	}
	cmd := exec.Command("mmdebstrap", "--variant=minbase", "--include=postgresql-15", "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*", "bookworm", layer+".tmp.tar")
	if out, err := cmd.CombinedOutput(); err != nil {
		_ = os.WriteFile(layer+".log", out, 0o600)
		return localnode.Image{}, err
	}
	return localnode.Image{Ref: postgresRef, Layer: layer}, os.Rename(layer+".tmp.tar", layer)
}
