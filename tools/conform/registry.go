package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// registry holds OCI layouts, each under its repository path; the host of the
// reference does not matter. It can be read only.
type registry struct {
	tags  map[string]map[string]descriptor // by repository and tag
	blobs map[string]string                // file by digest
}

// openRegistry reads the layouts below dir, folders as writeImages names them.
func openRegistry(dir string) (*registry, error) {
	r := &registry{tags: map[string]map[string]descriptor{}, blobs: map[string]string{}}
	layouts, err := filepath.Glob(filepath.Join(dir, "*", "index.json"))
	if err != nil {
		return nil, err
	}
	if len(layouts) == 0 {
		return nil, fmt.Errorf("no images in %q", dir)
	}
	for _, name := range layouts {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		var i index
		if err := json.Unmarshal(b, &i); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		layout := filepath.Dir(name)
		parts := strings.Split(filepath.Base(layout), "--")
		if len(parts) < 3 || len(i.Manifests) != 1 {
			return nil, fmt.Errorf("%s: not an image of ours", layout)
		}
		repository, tag := strings.Join(parts[1:len(parts)-1], "/"), parts[len(parts)-1]
		if r.tags[repository] == nil {
			r.tags[repository] = map[string]descriptor{}
		}
		r.tags[repository][tag] = i.Manifests[0]
		blobs, err := filepath.Glob(filepath.Join(layout, "blobs", "sha256", "*"))
		if err != nil {
			return nil, err
		}
		for _, b := range blobs {
			r.blobs["sha256:"+filepath.Base(b)] = b
		}
	}
	return r, nil
}

var registryPath = regexp.MustCompile(`^/v2/(.+)/(manifests|blobs|tags)/([^/]+)$`)

// ServeHTTP answers what is needed to pull.
func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if q.Method != http.MethodGet && q.Method != http.MethodHead {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"read only"}]}`, http.StatusUnauthorized)
		return
	}
	if strings.TrimSuffix(q.URL.Path, "/") == "/v2" {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, "{}")
		return
	}
	if m := registryPath.FindStringSubmatch(q.URL.Path); m != nil {
		tags := r.tags[m[1]]
		switch {
		case m[2] == "tags" && tags != nil:
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(map[string]any{"name": m[1], "tags": slices.Sorted(maps.Keys(tags))}); err == nil {
				return
			}
		case m[2] == "blobs" && r.blobs[m[3]] != "":
			r.blob(w, q, m[3], "application/octet-stream")
			return
		case m[2] == "manifests":
			for tag, d := range tags {
				if m[3] == tag || m[3] == d.Digest {
					r.blob(w, q, d.Digest, d.MediaType)
					return
				}
			}
		}
	}
	http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`, http.StatusNotFound)
}

func (r *registry) blob(w http.ResponseWriter, q *http.Request, digest, mediaType string) {
	b, err := os.ReadFile(r.blobs[digest])
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if q.Method != http.MethodHead {
		_, _ = w.Write(b) // who hung up needs no more
	}
}
