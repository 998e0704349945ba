package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// write puts files below a new folder.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestReadTAP(t *testing.T) {
	dir := write(t, map[string]string{
		"a.tap": "1..7\nok 1 [030] one in 12ms\nnot ok 2 |030| two in 3sec\n# (in test file)\n" +
			"ok 3 three # skip needs a cloud in 1ms\nok 4 four in 7ms # skip later\nok 5 one in 2ms\nnot ok 6 six # in 5ms\n",
		"a.again": "1..2\nok 1 [030] two in 1ms\nnot ok 2 six # in 5ms\n",
	})
	l, err := readTAP(filepath.Join(dir, "a.tap"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]status{
		"one": passed, "two": passed, "three": skipped, "four": skipped, "one (2)": passed, "six #": failed, "seven": none,
	} {
		if got := l.status[name]; got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if !l.again["two"] || len(l.again) != 1 {
		t.Errorf("passed at the second try: %v", l.again)
	}
	if p, f, s := l.count(passed), l.count(failed), l.count(skipped); p != 3 || f != 2 || s != 2 {
		t.Errorf("%d passed, %d failed (one without a result), %d skipped", p, f, s)
	}
	if _, err := readTAP(filepath.Join(dir, "none.tap")); err == nil {
		t.Error("no error for a log that is not there")
	}
}

func TestWorse(t *testing.T) {
	dir := write(t, map[string]string{
		"overlay.tap": "1..5\nok 1 same\nok 2 fails\nok 3 skipped\nok 4 gone\nnot ok 5 better\n",
		"ours.tap":    "1..5\nok 1 same\nnot ok 2 fails\nok 3 skipped # skip why\nok 5 better\n",
	})
	a, b := filepath.Join(dir, "overlay.tap"), filepath.Join(dir, "ours.tap")
	var out bytes.Buffer
	if err := printWorse(&out, a, b); !errors.Is(err, errWorse) {
		t.Errorf("error %v", err)
	}
	if want := "failed: fails\nskipped: skipped\nno result: gone\n"; out.String() != want {
		t.Errorf("printed %q, want %q", &out, want)
	}
	if err := printWorse(&out, a, a); err != nil {
		t.Errorf("the same log is worse: %v", err)
	}
}

func TestTable(t *testing.T) {
	dir := write(t, map[string]string{
		"storage/overlay/a.bats.tap": "1..2\nok 1 x\nok 2 y\n",
		"storage/auto/a.bats.tap":    "1..2\nok 1 x\nok 2 y # skip not here\n",
		"storage/erofs/a.bats.tap":   "1..2\nnot ok 1 x\nok 2 y\n",
		"storage/erofs/a.bats.again": "1..1\nok 1 x\n",
		"podman/overlay/b.bats.tap":  "1..1\nnot ok 1 z\n",
		"podman/auto/b.bats.tap":     "1..1\nok 1 z\n",
	})
	file := filepath.Join(dir, "out.md")
	var out bytes.Buffer
	if err := run([]string{"table", "-logs", dir, "-out", file, "-head", "HEAD"}, &out); !errors.Is(err, errWorse) {
		t.Errorf("error %v", err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		", HEAD.",
		"| | overlay | auto | erofs |",
		"| a.bats | 2/0/0 | 1/0/1 | 2/0/0 |",
		"| **all** | **2/0/0** | **1/0/1** | **2/0/0** |",
		"not with shiftoverlay\n\n- storage `a.bats`: `y` (auto: skipped)\n",
		"second try only\n\n- storage `a.bats`: `x` (erofs: yes)\n",
		"not with overlay\n\n- podman `b.bats`: `z` (auto: passed)\n",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is not in\n%s", want, b)
		}
	}
}

func TestTableIncomplete(t *testing.T) {
	for _, files := range []map[string]string{{"none": ""}, {"storage/auto/a.bats.tap": "1..1\nok 1 x\n"}} {
		dir := write(t, files)
		err := run([]string{"table", "-logs", dir, "-out", filepath.Join(dir, "out.md")}, io.Discard)
		if err == nil || errors.Is(err, errWorse) {
			t.Errorf("%v: error %v", files, err)
		}
	}
}

// images makes the images around a program that calls itself busybox.
func images(t *testing.T) string {
	t.Helper()
	dir := write(t, map[string]string{"busybox": "#!/bin/sh\necho bin/sh\necho bin/busybox\necho usr/bin/env\necho usr/bin/dpkg\n"})
	if err := writeImages(dir, filepath.Join(dir, "busybox")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestImages(t *testing.T) {
	dir := images(t)
	again := images(t)
	const name = "docker.io--library--busybox--latest"
	a, err := os.ReadFile(filepath.Join(dir, "oci-archive", name+".tar"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(again, "oci", name, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(a, b) {
		t.Error("the image is not the same each time")
	}

	r, err := openRegistry(filepath.Join(dir, "oci"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(r)
	defer server.Close()
	get := func(path string, want int) []byte {
		t.Helper()
		res, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != want {
			t.Fatalf("%s: %s, %v", path, res.Status, err)
		}
		return b
	}
	get("/v2/", http.StatusOK)
	get("/v2/library/busybox/manifests/none", http.StatusNotFound)
	get("/v2/none/tags/list", http.StatusNotFound)
	if s := string(get("/v2/library/busybox/tags/list", http.StatusOK)); !strings.Contains(s, `["glibc","latest","musl"]`) {
		t.Errorf("tags: %s", s)
	}
	var m manifest
	if err := json.Unmarshal(get("/v2/library/busybox/manifests/latest", http.StatusOK), &m); err != nil || len(m.Layers) != 1 {
		t.Fatalf("manifest %+v, %v", m, err)
	}
	gz := get("/v2/library/busybox/blobs/"+m.Layers[0].Digest, http.StatusOK)
	if sum := sha256.Sum256(gz); "sha256:"+hex.EncodeToString(sum[:]) != m.Layers[0].Digest {
		t.Error("the layer has another digest")
	}
	z, err := gzip.NewReader(bytes.NewReader(gz))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for in := tar.NewReader(z); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if h.Name == "usr/bin/env" && (h.Typeflag != tar.TypeLink || h.Linkname != "bin/busybox") {
			t.Errorf("usr/bin/env: %+v", h)
		}
	}
	for name, want := range map[string]bool{"bin/busybox": true, "etc/passwd": true, "usr/bin/pgrep": true, "usr/bin/dpkg": false} {
		if slices.Contains(names, name) != want {
			t.Errorf("%s in the layer: %t", name, !want)
		}
	}
}
