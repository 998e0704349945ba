package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// files are what goes into the images beside busybox: commands that the suites
// use in containers and Debian's busybox lacks, and the users.
//
//go:embed rootfs
var files embed.FS

// layer is a layer that grows. The first error is kept until pack.
type layer struct {
	buf  bytes.Buffer
	tar  *tar.Writer
	seen map[string]bool
	err  error
}

// packed is a finished layer: compressed, and the digest of what it was before.
type packed struct {
	gz     []byte
	diffID string
}

func newLayer() *layer {
	l := &layer{seen: map[string]bool{".": true}}
	l.tar = tar.NewWriter(&l.buf)
	return l
}

// add adds an entry, and the folders above it, unless the name is there.
func (l *layer) add(h tar.Header, data []byte) {
	name := path.Clean(h.Name)
	if l.seen[name] || l.err != nil {
		return
	}
	l.dir(path.Dir(name), 0o755)
	l.seen[name] = true
	h.Size, h.Format = int64(len(data)), tar.FormatPAX
	if h.ModTime.IsZero() {
		h.ModTime = time.Unix(1_700_000_000, 0)
	}
	if l.err = l.tar.WriteHeader(&h); l.err == nil {
		_, l.err = l.tar.Write(data)
	}
}

func (l *layer) dir(name string, mode int64) {
	l.add(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, nil)
}

func (l *layer) file(name string, data []byte, mode int64) {
	l.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, data)
}

func (l *layer) symlink(name, target string) {
	l.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Mode: 0o777, Linkname: target}, nil)
}

// script adds the file of this name in rootfs/ as a program.
func (l *layer) script(name string) {
	b, err := files.ReadFile("rootfs/" + path.Base(name))
	l.err = errors.Join(l.err, err)
	l.file(name, b, 0o755)
}

func (l *layer) pack() (packed, error) {
	if err := errors.Join(l.err, l.tar.Close()); err != nil {
		return packed{}, err
	}
	digest := sha256.Sum256(l.buf.Bytes())
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	if _, err := w.Write(l.buf.Bytes()); err != nil {
		return packed{}, err
	}
	if err := w.Close(); err != nil {
		return packed{}, err
	}
	return packed{gz.Bytes(), "sha256:" + hex.EncodeToString(digest[:])}, nil
}

// rootfs is a small system around a static busybox. hardlinks: busybox' names
// are hard links, else symbolic ones.
func rootfs(busybox, release string, hardlinks bool) (*layer, error) {
	l := newLayer()
	for d := range strings.FieldsSeq(`bin dev etc home lib media mnt opt proc run sbin srv sys usr usr/bin usr/sbin usr/lib
		usr/local usr/share usr/tmp var var/cache var/empty var/lib var/log var/mail var/spool var/spool/mail`) {
		l.dir(d, 0o755)
	}
	l.dir("root", 0o700)
	l.dir("tmp", 0o1777)
	l.dir("var/tmp", 0o1777)
	for _, name := range []string{"bin/mountpoint", "usr/sbin/adduser", "usr/sbin/addgroup", "usr/bin/printenv", "usr/bin/pgrep"} {
		l.script(name)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	l.file("bin/busybox", program, 0o755)
	names, err := exec.Command(busybox, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list-full: %w", busybox, err)
	}
	for name := range strings.FieldsSeq(string(names)) {
		switch path.Base(name) {
		case "busybox", "linuxrc", "dpkg", "dpkg-deb", "rpm":
			continue
		}
		if hardlinks {
			l.add(tar.Header{Typeflag: tar.TypeLink, Name: name, Mode: 0o755, Linkname: "bin/busybox"}, nil)
		} else {
			l.symlink(name, "/bin/busybox")
		}
	}
	passwd, err := files.ReadFile("rootfs/passwd")
	l.err = errors.Join(l.err, err)
	group, err := files.ReadFile("rootfs/group")
	l.err = errors.Join(l.err, err)
	var shadow strings.Builder
	for line := range strings.Lines(string(passwd)) {
		user, _, _ := strings.Cut(line, ":")
		fmt.Fprintf(&shadow, "%s:*::0:::::\n", user)
	}
	for _, f := range [][2]string{
		{"passwd", string(passwd)},
		{"group", string(group)},
		{"os-release", release},
		{"fstab", ""},
		{"hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost\n"},
		{"hostname", "localhost\n"},
		{"profile", "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"},
		{"motd", "stand-in image for offline tests\n"},
		{"services", "http 80/tcp\n"},
		{"issue", "Stand-in Linux\n"},
		{"shells", "/bin/sh\n/bin/ash\n"},
	} {
		l.file("etc/"+f[0], []byte(f[1]), 0o644)
	}
	l.add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/shadow", Mode: 0o640, Gid: 42}, []byte(shadow.String()))
	if strings.Contains(release, "alpine") {
		l.file("etc/alpine-release", []byte("3.20.3\n"), 0o644)
	}
	return l, l.err
}

// archive packs the files below dir into a tar file.
func archive(dir, name string) error {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), os.MkdirAll(filepath.Dir(name), 0o755)); err != nil {
		return err
	}
	return os.WriteFile(name, buf.Bytes(), 0o644)
}
