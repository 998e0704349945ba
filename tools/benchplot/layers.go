package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// layerTime is the modification time of all that is generated.
var layerTime = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// writeLayers makes the layers that turn the image "big" into "huge": trees as
// package managers leave them (many small files, folders, symbolic links, some
// hard links), three of them, the last of which also replaces and removes files
// of the first. The same bytes every time.
func writeLayers(out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	layers := []struct {
		name, root string
		packages   int
		fill       func(l *layer, dir string)
	}{
		{"1-node.tar", "opt/app/node_modules", 4200, (*layer).nodePackage},
		{"2-python.tar", "opt/venv/lib/python3/site-packages", 1500, (*layer).pythonPackage},
		{"3-app.tar", "srv/app/vendor", 1500, (*layer).nodePackage},
	}
	for i, spec := range layers {
		err := writeTar(filepath.Join(out, spec.name), func(t *tar.Writer) error {
			l := &layer{t: t, rnd: rand.New(rand.NewPCG(uint64(i), 4))}
			dir := ""
			for part := range strings.SplitSeq(spec.root, "/") {
				dir = filepath.Join(dir, part)
				l.dir(dir)
			}
			l.dir(spec.root + "/.bin")
			for p := range spec.packages {
				spec.fill(l, fmt.Sprintf("%s/%s-%04d", spec.root, word(l.rnd), p))
			}
			if i == len(layers)-1 {
				l.changeFirst(layers[0].root)
			}
			return l.err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// layer is a tar file in the making. Its first error stops it.
type layer struct {
	t     *tar.Writer
	rnd   *rand.Rand
	err   error
	first []string // of the files of the current package
}

func (l *layer) put(h tar.Header, content []byte) {
	if l.err != nil {
		return
	}
	h.ModTime, h.Size = layerTime, int64(len(content))
	if l.err = l.t.WriteHeader(&h); l.err == nil {
		_, l.err = io.Copy(l.t, bytes.NewReader(content))
	}
}

func (l *layer) dir(name string) {
	l.put(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, nil)
}

func (l *layer) link(kind byte, name, to string) {
	l.put(tar.Header{Typeflag: kind, Name: name, Linkname: to, Mode: 0o644}, nil)
}

// file adds a small file; one in twelve is empty, one in fifty has an owner
// other than root.
func (l *layer) file(name string) {
	h := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}
	if l.rnd.IntN(50) == 0 {
		h.Uid, h.Gid = 1000, 1000
	}
	var content []byte
	if l.rnd.IntN(12) != 0 {
		line := "// " + name + "\n"
		content = []byte(strings.Repeat(line, 1+l.rnd.IntN(3500)/len(line)))
	}
	l.put(h, content)
	l.first = append(l.first, name)
}

// nodePackage adds about 25 entries.
func (l *layer) nodePackage(dir string) {
	l.first = nil
	l.dir(dir)
	for _, name := range []string{"package.json", "README.md", "LICENSE", "index.js"} {
		l.file(dir + "/" + name)
	}
	for _, sub := range []string{"/lib", "/dist"} {
		l.dir(dir + sub)
		for i := range 3 + l.rnd.IntN(10) {
			l.file(fmt.Sprintf("%s%s/%s%d.js", dir, sub, word(l.rnd), i))
		}
	}
	l.link(tar.TypeSymlink, filepath.Dir(dir)+"/.bin/"+filepath.Base(dir), "../"+filepath.Base(dir)+"/index.js")
	l.link(tar.TypeSymlink, dir+"/current", "dist")
	if l.rnd.IntN(3) == 0 { // as package managers that keep one copy do
		l.link(tar.TypeLink, dir+"/dist/LICENSE", dir+"/LICENSE")
	}
}

// pythonPackage adds about 30 entries: modules and what was compiled of them.
func (l *layer) pythonPackage(dir string) {
	l.first = nil
	l.dir(dir)
	l.dir(dir + "/__pycache__")
	for i := range 8 + l.rnd.IntN(12) {
		name := fmt.Sprintf("%s%d", word(l.rnd), i)
		l.file(dir + "/" + name + ".py")
		l.file(dir + "/__pycache__/" + name + ".cpython-311.pyc")
	}
	l.link(tar.TypeSymlink, dir+"/latest.py", filepath.Base(l.first[0]))
}

// changeFirst replaces and removes some files of the first layer, whose
// generator is run again to know their names.
func (l *layer) changeFirst(root string) {
	again := &layer{t: tar.NewWriter(io.Discard), rnd: rand.New(rand.NewPCG(0, 4))}
	for p := range 400 {
		again.nodePackage(fmt.Sprintf("%s/%s-%04d", root, word(again.rnd), p))
		if p%2 == 0 {
			l.file(again.first[3])
		} else {
			gone := again.first[1]
			l.put(tar.Header{Typeflag: tar.TypeReg, Name: filepath.Dir(gone) + "/.wh." + filepath.Base(gone), Mode: 0o644}, nil)
		}
	}
	if l.err == nil {
		l.err = again.err
	}
}

// word returns a pronounceable name.
func word(r *rand.Rand) string {
	syllables := []string{"ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu"}
	var s strings.Builder
	for range 2 + r.IntN(3) {
		s.WriteString(syllables[r.IntN(len(syllables))])
	}
	return s.String()
}
