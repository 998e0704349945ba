package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// host runs plugin-test, as a process of its own, on a store of its own.
type host struct {
	t    *testing.T
	root string
	env  []string
}

// newHost makes a store in a temporary folder and checks, at the end of the
// test, that nothing is mounted in it.
func newHost(t *testing.T) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, root: filepath.Join(dir, "root"), env: []string{
		mainEnv + "=1", "TMPDIR=" + filepath.Join(dir, "tmp"),
	}}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "tmp"), 0o700))
	t.Cleanup(func() {
		left := h.mounts()
		assert.Empty(t, left, "mounts left behind")
		for _, point := range slices.Backward(left) { // so that the folder can be removed
			assert.NoError(t, unix.Unmount(point, unix.MNT_DETACH))
		}
	})
	return h
}

// result is what a process of plugin-test left.
type result struct {
	code        int
	out, errors string
}

// try runs a command line.
func (h *host) try(args ...string) result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"--root", h.root}, args...)...)
	cmd.Args[0] = "plugin-test"
	cmd.Env = append(os.Environ(), h.env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Errorf("plugin-test %s: %v", strings.Join(args, " "), err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// ok runs a command line that must succeed and returns its output.
func (h *host) ok(args ...string) string {
	h.t.Helper()
	r := h.try(args...)
	require.Zero(h.t, r.code, "plugin-test %s\n%s%s", strings.Join(args, " "), r.out, r.errors)
	return r.out
}

// json runs a command line that must succeed and decodes its output.
func (h *host) json(value any, args ...string) {
	h.t.Helper()
	out := h.ok(append([]string{"--format", "json"}, args...)...)
	require.NoError(h.t, json.Unmarshal([]byte(out), value), "%s", out)
}

// mounts lists the mount points below the test's folder.
func (h *host) mounts() []string {
	h.t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(h.t, err)
	var found []string
	for line := range strings.Lines(string(table)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, filepath.Dir(h.root)+"/") {
			found = append(found, point)
		}
	}
	return found
}

// layer is a layer of a test image: tar headers with contents.
type layer []entry

type entry struct {
	tar.Header
	content string
	xattrs  map[string]string
}

var layerTime = time.Unix(1500000000, 123456000)

func folder(name string, mode int64) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}}
}

func file(name string, mode int64, uid, gid int, content string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Uid: uid, Gid: gid}, content: content}
}

func hardLink(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}}
}

func symlink(name, target string, uid int) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Uid: uid, Gid: uid}}
}

func (e entry) with(name, value string) entry {
	xattrs := map[string]string{name: value}
	maps.Copy(xattrs, e.xattrs)
	e.xattrs = xattrs
	return e
}

// archive packs the layer.
func (l layer) archive(t *testing.T) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i, e := range l {
		h := e.Header
		h.Format, h.ModTime, h.Size = tar.FormatPAX, layerTime.Add(time.Duration(i)*time.Second), int64(len(e.content))
		h.PAXRecords = map[string]string{}
		for name, value := range e.xattrs {
			h.PAXRecords["SCHILY.xattr."+name] = value
		}
		require.NoError(t, w.WriteHeader(&h), h.Name)
		_, err := io.WriteString(w, e.content)
		require.NoError(t, err, h.Name)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// writeTar writes a layer as a tar archive and returns the file's name.
func writeTar(t *testing.T, l layer) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "rootfs.tar")
	require.NoError(t, os.WriteFile(name, l.archive(t), 0o600))
	return name
}

// writeOCI writes an image of several layers, the lowest first, as an OCI
// image layout and returns the folder.
func writeOCI(t *testing.T, layers ...layer) string {
	t.Helper()
	dir := t.TempDir()
	blobs := filepath.Join(dir, "blobs", "sha256")
	require.NoError(t, os.MkdirAll(blobs, 0o755))
	blob := func(mediaType string, data []byte) imgspec.Descriptor {
		d := digest.FromBytes(data)
		require.NoError(t, os.WriteFile(filepath.Join(blobs, d.Encoded()), data, 0o600))
		return imgspec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	}
	encode := func(value any) []byte {
		data, err := json.Marshal(value)
		require.NoError(t, err)
		return data
	}
	config := imgspec.Image{Platform: imgspec.Platform{Architecture: "amd64", OS: "linux"}, RootFS: imgspec.RootFS{Type: "layers"}}
	manifest := imgspec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageManifest}
	for _, l := range layers {
		d := blob(imgspec.MediaTypeImageLayer, l.archive(t))
		manifest.Layers = append(manifest.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
	}
	manifest.Config = blob(imgspec.MediaTypeImageConfig, encode(config))
	index := imgspec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []imgspec.Descriptor{blob(imgspec.MediaTypeImageManifest, encode(manifest))}}
	require.NoError(t, os.WriteFile(filepath.Join(dir, imgspec.ImageIndexFile), encode(index), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, imgspec.ImageLayoutFile), encode(imgspec.ImageLayout{Version: imgspec.ImageLayoutVersion}), 0o600))
	return dir
}

// aclValue is a POSIX ACL with one named user and one named group
// (include/uapi/linux/posix_acl_xattr.h).
func aclValue(user, group uint32) string {
	v := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 7, ^uint32(0)}, {2, 4, user}, {4, 5, ^uint32(0)}, {8, 4, group}, {16, 5, ^uint32(0)}, {32, 4, ^uint32(0)}} {
		v = binary.LittleEndian.AppendUint16(v, uint16(e[0]))
		v = binary.LittleEndian.AppendUint16(v, uint16(e[1]))
		v = binary.LittleEndian.AppendUint32(v, e[2])
	}
	return string(v)
}

// capValue is the file capability CAP_NET_BIND_SERVICE, version 2.
func capValue() string {
	v := make([]byte, 20)
	binary.LittleEndian.PutUint32(v, 0x02000001)
	binary.LittleEndian.PutUint32(v[4:], 1<<10)
	return string(v)
}

// nastyLayers is an image of three layers with one of everything that a
// mapping or the merging of layers could get wrong.
func nastyLayers() []layer {
	bottom := layer{
		folder("./", 0o755), folder("d", 0o755), folder("opaque", 0o711), folder("gone", 0o755), folder("meta", 0o700),
		file("d/plain", 0o644, 0, 0, "plain"),
		file("d/setuid", 0o6755, 5, 6, "setuid"),
		file("d/removed", 0o644, 0, 0, "removed"),
		file("d/replaced", 0o644, 0, 0, "from the bottom"),
		file("opaque/hidden", 0o644, 0, 0, "hidden"),
		file("gone/file", 0o644, 0, 0, "gone"),
		file("to-folder", 0o644, 0, 0, "a file that becomes a folder"),
		folder("to-file", 0o755), file("to-file/x", 0o644, 0, 0, "x"),
		file("d/link1", 0o640, 33, 33, "three links"), hardLink("d/link2", "d/link1"), hardLink("meta/link3", "d/link1"),
		file("d/cap", 0o755, 0, 0, "cap").with("security.capability", capValue()),
		file("d/acl", 0o644, 1000, 1000, "acl").with("system.posix_acl_access", aclValue(1000, 33)).with("user.note", "kept"),
		folder("acl-folder", 0o755).with("system.posix_acl_default", aclValue(65533, 0)),
		symlink("d/soft", "/nowhere", 7),
		{Header: tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o620, Uid: 1}},
		{Header: tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}},
		file("outside", 0o644, 70000, 70001, "an owner outside of 65536 IDs"),
		file("d/empty", 0o600, 12, 13, ""),
		file("!first", 0o644, 0, 0, "sorts before a dot"), file("d/odd\xff name", 0o644, 0, 0, "odd"),
		folder("sticky", 0o1777), file(strings.Repeat("n", 255), 0o644, 0, 0, "long"),
	}
	middle := layer{
		folder("d", 0o755), file("d/.wh.removed", 0, 0, 0, ""), file("d/replaced", 0o600, 9, 9, "from the middle"),
		folder("opaque", 0o711), file("opaque/.wh..wh..opq", 0, 0, 0, ""), file("opaque/new", 0o644, 2, 2, "new"),
		file(".wh.gone", 0, 0, 0, ""), file(".wh.to-folder", 0, 0, 0, ""), file(".wh.to-file", 0, 0, 0, ""),
		folder("meta", 0o2750),
	}
	top := layer{
		folder("to-folder", 0o755), file("to-folder/inside", 0o644, 3, 3, "inside"), file("to-file", 0o644, 4, 4, "now a file"),
		folder("d", 0o751), file("d/link2", 0o644, 34, 34, "no link any more"), file("d/removed", 0o644, 8, 8, "back again"),
	}
	return []layer{bottom, middle, top}
}

// smallLayer is a root file system with busybox.
func smallLayer(t *testing.T, busybox string) layer {
	t.Helper()
	program, err := os.ReadFile(busybox)
	require.NoError(t, err)
	l := layer{
		folder("bin", 0o755), folder("etc", 0o755), folder("proc", 0o555), folder("dev", 0o755), folder("tmp", 0o1777),
		file("bin/busybox", 0o755, 0, 0, string(program)),
		file("etc/passwd", 0o644, 0, 0, "root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"),
		file("etc/shadow", 0o640, 0, 42, "secret"),
		file("bin/for-users", 0o4755, 1000, 1000, string(program)),
	}
	for _, name := range []string{"sh", "cat", "id", "ls", "sleep", "stat", "touch", "true"} {
		l = append(l, symlink("bin/"+name, "busybox", 0))
	}
	return l
}

func flag(mapping ...string) []string {
	args := make([]string, 0, 2*len(mapping))
	for _, m := range mapping {
		args = append(args, "--uidmap", m)
	}
	return args
}

// owner is the owner of a path, as UID:GID.
func owner(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st), path)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}
