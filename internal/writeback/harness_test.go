package writeback_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/copyup"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/metacopy"
	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
	"github.com/shiftoverlay/shiftoverlay/internal/writeback"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// compareOptions are for trees of which one was unpacked: all of it counts,
// with the number of names that an inode really has.
var compareOptions = referee.Options{Content: true, MergedNlink: true}

// variant is a way in which a container is mounted.
type variant struct {
	name    string
	options string // of overlay
	mapping string // empty: none
	builder engine.Builder
}

// variants are all ways that make a difference to what is in an upper.
func variants() []variant {
	const on, off = "metacopy=on,redirect_dir=on", "metacopy=off,redirect_dir=on"
	const one, three = "0:200000:65536", "0:300000:500,500:400500:600,1100:700000:65000"
	return []variant{
		{name: "metacopy", options: on},
		{name: "copying", options: off},
		{name: "no redirects", options: "metacopy=off,redirect_dir=nofollow"},
		{name: "rootless", options: "userxattr,redirect_dir=nofollow"},
		{name: "rootless shifted copy", options: "userxattr,redirect_dir=nofollow", mapping: three, builder: copyup.Engine{}},
		{name: "shifted metacopy", options: on, mapping: one, builder: metacopy.Engine{}},
		{name: "shifted copy", options: off, mapping: three, builder: copyup.Engine{}},
		{name: "shifted copy, metacopy", options: on, mapping: three, builder: copyup.Engine{}},
	}
}

// fsType and fsSize are the file system that tests work on: it has a journal,
// unlike some machines' root, and its own inodes.
const (
	fsType = "ext4"
	fsSize = 512 << 20
)

// container is an upper on some layers, mounted.
type container struct {
	t      *testing.T
	dir    string
	lowers []string // container IDs, uppermost first
	upper  string
	merged string
	ops    fsop.Ops // for merged
	shift  *idshift.Shift
	umount func()
	// overlay says whose attributes overlay uses.
	overlay idshift.Namespace
}

// image makes layer folders below dir, lowest first, and returns them
// uppermost first.
func image(t *testing.T, dir string, layers ...func(o fsop.Ops) error) []string {
	t.Helper()
	var out []string
	for i, make := range layers {
		l := filepath.Join(dir, fmt.Sprint("layer", i))
		require.NoError(t, os.MkdirAll(l, 0o755))
		require.NoError(t, os.Chmod(l, 0o755))
		require.NoError(t, make(fsop.Ops{Root: l}))
		out = append([]string{l}, out...)
	}
	return out
}

// start mounts a container on lowers.
func start(t *testing.T, dir string, v variant, lowers []string) *container {
	t.Helper()
	c := &container{t: t, dir: dir, lowers: lowers, upper: filepath.Join(dir, "upper"), merged: filepath.Join(dir, "merged")}
	for _, d := range []string{c.upper, c.merged, filepath.Join(dir, "work")} {
		require.NoError(t, os.MkdirAll(d, 0o755))
		require.NoError(t, os.Chmod(d, 0o755))
	}
	c.ops = fsop.Ops{Root: c.merged}
	if strings.HasPrefix(v.options, "userxattr") {
		c.overlay = idshift.UserOverlay
	}
	mounted := lowers
	if v.mapping != "" {
		m, err := idshift.ParseMapping(v.mapping, v.mapping)
		require.NoError(t, err)
		c.ops.Mapping = m
		forth, err := idshift.NewShift(m, idshift.Overflow)
		require.NoError(t, err)
		c.shift, err = idshift.NewUnshift(m)
		require.NoError(t, err)
		built := filepath.Join(dir, "shifted")
		require.NoError(t, os.MkdirAll(built, 0o700))
		require.NoError(t, v.builder.Build(t.Context(), built, engine.Job{Chain: lowers, Shift: forth, Workers: 1}))
		mounted = append([]string{v.builder.Lower(built)}, lowers...)
		uid, gid, _ := m.ToHost(0, 0)
		require.NoError(t, os.Chown(c.upper, int(uid), int(gid)))
	}
	c.umount = mount(t, c.merged, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s/work,%s", strings.Join(mounted, ":"), c.upper, dir, v.options))
	return c
}

// mount mounts an overlay until the test ends or the result is called.
func mount(t *testing.T, at, options string) (umount func()) {
	t.Helper()
	require.NoError(t, os.MkdirAll(at, 0o755))
	require.NoError(t, unix.Mount("overlay", at, "overlay", 0, options), "mount overlay with %s", options)
	mounted := true
	umount = func() {
		if mounted {
			mounted = false
			require.NoError(t, unix.Unmount(at, 0))
		}
	}
	t.Cleanup(umount)
	return umount
}

// layer is the container's change as Scan wants it.
func (c *container) layer() writeback.Layer {
	return writeback.Layer{Upper: c.upper, Lowers: c.lowers, Shift: c.shift, Overlay: c.overlay}
}

// seen is the tree that the container sees, with container IDs and without
// sockets, which a layer cannot hold.
func (c *container) seen() *referee.Tree {
	c.t.Helper()
	t, err := referee.Scan(c.t.Context(), c.merged, compareOptions)
	require.NoError(c.t, err)
	if c.shift != nil {
		t, err = t.Shift(c.shift)
		require.NoError(c.t, err)
	}
	return t
}

// archive returns the change as a tar.
func archive(t *testing.T, l writeback.Layer) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, writeback.Tar(t.Context(), writeback.Change{Layer: l}, &b))
	return b.Bytes()
}

// items returns the change as a list of text, one line a change.
func items(t *testing.T, l writeback.Layer) []string {
	t.Helper()
	letters := map[writeback.Kind]string{writeback.Modified: "C ", writeback.Added: "A ", writeback.Deleted: "D ", writeback.Emptied: "E "}
	var out []string
	require.NoError(t, writeback.Scan(t.Context(), l, func(it *writeback.Item) error {
		line := letters[it.Kind] + it.Path
		if it.LinkTo != "" {
			line += " = " + it.LinkTo
		}
		if it.MetadataOnly {
			line += " (metadata)"
		}
		if len(it.Gone) > 0 {
			line += " gone: " + strings.Join(it.Gone, " ")
		}
		if it.Implied {
			line += " (implied)"
		}
		out = append(out, line)
		return nil
	}))
	return out
}

// copyImage makes a copy of what the layers show, through a read-only mount.
func (c *container) copyImage(to string) {
	c.t.Helper()
	view := filepath.Join(c.dir, "view")
	empty := filepath.Join(c.dir, "empty")
	require.NoError(c.t, os.MkdirAll(empty, 0o755))
	options := "metacopy=on,redirect_dir=on"
	if c.overlay == idshift.UserOverlay {
		options = "userxattr"
	}
	umount := mount(c.t, view, "lowerdir="+strings.Join(append(slices.Clone(c.lowers), empty), ":")+","+options)
	defer umount()
	out, err := exec.CommandContext(c.t.Context(), "cp", "-a", view, to).CombinedOutput()
	require.NoError(c.t, err, "%s", out)
}

// check compares what the container sees with the image after the change was
// applied to it, and the archive of the mounted upper with that of the
// unmounted one.
func (c *container) check() {
	c.t.Helper()
	want := c.seen()
	first := archive(c.t, c.layer())
	c.umount()
	again := archive(c.t, c.layer())
	assert.True(c.t, bytes.Equal(first, again), "the archive of the same upper is another one")

	applied := filepath.Join(c.dir, "applied")
	c.copyImage(applied)
	require.NoError(c.t, untar(applied, bytes.NewReader(first)))
	got, err := referee.Scan(c.t.Context(), applied, compareOptions)
	require.NoError(c.t, err)
	report(c.t, c.expected(want, referee.Compare(want, got, compareOptions)), c.layer())
}

// report fails the test with the differences.
func report(t *testing.T, differences []referee.Difference, l writeback.Layer) {
	t.Helper()
	if len(differences) == 0 {
		return
	}
	for _, d := range differences[:min(len(differences), 40)] {
		t.Errorf("the container saw != the layer has: %s", d)
	}
	t.Logf("the change:\n%s", strings.Join(items(t, l), "\n"))
}

// expected takes out the differences that must be: a layer holds no sockets;
// overlay shows the attributes of the uppermost root only, so that a new
// container sees none of those of the image's; and a file of the layers below
// that has a new name in a renamed directory cannot stay one inode with its
// names elsewhere.
func (c *container) expected(want *referee.Tree, in []referee.Difference) []referee.Difference {
	c.t.Helper()
	inChange := make(map[string]bool)
	require.NoError(c.t, writeback.Scan(c.t.Context(), c.layer(), func(it *writeback.Item) error {
		inChange[it.Path] = it.Kind <= writeback.Added
		return nil
	}))
	elsewhere := func(p string) bool { return !inChange[p] }
	return slices.DeleteFunc(in, func(d referee.Difference) bool {
		p := d.Path
		if u, err := strconv.Unquote(p); err == nil {
			p = u
		}
		n, ok := want.Lookup(p)
		switch {
		case !ok:
			return false
		case p == referee.RootPath:
			return strings.HasPrefix(d.Attribute, referee.AttrXattr) && d.A == referee.Absent
		case d.Attribute == referee.AttrLinks || d.Attribute == referee.AttrNlink:
			// With userxattr, overlay shows two inode numbers of a file that a
			// container has linked after it was copied up; the upper has one.
			var st unix.Stat_t
			if c.overlay == idshift.UserOverlay && unix.Lstat(filepath.Join(c.upper, p), &st) == nil && int(st.Nlink) > len(n.Links()) { //nolint:gosec // a small number
				return true
			}
			return slices.ContainsFunc(n.Links(), elsewhere) && !slices.ContainsFunc(n.Links(), func(p string) bool { return c.inUpper(p) })
		}
		return n.Mode&unix.S_IFMT == unix.S_IFSOCK && d.B == referee.Absent
	})
}

// inUpper tells whether the upper holds something under a path of its own.
func (c *container) inUpper(p string) bool {
	_, err := os.Lstat(filepath.Join(c.upper, p))
	return err == nil
}

// untar applies a layer to a folder as the OCI image specification says
// (layer.md), in the order in which the tools of this field do it: owner,
// mode, times, attributes; times of directories again at the end.
func untar(root string, r io.Reader) error {
	u := &untarrer{root: root, made: make(map[string]bool), dirs: make(map[string]*tar.Header)}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := u.entry(h, tr); err != nil {
			return fmt.Errorf("unpack %q: %w", h.Name, err)
		}
	}
	names := slices.Sorted(maps.Keys(u.dirs))
	slices.Reverse(names)
	for _, n := range names {
		if err := setTimes(n, u.dirs[n].ModTime); err != nil {
			return err
		}
	}
	return nil
}

type untarrer struct {
	root string
	made map[string]bool
	dirs map[string]*tar.Header
}

func (u *untarrer) entry(h *tar.Header, r io.Reader) error {
	name := filepath.Join(u.root, h.Name)
	dir, base := filepath.Split(name)
	if _, err := os.Lstat(filepath.Clean(dir)); err != nil {
		return fmt.Errorf("the directory above is missing: %w", err)
	}
	if base == ".wh..wh..opq" {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if p := filepath.Join(dir, e.Name()); !u.made[p] {
				if err := os.RemoveAll(p); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if gone, ok := strings.CutPrefix(base, ".wh."); ok {
		if _, err := os.Lstat(dir + gone); err != nil {
			return fmt.Errorf("whiteout of nothing: %w", err)
		}
		return os.RemoveAll(dir + gone)
	}
	u.made[name] = true
	if st, err := os.Lstat(name); err == nil && (!st.IsDir() || h.Typeflag != tar.TypeDir) {
		if err := os.RemoveAll(name); err != nil {
			return err
		}
	}
	if err := u.create(h, name, r); err != nil {
		return err
	}
	return u.attributes(h, name)
}

func (u *untarrer) create(h *tar.Header, name string, r io.Reader) error {
	dev := int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	switch h.Typeflag {
	case tar.TypeDir:
		u.dirs[name] = h
		err := os.Mkdir(name, 0o700)
		if errors.Is(err, os.ErrExist) {
			// A layer above hides all attributes of the one below.
			return dropXattrs(name)
		}
		return err
	case tar.TypeSymlink:
		return os.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return os.Link(filepath.Join(u.root, h.Linkname), name)
	case tar.TypeChar:
		return unix.Mknod(name, unix.S_IFCHR|0o600, dev)
	case tar.TypeBlock:
		return unix.Mknod(name, unix.S_IFBLK|0o600, dev)
	case tar.TypeFifo:
		return unix.Mkfifo(name, 0o600)
	case tar.TypeReg:
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	}
	return fmt.Errorf("type %q", h.Typeflag)
}

func (u *untarrer) attributes(h *tar.Header, name string) error {
	if err := os.Lchown(name, h.Uid, h.Gid); err != nil {
		return err
	}
	st, err := os.Lstat(name)
	if err != nil {
		return err
	}
	if st.Mode()&os.ModeSymlink == 0 {
		if err := unix.Chmod(name, uint32(h.Mode)); err != nil {
			return err
		}
	}
	if err := setTimes(name, h.ModTime); err != nil {
		return err
	}
	for k, v := range h.PAXRecords {
		if x, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if err := unix.Lsetxattr(name, x, []byte(v), 0); err != nil {
				return fmt.Errorf("setxattr %s: %w", x, err)
			}
		}
	}
	return nil
}

func dropXattrs(name string) error {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(name, buf)
	if err != nil {
		return err
	}
	for x := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if strings.HasPrefix(x, "user.") || strings.HasPrefix(x, "system.posix_acl") {
			if err := unix.Lremovexattr(name, x); err != nil {
				return err
			}
		}
	}
	return nil
}

func setTimes(name string, t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// place returns a folder for a test, until the test ends. A mount option
// cannot hold every name.
func place(t *testing.T, fs, name string) string {
	t.Helper()
	dir := filepath.Join(fs, strings.NewReplacer("/", "_", " ", "_", ",", "", ":", "").Replace(name))
	require.NoError(t, os.MkdirAll(dir, 0o755))
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// eachVariant runs a test on every variant, each in a folder of its own.
func eachVariant(t *testing.T, test func(t *testing.T, v variant, dir string)) {
	testutil.RequireRoot(t)
	fs := testutil.LoopFS(t, fsType, fsSize)
	for _, v := range variants() {
		t.Run(v.name, func(t *testing.T) { test(t, v, place(t, fs, v.name)) })
	}
}

// unpack applies a change to a folder, which is made if it does not exist.
func unpack(t *testing.T, to string, c writeback.Change) error {
	t.Helper()
	var b bytes.Buffer
	if err := writeback.Tar(t.Context(), c, &b); err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	return untar(to, &b)
}
