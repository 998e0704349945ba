package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// testimageTag is the tag that podman v5.6.2 expects of its test image, and
// what the image says of itself.
const testimageTag = "20241011"

// descriptor, manifest, index and config are those of the OCI image format.
type descriptor struct {
	MediaType string         `json:"mediaType"`
	Digest    string         `json:"digest"`
	Size      int            `json:"size"`
	Platform  map[string]any `json:"platform,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	Manifests     []descriptor `json:"manifests"`
}

const (
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
)

// standIn is an image, under all names that the suites have for it.
type standIn struct {
	names  []string
	layers []packed
	config map[string]any
}

// writeImages writes every image as an OCI layout DIR/oci/NAME and as an
// archive DIR/oci-archive/NAME.tar. NAME is the reference with / and : written
// as "--". Images are the same, byte for byte, each time.
func writeImages(dir, busybox string) error {
	images, err := standIns(busybox)
	if err != nil {
		return err
	}
	for _, i := range images {
		for _, name := range i.names {
			name = strings.NewReplacer("/", "--", ":", "--").Replace(name)
			layout := filepath.Join(dir, "oci", name)
			if err := i.write(layout); err != nil {
				return err
			}
			if err := archive(layout, filepath.Join(dir, "oci-archive", name+".tar")); err != nil {
				return err
			}
		}
	}
	return nil
}

// standIns lists the images that podman's and buildah's suites use and that can
// be put together from busybox.
func standIns(busybox string) ([]standIn, error) {
	path := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	alpine, err := rootfs(busybox, osRelease("alpine", "Alpine Linux", "3.20.3"), false)
	if err != nil {
		return nil, err
	}
	busy, err := rootfs(busybox, osRelease("busybox", "BusyBox", "1.36"), true)
	if err != nil {
		return nil, err
	}
	ubuntu, err := rootfs(busybox, osRelease("ubuntu", "Ubuntu", "24.04"), false)
	if err != nil {
		return nil, err
	}
	ubuntu.symlink("bin/bash", "sh")
	test := newLayer()
	test.add(tar.Header{
		Typeflag: tar.TypeReg, Name: "home/podman/testimage-id", Mode: 0o644,
		ModTime: time.Unix(1_600_000_000, 0), // a test of --tz knows it
	}, []byte(testimageTag+"\n"))
	test.script("home/podman/pause")
	test.script("home/podman/healthcheck")
	var layers []packed
	for _, l := range []*layer{alpine, test, busy, ubuntu} {
		p, err := l.pack()
		if err != nil {
			return nil, err
		}
		layers = append(layers, p)
	}
	return []standIn{
		{
			names:  []string{"quay.io/libpod/testimage:" + testimageTag, "quay.io/libpod/testimage:20221018"},
			layers: layers[:2],
			config: map[string]any{
				"Env": path, "WorkingDir": "/home/podman",
				"Cmd":    []string{"/bin/echo", "This container is intended for podman CI testing"},
				"Labels": map[string]string{"created_by": "test/system/build-testimage", "created_at": "2024-10-11T10:09:00Z"},
			},
		},
		{
			names:  []string{"quay.io/libpod/testimage:00000004"}, // which podman's tests only ever pull
			layers: layers[:2],
			config: map[string]any{"Env": path, "Cmd": []string{"/bin/sh"}, "Labels": map[string]string{"number": "4"}},
		},
		{
			names:  []string{"quay.io/libpod/k8s-pause:3.5", "registry.k8s.io/pause:latest"},
			layers: layers[:2],
			config: map[string]any{"Env": path, "Entrypoint": []string{"/home/podman/pause"}},
		},
		{
			names:  []string{"docker.io/library/alpine:latest", "quay.io/libpod/alpine:latest", "docker.io/library/alpine:3.19"},
			layers: layers[:1],
			config: map[string]any{"Env": path, "Cmd": []string{"/bin/sh"}},
		},
		{
			names: []string{
				"docker.io/library/busybox:latest", "quay.io/libpod/busybox:latest",
				"docker.io/library/busybox:musl", "docker.io/library/busybox:glibc",
			},
			layers: layers[2:3],
			config: map[string]any{"Env": path, "Cmd": []string{"sh"}},
		},
		{
			names: []string{
				"docker.io/library/ubuntu:latest", "quay.io/libpod/ubuntu:latest", "docker.io/library/debian:latest",
				"docker.io/library/fedora:latest", "registry.fedoraproject.org/fedora-minimal:latest",
			},
			layers: layers[3:4],
			config: map[string]any{"Env": path, "Cmd": []string{"/bin/bash"}},
		},
	}, nil
}

func osRelease(id, name, version string) string {
	return fmt.Sprintf("NAME=%q\nID=%s\nVERSION_ID=%s\nPRETTY_NAME=\"%[2]s %[1]s %[3]s stand-in\"\n", name, id, version)
}

// write makes an OCI layout. The history has an entry for each layer, and one
// that is not a layer, like that of a real image.
func (i standIn) write(dir string) error {
	blobs := map[string][]byte{}
	put := func(mediaType string, b []byte) descriptor {
		digest := sha256.Sum256(b)
		d := descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(digest[:]), Size: len(b)}
		blobs[d.Digest] = b
		return d
	}
	var diffIDs []string
	var history []map[string]any
	m := manifest{SchemaVersion: 2, MediaType: typeManifest}
	for n, l := range i.layers {
		m.Layers = append(m.Layers, put(typeLayer, l.gz))
		diffIDs = append(diffIDs, l.diffID)
		history = append(history, map[string]any{
			"created": fmt.Sprintf("2024-10-11T10:0%d:00Z", n), "created_by": fmt.Sprintf("/bin/sh -c #(nop) ADD file:layer%d in / ", n),
		})
	}
	const created = "2024-10-11T10:09:00Z"
	history = append(history, map[string]any{"created": created, "created_by": "/bin/sh -c #(nop) CMD", "empty_layer": true})
	config, err := json.Marshal(map[string]any{
		"created": created, "architecture": "amd64", "os": "linux", "config": i.config, "history": history,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return err
	}
	m.Config = put(typeConfig, config)
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	top := put(typeManifest, b)
	top.Platform = map[string]any{"architecture": "amd64", "os": "linux"}
	b, err = json.Marshal(index{SchemaVersion: 2, Manifests: []descriptor{top}})
	if err != nil {
		return err
	}
	files := map[string][]byte{"index.json": b, "oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	for digest, blob := range blobs {
		files["blobs/"+strings.Replace(digest, ":", "/", 1)] = blob
	}
	for name, b := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
