package cli

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/tidemark-backup/tidemark/compactor/retention"
	"github.com/tidemark-backup/tidemark/journal"
	"github.com/tidemark-backup/tidemark/journal/durable"
)

func newSnapshotExport() *cobra.Command {
	var server serverFlags
	var out, format string
	cmd := &cobra.Command{
		Use:   "export NAME -o FILE.tar.gz|DIR",
		Short: "Write a snapshot as plain files, for people without Tidemark",
		Long: `Write a snapshot as plain files, one for each object, into a tar.gz or a new directory:

  namespaces/NAMESPACE/RESOURCE/NAME.yaml
  cluster/RESOURCE/NAME.yaml

The files hold the objects as the API server had them. Secrets are among them, in the clear: the
files are made readable for you alone, and keeping them safe is up to you.`,
		Example: `  tidemark snapshot export before-upgrade -o before-upgrade.tar.gz
  tidemark snapshot export before-upgrade -o ./export --format json --archive s3://backups/prod --identity key.txt`,
		Args: someArgs(1, 1, "the name or ID of a snapshot"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usage("say where to with -o FILE.tar.gz or -o DIR")
			}
			if format != "yaml" && format != "json" {
				return usage("--format %s: want yaml or json", format)
			}
			a, done, err := server.archives(cmd.Context(), retention.Policy{})
			if err != nil {
				return err
			}
			defer done()
			var w exportWriter
			if strings.HasSuffix(out, ".tar.gz") || strings.HasSuffix(out, ".tgz") {
				w, err = newTarExport(out)
			} else {
				w, err = newDirExport(out)
			}
			if err != nil {
				return err
			}
			n := 0
			for e, err := range a.Objects(cmd.Context(), args[0]) {
				if err == nil {
					err = exportObject(w, &e, format)
				}
				if err != nil {
					return errors.Join(err, w.abort())
				}
				n++
			}
			if err := w.finish(); err != nil {
				return errors.Join(err, w.abort())
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s in %s\n", count(n, "object"), out)
			return err
		},
	}
	server.add(cmd)
	cmd.Flags().StringVarP(&out, "output", "o", "", "a .tar.gz file or a directory; it must not be there yet")
	cmd.Flags().StringVar(&format, "format", "yaml", "yaml or json")
	return cmd
}

// exportWriter takes the files of an export.
type exportWriter interface {
	file(name string, content []byte, changed time.Time) error
	finish() error
	abort() error
}

func exportObject(w exportWriter, e *journal.Event, format string) error {
	content := append([]byte(nil), e.Object...)
	if format == "yaml" {
		var err error
		if content, err = yaml.JSONToYAML(e.Object); err != nil {
			return fmt.Errorf("write %s as YAML: %w", e.ID(), err)
		}
	} else {
		content = append(content, '\n')
	}
	dir := "cluster"
	if e.Namespace != "" {
		dir = "namespaces/" + fileName(e.Namespace)
	}
	return w.file(dir+"/"+fileName(e.Resource.String())+"/"+fileName(e.Name)+"."+format, content, e.Observed)
}

// fileName makes a name safe for every file system: names of RBAC objects may hold colons.
func fileName(name string) string {
	return strings.NewReplacer("/", "%2F", ":", "%3A", "\\", "%5C").Replace(name)
}

type tarExport struct {
	f   *os.File
	buf *bufio.Writer
	gz  *gzip.Writer
	tar *tar.Writer
}

func newTarExport(path string) (*tarExport, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, usage("%s is there already: choose another file", path)
	}
	if err != nil {
		return nil, err
	}
	t := &tarExport{f: f, buf: bufio.NewWriterSize(f, 256<<10)}
	t.gz = gzip.NewWriter(t.buf)
	t.tar = tar.NewWriter(t.gz)
	return t, nil
}

func (t *tarExport) file(name string, content []byte, changed time.Time) error {
	if err := t.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(content)), ModTime: changed.Truncate(time.Second), Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := t.tar.Write(content)
	return err
}

func (t *tarExport) finish() error {
	return errors.Join(t.tar.Close(), t.gz.Close(), t.buf.Flush(), t.f.Sync(), t.f.Close(), durable.SyncDir(filepath.Dir(t.f.Name())))
}

func (t *tarExport) abort() error {
	_ = t.f.Close() // perhaps once more
	return os.Remove(t.f.Name())
}

// dirExport gets its name when it is whole.
type dirExport struct{ root, temp string }

func newDirExport(path string) (*dirExport, error) {
	path = filepath.Clean(path)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = usage("%s is there already: choose another directory", path)
		}
		return nil, err
	}
	temp, err := os.MkdirTemp(filepath.Dir(path), "."+filepath.Base(path)+"-unfinished-")
	return &dirExport{path, temp}, err
}

func (d *dirExport) file(name string, content []byte, _ time.Time) error {
	path := filepath.Join(d.temp, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o600)
}

func (d *dirExport) finish() error {
	if err := durable.SyncTree(d.temp); err != nil {
		return err
	}
	if err := os.Rename(d.temp, d.root); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(d.root))
}

// abort leaves nothing that looks like an export.
func (d *dirExport) abort() error { return os.RemoveAll(d.temp) }
