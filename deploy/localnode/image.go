package localnode

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"
)

// Image is a container image of one layer.
type Image struct {
	// Ref is its full name, such as "docker.io/library/app:test"; Pods may leave out docker.io/library/.
	Ref string
	// Files are put into it, with mode 0755: place -> file of this machine.
	Files map[string]string
	// Links are names in /bin that stand for /bin/busybox, which is one of Files then.
	Links []string
	// Layer is a tar file to use as it is, such as a root file system; Files are left out then.
	Layer string
	Cmd   []string
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// write writes the image as an OCI archive, which `ctr images import` reads.
func (i *Image) write(to string) error {
	layer, err := i.layer()
	if err != nil {
		return fmt.Errorf("make image %s: %w", i.Ref, err)
	}
	sum := fmt.Sprintf("sha256:%x", sha256.Sum256(layer))
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Cmd": i.Cmd, "Env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{sum}},
	})
	if err != nil {
		return err
	}
	blobs := map[string][]byte{}
	add := func(mediaType string, b []byte) descriptor {
		d := descriptor{MediaType: mediaType, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(b)), Size: int64(len(b))}
		blobs[d.Digest] = b
		return d
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": add("application/vnd.oci.image.config.v1+json", config), "layers": []descriptor{add("application/vnd.oci.image.layer.v1.tar", layer)},
	})
	if err != nil {
		return err
	}
	d := add("application/vnd.oci.image.manifest.v1+json", manifest)
	d.Annotations = map[string]string{"io.containerd.image.name": i.Ref, "org.opencontainers.image.ref.name": i.Ref}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []descriptor{d}})
	if err != nil {
		return err
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tarWriter{Writer: tar.NewWriter(f)}
	w.file("oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	for digest, b := range blobs {
		w.file("blobs/sha256/"+strings.TrimPrefix(digest, "sha256:"), 0o644, b)
	}
	w.file("index.json", 0o644, index)
	return w.end()
}

// tarWriter remembers the first error.
type tarWriter struct {
	*tar.Writer
	err error
}

func (w *tarWriter) add(h *tar.Header, b []byte) {
	if w.err == nil {
		w.err = w.WriteHeader(h)
	}
	if w.err == nil && len(b) > 0 {
		_, w.err = w.Write(b)
	}
}

func (w *tarWriter) file(name string, mode int64, b []byte) {
	w.add(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(name, "/"), Mode: mode, Size: int64(len(b))}, b)
}

func (w *tarWriter) end() error {
	if w.err != nil {
		return w.err
	}
	return w.Close()
}

func (i *Image) layer() ([]byte, error) {
	if i.Layer != "" {
		return os.ReadFile(i.Layer)
	}
	var buf bytes.Buffer
	w := tarWriter{Writer: tar.NewWriter(&buf)}
	for _, d := range []string{"bin", "dev", "proc", "sys", "etc", "root", "var", "run"} {
		w.add(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}, nil)
	}
	w.add(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	w.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"))
	w.file("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	for place, source := range i.Files {
		f, err := os.Open(source)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(f)
		f.Close()
		if err != nil {
			return nil, err
		}
		w.file(place, 0o755, b)
	}
	for _, l := range i.Links {
		if n := path.Join("bin", path.Base(l)); n != "bin/busybox" {
			w.add(&tar.Header{Typeflag: tar.TypeLink, Name: n, Linkname: "bin/busybox", Mode: 0o755}, nil)
		}
	}
	return buf.Bytes(), w.end()
}
