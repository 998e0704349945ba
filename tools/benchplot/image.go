package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// The file that containers read to see what they share.
const (
	dataName = "bench-data.bin"
	dataSize = 100 << 20
)

// What is used of an OCI image's documents.
type (
	descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int64             `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	manifest struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}
	index struct {
		SchemaVersion int          `json:"schemaVersion"`
		Manifests     []descriptor `json:"manifests"`
	}
	rootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	imageConfig struct {
		Architecture string              `json:"architecture"`
		OS           string              `json:"os"`
		Config       map[string][]string `json:"config"`
		RootFS       rootFS              `json:"rootfs"`
	}
)

// imageTag is the name of the one image in a folder.
const imageTag = "bench"

// writeImage makes an OCI image in folder out of layers, the lowest first: tar
// files, or OCI images whose layers are taken. What is there is kept.
func writeImage(out string, data bool, sources []string) error {
	if _, err := os.Stat(filepath.Join(out, "index.json")); err == nil {
		return nil
	}
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	blobs := filepath.Join(out, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	var files []string
	for _, s := range sources {
		layers, err := layerFiles(s)
		if err != nil {
			return err
		}
		files = append(files, layers...)
	}
	if data {
		file := filepath.Join(out, "data.tar")
		if err := writeData(file); err != nil {
			return err
		}
		defer os.Remove(file)
		files = append(files, file)
	}
	m := manifest{SchemaVersion: 2, MediaType: "application/vnd.oci.image.manifest.v1+json"}
	config := imageConfig{
		Architecture: runtime.GOARCH, OS: "linux", RootFS: rootFS{Type: "layers"},
		Config: map[string][]string{"Env": {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
	}
	for _, file := range files {
		d, err := linkBlob(blobs, file)
		if err != nil {
			return err
		}
		d.MediaType = "application/vnd.oci.image.layer.v1.tar"
		m.Layers = append(m.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
	}
	var err error
	if m.Config, err = writeBlob(blobs, "application/vnd.oci.image.config.v1+json", config); err != nil {
		return err
	}
	d, err := writeBlob(blobs, m.MediaType, m)
	if err != nil {
		return err
	}
	d.Annotations = map[string]string{"org.opencontainers.image.ref.name": imageTag}
	if err := os.WriteFile(filepath.Join(out, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		return err
	}
	return writeJSON(filepath.Join(out, "index.json"), index{SchemaVersion: 2, Manifests: []descriptor{d}})
}

func writeJSON(file string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o644)
}

// writeBlob keeps a document under its digest.
func writeBlob(blobs, mediaType string, v any) (descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	sum := sha256.Sum256(b)
	name := hex.EncodeToString(sum[:])
	return descriptor{MediaType: mediaType, Digest: "sha256:" + name, Size: int64(len(b))},
		os.WriteFile(filepath.Join(blobs, name), b, 0o644)
}

// linkBlob keeps a file under its digest, as a hard link if that is possible.
func linkBlob(blobs, file string) (descriptor, error) {
	f, err := os.Open(file)
	if err != nil {
		return descriptor{}, err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return descriptor{}, err
	}
	name := hex.EncodeToString(h.Sum(nil))
	blob := filepath.Join(blobs, name)
	if err := os.Link(file, blob); err != nil && !errors.Is(err, fs.ErrExist) {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return descriptor{}, err
		}
		to, err := os.OpenFile(blob, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return descriptor{}, err
		}
		if _, err := io.Copy(to, f); err != nil {
			return descriptor{}, errors.Join(err, to.Close())
		}
		if err := to.Close(); err != nil {
			return descriptor{}, err
		}
	}
	return descriptor{Digest: "sha256:" + name, Size: size}, nil
}

// layerFiles returns the layers of an OCI image as tar files, the lowest first;
// of a tar file that file.
func layerFiles(source string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(source, "index.json"))
	if err != nil {
		if info, statErr := os.Stat(source); statErr == nil && info.Mode().IsRegular() {
			return []string{source}, nil
		}
		return nil, err
	}
	var i index
	if err := json.Unmarshal(b, &i); err != nil || len(i.Manifests) != 1 {
		return nil, fmt.Errorf("%s: not an image that benchplot made: %w", source, err)
	}
	blob := func(d descriptor) string {
		return filepath.Join(source, "blobs", "sha256", strings.TrimPrefix(d.Digest, "sha256:"))
	}
	if b, err = os.ReadFile(blob(i.Manifests[0])); err != nil {
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", source, err)
	}
	var files []string
	for _, l := range m.Layers {
		files = append(files, blob(l))
	}
	return files, nil
}

// writeData writes the layer with the file that containers read.
func writeData(file string) error {
	return writeTar(file, func(t *tar.Writer) error {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dataName, Mode: 0o644, Size: dataSize, ModTime: layerTime}); err != nil {
			return err
		}
		_, err := io.CopyN(t, rand.NewChaCha8([32]byte{}), dataSize)
		return err
	})
}

// writeTar writes a tar file, all of it or nothing.
func writeTar(file string, fill func(t *tar.Writer) error) error {
	f, err := os.OpenFile(file+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	t := tar.NewWriter(f)
	if err := errors.Join(fill(t), t.Close(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), file)
}

// contents is what one sees of an image in a container.
type contents struct {
	Image
	files []string // regular files with data, sorted
}

// readContents reads the headers of an image's layers and joins them.
func readContents(layout string) (contents, error) {
	layers, err := layerFiles(layout)
	if err != nil {
		return contents{}, err
	}
	sizes := map[string]int64{} // path: size of a regular file, else -1
	for _, l := range layers {
		if err := readLayer(l, sizes); err != nil {
			return contents{}, fmt.Errorf("%s: %w", l, err)
		}
	}
	c := contents{Image: Image{Layers: len(layers), Entries: len(sizes)}}
	for name, size := range sizes {
		c.Bytes += max(size, 0)
		if size > 0 && name != dataName {
			c.files = append(c.files, "/"+name)
		}
	}
	slices.Sort(c.files)
	return c, nil
}

func readLayer(file string, sizes map[string]int64) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "/"))
		if gone, ok := strings.CutPrefix(path.Base(name), ".wh."); ok {
			// Only files are removed by the layers that are made here.
			delete(sizes, path.Join(path.Dir(name), gone))
			continue
		}
		sizes[name] = -1
		if h.Typeflag == tar.TypeReg {
			sizes[name] = h.Size
		}
	}
}

// sample returns n of the files in random order, always the same.
func (c contents) sample(n int) []string {
	s := slices.Clone(c.files)
	r := rand.New(rand.NewPCG(4, 2))
	r.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
	return s[:min(n, len(s))]
}
